//! What one thread knows: which accesses of its own thread block and of others are ordered before whatever it does next.

use super::frontier::Frontier;
use std::collections::HashMap;
use std::sync::Arc;

/// Frontiers of thread blocks by their linear index.
pub(super) type Frontiers = HashMap<u32, Arc<Frontier>>;

/// What one thread knows. Cheap to clone: threads that synchronized together share all of it.
#[derive(Clone, Debug)]
pub(super) struct Knowledge {
    /// Of the threads of its own block. What it did itself it always knows, whatever stands here.
    pub(super) frontier: Arc<Frontier>,
    /// Every thread of the block is known at least up to here.
    pub(super) floor: u32,
    /// Of other blocks.
    pub(super) foreign: Option<Arc<Frontiers>>,
}

impl Knowledge {
    /// That of a thread which has not met anybody.
    pub(super) fn none() -> Self {
        Self { frontier: Arc::new(Frontier::constant(0)), floor: 0, foreign: None }
    }

    /// This knowledge with another frontier; `engine` is the first index that is not a thread.
    pub(super) fn with(&self, frontier: Frontier, engine: u32) -> Self {
        let floor = frontier.floor(engine);
        Self { frontier: Arc::new(frontier), floor, foreign: self.foreign.clone() }
    }

    /// Adds what `other`, of the same block, knows.
    pub(super) fn join(&mut self, other: &Self, engine: u32) {
        self.join_frontier(&other.frontier, engine);
        if let Some(foreign) = &other.foreign {
            self.join_foreign(foreign);
        }
    }

    /// Adds what is known of the own block elsewhere.
    pub(super) fn join_frontier(&mut self, other: &Arc<Frontier>, engine: u32) {
        join(&mut self.frontier, other);
        self.floor = self.frontier.floor(engine);
    }

    /// Adds what is known of other blocks elsewhere.
    pub(super) fn join_foreign(&mut self, other: &Arc<Frontiers>) {
        match &mut self.foreign {
            Some(mine) => join_all(mine, other),
            none => *none = Some(Arc::clone(other)),
        }
    }
}

/// Joins two shared frontiers, sharing the result where one of them is it.
fn join(mine: &mut Arc<Frontier>, other: &Arc<Frontier>) {
    if Arc::ptr_eq(mine, other) || other.within(mine) {
        return;
    }
    *mine = if mine.within(other) { Arc::clone(other) } else { Arc::new(mine.join(other)) };
}

/// Joins the frontier of one block into those of many.
pub(super) fn join_one(all: &mut Frontiers, block: u32, frontier: &Arc<Frontier>) {
    match all.get_mut(&block) {
        Some(mine) => join(mine, frontier),
        None => {
            all.insert(block, Arc::clone(frontier));
        }
    }
}

/// Joins frontiers of many blocks, copying neither side where it is not needed.
pub(super) fn join_all(mine: &mut Arc<Frontiers>, other: &Arc<Frontiers>) {
    if Arc::ptr_eq(mine, other) {
        return;
    }
    let (mut larger, smaller) =
        if mine.len() >= other.len() { (Arc::clone(mine), other) } else { (Arc::clone(other), &*mine) };
    let news = |(block, frontier): &(&u32, &Arc<Frontier>)| {
        larger.get(*block).is_none_or(|known| !Arc::ptr_eq(known, frontier) && !frontier.within(known))
    };
    let news: Vec<_> = smaller.iter().filter(news).map(|(block, frontier)| (*block, Arc::clone(frontier))).collect();
    if !news.is_empty() {
        let all = Arc::make_mut(&mut larger);
        for (block, frontier) in &news {
            join_one(all, *block, frontier);
        }
    }
    *mine = larger;
}
