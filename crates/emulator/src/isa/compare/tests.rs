//! Comparison and selection.

use crate::isa::testing::{double, f, g, half, predicate, refusal, run, word};
use crate::machine::registers::P;

/// For each relation: whether it holds of smaller, equal, larger first numbers, and of a NaN.
const RELATIONS: [(&str, [bool; 4]); 14] = [
    ("eq", [false, true, false, false]),
    ("ne", [true, false, true, false]),
    ("lt", [true, false, false, false]),
    ("le", [true, true, false, false]),
    ("gt", [false, false, true, false]),
    ("ge", [false, true, true, false]),
    ("equ", [false, true, false, true]),
    ("neu", [true, false, true, true]),
    ("ltu", [true, false, false, true]),
    ("leu", [true, true, false, true]),
    ("gtu", [false, false, true, true]),
    ("geu", [false, true, true, true]),
    ("num", [true, true, true, false]),
    ("nan", [false, false, false, true]),
];

/// ISA 9.3.1.2, for each floating-point type.
#[test]
fn relations_of_floating_point_numbers() {
    for (name, holds) in RELATIONS {
        let singles = [(1.0, 2.0), (2.0, 2.0), (3.0, 2.0), (f32::NAN, 2.0), (2.0, f32::NAN)];
        for (index, (a, b)) in singles.into_iter().enumerate() {
            let holds = holds[index.min(3)];
            let case = format!("{name} {a} {b}");
            assert_eq!(predicate(&format!("setp.{name}.f32 %p9, %r0, %r1;"), [f(a), f(b)]), holds, "{case}");
            let wide = [g(a.into()), g(b.into())];
            assert_eq!(predicate(&format!("setp.{name}.f64 %p9, %d0, %d1;"), wide), holds, "{case}");
            let halves = [a, b].map(|x| u64::from(half::f16::from_f32(x).to_bits()));
            assert_eq!(predicate(&format!("setp.{name}.f16 %p9, %h0, %h1;"), halves), holds, "{case}");
            let brains = [a, b].map(|x| u64::from(half::bf16::from_f32(x).to_bits()));
            assert_eq!(predicate(&format!("setp.{name}.bf16 %p9, %h0, %h1;"), brains), holds, "{case}");
        }
    }
    assert!(refusal("setp.lo.f32 %p9, %r0, %r1;").contains(".lo"));
}

#[test]
fn relations_of_integers() {
    for (name, holds) in &RELATIONS[..6] {
        for (index, a) in [1u64, 2, 3].into_iter().enumerate() {
            for (ty, register) in [("u16", 'h'), ("s16", 'h'), ("u32", 'r'), ("s32", 'r'), ("u64", 'd'), ("s64", 'd')] {
                let body = format!("setp.{name}.{ty} %p9, %{register}0, %{register}1;");
                assert_eq!(predicate(&body, [a, 2]), holds[index], "{body} {a}");
            }
        }
    }
    for (name, same) in [("lo", "lt"), ("ls", "le"), ("hi", "gt"), ("hs", "ge")] {
        for a in [1u64, 2, 3] {
            let holds = predicate(&format!("setp.{same}.u32 %p9, %r0, %r1;"), [a, 2]);
            assert_eq!(predicate(&format!("setp.{name}.u32 %p9, %r0, %r1;"), [a, 2]), holds);
        }
    }
    let minus = u64::MAX;
    assert!(predicate("setp.lt.s32 %p9, %r0, %r1;", [minus, 1]));
    assert!(!predicate("setp.lt.u32 %p9, %r0, %r1;", [minus, 1]));
    assert!(predicate("setp.lt.s16 %p9, %h0, 1;", [minus]));
    assert!(!predicate("setp.lt.u16 %p9, %h0, 1;", [minus]));
    assert!(predicate("setp.eq.s16 %p9, %h0, -1;", [minus]));
    assert!(predicate("setp.lt.s64 %p9, %d0, %d1;", [minus, 1]));
    assert!(!predicate("setp.lt.u64 %p9, %d0, %d1;", [minus, 1]));
    assert!(predicate("setp.ne.b32 %p9, %r0, %r1;", [2, 1]));
    assert!(refusal("setp.lt.b32 %p9, %r0, %r1;").contains(".lt"));
    assert!(refusal("setp.lo.s32 %p9, %r0, %r1;").contains(".lo"));
    assert!(refusal("setp.num.s32 %p9, %r0, %r1;").contains(".num"));
}

#[test]
fn second_destination_and_combination() {
    let both = |body: &str| {
        run(body, u32::MAX, |lane| [lane as u64, 16, (lane as u64) >> 3], |r| (r.predicate(P(9)), r.predicate(P(8))))
    };
    assert_eq!(both("setp.lt.u32 %p9|%p8, %r0, %r1;"), (0x0000_ffff, 0xffff_0000));
    // %p2 holds where bit 3 of the lane is set.
    assert_eq!(both("setp.lt.and.u32 %p9|%p8, %r0, %r1, %p2;"), (0x0000_ff00, 0xff00_0000));
    assert_eq!(both("setp.lt.or.u32 %p9|%p8, %r0, %r1, %p2;"), (0xff00_ffff, 0xffff_ff00));
    assert_eq!(both("setp.lt.xor.u32 %p9|%p8, %r0, %r1, %p2;"), (0xff00_00ff, 0x00ff_ff00));
    assert_eq!(both("setp.lt.and.u32 %p9|%p8, %r0, %r1, !%p2;"), (0x0000_00ff, 0x00ff_0000));
    assert_eq!(both("setp.lt.u32 _|%p8, %r0, %r1;").1, 0xffff_0000);
    assert!(refusal("setp.lt.and.u32 %p9, %r0, %r1;").contains("lacks the predicate"));
    assert!(refusal("setp.lt.u32 %p9, %r0, %r1, %p2;").contains("too many"));
}

#[test]
fn subnormal_numbers_may_be_zeros() {
    assert!(predicate("setp.gt.f32 %p9, %r0, 0f00000000;", [1]));
    assert!(!predicate("setp.gt.ftz.f32 %p9, %r0, 0f00000000;", [1]));
    assert!(predicate("setp.gt.f16 %p9, %h0, %h1;", [1, 0]));
    assert!(!predicate("setp.gt.ftz.f16 %p9, %h0, %h1;", [1, 0]));
}

/// ISA, `setp` of two halves: p is of the lower halves, q of the upper.
#[test]
fn packed_halves() {
    let both = |body: &str, a: u64, b: u64| {
        let (p, q) = run(body, u32::MAX, |_| [a, b], |r| (r.predicate(P(9)), r.predicate(P(8))));
        (p == u32::MAX, q == u32::MAX)
    };
    assert_eq!(both("setp.lt.f16x2 %p9|%p8, %r0, %r1;", 0x4000_3c00, 0x3c00_4000), (true, false));
    assert_eq!(both("setp.gt.bf16x2 %p9|%p8, %r0, %r1;", 0x4000_3f80, 0x3f80_4000), (false, true));
    assert!(refusal("setp.lt.f16x2 %p9, %r0, %r1;").contains("two predicates"));
    assert_eq!(word("set.lt.f16x2.f16x2 %r9, %r0, %r1;", [0x4000_3c00, 0x3c00_4000]), 0x0000_3c00);
    assert_eq!(word("set.gt.u32.f16x2 %r9, %r0, %r1;", [0x4000_3c00, 0x3c00_4000]), 0xffff_0000);
    assert_eq!(word("set.ge.bf16x2.bf16x2 %r9, %r0, %r1;", [0x4000_3f80, 0x3f80_3f80]), 0x3f80_3f80);
}

#[test]
fn set_writes_ones() {
    assert_eq!(word("set.lt.u32.s32 %r9, %r0, %r1;", [u64::MAX, 1]), u32::MAX);
    assert_eq!(word("set.lt.u32.u32 %r9, %r0, %r1;", [u64::MAX, 1]), 0);
    assert_eq!(word("set.lt.f32.f64 %r9, %d0, %d1;", [g(1.0), g(2.0)]), 0x3f80_0000);
    assert_eq!(word("set.eq.and.s32.u32 %r9, %r0, %r1, %p2;", [1, 1, 0]), 0);
    assert_eq!(half("set.eq.f16.f16 %h9, %h0, %h1;", [0x3c00, 0x3c00]), 0x3c00);
    assert_eq!(half("set.eq.u16.f16 %h9, %h0, %h1;", [0x3c00, 0x3c00]), 0xffff);
    assert_eq!(half("set.eq.bf16.bf16 %h9, %h0, %h1;", [0x3c00, 0x3c00]), 0x3f80);
}

#[test]
fn selection() {
    assert_eq!(word("selp.b32 %r9, %r0, %r1, %p2;", [5, 6, 1]), 5);
    assert_eq!(word("selp.s32 %r9, -1, 7, %p2;", [0, 0, 0]), 7);
    assert_eq!(half("selp.b16 %h9, %h0, %h1, %p2;", [5, 6, 0]), 6);
    assert_eq!(word("selp.f32 %r9, 0f3F800000, %r1, %p2;", [5, 6, 1]), 0x3f80_0000);
    assert_eq!(double("selp.f64 %d9, %d0, %d1, %p2;", [5, 6, 0]), 6);
}

/// ISA, `slct`: −0 counts as zero, NaN as negative.
#[test]
fn choice_by_sign() {
    assert_eq!(word("slct.u32.s32 %r9, %r0, %r1, %r2;", [5, 6, 0]), 5);
    assert_eq!(word("slct.u32.s32 %r9, %r0, %r1, %r2;", [5, 6, u64::MAX]), 6);
    assert_eq!(word("slct.f32.f32 %r9, %r0, %r1, %r2;", [5, 6, f(-0.0)]), 5);
    assert_eq!(word("slct.f32.f32 %r9, %r0, %r1, %r2;", [5, 6, f(f32::NAN)]), 6);
    assert_eq!(word("slct.f32.f32 %r9, %r0, %r1, %r2;", [5, 6, f(-1e-40)]), 6);
    assert_eq!(word("slct.ftz.f32.f32 %r9, %r0, %r1, %r2;", [5, 6, f(-1e-40)]), 5);
    assert_eq!(double("slct.b64.s32 %d9, %d0, %d1, %r2;", [5, 6, 1]), 5);
}
