//! A warp: its registers, and where its lanes are. Lanes that are at one place with nothing to wait for form a *group* and
//! execute together. A branch on which they disagree splits a group; groups that meet become one again. The group with
//! the lowest program counter goes first, since code that comes together again does so further down.

use super::context::Local;
use super::registers::{LANES, Registers, lanes};

/// What a group of lanes waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    Nothing,
    /// The other lanes of this member mask.
    Members(u32),
    /// All lanes that are still there.
    Aligned,
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
    /// Whether the group that ran last lets others go first.
    pub(crate) yielded: bool,
    /// Steps since one last did.
    pub(crate) since_yield: u64,
    /// How often a starved group was chosen, and for each lane when it last was in one.
    pub(crate) turn: u64,
    pub(crate) last_turn: [u64; LANES],
}

/// Which group runs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// That with the lowest program counter.
    Lowest,
    /// That with the lane that has waited longest, so that none waits for ever for a lane of its own warp.
    Starved,
    /// That of this number, modulo their number.
    Drawn(u64),
}

impl Warp {
    pub(crate) fn new(threads: usize) -> Self {
        let lanes = if threads >= LANES { u32::MAX } else { (1 << threads) - 1 };
        let (registers, local) = (Registers::default(), Local::default());
        let last_turn = [0; LANES];
        Self {
            registers,
            local,
            groups: Vec::new(),
            lanes,
            exited: 0,
            priority: 0,
            yielded: false,
            since_yield: 0,
            turn: 0,
            last_turn,
        }
    }

    /// Lanes that are still there.
    pub(crate) fn alive(&self) -> u32 {
        self.lanes & !self.exited
    }

    /// Joins groups that are at one place and wait for the same, and returns the index of the one to run.
    pub(crate) fn pick(&mut self, choice: Choice) -> Option<usize> {
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
        let alive = self.alive();
        if let Some(whole) = self.groups.iter_mut().find(|group| group.wait == Wait::Aligned && group.mask == alive) {
            whole.wait = Wait::Nothing;
        }
        let mut free = self.groups.iter().enumerate().filter(|(_, group)| group.wait == Wait::Nothing);
        let chosen = match choice {
            Choice::Lowest => free.min_by_key(|(_, group)| group.pc)?.0,
            Choice::Drawn(drawn) => {
                let count = free.clone().count().max(1);
                free.nth((drawn % count as u64) as usize)?.0
            }
            Choice::Starved => {
                let last_turn = &self.last_turn;
                let longest = |group: &Group| lanes(group.mask).map(|lane| last_turn[lane]).min();
                free.min_by_key(|(_, group)| longest(group))?.0
            }
        };
        if choice == Choice::Starved {
            self.turn += 1;
            lanes(self.groups[chosen].mask).for_each(|lane| self.last_turn[lane] = self.turn);
        }
        Some(chosen)
    }

    /// Whether a group could run.
    pub(crate) fn is_runnable(&self) -> bool {
        self.groups.iter().any(|group| group.wait == Wait::Nothing && group.mask != 0)
    }
}
