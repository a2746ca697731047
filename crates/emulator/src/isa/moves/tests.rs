//! Moves and address conversions.

use crate::isa::testing::{double, half, predicate, refusal, run, word};
use crate::machine::registers::{P, W};
use crate::program::{LOCAL_WINDOW, PARAMETER_WINDOW, SHARED_WINDOW, WINDOW};

#[test]
fn registers_and_constants() {
    assert_eq!(word("mov.u32 %r9, %r0;", [7]), 7);
    assert_eq!(word("mov.b32 %r9, -1;", []), u32::MAX);
    assert_eq!(word("mov.f32 %r9, 0f40490FDB;", []), 0x4049_0fdb);
    assert_eq!(half("mov.u16 %h9, 65537;", []), 1);
    assert_eq!(half("mov.b16 %h9, %h0;", [0x12345]), 0x2345);
    assert_eq!(double("mov.f64 %d9, 0d3FF0000000000000;", []), 0x3ff0_0000_0000_0000);
    assert_eq!(double("mov.u64 %d9, %d0;", [u64::MAX]), u64::MAX);
    assert_eq!(double("mov.s64 %d9, -2;", []), u64::MAX - 1);
    assert!(predicate("mov.pred %p9, %p0;", [1]));
    assert!(predicate("mov.pred %p9, !%p0;", [0]));
    assert!(predicate("mov.pred %p9, -1;", []));
    assert!(!predicate("mov.pred %p9, 0;", [1]));
    assert!(refusal("mov.u32 %h9, %r0;").contains("register"));
    assert!(refusal("mov.u32 %r9, %nothing;").contains("%nothing"));
}

/// ISA, `mov` (pack and unpack): the first element is the lowest.
#[test]
fn packing() {
    assert_eq!(double("mov.b64 %d9, {%r0, %r1};", [0x1111_2222, 0x3333_4444]), 0x3333_4444_1111_2222);
    assert_eq!(double("mov.b64 %d9, {%h0, %h1, %h2, %h3};", [1, 2, 3, 0xffff]), 0xffff_0003_0002_0001);
    assert_eq!(word("mov.b32 %r9, {%h0, %h1};", [0x1234, 0xabcd]), 0xabcd_1234);
    assert_eq!(word("mov.b32 %r9, {%b0, %b1, %b2, %b3};", [1, 2, 3, 0xff]), 0xff03_0201);
    assert_eq!(half("mov.b16 %h9, {%b0, %b1};", [0x12, 0x34]), 0x3412);
    assert_eq!(double("mov.b64 %d9, {%r0, 5};", [1]), 5 << 32 | 1);
    assert!(refusal("mov.b64 %d9, {%r0, %h1};").contains("register"));
    assert!(refusal("mov.b64 %d9, {%r0, %r1, %r2};").contains("3 parts"));
}

#[test]
fn unpacking() {
    assert_eq!(word("mov.b64 {%r8, %r9}, %d0;", [0x3333_4444_1111_2222]), 0x3333_4444);
    assert_eq!(word("mov.b64 {%r9, _}, %d0;", [0x3333_4444_1111_2222]), 0x1111_2222);
    assert_eq!(half("mov.b64 {%h6, %h7, %h8, %h9}, %d0;", [0xffff_0003_0002_0001]), 0xffff);
    assert_eq!(half("mov.b64 {%h6, %h9, %h8, _}, %d0;", [0xffff_0003_0002_0001]), 2);
    assert_eq!(half("mov.b32 {%h9, %h8}, %r0;", [0xabcd_1234]), 0x1234);
    assert_eq!(half("mov.b32 {%h8, %h9}, %r0;", [0xabcd_1234]), 0xabcd);
    let bytes = "mov.b16 {%b8, %b9}, %h0; cvt.u32.u8 %r9, %b9;";
    assert_eq!(word(bytes, [0x3412]), 0x34);
    assert!(refusal("mov.b64 {%h8, %h9}, %d0;").contains("register"));
}

#[test]
fn addresses() {
    let shared = ".shared .align 4 .b8 first[8]; .shared .align 4 .b8 second[8];";
    assert_eq!(word(&format!("{shared} mov.u32 %r9, second;"), []), 8);
    assert_eq!(double(&format!("{shared} mov.u64 %d9, second+4;"), []), 12);
    assert_eq!(double(&format!("{shared} cvta.shared.u64 %d9, second;"), []), SHARED_WINDOW + 8);
    assert_eq!(double("cvta.shared.u64 %d9, %d0;", [16]), SHARED_WINDOW + 16);
    assert_eq!(double("cvta.to.shared.u64 %d9, %d0;", [SHARED_WINDOW + 16]), 16);
    assert_eq!(double("cvta.local.u64 %d9, %d0;", [16]), LOCAL_WINDOW + 16);
    assert_eq!(double("cvta.to.local.u64 %d9, %d0;", [LOCAL_WINDOW + 16]), 16);
    assert_eq!(double("cvta.param.u64 %d9, %d0;", [16]), PARAMETER_WINDOW + 16);
    assert_eq!(double("cvta.to.global.u64 %d9, %d0;", [0x7f00_0000_0000]), 0x7f00_0000_0000);
    assert_eq!(double("cvta.const.u64 %d9, %d0;", [64]), 64);
    assert!(refusal("cvta.nowhere.u64 %d9, %d0;").contains(".nowhere"));
}

#[test]
fn spaces_of_generic_addresses() {
    let holds = |space: &str, address: u64| predicate(&format!("isspacep.{space} %p9, %d0;"), [address]);
    let starts = [("shared", SHARED_WINDOW), ("local", LOCAL_WINDOW), ("param", PARAMETER_WINDOW)];
    for (space, start) in starts {
        for (other, start_of_other) in starts {
            assert_eq!(holds(space, start_of_other), space == other);
            assert_eq!(holds(space, start_of_other + WINDOW - 1), space == other);
        }
        assert!(!holds("global", start));
    }
    assert!(holds("global", 0x7f00_0000_0000));
    assert!(!holds("shared::cta", 0x7f00_0000_0000));
    assert!(refusal("isspacep.const %p9, %d0;").contains("not supported"));
}

/// Special registers are what the launch puts into them; here nothing has, and only the decoding is looked at.
#[test]
fn special_registers_are_sources() {
    assert_eq!(word("mov.u32 %r9, %tid.x;", []), 0);
    assert_eq!(word("mov.u32 %r9, WARP_SZ;", []), 32);
    assert_eq!(double("mov.u64 %d9, %gridid;", []), 0);
}

/// Time does not stand still, and is the same in every run.
#[test]
fn clocks_advance() {
    assert!(double("mov.u64 %d0, %clock64; mov.u64 %d1, %clock64; sub.u64 %d9, %d1, %d0;", []) > 0);
    assert!(word("mov.u32 %r0, %clock; mov.u32 %r1, %clock; sub.u32 %r9, %r1, %r0;", []) > 0);
    assert!(double("mov.u64 %d9, %globaltimer;", []) > 0);
    assert_eq!(word("mov.u32 %r9, %clock_hi;", []), 0);
    assert!(refusal("mov.u32 %r9, %clock64;").contains("another size"));
}

#[test]
fn hints_do_nothing() {
    let body = "prefetch.global.L2 [%d0]; prefetchu.L1 [%d0]; discard.global.L2 [%d0], 128; \
                prefetch.global.L2::evict_last [%d0+4]; applypriority.global.L2::evict_normal [%d0], 128; \
                prefetch.tensormap [%d0]; createpolicy.fractional.L2::evict_last.b64 %d1, 1.0; mov.u32 %r9, 1;";
    assert_eq!(word(body, [0]), 1);
    assert!(refusal("prefetch.global.L7 [%d0];").contains(".L7"));
}

#[test]
fn a_cluster_has_one_block() {
    assert_eq!(word("mapa.shared::cluster.u32 %r9, %r0, 0;", [64]), 64);
    assert_eq!(double("mapa.u64 %d9, %d0, %r1;", [64, 0]), 64);
    assert_eq!(word("getctarank.shared::cluster.u32 %r9, %r0;", [64]), 0);
}

#[test]
fn only_active_lanes_are_moved() {
    let (word, flags) = run(
        "mov.u32 %r9, %r0; mov.pred %p9, -1;",
        0x8000_0001,
        |lane| [lane as u64 + 1],
        |r| (*r.word(W(9)), r.predicate(P(9))),
    );
    assert_eq!((word[0], word[1], word[31]), (1, 0, 32));
    assert_eq!(flags, 0x8000_0001);
}
