//! `mbarrier`: barriers that are words in shared memory (ISA, "Parallel Synchronization and Communication Instructions:
//! mbarrier").
//!
//! The ISA leaves the contents of the 64-bit word open. Here, from the lowest bit on:
//!
//! ```text
//!  0..20  arrivals that the phase still waits for
//! 20..40  arrivals that every phase waits for
//! 40..61  transactions that the phase still waits for, in two's complement
//! 61      parity of the phase: 0 for the first one
//! 62..64  0b10, so that memory which is no mbarrier is told from one
//! ```
//!
//! The state that an arrival returns is the word as it was before.

use super::{Op, Shared, pending, unsupported};
use crate::check::Access;
use crate::check::clocks::{Order, Scope as Reach, Touch};
use crate::machine::context::{Context, WIDEST, Where};
use crate::machine::registers::{D, Double, LANES, P, W, lanes};
use crate::machine::{Fault, Flow};
use crate::program::{Reason, Scope};
use crate::ptx::ast::{Instruction, Operand, Space, Type};
use crate::report::Kind;

/// The most arrivals that a phase can wait for, and the most transactions either way.
const MOST: i64 = (1 << 20) - 1;

/// An mbarrier's word, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Arrivals that the phase still waits for.
    pub pending: u32,
    /// Arrivals that every phase waits for.
    pub expected: u32,
    /// Transactions (bytes) that the phase still waits for.
    pub transactions: i32,
    /// Parity of the phase.
    pub parity: bool,
}

impl State {
    /// A barrier before its first phase is over.
    ///
    /// # Errors
    /// If the count is not from 1 to 2²⁰ − 1.
    pub fn new(count: u32) -> Result<Self, String> {
        match i64::from(count) {
            1..=MOST => Ok(Self { pending: count, expected: count, transactions: 0, parity: false }),
            _ => Err(format!("initializes an mbarrier with a count of {count}")),
        }
    }

    /// The barrier in a word.
    ///
    /// # Errors
    /// If there is none.
    pub fn parse(word: u64) -> Result<Self, String> {
        if word >> 62 != 0b10 {
            return Err(format!("uses an mbarrier where there is none: the word is {word:#018x}"));
        }
        Ok(Self {
            pending: (word & 0xf_ffff) as u32,
            expected: (word >> 20 & 0xf_ffff) as u32,
            // The sign is the highest of 21 bits.
            transactions: ((word >> 40 << 43) as i64 >> 43) as i32,
            parity: word >> 61 & 1 == 1,
        })
    }

    /// The word.
    pub fn word(self) -> u64 {
        u64::from(self.pending)
            | u64::from(self.expected) << 20
            | (self.transactions as u64 & 0x1f_ffff) << 40
            | u64::from(self.parity) << 61
            | 0b10 << 62
    }

    /// Waits for so many transactions more (or, if negative, fewer).
    ///
    /// # Errors
    /// If they are more than a barrier counts.
    pub fn expect(mut self, transactions: i64) -> Result<Self, String> {
        let sum = i64::from(self.transactions).saturating_add(transactions);
        if !(-MOST..=MOST).contains(&sum) {
            return Err(format!("has an mbarrier wait for {sum} transactions, more than it can count"));
        }
        self.transactions = sum as i32;
        Ok(self)
    }

    /// Lets `count` arrive.
    ///
    /// # Errors
    /// If the phase does not wait for so many.
    pub fn arrive(mut self, count: u32) -> Result<Self, String> {
        match self.pending.checked_sub(count) {
            Some(rest) if count > 0 => {
                self.pending = rest;
                Ok(self)
            }
            _ => Err(format!("arrives {count} times at an mbarrier that waits for {} arrivals", self.pending)),
        }
    }

    /// Begins the next phase, if this one is over.
    pub fn advance(mut self) -> Self {
        if self.pending == 0 && self.transactions == 0 {
            self.pending = self.expected;
            self.parity = !self.parity;
        }
        self
    }
}

/// An `mbarrier` instruction.
#[derive(Clone, Debug)]
pub struct Barrier {
    at: Option<Shared>,
    action: Action,
    /// Whether an arrival releases what its thread did before, and a successful test acquires what those did who
    /// arrived: `.relaxed` does not.
    ordered: bool,
}

#[derive(Clone, Debug)]
enum Action {
    Initialize(W),
    Invalidate,
    Expect(W),
    Complete(W),
    Arrive { state: Option<D>, count: W, transactions: Option<W>, drop: bool, may_complete: bool },
    TestState { to: P, state: D },
    TestParity { to: P, parity: W },
    PendingCount { to: W, state: D },
}

/// Decodes what follows `mbarrier.`.
///
/// # Errors
/// If there is no such form, or operands do not fit it.
pub fn decode(
    scope: &mut Scope<'_>,
    action: &str,
    modifiers: &[&str],
    instruction: &Instruction,
) -> Result<Op, Reason> {
    let mut form = Form::default();
    let Some((&"b64", modifiers)) = modifiers.split_last() else { return Err(unsupported(instruction)) };
    for &modifier in modifiers {
        match modifier {
            "expect_tx" => form.expect = true,
            "noComplete" => form.no_complete = true,
            "parity" => form.parity = true,
            "relaxed" => form.relaxed = true,
            "shared" | "shared::cta" | "shared::cluster" => form.shared = true,
            "acquire" | "release" | "cta" | "cluster" => {}
            _ => return Err(unsupported(instruction)),
        }
    }
    if form.parity && !matches!(action, "test_wait" | "try_wait")
        || (form.expect || form.no_complete) && !matches!(action, "arrive" | "arrive_drop")
        || form.expect && form.no_complete
    {
        return Err(unsupported(instruction));
    }
    let operands = instruction.operands.as_slice();
    let (at, action) = match (action, operands) {
        ("init", [at, count]) => (at, Action::Initialize(scope.word(count, Type::U32)?)),
        ("inval", [at]) => (at, Action::Invalidate),
        ("expect_tx", [at, count]) => (at, Action::Expect(scope.word(count, Type::U32)?)),
        ("complete_tx", [at, count]) => (at, Action::Complete(scope.word(count, Type::U32)?)),
        ("arrive" | "arrive_drop", [state, at, rest @ ..]) => {
            let state = match state {
                Operand::Sink => None,
                state => Some(scope.double_to(state, Type::B64)?),
            };
            let one = scope.constant_word(1);
            let (count, transactions) = match (rest, form.expect, form.no_complete) {
                ([], false, false) => (one, None),
                ([count], false, _) => (scope.word(count, Type::U32)?, None),
                ([transactions], true, _) => (one, Some(scope.word(transactions, Type::U32)?)),
                _ => return Err("an mbarrier's count does not fit the form".to_owned()),
            };
            let drop = action == "arrive_drop";
            (at, Action::Arrive { state, count, transactions, drop, may_complete: !form.no_complete })
        }
        ("test_wait", [to, at, state]) | ("try_wait", [to, at, state] | [to, at, state, _]) => {
            let to = scope.predicate_to(to)?;
            match form.parity {
                false => (at, Action::TestState { to, state: scope.double(state, Type::B64)? }),
                true => (at, Action::TestParity { to, parity: scope.word(state, Type::U32)? }),
            }
        }
        ("pending_count", [to, state]) => {
            let action =
                Action::PendingCount { to: scope.word_to(to, Type::B32)?, state: scope.double(state, Type::B64)? };
            return Ok(Op::Barrier(Box::new(Barrier { at: None, action, ordered: false })));
        }
        _ => return Err(unsupported(instruction)),
    };
    let at = Some(Shared::decode(scope, at, form.shared)?);
    Ok(Op::Barrier(Box::new(Barrier { at, action, ordered: !form.relaxed })))
}

#[derive(Default)]
struct Form {
    expect: bool,
    no_complete: bool,
    parity: bool,
    relaxed: bool,
    shared: bool,
}

impl Barrier {
    /// Executes it. A test that fails gives other warps a turn.
    ///
    /// # Errors
    /// If there is no mbarrier at the address, or an operand is out of its range.
    pub fn execute(&self, context: &mut Context<'_>, mask: u32) -> Result<Flow, Fault> {
        let offsets = match &self.at {
            Some(at) => at.offsets(context, mask)?,
            None => [0; LANES],
        };
        let relaxed = arrival(Order::Relaxed);
        let release = arrival(if self.ordered { Order::Release } else { Order::Relaxed });
        match self.action {
            Action::Initialize(count) => {
                let count = *context.registers.word(count);
                let mut values = [[0; WIDEST]; LANES];
                for lane in lanes(mask) {
                    let state = State::new(count[lane]).map_err(|message| undefined(lane, message))?;
                    values[lane][..8].copy_from_slice(&state.word().to_le_bytes());
                }
                context.store(mask, Where::In(Space::Shared), &offsets, 8, &values)?;
            }
            Action::Invalidate => {
                update(context, mask, &offsets, relaxed, |_, _| Ok(None))?;
            }
            Action::Expect(count) => {
                let count = *context.registers.word(count);
                update(context, mask, &offsets, relaxed, |lane, state| Ok(Some(state.expect(count[lane].into())?)))?;
            }
            Action::Complete(count) => {
                let count = *context.registers.word(count);
                update(context, mask, &offsets, relaxed, |lane, state| {
                    Ok(Some(state.expect(-i64::from(count[lane]))?.advance()))
                })?;
            }
            Action::Arrive { state, count, transactions, drop, may_complete } => {
                let count = *context.registers.word(count);
                let transactions = transactions.map(|transactions| *context.registers.word(transactions));
                let before = update(context, mask, &offsets, release, |lane, mut state| {
                    if let Some(transactions) = transactions {
                        state = state.expect(transactions[lane].into())?;
                    }
                    if drop {
                        let less = state.expected.checked_sub(count[lane]);
                        state.expected = less.ok_or("drops more arrivals than an mbarrier expects")?;
                    }
                    state = state.arrive(count[lane])?;
                    match may_complete {
                        true => Ok(Some(state.advance())),
                        false if state.pending == 0 && state.transactions == 0 => {
                            Err("completes a phase of an mbarrier with .noComplete".to_owned())
                        }
                        false => Ok(Some(state)),
                    }
                })?;
                if let Some(to) = state {
                    context.registers.set_double(to, mask, &before);
                }
            }
            Action::TestState { to, state } => {
                let states = *context.registers.double(state);
                for lane in lanes(mask) {
                    State::parse(states[lane]).map_err(|message| undefined(lane, message))?;
                }
                return self.test(context, mask, &offsets, to, |lane| states[lane] >> 61 & 1 == 1);
            }
            Action::TestParity { to, parity } => {
                let parity = *context.registers.word(parity);
                for lane in lanes(mask) {
                    if parity[lane] > 1 {
                        return Err(undefined(lane, format!("tests an mbarrier for a parity of {}", parity[lane])));
                    }
                }
                return self.test(context, mask, &offsets, to, |lane| parity[lane] == 1);
            }
            Action::PendingCount { to, state } => {
                let states = *context.registers.double(state);
                let mut counts = [0; LANES];
                for lane in lanes(mask) {
                    counts[lane] = State::parse(states[lane]).map_err(|message| undefined(lane, message))?.pending;
                }
                context.registers.set_word(to, mask, &counts);
            }
        }
        Ok(Flow::Next)
    }

    /// Sets `to` where the phase of the given parity is over, having carried out what it waits for.
    fn test(
        &self,
        context: &mut Context<'_>,
        mask: u32,
        offsets: &Double,
        to: P,
        parity: impl Fn(usize) -> bool,
    ) -> Result<Flow, Fault> {
        let mut over = 0;
        for lane in lanes(mask) {
            let mut done = parity_of(context, lane, offsets[lane])? != parity(lane);
            if !done {
                pending::settle(context, offsets[lane])?;
                done = parity_of(context, lane, offsets[lane])? != parity(lane);
            }
            if done && self.ordered {
                context.block.mbarrier(context.first_thread + lane, offsets[lane], false);
            }
            over |= u32::from(done) << lane;
        }
        context.registers.set_predicate(to, mask, over);
        Ok(if over == mask { Flow::Next } else { Flow::Yield })
    }
}

fn undefined(lane: usize, message: String) -> Fault {
    Fault::lane(Kind::Undefined, lane, message)
}

/// Changes the barriers of lanes one after another, atomically; `None` makes one no longer a barrier. Returns the words
/// as each lane found them.
fn update(
    context: &mut Context<'_>,
    mask: u32,
    offsets: &Double,
    access: Access,
    f: impl Fn(usize, State) -> Result<Option<State>, String>,
) -> Result<Double, Fault> {
    let pointers = context.locate(mask, Where::In(Space::Shared), offsets, 8, access)?;
    let mut before = [0; LANES];
    for lane in lanes(mask) {
        let pointer = pointers[lane].cast::<u64>();
        // SAFETY: `locate` gave a pointer to 8 aligned bytes of shared memory for each lane of the mask; a block's
        // shared memory is touched only by the host thread that runs the block.
        let word = unsafe { pointer.read() };
        before[lane] = word;
        let after = State::parse(word).and_then(|state| f(lane, state)).map_err(|message| undefined(lane, message))?;
        // SAFETY: as above.
        unsafe { pointer.write(after.map_or(0, State::word)) };
    }
    Ok(before)
}

/// The parity of the phase that a barrier is in.
fn parity_of(context: &mut Context<'_>, lane: usize, offset: u64) -> Result<bool, Fault> {
    let test = Access::strong(Touch::Load, Order::Relaxed, Reach::Block);
    let before = update(context, 1 << lane, &[offset; LANES], test, |_, state| Ok(Some(state)))?;
    Ok(before[lane] >> 61 & 1 == 1)
}

fn arrival(order: Order) -> Access {
    Access::strong(Touch::Update, order, Reach::Block)
}

/// Lets copies arrive once for each lane, and counts bytes as transferred: by the engine of asynchronous copies, whose
/// writes thereby become known to whoever waits.
pub(super) fn signal(context: &mut Context<'_>, mask: u32, offset: u64, signal: Signal) -> Result<(), Fault> {
    let (start, length) = context.block.bytes();
    if !offset.is_multiple_of(8) || offset.saturating_add(8) > length as u64 {
        return Err(Fault::warp(Kind::OutOfBounds, format!("signals an mbarrier at {offset:#x} of shared memory")));
    }
    let pointer = start.wrapping_add(offset as usize).cast::<u64>();
    for lane in lanes(mask) {
        // SAFETY: the 8 bytes are within shared memory and aligned, as was just checked; a block's shared memory is
        // touched only by the host thread that runs the block.
        let word = unsafe { pointer.read() };
        let after = State::parse(word).and_then(|state| match signal {
            Signal::Arrival => state.arrive(1),
            Signal::Bytes(bytes) => state.expect(-(bytes as i64)),
        });
        let after = after.map_err(|message| undefined(lane, message))?.advance();
        // SAFETY: as above.
        unsafe { pointer.write(after.word()) };
    }
    context.block.engine_signals(offset);
    Ok(())
}

/// What the engine tells an mbarrier.
#[derive(Clone, Copy, Debug)]
pub(super) enum Signal {
    /// That a lane's copies are over.
    Arrival,
    /// That so many bytes were transferred.
    Bytes(usize),
}

/// Checks that there is a barrier for the lanes to signal; `extra` arrivals are added to what the phase waits for.
pub(super) fn announce(context: &mut Context<'_>, mask: u32, offset: u64, extra: bool) -> Result<(), Fault> {
    update(context, mask, &[offset; LANES], arrival(Order::Relaxed), |_, mut state| {
        if extra {
            if i64::from(state.pending) >= MOST {
                return Err("has an mbarrier wait for more arrivals than it can count".to_owned());
            }
            state.pending += 1;
        }
        Ok(Some(state))
    })
    .map(drop)
}
