//! Floating-point instructions at their corners; that roundings are right is shown in [`super::super::rounding`].

use crate::isa::testing::{double, f, g, predicate, refusal, word, words};

const NAN: u32 = 0x7fff_ffff;
/// The smallest normal single, and one below it.
const SMALL: f32 = f32::MIN_POSITIVE;
const TINY: f32 = 1e-40;

fn single<const N: usize>(body: &str, arguments: [f32; N]) -> f32 {
    f32::from_bits(word(body, arguments.map(f)))
}

fn long<const N: usize>(body: &str, arguments: [f64; N]) -> f64 {
    f64::from_bits(double(body, arguments.map(g)))
}

#[test]
fn sums_and_products() {
    assert_eq!(single("add.f32 %r9, %r0, %r1;", [1.5, 2.25]), 3.75);
    assert_eq!(single("sub.rn.f32 %r9, %r0, 0f3F800000;", [1.5]), 0.5);
    assert_eq!(single("mul.f32 %r9, %r0, %r1;", [-1.5, 2.0]), -3.0);
    assert_eq!(single("fma.rn.f32 %r9, %r0, %r1, %r2;", [2.0, 3.0, 1.0]), 7.0);
    assert_eq!(single("mad.rn.f32 %r9, %r0, %r1, %r2;", [2.0, 3.0, 1.0]), 7.0);
    // 1 + 2^-12 squared loses its last term where it is rounded before the sum.
    let x = 1.0 + 1.0 / 4096.0;
    assert_eq!(single("fma.rn.f32 %r9, %r0, %r0, %r1;", [x, -1.0 - 2.0 / 4096.0]), 1.0 / 16_777_216.0);
    assert!(refusal("fma.f32 %r9, %r0, %r1, %r2;").contains(".rn"));
    assert!(refusal("add.rn.rz.f32 %r9, %r0, %r1;").contains("two roundings"));
}

#[test]
fn directions() {
    let third = |mode: &str| single(&format!("div.{mode}.f32 %r9, %r0, %r1;"), [1.0, 3.0]).to_bits();
    assert_eq!(
        [third("rn"), third("rz"), third("rm"), third("rp")],
        [0x3eaa_aaab, 0x3eaa_aaaa, 0x3eaa_aaaa, 0x3eaa_aaab]
    );
    assert_eq!(single("add.rp.f32 %r9, %r0, %r1;", [1.0, 1e-30]), 1.0f32.next_up());
    assert_eq!(single("sub.rm.f32 %r9, %r0, %r1;", [1.0, 1e-30]), 1.0f32.next_down());
    assert_eq!(single("mul.rz.f32 %r9, %r0, %r1;", [f32::MAX, -2.0]), -f32::MAX);
    assert_eq!(single("mul.rm.f32 %r9, %r0, %r1;", [f32::MAX, -2.0]), f32::NEG_INFINITY);
    assert_eq!(single("fma.rp.f32 %r9, %r0, %r1, %r2;", [1.0, 1.0, 1e-30]), 1.0f32.next_up());
    assert_eq!(single("sqrt.rm.f32 %r9, %r0;", [2.0]).to_bits(), 0x3fb5_04f3);
    assert_eq!(single("sqrt.rp.f32 %r9, %r0;", [2.0]).to_bits(), 0x3fb5_04f4);
    assert_eq!(single("rcp.rz.f32 %r9, %r0;", [3.0]).to_bits(), 0x3eaa_aaaa);
    // An exact zero is negative when rounding down.
    assert_eq!(word("sub.rm.f32 %r9, %r0, %r0;", [f(1.0)]), 0x8000_0000);
    assert_eq!(word("sub.rn.f32 %r9, %r0, %r0;", [f(1.0)]), 0);
}

/// ISA 9.7.3: NaN payloads are not kept; what comes out is 0x7fffffff.
#[test]
fn nan_is_canonical() {
    assert_eq!(word("add.f32 %r9, %r0, %r1;", [0xffc0_1234, f(1.0)]), NAN);
    assert_eq!(word("sub.f32 %r9, %r0, %r0;", [f(f32::INFINITY)]), NAN);
    assert_eq!(word("sqrt.rn.f32 %r9, %r0;", [f(-1.0)]), NAN);
    assert_eq!(word("fma.rn.f32 %r9, %r0, %r1, %r1;", [f(f32::INFINITY), 0]), NAN);
    assert_eq!(word("lg2.approx.f32 %r9, %r0;", [f(-1.0)]), NAN);
}

#[test]
fn subnormal_numbers_are_flushed_on_demand() {
    assert_eq!(single("add.f32 %r9, %r0, %r1;", [TINY, TINY]), TINY + TINY);
    assert_eq!(word("add.ftz.f32 %r9, %r0, %r1;", [f(-TINY), f(-TINY)]), 0x8000_0000);
    assert_eq!(word("mul.ftz.f32 %r9, %r0, %r1;", [f(SMALL), f(0.5)]), 0);
    assert_eq!(single("mul.f32 %r9, %r0, %r1;", [SMALL, 0.5]), SMALL / 2.0);
    assert_eq!(single("fma.rn.ftz.f32 %r9, %r0, %r1, %r2;", [TINY, 1.0, 1.0]), 1.0);
    assert_eq!(word("neg.ftz.f32 %r9, %r0;", [f(TINY)]), 0x8000_0000);
    assert_eq!(word("abs.ftz.f32 %r9, %r0;", [f(-TINY)]), 0);
    assert_eq!(single("rcp.approx.ftz.f32 %r9, %r0;", [-TINY]), f32::NEG_INFINITY);
    assert_eq!(single("rsqrt.approx.ftz.f32 %r9, %r0;", [TINY]), f32::INFINITY);
    assert_eq!(single("rsqrt.approx.f32 %r9, %r0;", [SMALL / 4.0]), 2f32.powi(64));
    assert_eq!(single("min.ftz.f32 %r9, %r0, %r1;", [TINY, 1.0]), 0.0);
}

#[test]
fn saturated_results_lie_between_zero_and_one() {
    assert_eq!(single("add.sat.f32 %r9, %r0, %r1;", [1.0, 1.0]), 1.0);
    assert_eq!(word("sub.sat.f32 %r9, %r0, %r1;", [f(1.0), f(2.0)]), 0);
    assert_eq!(word("mul.sat.f32 %r9, %r0, %r1;", [f(f32::NAN), f(2.0)]), 0);
    assert_eq!(single("fma.rn.sat.f32 %r9, %r0, %r1, %r2;", [0.5, 0.5, 0.25]), 0.5);
}

/// ISA, `div`: `div.approx` gives zero for 2^126 < |b| < 2^128, and NaN if a is infinite then.
#[test]
fn approximate_division() {
    assert_eq!(single("div.approx.f32 %r9, %r0, %r1;", [1.0, 4.0]), 0.25);
    assert_eq!(single("div.approx.f32 %r9, %r0, %r1;", [1e38, 2f32.powi(126)]), 1e38 / 2f32.powi(126));
    assert_eq!(single("div.approx.f32 %r9, %r0, %r1;", [3e38, 3e38]), 0.0);
    assert_eq!(word("div.approx.f32 %r9, %r0, %r1;", [f(f32::INFINITY), f(3e38)]), NAN);
    assert_eq!(single("div.full.f32 %r9, %r0, %r1;", [3e38, 3e38]), 1.0);
    assert!(refusal("div.f32 %r9, %r0, %r1;").contains(".approx"));
}

/// ISA, `min` and `max` of floating-point numbers.
#[test]
fn extremes() {
    assert_eq!(single("min.f32 %r9, %r0, %r1;", [1.0, -2.0]), -2.0);
    assert_eq!(single("max.f32 %r9, %r0, %r1;", [1.0, -2.0]), 1.0);
    assert_eq!(word("min.f32 %r9, %r0, %r1;", [f(0.0), f(-0.0)]), 0x8000_0000);
    assert_eq!(word("max.f32 %r9, %r0, %r1;", [f(-0.0), f(0.0)]), 0);
    assert_eq!(single("min.f32 %r9, %r0, %r1;", [f32::NAN, 3.0]), 3.0);
    assert_eq!(single("max.f32 %r9, %r0, %r1;", [3.0, f32::NAN]), 3.0);
    assert_eq!(word("min.f32 %r9, %r0, %r1;", [f(f32::NAN), f(f32::NAN)]), NAN);
    assert_eq!(word("min.NaN.f32 %r9, %r0, %r1;", [f(f32::NAN), f(3.0)]), NAN);
    assert_eq!(single("max.NaN.f32 %r9, %r0, %r1;", [4.0, 3.0]), 4.0);
    assert_eq!(single("min.xorsign.abs.f32 %r9, %r0, %r1;", [-1.0, 2.0]), -1.0);
    assert_eq!(single("max.xorsign.abs.f32 %r9, %r0, %r1;", [-3.0, -2.0]), 3.0);
    assert_eq!(single("max.f32 %r9, %r0, %r1, %r2;", [1.0, 5.0, 3.0]), 5.0);
    assert_eq!(single("min.abs.f32 %r9, %r0, %r1, %r2;", [-4.0, 5.0, -6.0]), 4.0);
    assert_eq!(word("max.NaN.f32 %r9, %r0, %r1, %r2;", [f(1.0), f(f32::NAN), f(3.0)]), NAN);
    assert!(refusal("max.abs.f32 %r9, %r0, %r1;").contains("xorsign"));
}

#[test]
fn signs_and_questions() {
    assert_eq!(single("neg.f32 %r9, %r0;", [1.0]), -1.0);
    assert_eq!(single("abs.f32 %r9, %r0;", [-1.0]), 1.0);
    assert_eq!(single("copysign.f32 %r9, %r0, %r1;", [-1.0, 2.0]), -2.0);
    assert_eq!(long("copysign.f64 %d9, %d0, %d1;", [-1.0, 2.0]), -2.0);
    for (name, holds) in [
        ("finite", [true, false, false, true, true]),
        ("infinite", [false, true, false, false, false]),
        ("number", [true, true, false, true, true]),
        ("notanumber", [false, false, true, false, false]),
        ("normal", [true, false, false, false, false]),
        ("subnormal", [false, false, false, true, false]),
    ] {
        for (x, holds) in [1.0, f32::INFINITY, f32::NAN, TINY, 0.0].into_iter().zip(holds) {
            assert_eq!(predicate(&format!("testp.{name}.f32 %p9, %r0;"), [f(x)]), holds, "{name} {x}");
        }
        for (x, holds) in [1.0, f64::INFINITY, f64::NAN, 1e-310, 0.0].into_iter().zip(holds) {
            assert_eq!(predicate(&format!("testp.{name}.f64 %p9, %d0;"), [g(x)]), holds, "{name} {x}");
        }
    }
}

/// Within the errors that the ISA allows from `rcp` to `tanh`, over 32 numbers at once, and exact where it says so.
#[test]
fn approximations() {
    let check = |opcode: &str, number: fn(usize) -> f32, truth: fn(f64) -> f64, relative: f64, absolute: f64| {
        let results = words(&format!("{opcode}.f32 %r9, %r0;"), |lane| [f(number(lane))]);
        for (lane, result) in results.into_iter().enumerate() {
            let (x, result) = (f64::from(number(lane)), f64::from(f32::from_bits(result)));
            let error = (result - truth(x)).abs();
            assert!(error <= relative * truth(x).abs() + absolute, "{opcode} of {x}: {result}, not {}", truth(x));
        }
    };
    let spread = |lane: usize| (lane as f32 - 15.3) * 0.41;
    let positive = |lane: usize| 10f32.powi(lane as i32 - 16) * 1.37;
    let last = 2f64.powi(-24);
    check("ex2.approx", |lane| (lane as f32 - 15.3) * 8.1, f64::exp2, last, 1e-45);
    check("ex2.approx", spread, f64::exp2, last, 0.0);
    check("lg2.approx", positive, f64::log2, last, 0.0);
    check("lg2.approx", |lane| 0.5 + lane as f32 * 0.047, f64::log2, last, 1e-12);
    check("sin.approx", spread, f64::sin, last, 0.0);
    check("cos.approx", spread, f64::cos, last, 0.0);
    check("tanh.approx", spread, f64::tanh, last * 1.01, 0.0);
    check("tanh.approx", |lane| 10f32.powi(-(lane as i32)), f64::tanh, last * 1.01, 1e-45);
    check("rsqrt.approx", positive, |x| 1.0 / x.sqrt(), last, 0.0);
    check("rcp.approx", positive, |x| 1.0 / x, last, 0.0);
    check("sqrt.approx", positive, f64::sqrt, last, 0.0);
    for (body, x, result) in [
        ("ex2.approx.f32", 0.0, 1.0),
        ("ex2.approx.f32", 10.0, 1024.0),
        ("ex2.approx.f32", 128.0, f32::INFINITY),
        ("ex2.approx.f32", f32::NEG_INFINITY, 0.0),
        ("ex2.approx.f32", f32::INFINITY, f32::INFINITY),
        ("ex2.approx.f32", -149.0, f32::from_bits(1)),
        ("ex2.approx.ftz.f32", -149.0, 0.0),
        ("lg2.approx.f32", 0.0, f32::NEG_INFINITY),
        ("lg2.approx.f32", 1.0, 0.0),
        ("lg2.approx.f32", 8.0, 3.0),
        ("lg2.approx.f32", f32::from_bits(1), -149.0),
        ("lg2.approx.ftz.f32", f32::from_bits(1), f32::NEG_INFINITY),
        ("lg2.approx.f32", f32::INFINITY, f32::INFINITY),
        ("tanh.approx.f32", f32::INFINITY, 1.0),
        ("tanh.approx.f32", f32::NEG_INFINITY, -1.0),
        ("rsqrt.approx.f32", 0.0, f32::INFINITY),
        ("rsqrt.approx.f32", f32::INFINITY, 0.0),
        ("rcp.approx.f32", -0.0, f32::NEG_INFINITY),
    ] {
        assert_eq!(single(&format!("{body} %r9, %r0;"), [x]).to_bits(), result.to_bits(), "{body} {x}");
    }
    for name in ["ex2.approx", "lg2.approx", "tanh.approx", "sin.approx", "cos.approx", "rsqrt.approx"] {
        assert_eq!(word(&format!("{name}.f32 %r9, %r0;"), [f(f32::NAN)]), NAN);
    }
    assert_eq!(word("sin.approx.f32 %r9, %r0;", [f(f32::INFINITY)]), NAN);
}

#[test]
fn two_singles_in_one_register() {
    let pair = |low: f32, high: f32| f(high) << 32 | f(low);
    let (a, b, c) = (pair(1.0, 2.0), pair(3.0, 4.0), pair(5.0, TINY));
    assert_eq!(double("add.f32x2 %d9, %d0, %d1;", [a, b]), pair(4.0, 6.0));
    assert_eq!(double("sub.rn.f32x2 %d9, %d0, %d1;", [a, b]), pair(-2.0, -2.0));
    assert_eq!(double("mul.f32x2 %d9, %d0, %d1;", [a, b]), pair(3.0, 8.0));
    assert_eq!(double("fma.rn.f32x2 %d9, %d0, %d1, %d2;", [a, b, c]), pair(8.0, 8.0));
    assert_eq!(double("fma.rp.f32x2 %d9, %d0, %d1, %d2;", [a, b, c]), pair(8.0, 8f32.next_up()));
    assert_eq!(double("fma.rp.ftz.f32x2 %d9, %d0, %d1, %d2;", [a, b, c]), pair(8.0, 8.0));
}

#[test]
fn doubles() {
    assert_eq!(long("add.f64 %d9, %d0, %d1;", [1.5, 2.25]), 3.75);
    assert_eq!(long("sub.f64 %d9, %d0, 0d3FF0000000000000;", [1.5]), 0.5);
    assert_eq!(long("mul.rn.f64 %d9, %d0, %d1;", [1.5, 2.0]), 3.0);
    assert_eq!(long("fma.rn.f64 %d9, %d0, %d1, %d2;", [2.0, 3.0, 1.0]), 7.0);
    assert_eq!(long("fma.rp.f64 %d9, %d0, %d1, %d2;", [2.0, 3.0, 1e-300]), 6f64.next_up());
    assert_eq!(long("mad.rz.f64 %d9, %d0, %d1, %d2;", [2.0, 3.0, -1e-300]), 6f64.next_down());
    assert_eq!(long("add.rp.f64 %d9, %d0, %d1;", [1.0, 1e-300]), 1f64.next_up());
    assert_eq!(long("sub.rm.f64 %d9, %d0, %d1;", [1.0, 1e-300]), 1f64.next_down());
    assert_eq!(long("mul.rz.f64 %d9, %d0, %d1;", [f64::MAX, 2.0]), f64::MAX);
    assert_eq!(long("div.rn.f64 %d9, %d0, %d1;", [1.0, 3.0]), 1.0 / 3.0);
    assert_eq!(long("div.rp.f64 %d9, %d0, %d1;", [1.0, 3.0]), (1.0f64 / 3.0).next_up());
    assert_eq!(long("rcp.rn.f64 %d9, %d0;", [3.0]), 1.0 / 3.0);
    assert_eq!(long("rcp.rm.f64 %d9, %d0;", [-0.0]), f64::NEG_INFINITY);
    assert_eq!(long("sqrt.rn.f64 %d9, %d0;", [2.0]), 2f64.sqrt());
    assert_eq!(long("sqrt.rz.f64 %d9, %d0;", [2.0]), 2f64.sqrt().next_down());
    assert_eq!(long("rsqrt.approx.f64 %d9, %d0;", [4.0]), 0.5);
    assert_eq!(long("neg.f64 %d9, %d0;", [4.0]), -4.0);
    assert_eq!(long("abs.f64 %d9, %d0;", [-4.0]), 4.0);
    assert_eq!(long("min.f64 %d9, %d0, %d1;", [f64::NAN, 2.0]), 2.0);
    assert_eq!(long("max.f64 %d9, %d0, %d1;", [1.0, 2.0]), 2.0);
    assert_eq!(double("min.f64 %d9, %d0, %d1;", [g(0.0), g(-0.0)]), 1 << 63);
    assert_eq!(double("max.f64 %d9, %d0, %d1;", [g(-0.0), g(0.0)]), 0);
    // An invalid operation gives this one: CUDART_NAN.
    assert_eq!(double("sub.f64 %d9, %d0, %d0;", [g(f64::INFINITY)]) & !(1 << 63), 0x7ff8_0000_0000_0000);
    assert!(refusal("add.sat.f64 %d9, %d0, %d1;").contains(".sat"));
    assert!(refusal("add.ftz.f64 %d9, %d0, %d1;").contains(".ftz"));
}

/// ISA, `rcp.approx.ftz.f64` and `rsqrt.approx.ftz.f64`: only the upper 32 bits enter and leave.
#[test]
fn upper_halves_of_doubles() {
    let third = double("rcp.approx.ftz.f64 %d9, %d0;", [g(3.0) | 0xffff]);
    assert_eq!(third, g(1.0 / 3.0) & !0xffff_ffff);
    assert_eq!(long("rcp.approx.ftz.f64 %d9, %d0;", [1e-310]), f64::INFINITY);
    assert_eq!(long("rcp.approx.ftz.f64 %d9, %d0;", [f64::MAX]), 0.0);
    assert_eq!(double("rsqrt.approx.ftz.f64 %d9, %d0;", [g(2.0)]), g(0.5f64.sqrt()) & !0xffff_ffff);
    assert!(long("rcp.approx.ftz.f64 %d9, %d0;", [f64::from_bits(0x7ff0_0000_0000_0001)]).is_nan());
}
