//! Half-precision instructions: each against exact arithmetic, rounded once.

use crate::isa::rounding::tests::half_results;
use crate::isa::rounding::{bf16_to_f32, f16_to_f32};
use crate::isa::testing::{half, refusal, word, words};
use proptest::prelude::*;

const NAN: u32 = 0x7fff;
const ONE: u64 = 0x3c00;
const BRAIN_ONE: u64 = 0x3f80;

/// Halves that are numbers, of all magnitudes and near one.
fn numbers(infinity: u32) -> impl Strategy<Value = u32> {
    let one: u32 = if infinity == 0x7c00 { 0x3c00 } else { 0x3f80 };
    prop_oneof![0..infinity, one - 0x40..one + 0x100, 0..0x80u32]
        .prop_flat_map(|bits| prop_oneof![Just(bits), Just(bits | 0x8000)])
}

fn check(brain: bool, triples: &[(u32, u32, u32)]) -> Result<(), TestCaseError> {
    let (name, widen): (_, fn(u32) -> f32) = if brain { ("bf16", bf16_to_f32) } else { ("f16", f16_to_f32) };
    let expected: Vec<_> = triples.iter().map(|&(a, b, c)| half_results(brain, widen(a), widen(b), widen(c))).collect();
    let operations = ["add", "sub", "mul", "fma.rn"];
    for (index, operation) in operations.into_iter().enumerate() {
        let third = if index == 3 { ", %r2" } else { "" };
        let body = format!("{operation}.{name}x2 %r9, %r0, %r1{third};");
        // Each lane has its own triple below and another's above.
        let other = |lane: usize| (lane + 7) % triples.len();
        let results = words(&body, |lane| {
            let (low, high) = (triples[lane % triples.len()], triples[other(lane)]);
            [(low.0, high.0), (low.1, high.1), (low.2, high.2)].map(|(low, high)| u64::from(low | high << 16))
        });
        for (lane, result) in results.into_iter().enumerate() {
            let (low, high) = (expected[lane % triples.len()][index], expected[other(lane)][index]);
            prop_assert_eq!(u64::from(result), low | high << 16, "{} of {:x?}", body, triples[lane % triples.len()]);
        }
        let third = third.replace('r', "h");
        let body = format!("{operation}.{name} %h9, %h0, %h1{third};");
        let (a, b, c) = triples[0];
        prop_assert_eq!(u64::from(half(&body, [a, b, c].map(u64::from))), expected[0][index]);
    }
    Ok(())
}

proptest! {
    #[test]
    fn f16_is_rounded_once(triples in prop::collection::vec((numbers(0x7c00), numbers(0x7c00), numbers(0x7c00)), 32)) {
        check(false, &triples)?;
    }

    #[test]
    fn bf16_is_rounded_once(triples in prop::collection::vec((numbers(0x7f80), numbers(0x7f80), numbers(0x7f80)), 32)) {
        check(true, &triples)?;
    }
}

/// Sums a hair beside the middle of two halves, which a single cannot tell from it: 1 + 2^-10 + 2^-11 − 2^-31 would go up
/// to the even half, and 7/4 · 37/32 − 2^-60 to the even bfloat16.
#[test]
fn fma_is_rounded_once() {
    assert_eq!(half("fma.rn.f16 %h9, %h0, %h1, %h2;", [0x3c01, 0x0ffe, 0x3c01]), 0x3c01);
    assert_eq!(half("fma.rn.bf16 %h9, %h0, %h1, %h2;", [0x3fe0, 0x3f94, 0xa180]), 0x4001);
    assert_eq!(half("fma.rn.bf16 %h9, %h0, %h1, %h2;", [0x3fe0, 0x3f94, 0]), 0x4002);
}

#[test]
fn nan_is_canonical() {
    assert_eq!(half("add.f16 %h9, %h0, %h1;", [0xfe01, ONE]), NAN);
    assert_eq!(half("sub.f16 %h9, %h0, %h0;", [0x7c00]), NAN);
    assert_eq!(half("add.bf16 %h9, %h0, %h1;", [0xffc1, BRAIN_ONE]), NAN);
    assert_eq!(half("fma.rn.bf16 %h9, %h0, %h1, %h1;", [0x7f80, 0]), NAN);
    assert_eq!(word("mul.f16x2 %r9, %r0, %r1;", [0x7c00_3c00, 0x0000_4000]), 0x7fff_4000);
}

#[test]
fn modifiers() {
    assert_eq!(half("add.sat.f16 %h9, %h0, %h0;", [ONE]), ONE as u32);
    assert_eq!(half("sub.sat.f16 %h9, %h0, %h1;", [ONE, 0x4000]), 0);
    assert_eq!(half("mul.sat.f16 %h9, %h0, %h1;", [0x7e00, ONE]), 0);
    assert_eq!(half("add.f16 %h9, %h0, %h1;", [1, 1]), 2);
    assert_eq!(half("add.ftz.f16 %h9, %h0, %h1;", [0x8001, 0x8001]), 0x8000);
    assert_eq!(half("mul.ftz.f16 %h9, %h0, %h1;", [0x0400, 0x3800]), 0);
    assert_eq!(half("fma.rn.relu.f16 %h9, %h0, %h1, %h2;", [ONE, 0xbc00, 0x3800]), 0);
    assert_eq!(half("fma.rn.relu.f16 %h9, %h0, %h1, %h2;", [ONE, ONE, 0x3c00]), 0x4000);
    assert_eq!(half("fma.rn.relu.f16 %h9, %h0, %h1, %h2;", [0x7e00, ONE, ONE]), NAN);
    assert_eq!(half("fma.rn.sat.f16 %h9, %h0, %h1, %h2;", [ONE, ONE, ONE]), ONE as u32);
    assert_eq!(word("fma.rn.relu.bf16x2 %r9, %r0, %r1, %r2;", [0x3f80_bf80, 0x3f80_3f80, 0]), 0x3f80_0000);
    assert!(refusal("fma.rn.sat.relu.f16 %h9, %h0, %h1, %h2;").contains("not both"));
    assert!(refusal("fma.f16 %h9, %h0, %h1, %h2;").contains(".rn"));
    assert!(refusal("add.sat.bf16 %h9, %h0, %h1;").contains(".sat"));
}

#[test]
fn signs_and_extremes() {
    assert_eq!(half("neg.f16 %h9, %h0;", [ONE]), 0xbc00);
    assert_eq!(half("neg.ftz.f16 %h9, %h0;", [1]), 0x8000);
    assert_eq!(half("abs.bf16 %h9, %h0;", [0xbf80]), 0x3f80);
    assert_eq!(word("neg.bf16x2 %r9, %r0;", [0x3f80_bf80]), 0xbf80_3f80);
    assert_eq!(word("abs.f16x2 %r9, %r0;", [0xbc00_bc00]), 0x3c00_3c00);
    assert_eq!(half("min.f16 %h9, %h0, %h1;", [0, 0x8000]), 0x8000);
    assert_eq!(half("max.f16 %h9, %h0, %h1;", [0x8000, 0]), 0);
    assert_eq!(half("max.f16 %h9, %h0, %h1;", [0x7e00, ONE]), ONE as u32);
    assert_eq!(half("max.NaN.f16 %h9, %h0, %h1;", [0x7e00, ONE]), NAN);
    assert_eq!(half("min.bf16 %h9, %h0, %h1;", [0x7fc0, 0x7fc0]), NAN);
    assert_eq!(half("min.xorsign.abs.f16 %h9, %h0, %h1;", [0xbc00, 0x4000]), 0xbc00);
    assert_eq!(word("max.NaN.xorsign.abs.bf16x2 %r9, %r0, %r1;", [0x3f80_bf80, 0xc000_c000]), 0xc000_4000);
    assert_eq!(word("min.f16x2 %r9, %r0, %r1;", [0x3c00_4000, 0x4000_3c00]), 0x3c00_3c00);
}

#[test]
fn approximations() {
    assert_eq!(half("ex2.approx.f16 %h9, %h0;", [ONE]), 0x4000);
    assert_eq!(half("ex2.approx.f16 %h9, %h0;", [0xce00]), 1);
    assert_eq!(half("ex2.approx.ftz.bf16 %h9, %h0;", [BRAIN_ONE]), 0x4000);
    assert_eq!(word("ex2.approx.ftz.bf16x2 %r9, %r0;", [0x0000_c301]), 0x3f80_0000);
    assert_eq!(word("tanh.approx.f16x2 %r9, %r0;", [0x7c00_0000]), 0x3c00_0000);
    assert_eq!(half("tanh.approx.bf16 %h9, %h0;", [0xff80]), 0xbf80);
    assert_eq!(word("ex2.approx.f16x2 %r9, %r0;", [0x4000_bc00]), 0x4400_3800);
}
