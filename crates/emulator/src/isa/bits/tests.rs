//! Logic, shifts and bit fields against values worked out by hand and against the ISA's own pseudocode.

use crate::isa::testing::{double, half, predicate, refusal, run, word};
use crate::machine::registers::{P, W};
use proptest::prelude::*;

#[test]
fn logic() {
    assert_eq!(word("and.b32 %r9, %r0, %r1;", [0b1100, 0b1010]), 0b1000);
    assert_eq!(word("or.b32 %r9, %r0, %r1;", [0b1100, 0b1010]), 0b1110);
    assert_eq!(word("xor.b32 %r9, %r0, %r1;", [0b1100, 0b1010]), 0b0110);
    assert_eq!(half("xor.b16 %h9, %h0, %h1;", [0xff00, 0x0ff0]), 0xf0f0);
    assert_eq!(double("and.b64 %d9, %d0, %d1;", [u64::MAX, 1 << 40]), 1 << 40);
    assert_eq!(double("or.b64 %d9, %d0, %d1;", [1, 1 << 40]), 1 << 40 | 1);
    assert_eq!(double("xor.b64 %d9, %d0, %d1;", [1, 1 << 40 | 1]), 1 << 40);
    assert_eq!(word("not.b32 %r9, %r0;", [0]), u32::MAX);
    assert_eq!(half("not.b16 %h9, %h0;", [0x00ff]), 0xff00);
    assert_eq!(double("not.b64 %d9, %d0;", [0]), u64::MAX);
    assert_eq!(word("cnot.b32 %r9, %r0;", [0]), 1);
    assert_eq!(word("cnot.b32 %r9, %r0;", [7]), 0);
    assert_eq!(half("cnot.b16 %h9, %h0;", [0]), 1);
    assert_eq!(double("cnot.b64 %d9, %d0;", [0]), 1);
    assert!(refusal("and.u32 %r9, %r0, %r1;").contains("does not exist for this type"));
}

#[test]
fn predicates() {
    assert!(predicate("and.pred %p9, %p0, %p1;", [1, 1]));
    assert!(!predicate("and.pred %p9, %p0, %p1;", [1, 0]));
    assert!(predicate("or.pred %p9, %p0, %p1;", [1, 0]));
    assert!(!predicate("xor.pred %p9, %p0, %p1;", [1, 1]));
    assert!(predicate("not.pred %p9, %p0;", [0]));
}

/// ISA, `lop3`: the table is what the function makes of 0xF0, 0xCC and 0xAA.
#[test]
fn lookup_of_three() {
    assert_eq!(word("lop3.b32 %r9, %r0, %r1, %r2, 0x80;", [0b1111, 0b0111, 0b0011]), 0b0011);
    assert_eq!(word("lop3.b32 %r9, %r0, %r1, %r2, 0xFE;", [1, 2, 4]), 7);
    // (a & b) | (~a & c)
    assert_eq!(word("lop3.b32 %r9, %r0, %r1, %r2, 0xCA;", [0xff00, 0x1234, 0x5678]), 0x1278);
    for table in 0..=255u64 {
        let body = format!("lop3.b32 %r9, %r0, %r1, %r2, {table};");
        assert_eq!(u64::from(word(&body, [0xf0, 0xcc, 0xaa]) & 0xff), table);
    }
    let (d, p) = run(
        "lop3.or.b32 %r9|%p9, %r0, %r1, %r2, 0x80, %p3;",
        u32::MAX,
        |lane| [lane as u64, 1, 1, u64::from(lane >= 30)],
        |registers| (registers.word(W(9))[5], registers.predicate(P(9))),
    );
    assert_eq!(d, 1);
    assert_eq!(p, 0xeaaa_aaaa);
    assert!(refusal("lop3.b32 %r9, %r0, %r1, %r2, 256;").contains("8 bits"));
}

/// ISA, `shf`, `shl` and `shr`: amounts beyond the width are as the width.
#[test]
fn shifts_clamp() {
    assert_eq!(word("shl.b32 %r9, %r0, %r1;", [1, 31]), 0x8000_0000);
    assert_eq!(word("shl.b32 %r9, %r0, %r1;", [1, 32]), 0);
    assert_eq!(word("shl.b32 %r9, %r0, %r1;", [1, 0xffff_ffff]), 0);
    assert_eq!(half("shl.b16 %h9, %h0, %r1;", [3, 15]), 0x8000);
    assert_eq!(half("shl.b16 %h9, %h0, %r1;", [3, 16]), 0);
    assert_eq!(double("shl.b64 %d9, %d0, %r1;", [1, 63]), 1 << 63);
    assert_eq!(double("shl.b64 %d9, %d0, %r1;", [1, 64]), 0);
    assert_eq!(word("shr.u32 %r9, %r0, %r1;", [0x8000_0000, 31]), 1);
    assert_eq!(word("shr.b32 %r9, %r0, 32;", [0x8000_0000]), 0);
    assert_eq!(word("shr.s32 %r9, %r0, %r1;", [0x8000_0000, 99]), u32::MAX);
    assert_eq!(word("shr.s32 %r9, %r0, %r1;", [0x8000_0000, 4]), 0xf800_0000);
    assert_eq!(half("shr.u16 %h9, %h0, %r1;", [0x8000, 15]), 1);
    assert_eq!(half("shr.u16 %h9, %h0, %r1;", [0x8000, 16]), 0);
    assert_eq!(half("shr.s16 %h9, %h0, %r1;", [0x8000, 16]), 0xffff);
    assert_eq!(half("shr.s16 %h9, %h0, %r1;", [0x8000, 1]), 0xc000);
    assert_eq!(double("shr.u64 %d9, %d0, %r1;", [1 << 63, 63]), 1);
    assert_eq!(double("shr.s64 %d9, %d0, %r1;", [1 << 63, 64]), u64::MAX);
}

#[test]
fn funnel_shifts() {
    assert_eq!(word("shf.l.wrap.b32 %r9, %r0, %r1, %r2;", [0x8765_4321, 0x0fed_cba9, 8]), 0xedcb_a987);
    assert_eq!(word("shf.r.wrap.b32 %r9, %r0, %r1, %r2;", [0x8765_4321, 0x0fed_cba9, 8]), 0xa987_6543);
    assert_eq!(word("shf.l.wrap.b32 %r9, %r0, %r1, %r2;", [1, 2, 32]), 2);
    assert_eq!(word("shf.r.wrap.b32 %r9, %r0, %r1, %r2;", [1, 2, 32]), 1);
    assert_eq!(word("shf.l.clamp.b32 %r9, %r0, %r1, %r2;", [1, 2, 32]), 1);
    assert_eq!(word("shf.r.clamp.b32 %r9, %r0, %r1, %r2;", [1, 2, 99]), 2);
    assert!(refusal("shf.l.b32 %r9, %r0, %r1, %r2;").contains("no mode"));
}

/// ISA, `prmt`: bytes of {b, a} are numbered from 0.
#[test]
fn permutations() {
    let (a, b) = (0x3322_1100, 0x7766_5584);
    let with = |mode: &str, c: u64| word(&format!("prmt.b32{mode} %r9, %r0, %r1, %r2;"), [a, b, c]);
    assert_eq!(with("", 0x7531), 0x7755_3311);
    assert_eq!(with("", 0x0123), 0x0011_2233);
    // The top bit of a nibble asks for the sign of the byte: 84 is negative, 33 is not.
    assert_eq!(with("", 0x4cb0), 0x84ff_0000);
    assert_eq!(with(".f4e", 1), 0x8433_2211);
    assert_eq!(with(".b4e", 0), 0x5566_7700);
    assert_eq!(with(".b4e", 3), 0x0011_2233);
    assert_eq!(with(".rc8", 2), 0x2222_2222);
    assert_eq!(with(".ecl", 1), 0x3322_1111);
    assert_eq!(with(".ecr", 1), 0x1111_1100);
    assert_eq!(with(".rc16", 1), 0x3322_3322);
    assert_eq!(with(".rc16", 2), 0x1100_1100);
}

#[test]
fn counts() {
    assert_eq!(word("popc.b32 %r9, %r0;", [0xf0f0]), 8);
    assert_eq!(word("popc.b64 %r9, %d0;", [u64::MAX]), 64);
    assert_eq!(word("clz.b32 %r9, %r0;", [0]), 32);
    assert_eq!(word("clz.b32 %r9, %r0;", [1]), 31);
    assert_eq!(word("clz.b64 %r9, %d0;", [1]), 63);
    assert_eq!(word("brev.b32 %r9, %r0;", [1]), 0x8000_0000);
    assert_eq!(double("brev.b64 %d9, %d0;", [1]), 1 << 63);
}

/// ISA 9.7.1.16, `bfind`.
#[test]
fn highest_bits() {
    assert_eq!(word("bfind.u32 %r9, %r0;", [0x10]), 4);
    assert_eq!(word("bfind.u32 %r9, %r0;", [0]), u32::MAX);
    assert_eq!(word("bfind.s32 %r9, %r0;", [0xffff_fff0]), 3);
    assert_eq!(word("bfind.s32 %r9, %r0;", [0xffff_ffff]), u32::MAX);
    assert_eq!(word("bfind.shiftamt.u32 %r9, %r0;", [0x10]), 27);
    assert_eq!(word("bfind.shiftamt.u32 %r9, %r0;", [0]), u32::MAX);
    assert_eq!(word("bfind.shiftamt.s32 %r9, %r0;", [0xffff_fff0]), 28);
    assert_eq!(word("bfind.u64 %r9, %d0;", [1 << 40]), 40);
    assert_eq!(word("bfind.s64 %r9, %d0;", [!(1 << 40)]), 40);
    assert_eq!(word("bfind.shiftamt.u64 %r9, %d0;", [1 << 40]), 23);
}

/// ISA 9.7.1.17, `fns`.
#[test]
fn nth_set_bit() {
    let find = |mask, base, offset: i64| word("fns.b32 %r9, %r0, %r1, %r2;", [mask, base, offset as u64]);
    assert_eq!(find(0b1011_0010, 3, 1), 4);
    assert_eq!(find(0b1011_0010, 3, 0), u32::MAX);
    assert_eq!(find(0b1011_0010, 4, 0), 4);
    assert_eq!(find(0b1011_0010, 4, 1), 4);
    assert_eq!(find(0b1011_0010, 4, 2), 5);
    assert_eq!(find(0b1011_0010, 4, -2), 1);
    assert_eq!(find(0b1011_0010, 4, -3), u32::MAX);
    assert_eq!(find(u64::MAX, 40, 1), u32::MAX);
}

#[test]
fn masks_and_extensions() {
    assert_eq!(word("bmsk.clamp.b32 %r9, %r0, %r1;", [4, 8]), 0xff0);
    assert_eq!(word("bmsk.clamp.b32 %r9, %r0, %r1;", [28, 8]), 0xf000_0000);
    assert_eq!(word("bmsk.clamp.b32 %r9, %r0, %r1;", [0, 32]), u32::MAX);
    assert_eq!(word("bmsk.clamp.b32 %r9, %r0, %r1;", [32, 4]), 0);
    assert_eq!(word("bmsk.wrap.b32 %r9, %r0, %r1;", [36, 40]), 0xff0);
    assert_eq!(word("bmsk.wrap.b32 %r9, %r0, %r1;", [4, 32]), 0);
    assert_eq!(word("szext.clamp.s32 %r9, %r0, %r1;", [0x80, 8]), 0xffff_ff80);
    assert_eq!(word("szext.clamp.u32 %r9, %r0, %r1;", [0xff80, 8]), 0x80);
    assert_eq!(word("szext.clamp.s32 %r9, %r0, %r1;", [0xff80, 32]), 0xff80);
    assert_eq!(word("szext.wrap.s32 %r9, %r0, %r1;", [0xff80, 40]), 0xffff_ff80);
    assert_eq!(word("szext.wrap.s32 %r9, %r0, %r1;", [0xff80, 32]), 0);
}

/// `bfe` as ISA 9.7.1.19 writes it down.
fn extract(a: u64, b: u64, c: u64, msb: u64, signed: bool) -> u64 {
    let (position, length) = (b & 0xff, c & 0xff);
    let bit = |index: u64| a >> index & 1;
    let sign = if !signed || length == 0 { 0 } else { bit((position + length - 1).min(msb)) };
    (0..=msb).fold(0, |d, i| {
        let value = if i < length && position + i <= msb { bit(position + i) } else { sign };
        d | value << i
    })
}

/// `bfi` as ISA 9.7.1.20 writes it down.
fn insert(a: u64, b: u64, c: u64, d: u64, msb: u64) -> u64 {
    let (position, length) = (c & 0xff, d & 0xff);
    let mut f = b;
    for i in (0..length).take_while(|i| position + i <= msb) {
        f = f & !(1 << (position + i)) | (a >> i & 1) << (position + i);
    }
    f
}

proptest! {
    #[test]
    fn fields_are_as_the_isa_says(a: u64, b: u64, position in 0u64..300, length in 0u64..300) {
        let low = a & 0xffff_ffff;
        let arguments = [a, position, length];
        let result = u64::from(word("bfe.u32 %r9, %r0, %r1, %r2;", arguments));
        prop_assert_eq!(result, extract(low, position, length, 31, false));
        let result = u64::from(word("bfe.s32 %r9, %r0, %r1, %r2;", arguments));
        prop_assert_eq!(result, extract(low, position, length, 31, true));
        let result = double("bfe.u64 %d9, %d0, %r1, %r2;", arguments);
        prop_assert_eq!(result, extract(a, position, length, 63, false));
        let result = double("bfe.s64 %d9, %d0, %r1, %r2;", arguments);
        prop_assert_eq!(result, extract(a, position, length, 63, true));
        let arguments = [a, b, position, length];
        let result = u64::from(word("bfi.b32 %r9, %r0, %r1, %r2, %r3;", arguments));
        prop_assert_eq!(result, insert(low, b & 0xffff_ffff, position, length, 31));
        let result = double("bfi.b64 %d9, %d0, %d1, %r2, %r3;", arguments);
        prop_assert_eq!(result, insert(a, b, position, length, 63));
    }
}
