//! Random programs of accesses and synchronizations, against vector clocks in their plainest form: every thread has a
//! clock for every other, every access is kept, every release is copied. Programs run until their first race.

use super::super::global::{Labels, Launch, Shadow};
use super::super::order::Stamp;
use super::super::shared::Shared;
use super::*;
use proptest::prelude::*;

/// Four threads in each of two thread blocks, in two warps.
const THREADS: [u32; 4] = [0, 1, 2, 33];
const AGENTS: usize = 8;
type Clock = [u32; AGENTS];

#[derive(Clone, Debug)]
enum Step {
    /// Agent, what it does, word, first byte and size.
    Access(usize, Access, u64, (u64, usize)),
    /// Block, which of its first three threads, and which word each of them loads or updates in one instruction.
    Together(usize, u32, Access, [u64; 3]),
    Fence(usize, Scope),
    WarpSync(usize, u32),
    /// Block, who waits, who arrives: masks over its four threads.
    Barrier(usize, u8, u8),
}

fn scope() -> impl Strategy<Value = Scope> {
    prop_oneof![1 => Just(Scope::Block), 3 => Just(Scope::Device)]
}

fn access() -> impl Strategy<Value = Access> {
    let touch = || prop_oneof![Just(Touch::Load), Just(Touch::Store), Just(Touch::Update)];
    let order = prop_oneof![
        4 => Just(Order::Relaxed),
        1 => Just(Order::Acquire),
        1 => Just(Order::Release),
        1 => Just(Order::AcquireRelease),
    ];
    let legal = |(touch, order, scope)| match (touch, order) {
        (Touch::Load, Order::Release | Order::AcquireRelease) => Access::strong(touch, Order::Acquire, scope),
        (Touch::Store, Order::Acquire | Order::AcquireRelease) => Access::strong(touch, Order::Release, scope),
        _ => Access::strong(touch, order, scope),
    };
    prop_oneof![
        2 => Just(Access::LOAD),
        1 => Just(Access::STORE),
        4 => (touch(), order, Just(Scope::Device)).prop_map(legal),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = prop_oneof![Just((0, 4)), Just((0, 2)), Just((2, 2)), (0u64..4).prop_map(|byte| (byte, 1))];
    prop_oneof![
        8 => (0..AGENTS, access(), 0u64..4, bytes).prop_map(|(agent, access, word, bytes)| {
            // Strong accesses keep to the first words mostly, so that plain ones live long enough to meet.
            match access.strong {
                // Each has a scope of its own: see `Cell` for what is missed where scopes are mixed.
                Some((order, _)) => {
                    let scope = if word % 2 == 0 { Scope::Device } else { Scope::Block };
                    Step::Access(agent, Access::strong(access.touch, order, scope), word % 2, (0, 4))
                }
                None => Step::Access(agent, access, if word == 0 { 0 } else { word + 1 }, bytes),
            }
        }),
        2 => (0usize..2, 1u32..8, access(), [0u64..4, 0u64..4, 0u64..4]).prop_map(|(block, mask, access, words)| {
            let access = if access.touch == Touch::Update { access } else { Access::LOAD };
            let word = |word| if access.touch == Touch::Update { word / 2 * 2 } else { word };
            Step::Together(block, mask, access, words.map(word))
        }),
        2 => (0..AGENTS, scope()).prop_map(|(agent, scope)| Step::Fence(agent, scope)),
        1 => (0usize..2, 1u32..8).prop_map(|(block, mask)| Step::WarpSync(block, mask)),
        1 => (0usize..2, 1u8..16, 0u8..16).prop_map(|(block, wait, arrive)| Step::Barrier(block, wait, arrive & !wait)),
    ]
}

#[derive(Clone, Debug)]
struct Release {
    agent: usize,
    wide: bool,
    clock: Clock,
}

#[derive(Clone, Debug)]
struct Record {
    agent: usize,
    time: u32,
    bytes: u8,
    access: Access,
    /// The strong writes that it saw, by index, with the strong accesses ordered before them: who saw the newer value
    /// cannot meet the older one any more.
    saw: Vec<usize>,
    /// The strong accesses that were ordered before it.
    before: Vec<usize>,
}

#[derive(Clone, Debug, Default)]
struct Word {
    history: Vec<Record>,
    /// Block and scope of the last strong write, the writes of its chain, and what they release.
    last: Option<(usize, bool)>,
    chain: Vec<usize>,
    releases: Vec<Release>,
}

#[derive(Default)]
struct Plain {
    clocks: [Clock; AGENTS],
    words: [Word; 8],
    fences: [Vec<Release>; AGENTS],
    read: [Vec<(u64, Vec<Release>)>; AGENTS],
}

fn block(agent: usize) -> usize {
    agent / 4
}

impl Plain {
    fn join(&mut self, agent: usize, clock: &Clock) {
        for (mine, other) in self.clocks[agent].iter_mut().zip(clock) {
            *mine = (*mine).max(*other);
        }
    }

    fn acquire(&mut self, agent: usize, releases: &[Release], wide: bool) {
        for release in releases {
            if block(release.agent) == block(agent) || wide && release.wide {
                self.join(agent, &release.clock);
            }
        }
    }

    fn meet(&mut self, waiting: &[usize], arriving: &[usize]) {
        let clocks = self.clocks;
        for &one in waiting {
            waiting.iter().chain(arriving).for_each(|&other| self.join(one, &clocks[other]));
        }
    }

    fn fence(&mut self, agent: usize, scope: Scope) {
        let wide = scope == Scope::Device;
        for (_, releases) in self.read[agent].clone() {
            self.acquire(agent, &releases, wide);
        }
        self.clocks[agent][agent] += 1;
        self.fences[agent].push(Release { agent, wide, clock: self.clocks[agent] });
    }

    /// Whether an access races.
    fn access(&mut self, agent: usize, access: Access, word: u64, (first, size): (u64, usize)) -> bool {
        self.clocks[agent][agent] += 1;
        let bytes = (((1u16 << size) - 1) as u8) << first;
        let state = &self.words[word as usize];
        let clock = &self.clocks[agent];
        let ordered = |earlier: &Record| clock[earlier.agent] >= earlier.time;
        let wide = |access: Access| access.strong.is_some_and(|(_, scope)| scope == Scope::Device);
        let race = state.history.iter().enumerate().any(|(at, earlier)| {
            let reads = earlier.access.touch == Touch::Load && access.touch == Touch::Load;
            let strong = earlier.access.strong.is_some()
                && access.strong.is_some()
                && (block(agent) == block(earlier.agent) || wide(access) && wide(earlier.access));
            let saw = || state.history.iter().any(|reader| reader.saw.contains(&at) && ordered(reader));
            !reads && !strong && earlier.bytes & bytes != 0 && !ordered(earlier) && !saw()
        });
        let index = state.history.len();
        let before = |at: &usize| {
            let earlier = &state.history[*at];
            let seen = || state.history.iter().any(|reader| reader.saw.contains(at) && ordered(reader));
            earlier.access.strong.is_some() && (ordered(earlier) || seen())
        };
        let before: Vec<usize> = (0..index).filter(before).collect();
        let mut record = Record { agent, time: clock[agent], bytes, access, saw: Vec::new(), before };
        let Some((order, scope)) = access.strong else {
            let state = &mut self.words[word as usize];
            if access.touch == Touch::Store {
                (state.last, state.chain, state.releases) = (None, Vec::new(), Vec::new());
            }
            state.history.push(record);
            return race;
        };
        let wide = scope == Scope::Device;
        let sees = state.last.is_some_and(|last| last.0 == block(agent) || last.1 && wide);
        if access.touch != Touch::Store {
            if sees {
                record.saw = state.chain.clone();
                record.saw.extend(state.chain.iter().flat_map(|at| state.history[*at].before.iter()));
                let releases = state.releases.clone();
                self.read[agent].push((word, releases));
            }
            if matches!(order, Order::Acquire | Order::AcquireRelease) {
                for (_, releases) in self.read[agent].clone().iter().filter(|read| read.0 == word) {
                    self.acquire(agent, releases, wide);
                }
            }
        }
        let mut releases = self.fences[agent].clone();
        if matches!(order, Order::Release | Order::AcquireRelease) {
            releases.push(Release { agent, wide, clock: self.clocks[agent] });
        }
        let state = &mut self.words[word as usize];
        state.history.push(record);
        if access.touch != Touch::Load {
            if access.touch == Touch::Store {
                state.releases.retain(|release| release.agent == agent);
                state.chain.clear();
            } else if !sees {
                state.releases.clear();
                state.chain.clear();
            }
            state.last = Some((block(agent), wide));
            state.chain.push(index);
            state.releases.extend(releases);
        }
        race
    }
}

/// Runs the program until its first race with both; with `device`, in device memory by two thread blocks, otherwise in
/// the shared memory of one.
fn compare(program: &[Step], device: bool) -> Result<bool, TestCaseError> {
    let stamp = Stamp { stream: 1, sequence: 1, known: [].into(), label: "it".into() };
    let (launch, labels, shadow) = (Launch::new(stamp), Labels::default(), Shadow::new(1 << 40, 64));
    let mut shared = Shared::new(64);
    let mut clocks = [Clocks::new(0, 64), Clocks::new(1, 64)];
    let mut plain = Plain::default();
    let blocks = if device { 2 } else { 1 };
    for (at, step) in program.iter().enumerate() {
        match *step {
            Step::Access(agent, access, word, bytes) if block(agent) < blocks => {
                let expected = plain.access(agent, access, word, bytes);
                let clocks = &mut clocks[block(agent)];
                let found =
                    one(THREADS[agent % 4], at as u32, access, word * 4 + bytes.0, bytes.1, |batch| match device {
                        true => shadow.access(&launch, &labels, clocks, batch),
                        false => shared.access(clocks, batch),
                    });
                prop_assert_eq!(found.is_some(), expected, "step {}: {:?}: {:?}", at, step, found);
                if expected {
                    return Ok(true);
                }
            }
            Step::Together(block, mask, access, words) if block < blocks => {
                let mut expected = false;
                let mut offsets = [0; 32];
                for lane in (0..3).filter(|lane| mask >> lane & 1 == 1) {
                    expected |= plain.access(block * 4 + lane, access, words[lane], (0, 4));
                    offsets[lane] = words[lane] * 4;
                }
                let clocks = &mut clocks[block];
                let batch = Batch { warp: 0, mask, offsets: &offsets, size: 4, access, pc: at as u32, values: None };
                let found = match device {
                    true => shadow.access(&launch, &labels, clocks, &batch),
                    false => shared.access(clocks, &batch),
                };
                prop_assert_eq!(found.is_some(), expected, "step {}: {:?}: {:?}", at, step, found);
                if expected {
                    return Ok(true);
                }
            }
            Step::Fence(agent, scope) if block(agent) < blocks => {
                plain.fence(agent, scope);
                let thread = THREADS[agent % 4];
                clocks[block(agent)].fence(thread as usize / 32, 1 << (thread % 32), scope);
            }
            Step::WarpSync(block, mask) if block < blocks => {
                let agents: Vec<usize> = (0..3).filter(|at| mask >> at & 1 == 1).map(|at| block * 4 + at).collect();
                plain.meet(&agents, &[]);
                clocks[block].warp_sync(0, mask);
            }
            Step::Barrier(block, wait, arrive) if block < blocks => {
                let of = |mask: u8| (0..4).filter(|at| mask >> at & 1 == 1).collect::<Vec<usize>>();
                let agents = |mask| of(mask).iter().map(|at| block * 4 + at).collect::<Vec<usize>>();
                plain.meet(&agents(wait), &agents(arrive));
                let mut gathering = Gathering::default();
                for at in of(arrive) {
                    clocks[block].arrive(&mut gathering, THREADS[at] as usize / 32, 1 << (THREADS[at] % 32));
                }
                for at in of(wait) {
                    clocks[block].wait(&mut gathering, THREADS[at] as usize / 32, 1 << (THREADS[at] % 32));
                }
                clocks[block].complete(&mut gathering);
            }
            _ => {}
        }
    }
    Ok(false)
}

proptest! {
    // PROPTEST_CASES multiplies.
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases * 12, ..ProptestConfig::default() })]

    #[test]
    fn device_memory_as_plain_vector_clocks_see_it(program in prop::collection::vec(step(), 1..60)) {
        compare(&program, true)?;
    }

    #[test]
    fn shared_memory_as_plain_vector_clocks_see_it(program in prop::collection::vec(step(), 1..80)) {
        compare(&program, false)?;
    }
}
