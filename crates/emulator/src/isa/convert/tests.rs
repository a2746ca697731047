//! Conversions.

use super::super::rounding::{Format, Rounding, bf16_to_f32, f16_to_f32};
use crate::isa::testing::{double, f, g, half, refusal, word, words};
use proptest::prelude::*;

fn n(x: i64) -> u64 {
    x as u64
}

/// ISA, `cvt`, and 9.4 (type information): cut, then extended to the register.
#[test]
fn integers_are_cut_and_extended() {
    assert_eq!(double("cvt.u64.u32 %d9, %r0;", [0xffff_ffff]), 0xffff_ffff);
    assert_eq!(double("cvt.s64.s32 %d9, %r0;", [0xffff_ffff]), u64::MAX);
    assert_eq!(word("cvt.u32.u64 %r9, %d0;", [0x1_2345_6789]), 0x2345_6789);
    assert_eq!(word("cvt.u32.u16 %r9, %h0;", [0xffff]), 0xffff);
    assert_eq!(word("cvt.s32.s16 %r9, %h0;", [0xffff]), u32::MAX);
    assert_eq!(half("cvt.u16.u32 %h9, %r0;", [0x12345]), 0x2345);
    // Sources and destinations may be wider than their types.
    assert_eq!(word("cvt.s32.s8 %r9, %r0;", [0x1280]), 0xffff_ff80);
    assert_eq!(half("cvt.s16.s8 %h9, %r0;", [0x1280]), 0xff80);
    assert_eq!(half("cvt.u16.u8 %h9, %h0;", [0x1280]), 0x80);
    assert_eq!(half("cvt.s8.s32 %h9, %r0;", [0x1280]), 0xff80);
    assert_eq!(word("cvt.u8.u32 %r9, %r0;", [0x1280]), 0x80);
    assert_eq!(double("cvt.s64.s8 %d9, %r0;", [0x80]), n(-128));
    assert_eq!(double("cvt.u64.u8 %d9, %h0;", [0x180]), 0x80);
    assert_eq!(word("cvt.u32.u8 %r9, %d0;", [0xfff_ff80]), 0x80);
    assert_eq!(double("cvt.s64.s16 %d9, %d0;", [0x1_8000]), n(-32768));
    assert_eq!(word("cvt.u32.u16 %r9, %tid.x;", [0]), 0);
    assert!(refusal("cvt.u32.u16 %h9, %h0;").contains("too small"));
    assert!(refusal("cvt.rn.u32.u16 %r9, %h0;").contains(".rn"));
}

#[test]
fn integers_are_clamped() {
    assert_eq!(word("cvt.sat.u8.s32 %r9, %r0;", [n(-5)]), 0);
    assert_eq!(word("cvt.sat.u8.s32 %r9, %r0;", [300]), 255);
    assert_eq!(word("cvt.sat.s8.s32 %r9, %r0;", [n(-300)]), 0xffff_ff80);
    assert_eq!(word("cvt.sat.s8.u32 %r9, %r0;", [0xffff_ffff]), 127);
    assert_eq!(word("cvt.sat.s32.s64 %r9, %d0;", [1 << 40]), 0x7fff_ffff);
    assert_eq!(word("cvt.sat.u32.s64 %r9, %d0;", [n(-1)]), 0);
    assert_eq!(double("cvt.sat.s64.u64 %d9, %d0;", [u64::MAX]), i64::MAX as u64);
    assert_eq!(double("cvt.sat.u64.s64 %d9, %d0;", [n(-1)]), 0);
}

#[test]
fn integers_to_floats() {
    assert_eq!(word("cvt.rn.f32.s32 %r9, %r0;", [n(-3)]), f(-3.0) as u32);
    assert_eq!(word("cvt.rn.f32.u32 %r9, %r0;", [0xffff_ffff]), f(4_294_967_296.0) as u32);
    assert_eq!(word("cvt.rz.f32.u32 %r9, %r0;", [0xffff_ffff]), f(4_294_967_040.0) as u32);
    assert_eq!(word("cvt.rp.f32.s32 %r9, %r0;", [n(-16_777_217)]), f(-16_777_216.0) as u32);
    assert_eq!(word("cvt.rm.f32.s32 %r9, %r0;", [n(-16_777_217)]), f(-16_777_218.0) as u32);
    assert_eq!(word("cvt.rn.f32.u8 %r9, %r0;", [0x1ff]), f(255.0) as u32);
    assert_eq!(word("cvt.rn.f32.s16 %r9, %h0;", [0xffff]), f(-1.0) as u32);
    assert_eq!(word("cvt.rn.f32.u64 %r9, %d0;", [u64::MAX]), f(2f32.powi(64)) as u32);
    // Halfway between two singles, and one more: by way of a double it would be rounded twice.
    assert_eq!(word("cvt.rn.f32.u64 %r9, %d0;", [(1 << 60) + (1 << 36) + 1]), f(2f32.powi(60)).wrapping_add(1) as u32);
    assert_eq!(double("cvt.rn.f64.s32 %d9, %r0;", [n(-3)]), g(-3.0));
    assert_eq!(double("cvt.rn.f64.s64 %d9, %d0;", [n(-3)]), g(-3.0));
    assert_eq!(double("cvt.rz.f64.u64 %d9, %d0;", [u64::MAX]), g(2f64.powi(64)) - 1);
    assert_eq!(half("cvt.rn.f16.s32 %h9, %r0;", [n(-2)]), 0xc000);
    assert_eq!(half("cvt.rn.f16.u32 %h9, %r0;", [70000]), 0x7c00);
    assert_eq!(half("cvt.rz.f16.u32 %h9, %r0;", [70000]), 0x7bff);
    assert_eq!(half("cvt.rn.bf16.s32 %h9, %r0;", [n(-2)]), 0xc000);
    assert_eq!(word("cvt.rn.f32.s32 %r9, %r0;", [0]), 0);
    assert_eq!(word("cvt.rn.sat.f32.s32 %r9, %r0;", [7]), f(1.0) as u32);
    assert_eq!(word("cvt.rn.sat.f32.s32 %r9, %r0;", [n(-7)]), 0);
    assert!(refusal("cvt.f32.s32 %r9, %r0;").contains(".rn"));
}

#[test]
fn floats_to_integers_round_and_clamp() {
    for (mode, expected) in [("rni", [2, -2, 4]), ("rzi", [2, -2, 3]), ("rmi", [2, -3, 3]), ("rpi", [3, -2, 4])] {
        for (x, expected) in [2.5f32, -2.5, 3.5].into_iter().zip(expected) {
            assert_eq!(word(&format!("cvt.{mode}.s32.f32 %r9, %r0;"), [f(x)]) as i32, expected, "{mode} {x}");
            assert_eq!(word(&format!("cvt.{mode}.s32.f64 %r9, %d0;"), [g(x.into())]) as i32, expected);
            let bits = u64::from(half::f16::from_f32(x).to_bits());
            assert_eq!(word(&format!("cvt.{mode}.s32.f16 %r9, %h0;"), [bits]) as i32, expected);
            let bits = u64::from(half::bf16::from_f32(x).to_bits());
            assert_eq!(double(&format!("cvt.{mode}.s64.bf16 %d9, %h0;"), [bits]) as i64, i64::from(expected));
        }
    }
    assert_eq!(word("cvt.rzi.s32.f32 %r9, %r0;", [f(1e20)]), 0x7fff_ffff);
    assert_eq!(word("cvt.rzi.s32.f32 %r9, %r0;", [f(f32::NEG_INFINITY)]), 0x8000_0000);
    assert_eq!(word("cvt.rzi.u32.f32 %r9, %r0;", [f(-1.0)]), 0);
    assert_eq!(word("cvt.rzi.u32.f32 %r9, %r0;", [f(4e9)]), 4_000_000_000);
    assert_eq!(word("cvt.rzi.s8.f32 %r9, %r0;", [f(-1000.0)]), 0xffff_ff80);
    assert_eq!(half("cvt.rzi.u16.f32 %h9, %r0;", [f(1e6)]), 0xffff);
    assert_eq!(word("cvt.rzi.sat.u8.f32 %r9, %r0;", [f(1e6)]), 255);
    assert_eq!(double("cvt.rzi.s64.f32 %d9, %r0;", [f(1e30)]), i64::MAX as u64);
    assert_eq!(double("cvt.rzi.u64.f64 %d9, %d0;", [g(1e30)]), u64::MAX);
    assert_eq!(word("cvt.rpi.s32.f32 %r9, %r0;", [1]), 1);
    assert_eq!(word("cvt.rpi.ftz.s32.f32 %r9, %r0;", [1]), 0);
    assert!(refusal("cvt.rn.s32.f32 %r9, %r0;").contains(".rn"));
    assert!(refusal("cvt.s32.f32 %r9, %r0;").contains(".rni"));
}

/// ISA 9.0, `cvt`: zero if the source is not f64 and the result not of 64 bits, else the sign bit alone.
#[test]
fn nan_to_integers() {
    assert_eq!(word("cvt.rzi.s32.f32 %r9, %r0;", [f(f32::NAN)]), 0);
    assert_eq!(word("cvt.rzi.u32.f16 %r9, %h0;", [0x7e00]), 0);
    assert_eq!(double("cvt.rzi.s64.f32 %d9, %r0;", [f(f32::NAN)]), 1 << 63);
    assert_eq!(double("cvt.rzi.u64.f32 %d9, %r0;", [f(f32::NAN)]), 1 << 63);
    assert_eq!(word("cvt.rzi.s32.f64 %r9, %d0;", [g(f64::NAN)]), 1 << 31);
    assert_eq!(word("cvt.rzi.u32.f64 %r9, %d0;", [g(f64::NAN)]), 1 << 31);
}

#[test]
fn floats_to_integral_floats() {
    assert_eq!(word("cvt.rni.f32.f32 %r9, %r0;", [f(2.5)]), f(2.0) as u32);
    assert_eq!(word("cvt.rmi.f32.f32 %r9, %r0;", [f(-0.5)]), f(-1.0) as u32);
    assert_eq!(word("cvt.rpi.f32.f32 %r9, %r0;", [f(-0.5)]), 0x8000_0000);
    assert_eq!(double("cvt.rzi.f64.f64 %d9, %d0;", [g(-2.7)]), g(-2.0));
    assert_eq!(half("cvt.rpi.f16.f16 %h9, %h0;", [0x3c01]), 0x4000);
    assert_eq!(word("cvt.rni.f32.f32 %r9, %r0;", [f(3e38)]), f(3e38) as u32);
    assert_eq!(word("cvt.sat.f32.f32 %r9, %r0;", [f(3.0)]), f(1.0) as u32);
    assert_eq!(word("cvt.ftz.f32.f32 %r9, %r0;", [0x8000_0001]), 0x8000_0000);
}

#[test]
fn between_floats() {
    assert_eq!(word("cvt.f32.f16 %r9, %h0;", [0x3c00]), f(1.0) as u32);
    assert_eq!(word("cvt.f32.f16 %r9, %h0;", [0xfe01]), 0x7fff_ffff);
    assert_eq!(word("cvt.f32.f16 %r9, %h0;", [1]), f(2f32.powi(-24)) as u32);
    assert_eq!(word("cvt.f32.bf16 %r9, %h0;", [0xbf80]), f(-1.0) as u32);
    assert_eq!(word("cvt.ftz.f32.bf16 %r9, %h0;", [0x8001]), 0x8000_0000);
    assert_eq!(double("cvt.f64.f32 %d9, %r0;", [f(0.1)]), g(0.1f32.into()));
    assert_eq!(double("cvt.f64.f16 %d9, %h0;", [0xc000]), g(-2.0));
    assert_eq!(double("cvt.ftz.f64.f32 %d9, %r0;", [1]), 0);
    assert_eq!(word("cvt.rn.f32.f64 %r9, %d0;", [g(0.1)]), f(0.1) as u32);
    assert_eq!(word("cvt.rz.f32.f64 %r9, %d0;", [g(0.1)]), f(0.1) as u32 - 1);
    assert_eq!(word("cvt.rp.f32.f64 %r9, %d0;", [g(1e300)]), f(f32::INFINITY) as u32);
    assert_eq!(word("cvt.rn.ftz.f32.f64 %r9, %d0;", [g(1e-40)]), 0);
    assert_eq!(word("cvt.rn.sat.f32.f64 %r9, %d0;", [g(1e300)]), f(1.0) as u32);
    assert_eq!(word("cvt.rn.f32.f64 %r9, %d0;", [g(f64::NAN)]), 0x7fff_ffff);
    assert_eq!(half("cvt.rn.f16.f32 %h9, %r0;", [f(65520.0)]), 0x7c00);
    assert_eq!(half("cvt.rz.f16.f32 %h9, %r0;", [f(65520.0)]), 0x7bff);
    assert_eq!(half("cvt.rn.satfinite.f16.f32 %h9, %r0;", [f(65520.0)]), 0x7bff);
    assert_eq!(half("cvt.rn.relu.f16.f32 %h9, %r0;", [f(-1.0)]), 0);
    assert_eq!(half("cvt.rn.bf16.f32 %h9, %r0;", [0x3f80_8000]), 0x3f80);
    assert_eq!(half("cvt.rn.bf16.f32 %h9, %r0;", [0x3f81_8000]), 0x3f82);
    assert_eq!(half("cvt.rz.bf16.f32 %h9, %r0;", [0x3f81_ffff]), 0x3f81);
    assert_eq!(half("cvt.rn.bf16.f32 %h9, %r0;", [f(f32::NAN)]), 0x7fff);
    // Rounded once: above the middle between halves by less than a single tells.
    assert_eq!(half("cvt.rn.f16.f64 %h9, %d0;", [g(1.0 + 2f64.powi(-11)) + 1]), 0x3c01);
    assert!(refusal("cvt.f16.f32 %h9, %r0;").contains("rounding"));
    assert!(refusal("cvt.rn.f32.f16 %r9, %h0;").contains(".rn"));
}

/// ISA, `cvt`: `.rna` rounds ties away from zero.
#[test]
fn to_tf32() {
    assert_eq!(word("cvt.rna.tf32.f32 %r9, %r0;", [0x3f80_1000]), 0x3f80_2000);
    assert_eq!(word("cvt.rna.tf32.f32 %r9, %r0;", [0x3f80_0fff]), 0x3f80_0000);
    assert_eq!(word("cvt.rn.tf32.f32 %r9, %r0;", [0x3f80_1000]), 0x3f80_0000);
    assert_eq!(word("cvt.rz.tf32.f32 %r9, %r0;", [0xbf80_1fff]), 0xbf80_0000);
    assert_eq!(word("cvt.rna.tf32.f32 %r9, %r0;", [f(f32::NAN)]), 0x7fff_ffff);
    assert_eq!(word("cvt.rna.tf32.f32 %r9, %r0;", [0x7f7f_ffff]), 0x7f80_0000);
    assert_eq!(word("cvt.rna.satfinite.tf32.f32 %r9, %r0;", [0x7f7f_ffff]), 0x7f7f_e000);
    assert!(refusal("cvt.rna.f16.f32 %h9, %r0;").contains(".rna"));
}

/// The first source goes into the upper half.
#[test]
fn pairs() {
    assert_eq!(word("cvt.rn.f16x2.f32 %r9, %r0, %r1;", [f(1.0), f(2.0)]), 0x3c00_4000);
    assert_eq!(word("cvt.rn.bf16x2.f32 %r9, %r0, %r1;", [f(1.0), f(2.0)]), 0x3f80_4000);
    assert_eq!(word("cvt.rn.relu.bf16x2.f32 %r9, %r0, %r1;", [f(-1.0), f(2.0)]), 0x0000_4000);
    assert_eq!(word("cvt.rz.f16x2.f32 %r9, %r0, %r1;", [f(1e9), f(-1e9)]), 0x7bff_fbff);
    assert_eq!(word("cvt.rn.satfinite.f16x2.f32 %r9, %r0, %r1;", [f(f32::INFINITY), f(f32::NAN)]), 0x7bff_7fff);
}

#[test]
fn bytes() {
    assert_eq!(half("cvt.rn.satfinite.e4m3x2.f32 %h9, %r0, %r1;", [f(1.0), f(-2.0)]), 0x38c0);
    assert_eq!(half("cvt.rn.satfinite.e5m2x2.f32 %h9, %r0, %r1;", [f(1.0), f(-2.0)]), 0x3cc0);
    assert_eq!(half("cvt.rn.satfinite.e4m3x2.f32 %h9, %r0, %r1;", [f(1e9), f(f32::NAN)]), 0x7e7f);
    assert_eq!(half("cvt.rn.satfinite.e5m2x2.f32 %h9, %r0, %r1;", [f(f32::NEG_INFINITY), f(1e-9)]), 0xfb00);
    assert_eq!(half("cvt.rn.satfinite.relu.e4m3x2.f32 %h9, %r0, %r1;", [f(-1.0), f(1.0)]), 0x0038);
    assert_eq!(half("cvt.rn.satfinite.e4m3x2.f16x2 %h9, %r0;", [0x3c00_c000]), 0x38c0);
    assert_eq!(half("cvt.rn.satfinite.e5m2x2.f16x2 %h9, %r0;", [0x7c00_c000]), 0x7bc0);
    assert_eq!(word("cvt.rn.f16x2.e4m3x2 %r9, %h0;", [0x38c0]), 0x3c00_c000);
    assert_eq!(word("cvt.rn.f16x2.e4m3x2 %r9, %h0;", [0x7f01]), 0x7fff_1800);
    assert_eq!(word("cvt.rn.f16x2.e5m2x2 %r9, %h0;", [0x7cff]), 0x7c00_7fff);
    assert_eq!(word("cvt.rn.relu.f16x2.e5m2x2 %r9, %h0;", [0xbc3c]), 0x0000_3c00);
    assert!(refusal("cvt.rn.e4m3x2.f32 %h9, %r0, %r1;").contains(".satfinite"));
    for byte in 0..=255u64 {
        for name in ["e4m3", "e5m2"] {
            let halves = u64::from(word(&format!("cvt.rn.f16x2.{name}x2 %r9, %h0;"), [byte << 8 | 0x40]));
            let back = half(&format!("cvt.rn.satfinite.{name}x2.f16x2 %h9, %r0;"), [halves]);
            let magnitude = byte & 0x7f;
            let expected = match (name, magnitude) {
                ("e4m3", 0x7f) | ("e5m2", 0x7d..) => 0x7f,
                ("e5m2", 0x7c) => byte - 1,
                _ => byte,
            };
            assert_eq!(u64::from(back), expected << 8 | 0x40, "{name} {byte:x}");
        }
    }
}

/// ISA, `cvt.pack`.
#[test]
fn clamped_packs() {
    assert_eq!(word("cvt.pack.sat.s16.s32 %r9, %r0, %r1;", [100_000, n(-100_000)]), 0x7fff_8000);
    assert_eq!(word("cvt.pack.sat.u16.s32 %r9, %r0, %r1;", [100_000, n(-5)]), 0xffff_0000);
    assert_eq!(word("cvt.pack.sat.u8.s32.b32 %r9, %r0, %r1, %r2;", [300, 5, 0xabcd_1234]), 0x1234_ff05);
    assert_eq!(word("cvt.pack.sat.s8.s32.b32 %r9, %r0, %r1, %r2;", [n(-300), n(-1), 0]), 0x80ff);
    assert_eq!(word("cvt.pack.sat.u4.s32.b32 %r9, %r0, %r1, %r2;", [20, 3, 0x1234_56ab]), 0x3456_abf3);
    assert_eq!(word("cvt.pack.sat.s2.s32.b32 %r9, %r0, %r1, %r2;", [n(-9), 9, 1]), 0x19);
}

#[test]
fn unknown_conversions_are_refused() {
    assert!(refusal("cvt.rn.f16x2.e2m3x2 %r9, %h0;").contains("cvt"));
    assert!(refusal("cvt.f32.tf32 %r9, %r0;").contains("type"));
    assert!(refusal("cvt.rn.rz.f16.f32 %h9, %r0;").contains("two roundings"));
}

proptest! {
    /// Every way between two floating-point formats in every direction is the one rounding that is tested by itself.
    #[test]
    fn all_ways_between_floats(bits: [u64; 32]) {
        type Widen = fn(u64) -> f64;
        let sources: [(&str, &str, Widen); 4] = [
            ("f16", "%h0", |x| f64::from(f16_to_f32(x as u32 & 0xffff))),
            ("bf16", "%h0", |x| f64::from(bf16_to_f32(x as u32 & 0xffff))),
            ("f32", "%r0", |x| f64::from(f32::from_bits(x as u32))),
            ("f64", "%d0", f64::from_bits),
        ];
        for (from, register, widen) in sources {
            for (to, format) in [("f16", Format::F16), ("bf16", Format::BF16), ("f32", Format::F32)] {
                if from == to || to == "f32" && from != "f64" {
                    continue;
                }
                for (name, mode) in [("rn", Rounding::Nearest), ("rz", Rounding::Zero), ("rm", Rounding::Down), ("rp", Rounding::Up)] {
                    let body = match to {
                        // Only a register of its size holds a bf16.
                        "bf16" => format!("cvt.{name}.{to}.{from} %h9, {register};\ncvt.u32.u16 %r9, %h9;"),
                        _ => format!("cvt.{name}.{to}.{from} %r9, {register};"),
                    };
                    // Of doubles, those that are near the range of the others.
                    let argument = |lane: usize| match from {
                        "f64" => bits[lane] & 0x81ff_ffff_ffff_ffff | 0x3e00_0000_0000_0000,
                        _ => bits[lane],
                    };
                    for (lane, result) in words(&body, |lane| [argument(lane)]).into_iter().enumerate() {
                        let expected = format.round_f64(widen(argument(lane)), mode);
                        prop_assert_eq!(u64::from(result), expected, "{} {:x}", body, argument(lane));
                    }
                }
            }
        }
    }

    #[test]
    fn integers_to_singles(x: u64) {
        for (name, mode) in [("rn", Rounding::Nearest), ("rz", Rounding::Zero), ("rm", Rounding::Down), ("rp", Rounding::Up)] {
            let expected = Format::F32.round_f64(f64::from(x as i32), mode);
            prop_assert_eq!(u64::from(word(&format!("cvt.{name}.f32.s32 %r9, %r0;"), [x])), expected);
            let expected = Format::F32.round_f64(f64::from(x as u32), mode);
            prop_assert_eq!(u64::from(word(&format!("cvt.{name}.f32.u32 %r9, %r0;"), [x])), expected);
        }
        prop_assert_eq!(word("cvt.rn.f32.s64 %r9, %d0;", [x]), (x as i64 as f32).to_bits());
        prop_assert_eq!(word("cvt.rn.f32.u64 %r9, %d0;", [x]), (x as f32).to_bits());
    }
}
