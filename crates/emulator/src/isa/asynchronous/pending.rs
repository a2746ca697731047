//! What a thread block has under way.

use super::barrier;
use super::bulk::Transfer;
use super::copy::Copies;
use crate::machine::Fault;
use crate::machine::context::Context;
use crate::machine::registers::{LANES, lanes, mask_of};

/// Copies that were issued and not carried out.
#[derive(Clone, Debug, Default)]
pub struct Pending {
    warps: Vec<Warp>,
    /// What completes an mbarrier, in the order of issue.
    signals: Vec<Signal>,
}

/// Copies of a warp that are waited for by groups.
#[derive(Clone, Debug, Default)]
struct Warp {
    copies: Vec<Copies>,
    /// Copy instructions issued so far.
    issued: u64,
    /// Number of the group that a lane's copies go to.
    group: [u32; LANES],
    transfers: Vec<(u32, Transfer)>,
    /// The same for bulk copies.
    bulk_group: [u32; LANES],
}

/// What is done when somebody tests an mbarrier that is not complete.
#[derive(Clone, Debug)]
struct Signal {
    /// Offset of the mbarrier in shared memory.
    barrier: u64,
    /// Warp that issued it, and at which operation.
    warp: usize,
    pc: usize,
    action: Action,
}

#[derive(Clone, Debug)]
enum Action {
    /// `cp.async.mbarrier.arrive`: these lanes arrive once all copies that they had issued by then are over; copies of
    /// the warp are told apart by how many there had been.
    Arrive { mask: u32, before: u64 },
    /// A bulk copy, which counts its bytes as transferred.
    Transfer(Transfer),
}

/// How a lane waits for groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Until at most so many groups are pending.
    Groups(u32),
    /// For everything, groups not committed included.
    All,
}

impl Pending {
    /// Nothing, for a block of so many threads.
    pub fn new(threads: usize) -> Self {
        Self { warps: vec![Warp::default(); threads.div_ceil(LANES)], signals: Vec::new() }
    }

    /// Whether nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.signals.is_empty() && self.warps.iter().all(|warp| warp.copies.is_empty() && warp.transfers.is_empty())
    }

    /// Lanes of a warp exit: what they have under way is dropped, unless an mbarrier waits for it.
    pub fn exit(&mut self, warp: usize, mask: u32) {
        let signals = &self.signals;
        let awaited = signals.iter().filter(|signal| signal.warp == warp).fold(0, |all, signal| match signal.action {
            Action::Arrive { mask, .. } => all | mask,
            Action::Transfer(_) => all,
        });
        let Some(warp) = self.warps.get_mut(warp) else { return };
        warp.copies.retain_mut(|copies| {
            copies.mask &= !(mask & !awaited);
            copies.mask != 0
        });
        warp.transfers.retain(|(_, transfer)| mask >> transfer.lane & 1 == 0);
    }

    /// Adds copies of a warp to the open groups of their lanes.
    pub(super) fn issue(&mut self, warp: usize, mut copies: Copies) {
        let Some(warp) = self.warps.get_mut(warp) else { return };
        copies.group = warp.group;
        copies.number = warp.issued;
        warp.issued += 1;
        warp.copies.push(copies);
    }

    /// Closes the open groups of lanes.
    pub(super) fn commit(&mut self, warp: usize, mask: u32) {
        let Some(warp) = self.warps.get_mut(warp) else { return };
        for lane in lanes(mask) {
            warp.group[lane] += 1;
        }
    }

    /// Adds a bulk copy to the open bulk group of its lane.
    pub(super) fn issue_bulk(&mut self, warp: usize, transfer: Transfer) {
        let Some(warp) = self.warps.get_mut(warp) else { return };
        warp.transfers.push((warp.bulk_group[transfer.lane], transfer));
    }

    /// Closes the open bulk groups of lanes.
    pub(super) fn commit_bulk(&mut self, warp: usize, mask: u32) {
        let Some(warp) = self.warps.get_mut(warp) else { return };
        for lane in lanes(mask) {
            warp.bulk_group[lane] += 1;
        }
    }

    /// Adds a bulk copy that completes an mbarrier.
    pub(super) fn signal_transfer(&mut self, barrier: u64, warp: usize, pc: usize, transfer: Transfer) {
        self.signals.push(Signal { barrier, warp, pc, action: Action::Transfer(transfer) });
    }

    /// Lets lanes arrive at an mbarrier once the copies that they have issued are over.
    pub(super) fn signal_arrival(&mut self, barrier: u64, warp: usize, pc: usize, mask: u32) {
        let before = self.warps.get(warp).map_or(0, |warp| warp.issued);
        self.signals.push(Signal { barrier, warp, pc, action: Action::Arrive { mask, before } });
    }
}

/// Carries out copies of the warp that executes: those that `wait` covers.
pub(super) fn wait(context: &mut Context<'_>, mask: u32, wait: Wait) {
    let index = context.first_thread / LANES;
    let Some(warp) = context.pending.warps.get(index) else { return };
    let limits: [u32; LANES] = match wait {
        Wait::All => [u32::MAX; LANES],
        Wait::Groups(allowed) => warp.group.map(|open| open.saturating_sub(allowed)),
    };
    land(context, index, mask, false, |copies, lane| copies.group[lane] < limits[lane]);
}

/// Carries out those copies of a warp, in the order of issue, for whose lanes in `mask` `due` holds; `by_engine` if an
/// mbarrier tells of it.
fn land(context: &mut Context<'_>, index: usize, mask: u32, by_engine: bool, due: impl Fn(&Copies, usize) -> bool) {
    let Some(warp) = context.pending.warps.get_mut(index) else { return };
    let mut list = std::mem::take(&mut warp.copies);
    for copies in &mut list {
        let landing = mask & copies.mask & mask_of(|lane| due(copies, lane));
        if landing != 0 {
            copies.mask &= !landing;
            copies.land(context, landing, by_engine);
        }
    }
    list.retain(|copies| copies.mask != 0);
    // Landing issues nothing new.
    if let Some(warp) = context.pending.warps.get_mut(index) {
        warp.copies = list;
    }
}

/// Carries out bulk copies of the warp that executes: all but those of the last `allowed` bulk groups.
pub(super) fn wait_bulk(context: &mut Context<'_>, mask: u32, allowed: u32) -> Result<(), Fault> {
    let index = context.first_thread / LANES;
    let Some(warp) = context.pending.warps.get_mut(index) else { return Ok(()) };
    let limits = warp.bulk_group.map(|open| open.saturating_sub(allowed));
    let mut due = Vec::new();
    warp.transfers.retain(|(group, transfer)| {
        let is_due = mask >> transfer.lane & 1 == 1 && *group < limits[transfer.lane];
        if is_due {
            due.push(transfer.clone());
        }
        !is_due
    });
    due.iter()
        .try_for_each(|transfer| super::on_behalf(context, index, transfer.pc, |context| transfer.carry_out(context)))
}

/// Does all that completes the mbarrier at `barrier`, in the order of issue.
pub(super) fn settle(context: &mut Context<'_>, barrier: u64) -> Result<(), Fault> {
    let mut due = Vec::new();
    context.pending.signals.retain(|signal| {
        let is_due = signal.barrier == barrier;
        if is_due {
            due.push(signal.clone());
        }
        !is_due
    });
    for Signal { warp, pc, action, .. } in due {
        super::on_behalf(context, warp, pc, |context| match action {
            Action::Arrive { mask, before } => {
                land(context, warp, mask, true, |copies, _| copies.number < before);
                barrier::signal(context, mask, barrier, barrier::Signal::Arrival)
            }
            Action::Transfer(transfer) => {
                transfer.carry_out(context)?;
                barrier::signal(context, 1 << transfer.lane, barrier, barrier::Signal::Bytes(transfer.bytes()))
            }
        })?;
    }
    Ok(())
}
