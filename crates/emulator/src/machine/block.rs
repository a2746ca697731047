//! A thread block: its warps, which of them runs next, its shared memory and its barriers.

use super::barrier::{Arrival, Barriers};
use super::context::Context;
use super::launch::{Environment, Failure};
use super::random::Random;
use super::registers::{LANES, W, lanes};
use super::shared::BlockMemory;
use super::warp::{Choice, Group, Wait, Warp};
use super::{Fault, Flow};
use crate::isa::asynchronous::Pending;
use crate::isa::control;
use crate::isa::{Op, warp};
use crate::profile::Counters;
use crate::program::Special;
use crate::report::Kind;

/// How a block stands after a quantum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// All its threads have exited.
    Finished,
    /// It has more to do.
    Working,
    /// Its warps only looked whether what they wait for has come.
    Waiting,
}

/// How a warp stands after its turn.
enum Turn {
    /// It could go on.
    Spent,
    /// It lets others go first.
    Yielded,
    /// No lane can go on, or none is left.
    Blocked,
}

/// Steps of a warp's turn, where the order is not random.
const TURN: u64 = 1 << 14;

/// Steps after which the groups of a warp that is split take turns.
const PATIENCE: u64 = 1 << 12;

/// Turns in a row that only yield, after which a block is parked.
const IDLE: u32 = 1 << 10;

/// A thread block.
pub(crate) struct ThreadBlock<'a> {
    environment: &'a Environment<'a>,
    memory: BlockMemory,
    pending: Pending,
    barriers: Barriers,
    warps: Vec<Warp>,
    /// Whether no lane of the warp can go on before something wakes it.
    blocked: Vec<bool>,
    current: usize,
    random: Option<Random>,
    steps: u64,
    /// [`BlockMemory::writes`] when it was last asked for.
    writes_seen: u64,
    /// What [`super::launch`] saw of the others when this block was last parked, and how often that was all.
    pub(crate) progress_seen: u64,
    pub(crate) barren_rounds: u32,
}

impl<'a> ThreadBlock<'a> {
    /// The block of this number, before its first step.
    pub(crate) fn new(environment: &'a Environment<'a>, number: u64) -> Self {
        let launch = environment.launch;
        let threads = launch.threads();
        let warps: Vec<_> =
            (0..threads.div_ceil(LANES)).map(|warp| Warp::new((threads - warp * LANES).min(LANES))).collect();
        let mut block = Self {
            environment,
            memory: BlockMemory::new(launch),
            pending: Pending::new(threads),
            barriers: Barriers::default(),
            blocked: vec![false; warps.len()],
            warps,
            current: 0,
            random: None,
            steps: 0,
            writes_seen: 0,
            progress_seen: 0,
            barren_rounds: 0,
        };
        block.restart(number);
        block
    }

    /// Becomes the block of this number, before its first step.
    pub(crate) fn restart(&mut self, number: u64) {
        let launch = self.environment.launch;
        self.memory.restart(number);
        self.pending = Pending::new(launch.threads());
        self.barriers = Barriers::default();
        self.blocked.fill(false);
        (self.current, self.progress_seen, self.barren_rounds) = (0, 0, 0);
        let seed = launch.options.seed.map(|seed| seed ^ launch.number.rotate_left(32) ^ number.rotate_left(16));
        self.random = seed.map(Random::new);
        for index in 0..self.warps.len() {
            let warp = &mut self.warps[index];
            warp.registers.restart(&launch.program.registers);
            warp.local.restart(launch.program.local, launch.options.uninitialized);
            (warp.exited, warp.yielded, warp.turn, warp.since_yield) = (0, false, 0, 0);
            warp.last_turn = [0; LANES];
            warp.groups.clear();
            warp.groups.push(Group { pc: 0, mask: warp.lanes, wait: Wait::Nothing });
            warp.priority = self.random.as_mut().map_or(0, Random::next);
            for &(special, register) in &launch.program.specials {
                self.fill(index, special, register);
            }
        }
    }

    /// Fills a register of a warp with a special value.
    fn fill(&mut self, warp: usize, special: Special, register: W) {
        let launch = self.environment.launch;
        let first = warp * LANES;
        let number = self.memory.number;
        let id = |lane: usize| self.environment.thread(number, first + lane);
        let same = |value: u32| [value; LANES];
        let axis = |values: [u32; 3], axis: usize| values.get(axis).copied().unwrap_or(0);
        let values = match special {
            Special::Tid(dimension) => {
                let [x, y, _] = launch.block.map(|side| side.max(1));
                // The threads of a warp are counted on: a division for each would be most of what a short kernel costs.
                let mut at = id(0).thread;
                std::array::from_fn(|_| {
                    let value = axis(at, dimension);
                    at[0] += 1;
                    if at[0] == x {
                        at = [0, at[1] + 1, at[2]];
                    }
                    if at[1] == y {
                        at = [at[0], 0, at[2] + 1];
                    }
                    value
                })
            }
            Special::NTid(dimension) => same(axis(launch.block, dimension)),
            Special::CtaId(dimension) => same(axis(id(0).block, dimension)),
            Special::NCtaId(dimension) => same(axis(launch.grid, dimension)),
            Special::LaneId => std::array::from_fn(|lane| lane as u32),
            Special::WarpId => same(warp as u32),
            Special::NWarpId => same(self.warps.len() as u32),
            Special::SmId => same((number % u64::from(launch.options.multiprocessors.max(1))) as u32),
            Special::NSmId => same(launch.options.multiprocessors),
            Special::GridId => same(launch.number as u32),
            Special::LaneMaskEq => std::array::from_fn(|lane| 1 << lane),
            Special::LaneMaskLt => std::array::from_fn(|lane| (1 << lane) - 1),
            Special::LaneMaskLe => std::array::from_fn(|lane| u32::MAX >> (31 - lane)),
            Special::LaneMaskGe => std::array::from_fn(|lane| u32::MAX << lane),
            Special::LaneMaskGt => std::array::from_fn(|lane| u32::MAX << lane & !(1 << lane)),
            Special::DynamicSharedSize => same(launch.dynamic_shared as u32),
            Special::TotalSharedSize => same(launch.shared() as u32),
            Special::WorkspaceLow => same(self.environment.workspace as u32),
            Special::WorkspaceHigh => same((self.environment.workspace >> 32) as u32),
            Special::Zero => same(0),
            Special::One => same(1),
        };
        self.warps[warp].registers.set_word(register, u32::MAX, &values);
    }

    /// Steps since the last call.
    pub(crate) fn take_steps(&mut self) -> u64 {
        std::mem::take(&mut self.steps)
    }

    /// Whether it has written to memory since the last call.
    pub(crate) fn take_wrote(&mut self) -> bool {
        std::mem::replace(&mut self.writes_seen, self.memory.writes) != self.memory.writes
    }

    /// What was counted.
    pub(crate) fn counters(&self) -> Option<&Counters> {
        self.memory.counters.as_ref()
    }

    /// A failure of this block where its first waiting warp is.
    pub(crate) fn failure(&self, fault: Fault) -> Failure {
        let (index, group) = self
            .warps
            .iter()
            .enumerate()
            .find_map(|(index, warp)| warp.groups.first().map(|group| (index, *group)))
            .unwrap_or((0, Group { pc: 0, mask: 1, wait: Wait::Nothing }));
        let lane = group.mask.trailing_zeros() as usize % LANES;
        let fault = Fault { lane: fault.lane.or(Some(lane)), ..fault };
        Failure { fault, pc: group.pc, block: self.memory.number, first_thread: index * LANES }
    }

    /// Runs warps in turn, until all have exited or `quantum` steps are spent.
    pub(crate) fn run(&mut self, quantum: u64) -> Result<Status, Failure> {
        let end = self.steps + quantum;
        let mut idle = 0;
        while self.steps < end {
            let Some(index) = self.next_warp() else {
                if self.warps.iter().all(|warp| warp.alive() == 0) {
                    return Ok(Status::Finished);
                }
                return Err(self.deadlock());
            };
            let budget = match &mut self.random {
                Some(random) => {
                    if random.below(4) == 0 {
                        self.warps[index].priority = random.next();
                    }
                    1 + random.below(96)
                }
                None => TURN,
            };
            let (writes, steps) = (self.memory.writes, self.steps);
            let turn = self.turn(index, budget)?;
            let warp = &mut self.warps[index];
            warp.since_yield += self.steps - steps;
            // A warp that goes on for long without yielding computes something, and so does one whose other lanes do.
            if self.memory.writes != writes || warp.since_yield > PATIENCE / 2 {
                idle = 0;
            }
            match turn {
                Turn::Blocked => {
                    self.blocked[index] = !warp.is_runnable();
                    idle = 0;
                }
                Turn::Yielded => {
                    warp.since_yield = 0;
                    idle += 1;
                }
                Turn::Spent => {}
            }
            if idle > IDLE {
                return Ok(Status::Waiting);
            }
        }
        Ok(Status::Working)
    }

    /// The warp that runs next: in turn, or where the order is random, the one with the highest priority.
    fn next_warp(&mut self) -> Option<usize> {
        let count = self.warps.len();
        if self.random.is_some() {
            let runnable = (0..count).filter(|&index| !self.blocked[index]);
            return runnable.max_by_key(|&index| self.warps[index].priority);
        }
        let start = self.current + 1;
        let next = (start..start + count).map(|index| index % count).find(|&index| !self.blocked[index])?;
        self.current = next;
        Some(next)
    }

    /// What all threads wait for, when none can go on.
    fn deadlock(&self) -> Failure {
        let mut waits = Vec::new();
        let mut at_barrier = false;
        for (index, warp) in self.warps.iter().enumerate() {
            for group in &warp.groups {
                let lines = self.environment.launch.program.places.get(group.pc).map_or(0, |place| place.ptx_line);
                let threads = group.mask.count_ones();
                waits.push(match group.wait {
                    Wait::Barrier(barrier) => {
                        at_barrier = true;
                        format!("{threads} threads of warp {index} wait at barrier {barrier} (PTX line {lines})")
                    }
                    Wait::Members(members) => {
                        let missing = members & warp.alive() & !group.mask;
                        // Lanes that name the same mask and have not met are at operations that are not the same.
                        let same = |other: &&Group| other.wait == group.wait && other.pc != group.pc;
                        let elsewhere = warp.groups.iter().filter(same).fold(0, |all, other| all | other.mask);
                        let differs = match elsewhere & missing {
                            0 => String::new(),
                            lanes => format!(", of which {lanes:#x} execute another operation"),
                        };
                        format!(
                            "lanes {:#x} of warp {index} wait for lanes {missing:#x} of mask {members:#x}{differs} (PTX \
                             line {lines})",
                            group.mask
                        )
                    }
                    Wait::Aligned => {
                        at_barrier = true;
                        let mask = group.mask;
                        format!("an aligned instruction is reached by the lanes {mask:#010x} only of warp {index} (PTX line {lines})")
                    }
                    Wait::Nothing => continue,
                });
            }
        }
        let shown = waits.len().min(4);
        let more = waits.len() - shown;
        let mut message = waits[..shown].join("; ");
        if more > 0 {
            message.push_str(&format!("; and {more} more"));
        }
        let exited: u32 = self.warps.iter().map(|warp| warp.exited.count_ones()).sum();
        if exited > 0 {
            message.push_str(&format!("; {exited} threads have exited"));
        }
        self.failure(Fault::warp(if at_barrier { Kind::Barrier } else { Kind::Deadlock }, message))
    }

    /// Lets a warp run for at most `budget` steps.
    fn turn(&mut self, index: usize, budget: u64) -> Result<Turn, Failure> {
        let block = self.memory.number;
        let mut pc = 0;
        let result = self.steps_of(index, budget, &mut pc);
        result.map_err(|fault| Failure { fault, pc, block, first_thread: index * LANES })
    }

    fn steps_of(&mut self, index: usize, budget: u64, at: &mut usize) -> Result<Turn, Fault> {
        let program = self.environment.launch.program;
        let mut left = budget;
        // What lanes of a warp wait for when they yield may be others of it.
        let mut split_steps = if std::mem::take(&mut self.warps[index].yielded) { PATIENCE + 1 } else { 0 };
        'groups: loop {
            let choice = if split_steps > PATIENCE {
                split_steps = 0;
                Choice::Starved
            } else {
                let is_split = self.warps[index].groups.len() > 1;
                match self.random.as_mut().filter(|_| is_split).map(Random::next) {
                    Some(drawn) if drawn % 8 == 0 => Choice::Drawn(drawn / 8),
                    _ => Choice::Lowest,
                }
            };
            let Some(chosen) = self.warps[index].pick(choice) else { return Ok(Turn::Blocked) };
            let warp = &mut self.warps[index];
            let Group { mut pc, mask, .. } = warp.groups[chosen];
            // The next place at which another group waits to be joined.
            let is_other = |&(number, group): &(usize, &Group)| number != chosen && group.wait == Wait::Nothing;
            let others = || warp.groups.iter().enumerate().filter(is_other).map(|(_, group)| group.pc);
            let join = others().filter(|&other| other >= pc).min().unwrap_or(usize::MAX);
            let is_split = warp.groups.len() > 1;
            loop {
                *at = pc;
                if left == 0 {
                    self.warps[index].groups[chosen].pc = pc;
                    return Ok(Turn::Spent);
                }
                left -= 1;
                self.steps += 1;
                split_steps += u64::from(is_split);
                let step = &program.steps[pc];
                let warp = &mut self.warps[index];
                let active = match step.guard {
                    None => mask,
                    Some((predicate, negated)) => {
                        mask & (warp.registers.predicate(predicate) ^ if negated { u32::MAX } else { 0 })
                    }
                };
                if let Some(counters) = &mut self.memory.counters {
                    counters.execute(pc as u32, active);
                }
                match &step.op {
                    Op::Control(control::Op::Branch(target)) => {
                        if let Some(counters) = &mut self.memory.counters {
                            counters.branch(pc as u32, active != mask && active != 0);
                        }
                        if active == mask {
                            pc = *target;
                        } else if active == 0 {
                            pc += 1;
                        } else {
                            warp.groups[chosen] = Group { pc: pc + 1, mask: mask & !active, wait: Wait::Nothing };
                            warp.groups.push(Group { pc: *target, mask: active, wait: Wait::Nothing });
                            continue 'groups;
                        }
                        if is_split && (pc >= join || split_steps > PATIENCE) {
                            self.warps[index].groups[chosen].pc = pc;
                            continue 'groups;
                        }
                        // A jump backwards may pass groups that wait further up.
                        continue;
                    }
                    _ if active == 0 => pc += 1,
                    Op::Control(op) => {
                        self.warps[index].groups[chosen].pc = pc;
                        match self.control(index, chosen, op, active)? {
                            Some(Flow::Next) => pc += 1,
                            Some(Flow::Yield) => {
                                self.warps[index].groups[chosen].pc = pc + 1;
                                self.warps[index].yielded = true;
                                return Ok(Turn::Yielded);
                            }
                            None => continue 'groups,
                        }
                    }
                    Op::Warp(op) if op.members.is_some() => {
                        self.warps[index].groups[chosen].pc = pc;
                        if !self.together(index, chosen, op, active)? {
                            continue 'groups;
                        }
                        pc += 1;
                    }
                    // Lanes that parted on the way to an instruction of the whole warp meet there at the latest: ptxas lets
                    // them, wherever their paths join.
                    Op::Matrix(_) if active == mask && mask != warp.alive() => {
                        warp.groups[chosen] = Group { pc, mask, wait: Wait::Aligned };
                        continue 'groups;
                    }
                    op => {
                        let mut context = Context {
                            registers: &mut warp.registers,
                            pending: &mut self.pending,
                            first_thread: index * LANES,
                            pc,
                            block: &mut self.memory,
                            local: &mut warp.local,
                            environment: self.environment,
                        };
                        let flow = op.execute(&mut context, active)?;
                        pc += 1;
                        if flow == Flow::Yield {
                            self.warps[index].groups[chosen].pc = pc;
                            self.warps[index].yielded = true;
                            return Ok(Turn::Yielded);
                        }
                    }
                }
                if pc >= join {
                    self.warps[index].groups[chosen].pc = pc;
                    continue 'groups;
                }
            }
        }
    }

    /// Carries out a control operation other than a branch for the lanes in `active` of a group, whose program counter is
    /// stored. `None`: the group has changed.
    fn control(&mut self, index: usize, chosen: usize, op: &control::Op, active: u32) -> Result<Option<Flow>, Fault> {
        let warp = &mut self.warps[index];
        let Group { pc, mask, .. } = warp.groups[chosen];
        match op {
            control::Op::Branch(_) | control::Op::Nothing => {}
            control::Op::BranchIndexed(register, targets) => {
                let selected = warp.registers.word(*register);
                warp.groups[chosen] = Group { pc: pc + 1, mask: mask & !active, wait: Wait::Nothing };
                for lane in lanes(active) {
                    let Some(&target) = targets.get(selected[lane] as usize) else {
                        let message = format!("branches to target {} of {}", selected[lane], targets.len());
                        return Err(Fault::lane(Kind::Undefined, lane, message));
                    };
                    warp.groups.push(Group { pc: target, mask: 1 << lane, wait: Wait::Nothing });
                }
                return Ok(None);
            }
            control::Op::Exit => {
                warp.exited |= active;
                warp.groups[chosen] = Group { pc: pc + 1, mask: mask & !active, wait: Wait::Nothing };
                self.pending.exit(index, active);
                self.complete_members(index)?;
                self.complete_barriers();
                return Ok(None);
            }
            control::Op::Trap => {
                let lane = active.trailing_zeros() as usize % LANES;
                return Err(Fault::lane(Kind::Trap, lane, "executes trap"));
            }
            control::Op::Pause => return Ok(Some(Flow::Yield)),
            control::Op::Fence(reach) => {
                // Blocks run on several threads of the host, which must see each other's accesses in this order too.
                std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
                self.memory.fence(index, active, *reach);
            }
            control::Op::Barrier(number, count, kind, aligned) => {
                return self.barrier(index, chosen, active, *number, *count, *kind, *aligned);
            }
            control::Op::Print(..) | control::Op::AssertFail(_) => {
                let mut context = Context {
                    registers: &mut warp.registers,
                    pending: &mut self.pending,
                    first_thread: index * LANES,
                    pc,
                    block: &mut self.memory,
                    local: &mut warp.local,
                    environment: self.environment,
                };
                crate::isa::system::execute(op, &mut context, active)?;
            }
        }
        Ok(Some(Flow::Next))
    }

    /// Lets the lanes in `active` of a group arrive at a barrier.
    #[allow(clippy::too_many_arguments)] // what a barrier instruction says
    fn barrier(
        &mut self,
        index: usize,
        chosen: usize,
        active: u32,
        number: W,
        count: Option<W>,
        kind: control::BarrierKind,
        aligned: bool,
    ) -> Result<Option<Flow>, Fault> {
        let warp = &mut self.warps[index];
        let Group { pc, mask, .. } = warp.groups[chosen];
        let lane = active.trailing_zeros() as usize % LANES;
        let (numbers, counts) = (warp.registers.word(number), count.map(|count| warp.registers.word(count)));
        let number = numbers[lane] as usize;
        let count = counts.map(|counts| counts[lane]);
        let differs = |other: usize| {
            numbers[other] as usize != number || counts.is_some_and(|counts| Some(counts[other]) != count)
        };
        if let Some(other) = lanes(active).find(|&other| differs(other)) {
            return Err(Fault::lane(Kind::Barrier, other, "lanes of one warp name different barriers"));
        }
        if count.is_some_and(|count| count == 0 || !count.is_multiple_of(LANES as u32)) {
            let message = format!("a barrier for {} threads, which is not a multiple of 32", count.unwrap_or(0));
            return Err(Fault::lane(Kind::Undefined, lane, message));
        }
        let holds = match kind {
            control::BarrierKind::Count(_, predicate, negated)
            | control::BarrierKind::All(_, predicate, negated)
            | control::BarrierKind::Any(_, predicate, negated) => {
                active & (warp.registers.predicate(predicate) ^ if negated { u32::MAX } else { 0 })
            }
            _ => 0,
        };
        let votes = !matches!(kind, control::BarrierKind::Sync | control::BarrierKind::Arrive);
        // Without a number it is for all threads of the block, in whole warps.
        let all = (self.warps.len() * LANES) as u32;
        let waits = kind != control::BarrierKind::Arrive;
        let arrival = Arrival {
            warp: index,
            lanes: active,
            holds,
            votes,
            pc,
            aligned,
            count: count.unwrap_or(all),
            for_all: count.is_none(),
        };
        self.barriers.arrive(number, arrival).map_err(|(kind, message)| Fault::lane(kind, lane, message))?;
        self.memory.arrive(number, index, active, waits);
        if let Some(counters) = &mut self.memory.counters {
            counters.barrier(pc as u32);
        }
        let warp = &mut self.warps[index];
        if waits {
            warp.groups[chosen] = Group { pc, mask: active, wait: Wait::Barrier(number) };
        } else {
            warp.groups[chosen] = Group { pc: pc + 1, mask: active, wait: Wait::Nothing };
        }
        if mask != active {
            warp.groups.push(Group { pc: pc + 1, mask: mask & !active, wait: Wait::Nothing });
        }
        self.complete_barriers();
        Ok(None)
    }

    /// Lets go of the barriers at which all have arrived.
    fn complete_barriers(&mut self) {
        let gone = |index: usize| self.warps.get(index).map_or(u32::MAX, |warp| !warp.alive());
        for done in self.barriers.take_complete(self.warps.len(), gone) {
            self.memory.complete(done.number);
            if let Some(random) = &mut self.random {
                self.warps.iter_mut().for_each(|warp| warp.priority = random.next());
            }
            for (index, warp) in self.warps.iter_mut().enumerate() {
                for group in warp.groups.iter_mut().filter(|group| group.wait == Wait::Barrier(done.number)) {
                    let step = &self.environment.launch.program.steps[group.pc];
                    if let Op::Control(control::Op::Barrier(_, _, kind, _)) = &step.op {
                        let every = |yes: bool| if yes { u32::MAX } else { 0 };
                        match *kind {
                            control::BarrierKind::Count(d, ..) => {
                                warp.registers.set_word(d, group.mask, &[done.holding; LANES]);
                            }
                            control::BarrierKind::All(d, ..) => {
                                warp.registers.set_predicate(d, group.mask, every(done.holding == done.arrived));
                            }
                            control::BarrierKind::Any(d, ..) => {
                                warp.registers.set_predicate(d, group.mask, every(done.holding > 0));
                            }
                            control::BarrierKind::Sync | control::BarrierKind::Arrive => {}
                        }
                    }
                    (group.pc, group.wait) = (group.pc + 1, Wait::Nothing);
                    self.blocked[index] = false;
                }
            }
        }
    }

    /// Carries out an operation that lanes do together, for those of `active` whose member masks are complete. `false`:
    /// the group has changed.
    fn together(&mut self, index: usize, chosen: usize, op: &warp::Op, active: u32) -> Result<bool, Fault> {
        let warp = &mut self.warps[index];
        let Group { pc, mask, .. } = warp.groups[chosen];
        let members = op.members.map_or([u32::MAX; LANES], |members| *warp.registers.word(members));
        let first = members[active.trailing_zeros() as usize % LANES];
        let complete = first & warp.alive() == active && lanes(active).all(|lane| members[lane] == first);
        if complete {
            op.execute(&mut warp.registers, active);
            if matches!(op.action, warp::Action::Sync) {
                self.memory.synchronize_warp(index, active);
            }
            return Ok(true);
        }
        warp.groups[chosen] = Group { pc: pc + 1, mask: mask & !active, wait: Wait::Nothing };
        let mut rest = active;
        while rest != 0 {
            let lane = rest.trailing_zeros() as usize;
            let own = members[lane];
            let same = lanes(rest).filter(|&other| members[other] == own).fold(0, |all, other| all | 1 << other);
            if let Some(stranger) = lanes(same & !own).next() {
                let message = format!("executes with member mask {own:#010x}, which does not name its lane {stranger}");
                return Err(Fault::lane(Kind::Mask, stranger, message));
            }
            warp.groups.push(Group { pc, mask: same, wait: Wait::Members(own) });
            rest &= !same;
        }
        self.complete_members(index)?;
        Ok(false)
    }

    /// Carries out the operations for which all lanes of a member mask wait.
    fn complete_members(&mut self, index: usize) -> Result<(), Fault> {
        let program = self.environment.launch.program;
        let warp = &mut self.warps[index];
        let waiting: Vec<u32> = warp
            .groups
            .iter()
            .filter_map(|group| match group.wait {
                Wait::Members(members) if group.mask != 0 => Some(members),
                _ => None,
            })
            .collect();
        for members in waiting {
            let ours = |group: &&mut Group| group.wait == Wait::Members(members) && group.mask != 0;
            let alive = warp.alive();
            let places: Vec<usize> = warp.groups.iter_mut().filter(ours).map(|group| group.pc).collect();
            for place in places {
                let Op::Warp(op) = &program.steps[place].op else { continue };
                let at = |pc: usize| match &program.steps[pc].op {
                    Op::Warp(other) if pc == place || other.is_joined_with(op) => Some(other),
                    _ => None,
                };
                let joins = |pc: usize| at(pc).is_some();
                let parts: Vec<(&warp::Op, u32)> =
                    warp.groups.iter_mut().filter(ours).filter_map(|group| Some((at(group.pc)?, group.mask))).collect();
                let here = parts.iter().fold(0, |all, (_, lanes)| all | lanes);
                if here == 0 || here != members & alive {
                    continue;
                }
                warp::Op::execute_together(&parts, &mut warp.registers);
                if matches!(op.action, warp::Action::Sync) {
                    self.memory.synchronize_warp(index, here);
                }
                for group in warp.groups.iter_mut().filter(ours).filter(|group| joins(group.pc)) {
                    (group.pc, group.wait) = (group.pc + 1, Wait::Nothing);
                    self.blocked[index] = false;
                }
            }
        }
        Ok(())
    }
}
