//! Launches small kernels on memory of their own, for the tests of everything that a launch takes part in.

use super::launch::{self, Launch};
use crate::check::order::Stamp;
use crate::memory::{Memory, Owner, Touch};
use crate::options::Options;
use crate::profile::Profile;
use crate::program::{Addresses, Program, decode};
use crate::ptx::parse;
use crate::report::{Finding, Findings, Kind};

/// Memory of two devices, and what was found.
pub(crate) struct Bench {
    pub(crate) memory: Memory,
    pub(crate) findings: Findings,
    pub(crate) options: Options,
}

/// How a kernel is launched.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) dynamic_shared: usize,
    pub(crate) cooperative: bool,
    pub(crate) peers: &'static [bool],
    pub(crate) addresses: Addresses,
}

impl Default for Shape {
    fn default() -> Self {
        let addresses = Addresses::new();
        Self { grid: [1; 3], block: [32, 1, 1], dynamic_shared: 0, cooperative: false, peers: &[], addresses }
    }
}

impl Bench {
    pub(crate) fn new(options: &Options) -> Self {
        let memory = Memory::new(2, 1 << 26).unwrap();
        memory.watch(options.uninitialized, options.races);
        Self { memory, findings: Findings::default(), options: options.clone() }
    }

    /// The address of `bytes` bytes that nobody wrote.
    pub(crate) fn blank(&self, device: usize, bytes: u64) -> u64 {
        self.memory.allocate(Owner::Device(device), bytes).unwrap()
    }

    /// The address of new memory into which these words are copied.
    pub(crate) fn words(&self, device: usize, words: &[u32]) -> u64 {
        let address = self.blank(device, 4 * words.len() as u64);
        // SAFETY: so many bytes were just allocated, and nobody else knows of them.
        unsafe { std::ptr::copy_nonoverlapping(words.as_ptr(), address as *mut u32, words.len()) };
        let stamp = Stamp { stream: 0, sequence: 1, known: [].into(), label: "copy".into() };
        self.memory.touch(address..address + 4 * words.len() as u64, Touch::Write, &stamp, &self.findings);
        address
    }

    /// What is there, while nothing runs.
    pub(crate) fn read(&self, address: u64, words: usize) -> Vec<u32> {
        // SAFETY: the address is that of so many words that this bench allocated, and no launch is under way.
        unsafe { std::slice::from_raw_parts(address as *const u32, words) }.to_vec()
    }

    /// Launches the first kernel of a module.
    pub(crate) fn launch(&self, text: &str, shape: &Shape, parameters: &[u8]) -> Result<Option<Profile>, Kind> {
        let program = program(text, &shape.addresses).unwrap_or_else(|error| panic!("{error}\n{text}"));
        let launch = Launch {
            program: &program,
            grid: shape.grid,
            block: shape.block,
            dynamic_shared: shape.dynamic_shared,
            parameters,
            cooperative: shape.cooperative,
            device: 0,
            peers: shape.peers,
            options: &self.options,
            stamp: Stamp { stream: 0, sequence: 2, known: [].into(), label: program.name.as_str().into() },
            number: 1,
        };
        launch::run(&launch, &self.memory, &self.findings)
    }
}

/// The first kernel of a module, decoded.
pub(crate) fn program(text: &str, addresses: &Addresses) -> Result<Program, String> {
    let module = parse(text).map_err(|error| error.to_string())?;
    let entry = module.functions.iter().find(|function| function.is_entry).expect("a kernel");
    decode(&module, entry, addresses).map_err(|error| error.to_string())
}

/// A kernel with two parameters, the addresses of `input` and of as many words as `output` says, which are −1 at first.
///
/// `%in` and `%out` hold these, `%tid` and `%gid` (of 32 bits) the thread's number in its block and in the grid along x,
/// `%src` and `%dst` the addresses of word `%gid` of each. Besides there are `%r0` to `%r19` of 32 bits, `%l` of 64, `%h`
/// of 16, `%b` of 8, and predicates `%p`.
#[derive(Clone, Debug)]
pub(crate) struct Kernel<'a> {
    pub(crate) target: &'a str,
    /// What stands before the kernel: variables and functions of the module.
    pub(crate) head: &'a str,
    pub(crate) body: &'a str,
    pub(crate) input: &'a [u32],
    pub(crate) output: usize,
    pub(crate) shape: Shape,
}

impl Default for Kernel<'_> {
    fn default() -> Self {
        Self { target: "sm_100a", head: "", body: "", input: &[0; 32], output: 32, shape: Shape::default() }
    }
}

/// What came of a launch.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) result: Result<Option<Profile>, Kind>,
    pub(crate) output: Vec<u32>,
    pub(crate) findings: Vec<Finding>,
}

impl Kernel<'_> {
    pub(crate) fn threads(self, blocks: u32, threads: u32) -> Self {
        let shape = Shape { grid: [blocks, 1, 1], block: [threads, 1, 1], ..self.shape };
        Self { shape, ..self }
    }

    /// The module; the body begins in line 4, or further down by the lines of `head` after its first.
    pub(crate) fn text(&self) -> String {
        format!(
            ".version 9.0 .target {} .address_size 64\n{}\n.visible .entry k(.param .u64 a, .param .u64 b) {{ .reg .b64 \
             %in, %out, %src, %dst, %wide, %l<20>; .reg .b32 %tid, %gid, %r<20>; .reg .b16 %h<20>; .reg .b8 %b<20>; \
             .reg .pred %p<20>; ld.param.u64 %in, [a]; ld.param.u64 %out, [b]; mov.u32 %tid, %tid.x; \
             mov.u32 %r0, %ctaid.x; mov.u32 %r1, %ntid.x; mad.lo.u32 %gid, %r0, %r1, %tid; \
             mul.wide.u32 %wide, %gid, 4; add.s64 %src, %in, %wide; add.s64 %dst, %out, %wide;\n{}\n ret; }}\n",
            self.target, self.head, self.body
        )
    }

    pub(crate) fn outcome(&self, options: &Options) -> Outcome {
        let bench = Bench::new(options);
        let (input, output) = (bench.words(0, self.input), bench.words(0, &vec![u32::MAX; self.output]));
        let parameters = [input.to_le_bytes(), output.to_le_bytes()].concat();
        let result = bench.launch(&self.text(), &self.shape, &parameters);
        Outcome { result, output: bench.read(output, self.output), findings: bench.findings.take() }
    }

    /// What is at `%out` afterwards: the same in the order of numbers and in random orders, with nothing found.
    pub(crate) fn run(&self) -> Vec<u32> {
        let plain = self.outcome(&Options::default());
        assert_eq!(plain.result, Ok(None), "{}", listed(&plain.findings));
        for seed in [1, 2] {
            let checked = self.outcome(&Options::checked(seed));
            assert!(checked.findings.is_empty(), "{}", listed(&checked.findings));
            assert_eq!(checked.output, plain.output, "with seed {seed}");
        }
        plain.output
    }

    /// Why the launch fails, with and without a seed.
    pub(crate) fn fault(&self) -> Finding {
        let fail = |options: &Options| {
            let mut outcome = self.outcome(options);
            let finding = outcome.findings.pop().expect("a finding");
            assert_eq!(outcome.result, Err(finding.kind), "{finding}");
            finding
        };
        let (plain, drawn) = (fail(&Options::default()), fail(&Options { seed: Some(3), ..Options::default() }));
        assert_eq!(plain.kind, drawn.kind, "{plain}\n{drawn}");
        plain
    }

    /// What is found although the launch succeeds.
    pub(crate) fn found(&self) -> Vec<Finding> {
        let outcome = self.outcome(&Options::checked(1));
        assert!(outcome.result.is_ok(), "{}", listed(&outcome.findings));
        outcome.findings
    }

    /// Why it is not accepted.
    pub(crate) fn refusal(&self) -> String {
        program(&self.text(), &self.shape.addresses).map(|_| ()).expect_err(self.body)
    }
}

fn listed(findings: &[Finding]) -> String {
    findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// A kernel of one warp with this body, as [`Kernel::run`].
pub(crate) fn run(body: &str) -> Vec<u32> {
    Kernel { body, ..Kernel::default() }.run()
}

/// As [`Kernel::fault`].
pub(crate) fn fault(body: &str) -> Finding {
    Kernel { body, ..Kernel::default() }.fault()
}

/// As [`Kernel::refusal`].
pub(crate) fn refusal(body: &str) -> String {
    Kernel { body, ..Kernel::default() }.refusal()
}

/// `f` of every lane.
pub(crate) fn lanes(f: impl Fn(u32) -> u32) -> Vec<u32> {
    (0..32).map(f).collect()
}
