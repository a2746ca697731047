//! Small kernels, run whole: what is copied, when, and what is found if nobody waits.

use super::barrier::State;
use super::tensor_map::{Swizzle, TensorMap};
use crate::machine::testing::{Bench, Shape, program};
use crate::options::Options;
use crate::program::Addresses;
use crate::report::{Finding, Kind};

/// What a kernel is given and gives back.
struct Kernel<'a> {
    target: &'a str,
    threads: u32,
    /// Bytes of the shared array `s`, which is followed by the mbarriers `bar` and `bar2`.
    shared: usize,
    /// Words of global memory, whose address is in `%in`.
    input: &'a [u32],
    /// How many words there are at `%out`; they are −1 at the start.
    output: usize,
    /// A third parameter, at `map`.
    map: Option<TensorMap>,
    body: &'a str,
}

impl Default for Kernel<'_> {
    fn default() -> Self {
        Self { target: "sm_90", threads: 32, shared: 1024, input: &[], output: 32, map: None, body: "" }
    }
}

impl Kernel<'_> {
    /// Registers: `%in`, `%out` (64 bits), `%tid`, `%sa` (the address of `s`), `%ba`, `%r0` to `%r9`, `%l0` to `%l9`
    /// (64 bits), `%p0` to `%p3`. `%mine` is the address of the thread's word in `s`, `%src` and `%dst` those at `%in`,
    /// `%out`.
    fn text(&self) -> String {
        format!(
            ".version 9.0\n.target {}\n.address_size 64\n.visible .entry k(.param .u64 a, .param .u64 b, \
             .param .align 64 .b8 map[128]) {{\n.reg .b64 %in, %out, %src, %dst, %wide, %l<10>;\n\
             .reg .b32 %tid, %sa, %ba, %bb, %mine, %r<10>;\n.reg .pred %p<4>;\n.shared .align 1024 .b8 s[{}];\n\
             .shared .align 8 .b64 bar;\n.shared .align 8 .b64 bar2;\n\
             ld.param.u64 %in, [a];\nld.param.u64 %out, [b];\nmov.u32 %tid, %tid.x;\nmov.u32 %sa, s;\nmov.u32 %ba, bar;\n\
             mov.u32 %bb, bar2;\nmul.wide.u32 %wide, %tid, 4;\nadd.s64 %src, %in, %wide;\nadd.s64 %dst, %out, %wide;\n\
             mad.lo.u32 %mine, %tid, 4, %sa;\nsetp.eq.u32 %p0, %tid, 0;\n{}\nret;\n}}\n",
            self.target,
            self.shared,
            self.body.replace("%tid.x", "%tid")
        )
    }

    fn checked(&self, options: &Options) -> (Result<Vec<u32>, Kind>, Vec<Finding>) {
        let bench = Bench::new(options);
        let (input, output) = (bench.words(0, self.input), bench.words(0, &vec![u32::MAX; self.output]));
        let mut parameters = [0; 192];
        parameters[..8].copy_from_slice(&input.to_le_bytes());
        parameters[8..16].copy_from_slice(&output.to_le_bytes());
        if let Some(map) = &self.map {
            let map = TensorMap { address: map.address + input, ..map.clone() };
            parameters[64..192].copy_from_slice(&map.to_bytes());
        }
        let shape = Shape { block: [self.threads, 1, 1], ..Shape::default() };
        let result = bench.launch(&self.text(), &shape, &parameters);
        (result.map(|_| bench.read(output, self.output)), bench.findings.take())
    }

    /// What is at `%out` afterwards; nothing may be found.
    fn run(&self) -> Vec<u32> {
        let (result, found) = self.checked(&Options::checked(1));
        assert!(found.is_empty(), "{}", found.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"));
        result.unwrap()
    }

    /// The same without looking for races and uninitialized reads.
    fn run_unchecked(&self) -> Vec<u32> {
        self.checked(&Options::default()).0.unwrap()
    }

    fn fault(&self) -> Finding {
        let (result, mut found) = self.checked(&Options::default());
        let kind = result.expect_err("the kernel fails");
        let finding = found.pop().expect("the failure is among the findings");
        assert_eq!(kind, finding.kind);
        finding
    }
}

fn counting(count: u32) -> Vec<u32> {
    (100..100 + count).collect()
}

/// ISA, "cp.async.wait_group": data written is there once the group is waited for, not before.
#[test]
fn a_copy_lands_when_its_group_is_waited_for() {
    let copy = "st.shared.u32 [%mine], 7;\ncp.async.ca.shared.global [%mine], [%src], 4;\ncp.async.commit_group;\n";
    let store = "ld.shared.u32 %r0, [%mine];\nst.global.u32 [%dst], %r0;";
    let input = counting(32);
    let run = |wait: &str| {
        let body = format!("{copy}{wait}{store}");
        Kernel { target: "sm_80", input: &input, body: &body, ..Kernel::default() }.run_unchecked()
    };
    assert_eq!(run("cp.async.wait_group 0;\n"), input);
    assert_eq!(run("cp.async.wait_all;\n"), input);
    assert_eq!(run("cp.async.wait_group 1;\n"), [7; 32]);
    assert_eq!(run(""), [7; 32]);
}

#[test]
fn a_missing_wait_is_found_as_a_race() {
    let body = "cp.async.ca.shared.global [%mine], [%src], 4;\ncp.async.commit_group;\nld.shared.u32 %r0, [%mine];\n\
                st.global.u32 [%dst], %r0;";
    let input = counting(32);
    let kernel = Kernel { target: "sm_80", input: &input, body, ..Kernel::default() };
    let found = kernel.checked(&Options::checked(1)).1;
    assert!(found.iter().any(|finding| finding.kind == Kind::Race), "{found:?}");
    let body = body.replace("commit_group;", "commit_group;\ncp.async.wait_group 0;");
    assert_eq!(Kernel { body: &body, ..kernel }.run(), input);
}

/// Three groups, of which the newest two may be pending: only the first one is there. An empty group counts.
#[test]
fn groups_complete_from_the_oldest_on() {
    let mut body = String::new();
    for group in 0..3 {
        body += &format!(
            "st.shared.u32 [%mine+{o}], 0;\ncp.async.ca.shared.global [%mine+{o}], [%src], 4;\n",
            o = group * 128
        );
        body += "cp.async.commit_group;\n";
    }
    body += "cp.async.commit_group;\ncp.async.wait_group 2;\nmov.u32 %r9, 0;\n";
    for group in 0..3 {
        body += &format!("ld.shared.u32 %r0, [%mine+{}];\nsetp.ne.u32 %p1, %r0, 0;\n", group * 128);
        body += &format!("selp.u32 %r1, {}, 0, %p1;\nadd.u32 %r9, %r9, %r1;\n", 1 << group);
    }
    body += "st.global.u32 [%dst], %r9;";
    let input = counting(32);
    assert_eq!(Kernel { input: &input, body: &body, ..Kernel::default() }.run_unchecked(), [3; 32]);
}

/// Groups are each thread's own: odd lanes commit once more, so that the same wait covers more.
#[test]
fn groups_are_counted_by_thread() {
    let body = "st.shared.u32 [%mine], 0;\nand.b32 %r1, %tid, 1;\nsetp.eq.u32 %p1, %r1, 1;\n\
                cp.async.ca.shared.global [%mine], [%src], 4;\ncp.async.commit_group;\n@%p1 cp.async.commit_group;\n\
                cp.async.wait_group 1;\nld.shared.u32 %r0, [%mine];\nst.global.u32 [%dst], %r0;";
    let input = counting(32);
    let output = Kernel { input: &input, body, ..Kernel::default() }.run_unchecked();
    let expected: Vec<u32> = (0..32).map(|lane| if lane % 2 == 1 { 100 + lane } else { 0 }).collect();
    assert_eq!(output, expected);
}

/// ISA, "cp.async": bytes beyond src-size are zero in the destination, and all are where ignore-src holds.
#[test]
fn what_does_not_come_from_the_source_is_zero() {
    let body = "mov.u32 %r2, -1;\nmul.wide.u32 %l0, %tid, 16;\nadd.s64 %l0, %in, %l0;\nmad.lo.u32 %r3, %tid, 16, %sa;\n\
                st.shared.v4.u32 [%r3], {%r2, %r2, %r2, %r2};\nand.b32 %r4, %tid, 15;\n\
                cp.async.cg.shared.global.L2::128B [%r3], [%l0], 16, %r4;\ncp.async.wait_all;\n\
                ld.shared.v4.u32 {%r5, %r6, %r7, %r8}, [%r3];\nxor.b32 %r5, %r5, %r6;\nxor.b32 %r5, %r5, %r7;\n\
                xor.b32 %r5, %r5, %r8;\nst.global.u32 [%dst], %r5;";
    // Each word has other bytes, so that a byte too many or too few shows.
    let words = [0x0403_0201u32, 0x4030_2010, 0x7a6b_5c4d, 0x1122_4488];
    let input: Vec<u32> = (0..32).flat_map(|_| words).collect();
    let output = Kernel { input: &input, body, shared: 1024, ..Kernel::default() }.run();
    for lane in 0..32 {
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes[lane % 16..].fill(0);
        let expected = bytes.chunks(4).fold(0, |all, word| all ^ u32::from_le_bytes(word.try_into().unwrap()));
        assert_eq!(output[lane], expected, "{} bytes", lane % 16);
    }
    let body = "setp.lt.u32 %p1, %tid, 16;\ncp.async.ca.shared::cta.global [%mine], [%src], 4, %p1;\n\
                cp.async.wait_all;\nld.shared.u32 %r0, [%mine];\nst.global.u32 [%dst], %r0;";
    let input = counting(32);
    let output = Kernel { input: &input, body, ..Kernel::default() }.run();
    assert_eq!(output[..16], [0; 16]);
    assert_eq!(output[16..], input[16..]);
}

#[test]
fn bad_addresses_are_found_at_the_copy() {
    let fault = |body: &str| Kernel { input: &counting(32), body, ..Kernel::default() }.fault();
    let outside = fault("cp.async.ca.shared.global [%mine], [%src+512], 4;\ncp.async.wait_all;");
    assert_eq!(outside.kind, Kind::OutOfBounds);
    assert_eq!(outside.place.unwrap().instruction, "cp.async.ca.shared.global");
    assert_eq!(fault("cp.async.ca.shared.global [%mine], [%src], 8;").kind, Kind::Misaligned);
    assert_eq!(fault("cp.async.cg.shared.global [%sa], [%in+8], 16;").kind, Kind::Misaligned);
    assert_eq!(fault("cp.async.ca.shared.global [%mine+4096], [%src], 4;").kind, Kind::OutOfBounds);
    assert_eq!(fault("mov.u32 %r0, 5;\ncp.async.ca.shared.global [%mine], [%src], 4, %r0;").kind, Kind::Undefined);
}

/// ISA, "mbarrier phase": pending and transaction counts at zero end a phase, and the pending count starts anew.
#[test]
fn states() {
    let state = State::new(3).unwrap();
    assert_eq!(State::parse(state.word()), Ok(state));
    let state = state.arrive(2).unwrap().expect(64).unwrap().advance();
    assert_eq!((state.pending, state.transactions, state.parity), (1, 64, false));
    assert_eq!(State::parse(state.word()), Ok(state));
    let state = state.arrive(1).unwrap().advance();
    assert_eq!((state.pending, state.parity), (0, false), "transactions are still expected");
    assert!(state.arrive(1).is_err());
    let state = state.expect(-64).unwrap().advance();
    assert_eq!((state.pending, state.transactions, state.parity), (3, 0, true));
    let early = state.expect(-5).unwrap().advance();
    assert_eq!(State::parse(early.word()).unwrap().transactions, -5);
    assert!(State::new(0).is_err() && State::new(1 << 20).is_err() && State::new((1 << 20) - 1).is_ok());
    assert!(state.expect(1 << 20).is_err() && state.expect(-(1 << 20)).is_err());
    assert!(State::parse(0).is_err());
}

/// Two threads arrive; a third one sees the phase end with the second arrival. Parity: the phase before the first one
/// counts as over.
#[test]
fn phases_end_with_the_last_arrival() {
    let body = "@!%p0 bra END;\nmbarrier.init.shared.b64 [%ba], 2;\n\
                mbarrier.test_wait.parity.shared.b64 %p1, [%ba], 1;\nselp.u32 %r1, 1, 0, %p1;\n\
                mbarrier.test_wait.parity.shared.b64 %p1, [%ba], 0;\nselp.u32 %r2, 2, 0, %p1;\n\
                mbarrier.arrive.shared.b64 %l0, [%ba];\n\
                mbarrier.pending_count.b64 %r8, %l0;\n\
                mbarrier.test_wait.shared.b64 %p1, [%ba], %l0;\nselp.u32 %r3, 4, 0, %p1;\n\
                mbarrier.arrive.release.cta.shared::cta.b64 %l1, [%ba], 1;\n\
                mbarrier.pending_count.b64 %r9, %l1;\n\
                mbarrier.test_wait.shared.b64 %p1, [%ba], %l0;\nselp.u32 %r4, 8, 0, %p1;\n\
                mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 %p1, [%ba], 0, 1000;\nselp.u32 %r5, 16, 0, %p1;\n\
                mbarrier.arrive.noComplete.shared.b64 %l2, [%ba], 1;\n\
                mbarrier.arrive_drop.shared.b64 _, [%ba];\n\
                mbarrier.test_wait.shared.b64 %p1, [%ba], %l2;\nselp.u32 %r6, 32, 0, %p1;\n\
                mbarrier.arrive.shared.b64 %l3, [%ba];\n\
                mbarrier.test_wait.shared.b64 %p1, [%ba], %l3;\nselp.u32 %r7, 64, 0, %p1;\n\
                add.u32 %r1, %r1, %r2;\nadd.u32 %r1, %r1, %r3;\nadd.u32 %r1, %r1, %r4;\nadd.u32 %r1, %r1, %r5;\n\
                add.u32 %r1, %r1, %r6;\nadd.u32 %r1, %r1, %r7;\n\
                st.global.u32 [%out], %r1;\nst.global.u32 [%out+4], %r8;\nst.global.u32 [%out+8], %r9;\n\
                mbarrier.inval.shared.b64 [%ba];\nEND:";
    // The last arrival ends a phase by itself, since the one before dropped to an expected count of one.
    assert_eq!(Kernel { output: 3, body, ..Kernel::default() }.run(), [1 + 8 + 16 + 32 + 64, 2, 1]);
}

#[test]
fn misused_barriers_are_faults() {
    let fault = |body: &str| {
        let finding = Kernel { body, ..Kernel::default() }.fault();
        assert_eq!(finding.kind, Kind::Undefined, "{finding}");
        finding.message
    };
    let none = fault("mov.b64 %l0, 0;\nst.shared.u64 [%ba], %l0;\nmbarrier.arrive.shared.b64 _, [%ba];");
    assert!(none.contains("where there is none"), "{none}");
    let many = fault(
        "@%p0 mbarrier.init.shared.b64 [%ba], 31;\nbar.warp.sync -1;\nmbarrier.arrive.noComplete.shared.b64 _, [%ba], 2;",
    );
    assert!(many.contains("waits for 1 arrivals"), "{many}");
    fault("mbarrier.init.shared.b64 [%ba], 0;");
    fault("mbarrier.init.shared.b64 [%ba], 1;\nmbarrier.test_wait.parity.shared.b64 %p1, [%ba], 2;");
}

const WAIT: &str = "LOOP:\nmbarrier.try_wait.parity.shared::cta.b64 %p1, [%ba], 0;\n@!%p1 bra LOOP;\n";

/// Lanes of two warps meet at an mbarrier, one warp waiting for what the other one wrote before it arrived.
#[test]
fn arrivals_order_what_was_written_before() {
    let body = format!(
        "@%p0 mbarrier.init.shared.b64 [%ba], 64;\nbar.sync 0;\nst.shared.u32 [%mine], %tid;\n\
         mbarrier.arrive.shared.b64 %l0, [%ba];\n{WAIT}xor.b32 %r0, %tid, 32;\nmad.lo.u32 %r0, %r0, 4, %sa;\n\
         ld.shared.u32 %r1, [%r0];\nst.global.u32 [%dst], %r1;"
    );
    let output = Kernel { threads: 64, output: 64, body: &body, ..Kernel::default() }.run();
    assert_eq!(output, (0..64).map(|thread| thread ^ 32).collect::<Vec<u32>>());
}

/// ISA, "cp.async.mbarrier.arrive": without .noinc the arrival has no net effect on the pending count; with it, the
/// count given to init accounts for it.
#[test]
fn copies_arrive_at_a_barrier() {
    let input = counting(64);
    for (count, noinc, own) in [(64, ".noinc", ""), (64, "", "mbarrier.arrive.shared.b64 %l0, [%ba];\n")] {
        let body = format!(
            "@%p0 mbarrier.init.shared.b64 [%ba], {count};\nbar.sync 0;\n\
             cp.async.ca.shared.global [%mine], [%src], 4;\ncp.async.mbarrier.arrive{noinc}.shared.b64 [%ba];\n{own}{WAIT}\
             xor.b32 %r0, %tid, 33;\nmad.lo.u32 %r0, %r0, 4, %sa;\nld.shared.u32 %r1, [%r0];\nst.global.u32 [%dst], %r1;"
        );
        let output = Kernel { threads: 64, input: &input, output: 64, body: &body, ..Kernel::default() }.run();
        assert_eq!(output, (0..64).map(|thread| 100 + (thread ^ 33)).collect::<Vec<u32>>());
    }
}

const BULK_IN: &str = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%sa], [%in], 128, [%ba]";

#[test]
fn a_bulk_copy_completes_its_transactions() {
    let input = counting(32);
    let body = format!(
        "@%p0 mbarrier.init.shared.b64 [%ba], 1;\nfence.proxy.async.shared::cta;\nbar.sync 0;\n\
         @%p0 {BULK_IN};\n@%p0 mbarrier.arrive.expect_tx.shared.b64 _, [%ba], 128;\n{WAIT}\
         ld.shared.u32 %r0, [%mine];\nst.global.u32 [%dst], %r0;"
    );
    assert_eq!(Kernel { threads: 32, input: &input, body: &body, ..Kernel::default() }.run(), input);
    // Without the wait the copy has not landed, and is found to be under way.
    let body = body.replace(WAIT, "");
    let kernel = Kernel { input: &input, body: &body, ..Kernel::default() };
    assert_eq!(kernel.run_unchecked(), [0; 32]);
    let found = kernel.checked(&Options::checked(1)).1;
    assert!(found.iter().any(|finding| finding.kind == Kind::Race), "{found:?}");
    let odd = format!("@%p0 mbarrier.init.shared.b64 [%ba], 1;\n@%p0 {};", BULK_IN.replace("128,", "24,"));
    assert_eq!(Kernel { input: &input, body: &odd, ..Kernel::default() }.fault().kind, Kind::Undefined);
}

/// Two phases of one barrier, each with a copy of its own.
#[test]
fn a_barrier_is_used_phase_by_phase() {
    let input = counting(64);
    let mut body = "@%p0 mbarrier.init.shared.b64 [%ba], 1;\nbar.sync 0;\n".to_owned();
    for phase in 0..2 {
        let copy = BULK_IN.replace("[%in]", &format!("[%in+{}]", 128 * phase));
        let wait = WAIT.replace("LOOP", &format!("LOOP{phase}")).replace("[%ba], 0", &format!("[%ba], {phase}"));
        body += &format!("@%p0 mbarrier.arrive.expect_tx.shared.b64 _, [%ba], 128;\n@%p0 {copy};\n{wait}");
        body += &format!("ld.shared.u32 %r0, [%mine];\nst.global.u32 [%dst+{}], %r0;\nbar.sync 0;\n", 128 * phase);
    }
    assert_eq!(Kernel { input: &input, output: 64, body: &body, ..Kernel::default() }.run(), input);
}

#[test]
fn bulk_groups_go_out_when_waited_for() {
    let body = "add.u32 %r0, %tid, 5;\nst.shared.u32 [%mine], %r0;\nfence.proxy.async;\nbar.sync 0;\n\
                @%p0 cp.async.bulk.global.shared::cta.bulk_group [%out], [%sa], 128;\n\
                @%p0 cp.async.bulk.commit_group;\n@%p0 cp.async.bulk.wait_group.read 0;";
    let expected: Vec<u32> = (5..37).collect();
    assert_eq!(Kernel { body, ..Kernel::default() }.run(), expected);
    for late in ["", "@%p0 cp.async.bulk.wait_group 1;"] {
        let body = body.replace("@%p0 cp.async.bulk.wait_group.read 0;", late);
        assert_eq!(Kernel { body: &body, ..Kernel::default() }.run_unchecked(), [u32::MAX; 32], "{late}");
    }
    let fault = Kernel { output: 16, body, ..Kernel::default() }.fault();
    assert_eq!(fault.kind, Kind::OutOfBounds);
    assert_eq!(Kernel { body: &body.replace("128;", "120;"), ..Kernel::default() }.fault().kind, Kind::Undefined);
}

/// A tensor of 10 rows of 40 words; a box of 4 × 3 words at (−1, 8) reaches out of it on two sides.
#[test]
fn tiles_outside_of_the_tensor_are_zero() {
    let input = counting(400);
    let map = TensorMap {
        address: 0,
        rank: 2,
        element: 4,
        dimensions: [40, 10, 0, 0, 0],
        strides: [4, 160, 0, 0, 0],
        tile: [4, 3, 0, 0, 0],
        swizzle: Swizzle::None,
    };
    let body = format!(
        "@%p0 mbarrier.init.shared.b64 [%ba], 1;\nbar.sync 0;\nmov.u32 %r1, -1;\nmov.u32 %r2, 8;\nmov.u64 %l0, map;\n\
         cvta.param.u64 %l0, %l0;\n\
         @%p0 cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%sa], [%l0, {{%r1, %r2}}], \
         [%ba];\n@%p0 mbarrier.arrive.expect_tx.shared.b64 _, [%ba], 48;\n{WAIT}\
         setp.lt.u32 %p2, %tid, 12;\n@%p2 ld.shared.u32 %r0, [%mine];\n@%p2 st.global.u32 [%dst], %r0;"
    );
    let output = Kernel { input: &input, output: 12, map: Some(map.clone()), body: &body, ..Kernel::default() }.run();
    let at = |row: usize, column: usize| input[40 * row + column];
    assert_eq!(output, [0, at(8, 0), at(8, 1), at(8, 2), 0, at(9, 0), at(9, 1), at(9, 2), 0, 0, 0, 0]);
    let fault = Kernel { input: &input, map: None, body: &body, ..Kernel::default() }.fault();
    assert_eq!(fault.kind, Kind::Undefined, "{fault}");
}

/// 128-byte rows swizzled: word w of row r lies at piece (w / 4) xor r. And out again, through another map.
#[test]
fn tiles_are_swizzled_and_come_out_again() {
    let input = counting(8 * 64);
    let map = TensorMap {
        address: 0,
        rank: 2,
        element: 4,
        dimensions: [64, 8, 0, 0, 0],
        strides: [4, 256, 0, 0, 0],
        tile: [32, 8, 0, 0, 0],
        swizzle: Swizzle::Bytes128,
    };
    let read = "mov.u32 %r3, 0;\nNEXT:\nmad.lo.u32 %r4, %r3, 128, %mine;\nld.shared.u32 %r0, [%r4];\n\
                mul.wide.u32 %l1, %r3, 128;\nadd.s64 %l1, %dst, %l1;\nst.global.u32 [%l1], %r0;\nadd.u32 %r3, %r3, 1;\n\
                setp.lt.u32 %p2, %r3, 8;\n@%p2 bra NEXT;\n";
    let load = format!(
        "@%p0 mbarrier.init.shared.b64 [%ba], 1;\nbar.sync 0;\nmov.u32 %r1, 32;\nmov.u32 %r2, 0;\n\
         @%p0 cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%sa], [map, {{%r1, %r2}}], \
         [%ba];\n@%p0 mbarrier.arrive.expect_tx.shared.b64 _, [%ba], 1024;\n{WAIT}"
    );
    let body = format!("{load}{read}");
    let output = Kernel { input: &input, output: 256, map: Some(map.clone()), body: &body, ..Kernel::default() }.run();
    for row in 0..8 {
        for word in 0..32 {
            let place = ((word / 4) ^ row) * 4 + word % 4;
            assert_eq!(output[32 * row + place], input[64 * row + 32 + word], "row {row} word {word}");
        }
    }
    // The right half goes where the left half was; both are then read back.
    let body = format!(
        "{load}mov.u32 %r1, 0;\n@%p0 cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [map, {{%r1, %r2}}], [%sa];\n\
         @%p0 cp.async.bulk.commit_group;\n@%p0 cp.async.bulk.wait_group 0;\nbar.sync 0;\n\
         ld.global.u32 %r0, [%src+1792];\nst.global.u32 [%dst], %r0;"
    );
    let output = Kernel { input: &input, map: Some(map), body: &body, ..Kernel::default() }.run();
    assert_eq!(output, input[64 * 7 + 32..]);
}

#[test]
fn what_is_not_supported_is_named() {
    let refused = |body: &str| {
        let text = Kernel { body, ..Kernel::default() }.text();
        program(&text, &Addresses::new()).expect_err("it is refused")
    };
    let multicast = BULK_IN.replace("bytes [", "bytes.multicast::cluster [");
    assert!(refused(&format!("{multicast}, 1;")).contains("is not supported"));
    assert!(
        refused("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u32 [%out], [%sa], 128;").contains("cp.reduce")
    );
    assert!(refused("cp.async.cg.shared.global [%sa], [%in], 8;").contains("16"));
    assert!(refused("mbarrier.arrive.expect_tx.noComplete.shared.b64 _, [%ba], 1;").contains("not supported"));
}
