//! A warp: its registers, and where its lanes are. Lanes that are at one place with nothing to wait for form a *group* and
//! execute together. A branch on which they disagree splits a group; groups that meet become one again. The group with
//! the lowest program counter goes first, since code that comes together again does so further down.

use super::context::Local;
use super::registers::{LANES, Registers};

/// What a group of lanes waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    Nothing,
    /// The other lanes of this member mask.
    Members(u32),
    /// A barrier of the thread block.
    Barrier(usize),
}

/// Lanes at one place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    pub(crate) pc: usize,
    pub(crate) mask: u32,
    pub(crate) wait: Wait,
}

/// A warp.
#[derive(Clone, Debug)]
pub(crate) struct Warp {
    pub(crate) registers: Registers,
    pub(crate) local: Local,
    pub(crate) groups: Vec<Group>,
    /// Lanes that have a thread.
    pub(crate) lanes: u32,
    pub(crate) exited: u32,
    pub(crate) priority: u64,
}

impl Warp {
    pub(crate) fn new(threads: usize) -> Self {
        let lanes = if threads >= LANES { u32::MAX } else { (1 << threads) - 1 };
        let (registers, local) = (Registers::default(), Local::default());
        Self { registers, local, groups: Vec::new(), lanes, exited: 0, priority: 0 }
    }

    /// Lanes that are still there.
    pub(crate) fn alive(&self) -> u32 {
        self.lanes & !self.exited
    }

    /// Joins groups that are at one place and wait for nothing, and returns the index of the one to run: that with the
    /// lowest program counter, or with `turn` another one, so that none waits for ever for a lane of its own warp.
    pub(crate) fn pick(&mut self, turn: Option<u64>) -> Option<usize> {
        self.groups.retain(|group| group.mask != 0);
        let mut index = 0;
        while index < self.groups.len() {
            let mut other = index + 1;
            while other < self.groups.len() {
                let (a, b) = (self.groups[index], self.groups[other]);
                if a.pc == b.pc && a.wait == b.wait {
                    self.groups[index].mask |= b.mask;
                    self.groups.swap_remove(other);
                } else {
                    other += 1;
                }
            }
            index += 1;
        }
        let free = |group: &Group| group.wait == Wait::Nothing;
        if let Some(turn) = turn {
            let count = self.groups.iter().filter(|group| free(group)).count();
            let chosen = (turn % count.max(1) as u64) as usize;
            return self.groups.iter().enumerate().filter(|(_, group)| free(group)).nth(chosen).map(|(index, _)| index);
        }
        let runnable = self.groups.iter().enumerate().filter(|(_, group)| free(group));
        runnable.min_by_key(|(_, group)| group.pc).map(|(index, _)| index)
    }

    /// Whether a group could run.
    pub(crate) fn is_runnable(&self) -> bool {
        self.groups.iter().any(|group| group.wait == Wait::Nothing && group.mask != 0)
    }
}
