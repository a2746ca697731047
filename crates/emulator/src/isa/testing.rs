//! Runs a few lines of PTX over the registers of a warp, for the tests of instructions that need nothing else.
//!
//! There are registers `%r0` to `%r9` of 32 bits, `%h` of 16, `%b` of 8, `%d` of 64, and predicates `%p`. Those of the
//! number n hold argument n, cut to their size, when the lines begin; number 9 is where results are looked for.

use super::Vectors;
use crate::machine::registers::{D, P, Registers, W};
use crate::program::{self, Addresses, Program};
use crate::ptx;

const COUNT: u32 = 10;

fn decode(body: &str) -> Result<Program, String> {
    let text = format!(
        ".version 9.0\n.target sm_100a\n.address_size 64\n.visible .entry kernel()\n{{\n.reg .b32 %r<{COUNT}>;\n\
         .reg .b16 %h<{COUNT}>;\n.reg .b8 %b<{COUNT}>;\n.reg .b64 %d<{COUNT}>;\n.reg .pred %p<{COUNT}>;\n{body}\n}}\n"
    );
    let module = ptx::parse(&text).map_err(|error| error.to_string())?;
    program::decode(&module, &module.functions[0], &Addresses::new()).map_err(|error| error.to_string())
}

/// Why `body` is not accepted.
pub(crate) fn refusal(body: &str) -> String {
    decode(body).map(|_| ()).expect_err(body)
}

/// Runs `body` with the lanes of `mask`; argument n of a lane is `arguments(lane)[n]`. What then is asked of the
/// registers goes through `read`.
pub(crate) fn run<const N: usize, T>(
    body: &str,
    mask: u32,
    arguments: impl Fn(usize) -> [u64; N],
    read: impl Fn(&Registers) -> T,
) -> T {
    let program = decode(body).unwrap_or_else(|error| panic!("{error}"));
    let mut registers = program.registers.clone();
    for index in 0..N {
        let value = |lane| arguments(lane)[index];
        let n = index as u32;
        registers.set_word(W(n), u32::MAX, &std::array::from_fn(|lane| value(lane) as u32));
        registers.set_word(W(n + COUNT), u32::MAX, &std::array::from_fn(|lane| value(lane) as u32 & 0xffff));
        registers.set_word(W(n + 2 * COUNT), u32::MAX, &std::array::from_fn(|lane| value(lane) as u32 & 0xff));
        registers.set_double(D(n), u32::MAX, &std::array::from_fn(value));
        let lanes = (0..32).fold(0, |lanes, lane| lanes | (value(lane) as u32 & 1) << lane);
        registers.set_predicate(P(n), u32::MAX, lanes);
    }
    execute(&program, &mut registers, mask);
    read(&registers)
}

fn execute(program: &Program, registers: &mut Registers, mask: u32) {
    let vectors = Vectors::detect().expect("a processor that runs kernels");
    for step in &program.steps {
        let mask = match step.guard {
            Some((guard, negated)) => mask & (registers.predicate(guard) ^ if negated { u32::MAX } else { 0 }),
            None => mask,
        };
        if !step.op.compute(vectors, registers, mask) {
            break; // the end of the kernel
        }
    }
}

/// Asserts that all lanes agree, and returns what they have.
fn uniform<T: Copy + PartialEq + std::fmt::Debug>(values: &[T; 32]) -> T {
    assert!(values.iter().all(|value| *value == values[0]), "{values:?}");
    values[0]
}

/// `%r9` after `body`, the same arguments in all lanes.
pub(crate) fn word<const N: usize>(body: &str, arguments: [u64; N]) -> u32 {
    run(body, u32::MAX, |_| arguments, |registers| uniform(registers.word(W(9))))
}

/// `%h9`.
pub(crate) fn half<const N: usize>(body: &str, arguments: [u64; N]) -> u32 {
    run(body, u32::MAX, |_| arguments, |registers| uniform(registers.word(W(9 + COUNT))))
}

/// `%d9`.
pub(crate) fn double<const N: usize>(body: &str, arguments: [u64; N]) -> u64 {
    run(body, u32::MAX, |_| arguments, |registers| uniform(registers.double(D(9))))
}

/// `%p9`.
pub(crate) fn predicate<const N: usize>(body: &str, arguments: [u64; N]) -> bool {
    match run(body, u32::MAX, |_| arguments, |registers| registers.predicate(P(9))) {
        0 => false,
        u32::MAX => true,
        lanes => panic!("{lanes:x}"),
    }
}

/// `%r9` of every lane.
pub(crate) fn words<const N: usize>(body: &str, arguments: impl Fn(usize) -> [u64; N]) -> [u32; 32] {
    run(body, u32::MAX, arguments, |registers| *registers.word(W(9)))
}

/// A single's bits as an argument.
pub(crate) fn f(x: f32) -> u64 {
    u64::from(x.to_bits())
}

/// A double's bits as an argument.
pub(crate) fn g(x: f64) -> u64 {
    x.to_bits()
}
