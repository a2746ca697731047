//! Integer arithmetic against values worked out by hand.

use crate::isa::testing::{double, half, predicate, refusal, run, word};
use crate::machine::registers::{P, W};
use proptest::prelude::*;

/// Two's complement.
fn n(x: i64) -> u64 {
    x as u64
}

#[test]
fn sums_and_differences_wrap_at_their_width() {
    assert_eq!(word("add.s32 %r9, %r0, %r1;", [0x7fff_ffff, 1]), 0x8000_0000);
    assert_eq!(word("add.u32 %r9, %r0, -1;", [0]), 0xffff_ffff);
    assert_eq!(half("add.s16 %h9, %h0, %h1;", [0xffff, 2]), 1);
    assert_eq!(half("sub.u16 %h9, %h0, %h1;", [0, 1]), 0xffff);
    assert_eq!(double("add.s64 %d9, %d0, %d1;", [u64::MAX, 2]), 1);
    assert_eq!(double("sub.s64 %d9, %d0, %d1;", [0, 1]), u64::MAX);
    assert_eq!(word("sub.s32 %r9, %r0, %r1;", [1, 3]), 0xffff_fffe);
}

/// ISA 9.7.1.1 and 9.7.1.2: `.sat` is for s32.
#[test]
fn saturated_sums_stop_at_the_ends() {
    assert_eq!(word("add.sat.s32 %r9, %r0, %r1;", [0x7fff_ffff, 1]), 0x7fff_ffff);
    assert_eq!(word("add.sat.s32 %r9, %r0, %r1;", [0x8000_0000, n(-1)]), 0x8000_0000);
    assert_eq!(word("sub.sat.s32 %r9, %r0, %r1;", [0x8000_0000, 1]), 0x8000_0000);
    assert_eq!(word("sub.sat.s32 %r9, %r0, %r1;", [5, 7]), 0xffff_fffe);
    assert!(refusal("add.sat.u32 %r9, %r0, %r1;").contains("s32 only"));
}

#[test]
fn packed_halves_do_not_carry_into_each_other() {
    assert_eq!(word("add.u16x2 %r9, %r0, %r1;", [0x0001_ffff, 0x0001_0001]), 0x0002_0000);
    assert_eq!(word("min.s16x2 %r9, %r0, %r1;", [0x0001_ffff, 0xffff_0001]), 0xffff_ffff);
    assert_eq!(word("min.u16x2 %r9, %r0, %r1;", [0x0001_ffff, 0xffff_0001]), 0x0001_0001);
    assert_eq!(word("max.s16x2 %r9, %r0, %r1;", [0x0001_ffff, 0xffff_8000]), 0x0001_ffff);
    assert_eq!(word("max.u16x2 %r9, %r0, %r1;", [0x0001_ffff, 0xffff_8000]), 0xffff_ffff);
    assert_eq!(word("min.relu.s16x2 %r9, %r0, %r1;", [0x0003_ffff, 0x0002_0001]), 0x0002_0000);
    assert_eq!(word("max.relu.s16x2 %r9, %r0, %r1;", [0xfff3_ffff, 0xfff2_0001]), 0x0000_0001);
}

#[test]
fn products_low_high_and_wide() {
    assert_eq!(word("mul.lo.s32 %r9, %r0, %r1;", [0x1_0001, 0x1_0001]), 0x2_0001);
    assert_eq!(word("mul.hi.u32 %r9, %r0, %r1;", [0xffff_ffff, 0xffff_ffff]), 0xffff_fffe);
    assert_eq!(word("mul.hi.s32 %r9, %r0, %r1;", [n(-1), 2]), 0xffff_ffff);
    assert_eq!(half("mul.lo.u16 %h9, %h0, %h1;", [0x101, 0x101]), 0x0201);
    assert_eq!(half("mul.hi.u16 %h9, %h0, %h1;", [0xffff, 0xffff]), 0xfffe);
    assert_eq!(half("mul.hi.s16 %h9, %h0, %h1;", [0xffff, 2]), 0xffff);
    assert_eq!(word("mul.wide.u16 %r9, %h0, %h1;", [0xffff, 0xffff]), 0xfffe_0001);
    assert_eq!(word("mul.wide.s16 %r9, %h0, %h1;", [0xffff, 2]), 0xffff_fffe);
    assert_eq!(double("mul.wide.u32 %d9, %r0, %r1;", [0xffff_ffff, 2]), 0x1_ffff_fffe);
    assert_eq!(double("mul.wide.s32 %d9, %r0, %r1;", [n(-1), 2]), n(-2));
    assert_eq!(double("mul.lo.s64 %d9, %d0, %d1;", [n(-3), 5]), n(-15));
    assert_eq!(double("mul.hi.u64 %d9, %d0, %d1;", [u64::MAX, u64::MAX]), u64::MAX - 1);
    assert_eq!(double("mul.hi.s64 %d9, %d0, %d1;", [n(-1), 2]), u64::MAX);
    assert!(refusal("mul.s32 %r9, %r0, %r1;").contains(".lo and .hi"));
}

#[test]
fn multiply_and_add() {
    assert_eq!(word("mad.lo.s32 %r9, %r0, %r1, %r2;", [3, 4, 5]), 17);
    assert_eq!(word("mad.hi.u32 %r9, %r0, %r1, %r2;", [0x8000_0000, 4, 5]), 7);
    assert_eq!(word("mad.hi.s32 %r9, %r0, %r1, %r2;", [0x8000_0000, 4, 5]), 3);
    assert_eq!(word("mad.hi.sat.s32 %r9, %r0, %r1, %r2;", [0x7fff_ffff, 4, 0x7fff_ffff]), 0x7fff_ffff);
    assert_eq!(half("mad.lo.u16 %h9, %h0, %h1, %h2;", [0xffff, 2, 3]), 1);
    assert_eq!(half("mad.hi.s16 %h9, %h0, %h1, %h2;", [0x8000, 4, 1]), 0xffff);
    assert_eq!(half("mad.hi.u16 %h9, %h0, %h1, %h2;", [0x8000, 4, 1]), 3);
    assert_eq!(word("mad.wide.u16 %r9, %h0, %h1, %r2;", [0xffff, 0xffff, 1]), 0xfffe_0002);
    assert_eq!(word("mad.wide.s16 %r9, %h0, %h1, %r2;", [0xffff, 2, 1]), 0xffff_ffff);
    assert_eq!(double("mad.wide.u32 %d9, %r0, %r1, %d2;", [0xffff_ffff, 2, 3]), 0x2_0000_0001);
    assert_eq!(double("mad.wide.s32 %d9, %r0, %r1, %d2;", [n(-1), 2, 3]), 1);
    assert_eq!(double("mad.lo.s64 %d9, %d0, %d1, %d2;", [n(-3), 5, 1]), n(-14));
    assert_eq!(double("mad.hi.u64 %d9, %d0, %d1, %d2;", [1 << 63, 4, 5]), 7);
    assert_eq!(double("mad.hi.s64 %d9, %d0, %d1, %d2;", [1 << 63, 4, 5]), 3);
    assert!(refusal("mad.lo.sat.s32 %r9, %r0, %r1, %r2;").contains(".sat"));
}

/// ISA 9.7.1.5: the upper eight bits are ignored; `.hi` takes bits 47 to 16 of the product.
#[test]
fn factors_of_24_bits() {
    assert_eq!(word("mul24.lo.u32 %r9, %r0, %r1;", [0xff00_0003, 0x0100_0004]), 12);
    assert_eq!(word("mul24.lo.s32 %r9, %r0, %r1;", [0x00ff_ffff, 2]), 0xffff_fffe);
    assert_eq!(word("mul24.hi.u32 %r9, %r0, %r1;", [0x00ff_ffff, 0x00ff_ffff]), 0xffff_fe00);
    assert_eq!(word("mul24.hi.s32 %r9, %r0, %r1;", [0x00ff_ffff, 2]), 0xffff_ffff);
    assert_eq!(word("mad24.lo.s32 %r9, %r0, %r1, %r2;", [0x00ff_ffff, 2, 3]), 1);
    assert_eq!(word("mad24.lo.u32 %r9, %r0, %r1, %r2;", [2, 2, 3]), 7);
    assert_eq!(word("mad24.hi.u32 %r9, %r0, %r1, %r2;", [0x10_0000, 0x10, 1]), 0x101);
    assert_eq!(word("mad24.hi.s32 %r9, %r0, %r1, %r2;", [0x00ff_ffff, 2, 1]), 0);
    assert_eq!(word("mad24.hi.sat.s32 %r9, %r0, %r1, %r2;", [0x7f_ffff, 0x7f_ffff, 0x7fff_ffff]), 0x7fff_ffff);
}

/// ISA 9.7.1.8: division rounds towards zero, and the remainder has the dividend's sign. Of zero divisors and of the
/// quotient that does not fit it says nothing; here they give what the code gives that ptxas makes.
#[test]
fn quotients_and_remainders() {
    assert_eq!(word("div.s32 %r9, %r0, %r1;", [n(-7), 2]), n(-3) as u32);
    assert_eq!(word("rem.s32 %r9, %r0, %r1;", [n(-7), 2]), n(-1) as u32);
    assert_eq!(word("div.u32 %r9, %r0, %r1;", [0xffff_fff9, 2]), 0x7fff_fffc);
    assert_eq!(word("rem.u32 %r9, %r0, %r1;", [7, 4]), 3);
    assert_eq!(half("div.s16 %h9, %h0, %h1;", [0xfff9, 2]), 0xfffd);
    assert_eq!(half("rem.s16 %h9, %h0, %h1;", [0xfff9, 2]), 0xffff);
    assert_eq!(half("div.u16 %h9, %h0, %h1;", [0xfff9, 2]), 0x7ffc);
    assert_eq!(half("rem.u16 %h9, %h0, %h1;", [9, 4]), 1);
    assert_eq!(double("div.s64 %d9, %d0, %d1;", [n(-7), 2]), n(-3));
    assert_eq!(double("rem.s64 %d9, %d0, %d1;", [n(-7), 2]), n(-1));
    assert_eq!(double("div.u64 %d9, %d0, %d1;", [7, 2]), 3);
    assert_eq!(double("rem.u64 %d9, %d0, %d1;", [7, 2]), 1);
    for opcode in ["div", "rem"] {
        assert_eq!(word(&format!("{opcode}.u32 %r9, %r0, %r1;"), [5, 0]), u32::MAX);
        assert_eq!(word(&format!("{opcode}.s32 %r9, %r0, %r1;"), [5, 0]), u32::MAX);
        assert_eq!(half(&format!("{opcode}.u16 %h9, %h0, %h1;"), [5, 0]), 0xffff);
        assert_eq!(half(&format!("{opcode}.s16 %h9, %h0, %h1;"), [5, 0]), 0xffff);
        assert_eq!(double(&format!("{opcode}.u64 %d9, %d0, %d1;"), [5, 0]), u64::MAX);
        assert_eq!(double(&format!("{opcode}.s64 %d9, %d0, %d1;"), [5, 0]), u64::MAX);
    }
    assert_eq!(word("div.s32 %r9, %r0, %r1;", [0x8000_0000, n(-1)]), 0x8000_0000);
    assert_eq!(word("rem.s32 %r9, %r0, %r1;", [0x8000_0000, n(-1)]), 0);
    assert_eq!(half("div.s16 %h9, %h0, %h1;", [0x8000, n(-1)]), 0x8000);
    assert_eq!(double("div.s64 %d9, %d0, %d1;", [1 << 63, n(-1)]), 1 << 63);
}

#[test]
fn signs_and_extremes() {
    assert_eq!(word("abs.s32 %r9, %r0;", [n(-5)]), 5);
    assert_eq!(word("abs.s32 %r9, %r0;", [0x8000_0000]), 0x8000_0000);
    assert_eq!(half("abs.s16 %h9, %h0;", [0xfffb]), 5);
    assert_eq!(half("neg.s16 %h9, %h0;", [5]), 0xfffb);
    assert_eq!(word("neg.s32 %r9, %r0;", [5]), n(-5) as u32);
    assert_eq!(double("abs.s64 %d9, %d0;", [n(-5)]), 5);
    assert_eq!(double("neg.s64 %d9, %d0;", [5]), n(-5));
    assert_eq!(word("min.s32 %r9, %r0, %r1;", [n(-1), 1]), u32::MAX);
    assert_eq!(word("min.u32 %r9, %r0, %r1;", [n(-1), 1]), 1);
    assert_eq!(word("max.s32 %r9, %r0, %r1;", [n(-1), 1]), 1);
    assert_eq!(word("max.u32 %r9, %r0, %r1;", [n(-1), 1]), u32::MAX);
    assert_eq!(half("min.s16 %h9, %h0, %h1;", [0xffff, 1]), 0xffff);
    assert_eq!(half("min.u16 %h9, %h0, %h1;", [0xffff, 1]), 1);
    assert_eq!(half("max.s16 %h9, %h0, %h1;", [0xffff, 1]), 1);
    assert_eq!(double("min.s64 %d9, %d0, %d1;", [n(-1), 1]), u64::MAX);
    assert_eq!(double("max.u64 %d9, %d0, %d1;", [n(-1), 1]), u64::MAX);
    assert_eq!(word("min.relu.s32 %r9, %r0, %r1;", [n(-1), 1]), 0);
    assert_eq!(word("max.relu.s32 %r9, %r0, %r1;", [n(-1), n(-2)]), 0);
    assert!(refusal("abs.u32 %r9, %r0;").contains("does not exist for this type"));
}

#[test]
fn sums_of_absolute_differences() {
    assert_eq!(word("sad.u32 %r9, %r0, %r1, %r2;", [1, 0xffff_ffff, 3]), 1);
    assert_eq!(word("sad.s32 %r9, %r0, %r1, %r2;", [1, n(-1), 3]), 5);
    assert_eq!(half("sad.s16 %h9, %h0, %h1, %h2;", [1, 0xffff, 3]), 5);
    assert_eq!(half("sad.u16 %h9, %h0, %h1, %h2;", [1, 0xffff, 3]), 1);
    assert_eq!(double("sad.s64 %d9, %d0, %d1, %d2;", [1, n(-1), 3]), 5);
    assert_eq!(double("sad.u64 %d9, %d0, %d1, %d2;", [1, 7, 3]), 9);
}

/// ISA 9.7.1.23 and 9.7.1.24. Bytes ff 02 03 04 against 01 01 01 02.
#[test]
fn dot_products() {
    let (a, b) = (0xff02_0304, 0x0101_0102);
    assert_eq!(word("dp4a.u32.u32 %r9, %r0, %r1, %r2;", [a, b, 10]), 255 + 2 + 3 + 8 + 10);
    assert_eq!(word("dp4a.s32.u32 %r9, %r0, %r1, %r2;", [a, b, 10]), 22);
    assert_eq!(word("dp4a.u32.s32 %r9, %r0, %r1, %r2;", [b, a, 10]), 22);
    assert_eq!(word("dp4a.s32.s32 %r9, %r0, %r1, %r2;", [a, a, 0]), 1 + 4 + 9 + 16);
    // Halves ffff and 0003 with bytes 3 and 2 (upper) or 1 and 0 (lower) of 05060708.
    assert_eq!(word("dp2a.lo.u32.u32 %r9, %r0, %r1, %r2;", [0x0002_0003, 0x0506_0708, 1]), 3 * 8 + 2 * 7 + 1);
    assert_eq!(word("dp2a.hi.u32.u32 %r9, %r0, %r1, %r2;", [0x0002_0003, 0x0506_0708, 1]), 3 * 6 + 2 * 5 + 1);
    assert_eq!(word("dp2a.lo.s32.u32 %r9, %r0, %r1, %r2;", [0xffff_0003, 0x0506_0708, 0]), 3 * 8 - 7);
    assert_eq!(word("dp2a.lo.u32.s32 %r9, %r0, %r1, %r2;", [0x0001_0003, 0x0506_07ff, 0]), 4);
}

/// ISA 9.7.2: 128 bits by words with a carry between.
#[test]
fn carries() {
    let sum = "add.cc.u32 %r8, %r0, %r2; addc.u32 %r9, %r1, %r3;";
    assert_eq!(word(sum, [0xffff_ffff, 1, 1, 2]), 4);
    assert_eq!(word(sum, [0xffff_fffe, 1, 1, 2]), 3);
    let difference = "sub.cc.u32 %r8, %r0, %r2; subc.u32 %r9, %r1, %r3;";
    assert_eq!(word(difference, [0, 5, 1, 2]), 2);
    assert_eq!(word(difference, [1, 5, 1, 2]), 3);
    let chain = "add.cc.u64 %d8, %d0, %d1; addc.cc.u64 %d8, %d0, 0; addc.u64 %d9, 0, 0;";
    assert_eq!(double(chain, [u64::MAX, 1]), 1);
    // lo(3 · 0x80000000) + 0x80000000 carries; hi is 1.
    let product = "mad.lo.cc.u32 %r8, %r0, %r1, %r1; madc.hi.u32 %r9, %r0, %r1, 0;";
    assert_eq!(word(product, [3, 0x8000_0000]), 2);
    let product = "mad.lo.cc.u64 %d8, %d0, %d1, %d1; madc.hi.u64 %d9, %d0, %d1, 0;";
    assert_eq!(double(product, [3, 1 << 63]), 2);
    let signed = "add.cc.u32 %r8, %r0, 1; madc.hi.s32 %r9, %r0, %r1, 0;";
    assert_eq!(word(signed, [n(-1), 2]), 0);
}

#[test]
fn only_active_lanes_are_written() {
    let (words, flags) = run(
        "add.cc.u32 %r9, %r0, 1; addc.u32 %r8, 0, 0; setp.eq.u32 %p9, %r0, %r0;",
        0x0000_ff00,
        |lane| [lane as u64],
        |registers| (*registers.word(W(9)), registers.predicate(P(9))),
    );
    assert_eq!(flags, 0xff00);
    assert_eq!(words[7], 0);
    assert_eq!(words[8], 9);
    assert_eq!(words[16], 0);
}

#[test]
fn guards_choose_lanes() {
    let words =
        run("@%p0 add.u32 %r9, %r0, 1; @!%p0 add.u32 %r9, %r0, 2;", u32::MAX, |lane| [lane as u64], |r| *r.word(W(9)));
    assert_eq!(words[3], 4);
    assert_eq!(words[4], 6);
}

#[test]
fn what_is_unknown_is_refused_by_name() {
    assert!(refusal("add.foo.s32 %r9, %r0, %r1;").contains(".foo"));
    assert!(refusal("add.s32 %r9, %r0;").contains("3 operands"));
    assert!(refusal("add.s32 %r9, %h0, %r1;").contains("register"));
    assert!(!predicate("setp.ne.u32 %p9, %r0, %r0;", [1]));
}

proptest! {
    #[test]
    fn products_agree_with_128_bits(a: u64, b: u64) {
        prop_assert_eq!(double("mul.hi.u64 %d9, %d0, %d1;", [a, b]), ((u128::from(a) * u128::from(b)) >> 64) as u64);
        let signed = i128::from(a as i64) * i128::from(b as i64);
        prop_assert_eq!(double("mul.hi.s64 %d9, %d0, %d1;", [a, b]), (signed >> 64) as u64);
    }

    #[test]
    fn carry_chains_agree_with_128_bits(a: u128, b: u128) {
        let body = "add.cc.u64 %d8, %d0, %d2; addc.u64 %d9, %d1, %d3;";
        let sum = a.wrapping_add(b);
        let arguments = [a as u64, (a >> 64) as u64, b as u64, (b >> 64) as u64];
        prop_assert_eq!(double(body, arguments), (sum >> 64) as u64);
        let body = "sub.cc.u64 %d8, %d0, %d2; subc.u64 %d9, %d1, %d3;";
        prop_assert_eq!(double(body, arguments), (a.wrapping_sub(b) >> 64) as u64);
    }
}
