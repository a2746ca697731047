//! Where warps go (PTX ISA 9.7.12, and `bar` in 9.7.13): divergence, barriers, and what is found where nobody can go on.

use crate::machine::testing::{Kernel, Outcome, Shape, fault, lanes, refusal, run};
use crate::options::Options;
use crate::report::Kind;

const STORE: &str = "\nst.global.u32 [%dst], %r9;";

fn stored(body: &str) -> Vec<u32> {
    run(&format!("{body}{STORE}"))
}

#[test]
fn lanes_part_and_meet_again() {
    let body = "and.b32 %r2, %tid, 1;\nsetp.eq.u32 %p1, %r2, 0;\n@%p1 bra EVEN;\nmov.u32 %r9, 100;\nbra.uni JOIN;\n\
                EVEN:\nmov.u32 %r9, 200;\nJOIN:\nadd.u32 %r9, %r9, %tid;\nactivemask.b32 %r3;\n\
                setp.ne.u32 %p2, %r3, -1;\n@%p2 mov.u32 %r9, 0;";
    assert_eq!(stored(body), lanes(|lane| lane + if lane % 2 == 0 { 200 } else { 100 }));
    let nested = "mov.u32 %r9, 0;\nsetp.lt.u32 %p1, %tid, 16;\n@!%p1 bra B;\nsetp.lt.u32 %p2, %tid, 4;\n@%p2 bra A;\n\
                  add.u32 %r9, %r9, 1;\nbra C;\nA:\nadd.u32 %r9, %r9, 2;\nC:\nadd.u32 %r9, %r9, 10;\nbra D;\n\
                  B:\nadd.u32 %r9, %r9, 4;\nD:\nadd.u32 %r9, %r9, 100;";
    assert_eq!(
        stored(nested),
        lanes(|lane| match lane {
            0..4 => 112,
            4..16 => 111,
            _ => 104,
        })
    );
}

#[test]
fn loops_end_for_each_lane_by_itself() {
    let body = "mov.u32 %r9, 0;\nmov.u32 %r2, 0;\nNEXT:\nsetp.ge.u32 %p1, %r2, %tid;\n@%p1 bra DONE;\n\
                add.u32 %r9, %r9, %r2;\nadd.u32 %r2, %r2, 1;\nbra NEXT;\nDONE:";
    assert_eq!(stored(body), lanes(|lane| lane * lane.saturating_sub(1) / 2));
    // A loop in a loop, left in its middle by some.
    let body = "mov.u32 %r9, 0;\nmov.u32 %r2, 0;\nOUTER:\nmov.u32 %r3, 0;\nINNER:\nadd.u32 %r9, %r9, 1;\n\
                setp.eq.u32 %p1, %r9, 20;\n@%p1 bra OUT;\nadd.u32 %r3, %r3, 1;\nsetp.lt.u32 %p2, %r3, %tid;\n\
                @%p2 bra INNER;\nadd.u32 %r2, %r2, 1;\nsetp.lt.u32 %p3, %r2, 3;\n@%p3 bra OUTER;\nOUT:";
    assert_eq!(stored(body), lanes(|lane| (3 * lane.max(1)).min(20)));
}

#[test]
fn lanes_that_exit_leave_the_others() {
    let body = "setp.lt.u32 %p1, %tid, 8;\n@%p1 exit;\nsetp.gt.u32 %p2, %tid, 23;\n@%p2 ret;\nactivemask.b32 %r9;";
    assert_eq!(stored(body), lanes(|lane| if (8..24).contains(&lane) { 0x00ff_ff00 } else { u32::MAX }));
    assert_eq!(run("exit;\ntrap;"), [u32::MAX; 32]);
}

#[test]
fn predicates_guard_single_instructions() {
    let body = "mov.u32 %r9, 1;\nsetp.lt.u32 %p1, %tid, 5;\n@%p1 mov.u32 %r9, 2;\n@!%p1 add.u32 %r9, %r9, %tid;\n\
                @%p1 bra END;\n@!%p1 bra END;\nmov.u32 %r9, 0;\nEND:";
    assert_eq!(stored(body), lanes(|lane| if lane < 5 { 2 } else { lane + 1 }));
}

const TABLE: &str = "TABLE: .branchtargets A, B, C;\n";

/// ISA, `brx.idx`: each lane goes to the target of its index.
#[test]
fn indexed_branches() {
    let body = format!(
        "{TABLE}rem.u32 %r2, %tid, 3;\nbrx.idx %r2, TABLE;\nB:\nmov.u32 %r9, 11;\nbra END;\nA:\nmov.u32 %r9, 10;\n\
         bra END;\nC:\nmov.u32 %r9, 12;\nEND:\nactivemask.b32 %r3;\nsetp.ne.u32 %p1, %r3, -1;\n@%p1 mov.u32 %r9, 0;"
    );
    assert_eq!(stored(&body), lanes(|lane| 10 + lane % 3));
    let guarded = body.replace("brx.idx", "mov.u32 %r9, 13;\nsetp.lt.u32 %p2, %tid, 30;\n@!%p2 bra END;\n@%p2 brx.idx");
    assert_eq!(stored(&guarded), lanes(|lane| if lane < 30 { 10 + lane % 3 } else { 13 }));
    let outside = fault(&body.replace("rem.u32 %r2, %tid, 3", "shr.u32 %r2, %tid, 3"));
    assert_eq!(outside.kind, Kind::Undefined);
    assert!(outside.message.contains("target 3 of 3"), "{outside}");
    assert_eq!(outside.thread.unwrap().thread, [24, 0, 0]);
}

/// ISA 3.1, independent thread scheduling: a lane that holds a lock goes on although others of its warp spin for it, with
/// and without a pause, however long the loop is.
#[test]
fn a_lock_is_passed_between_the_lanes_of_a_warp() {
    for padding in ["", "add.u32 %r5, %r5, 1;\n", "add.u32 %r5, %r5, 1;\nadd.u32 %r5, %r5, 1;\n", "nanosleep.u32 20;\n"]
    {
        let body = format!(
            "SPIN:\n{padding}atom.acquire.gpu.global.cas.b32 %r2, [%out+4], 0, 1;\nsetp.ne.u32 %p1, %r2, 0;\n\
             @%p1 bra SPIN;\nld.global.u32 %r3, [%out];\nadd.u32 %r3, %r3, 1;\nst.global.u32 [%out], %r3;\n\
             membar.gl;\natom.global.exch.b32 %r4, [%out+4], 0;"
        );
        let init = "setp.eq.u32 %p0, %tid, 0;\n@%p0 st.global.u32 [%out+4], 0;\nbar.sync 0;\n";
        let body = format!("{init}{body}");
        for threads in [2, 3, 32, 64] {
            let kernel = Kernel { body: &body, output: 2, ..Kernel::default() }.threads(1, threads);
            let limited = Options { instruction_limit: 1 << 22, ..Options::default() };
            for options in [limited.clone(), Options { seed: Some(5), ..limited }] {
                let outcome = kernel.outcome(&options);
                assert_eq!(outcome.result, Ok(None), "{threads} {padding} {:?}", outcome.findings);
                assert_eq!(outcome.output, [threads - 1, 0], "{threads} {padding}");
            }
        }
    }
}

/// One warp waits for a flag that another one sets, one block for another: in both directions, with and without a pause.
#[test]
fn warps_and_blocks_wait_for_flags() {
    for pause in ["", "nanosleep.u32 100;\n"] {
        let body = |me: &str| {
            format!(
                "setp.eq.u32 %p1, {me}, 0;\n@%p1 bra PRODUCE;\nWAIT:\n{pause}ld.acquire.gpu.global.u32 %r2, [%out+4];\n\
                 setp.ne.u32 %p2, %r2, 1;\n@%p2 bra WAIT;\nld.global.u32 %r3, [%out];\nst.global.u32 [%out+8], %r3;\nret;\n\
                 PRODUCE:\nst.global.u32 [%out], 42;\nst.release.gpu.global.u32 [%out+4], 1;"
            )
        };
        for (blocks, threads, me) in [(1, 64, "%wid"), (1, 64, "%other"), (2, 1, "%bid"), (2, 1, "%rev")] {
            let me = match me {
                "%wid" => ("shr.u32 %r9, %tid, 5;\n", "%r9"),
                "%other" => ("shr.u32 %r9, %tid, 5;\nxor.b32 %r9, %r9, 1;\n", "%r9"),
                "%bid" => ("mov.u32 %r9, %ctaid.x;\n", "%r9"),
                _ => ("mov.u32 %r9, %ctaid.x;\nxor.b32 %r9, %r9, 1;\n", "%r9"),
            };
            // One lane of each warp.
            let lone = "and.b32 %r8, %tid, 31;\nsetp.ne.u32 %p0, %r8, 0;\n@%p0 exit;\n";
            let body = format!("{lone}{}{}", me.0, body(me.1));
            let kernel = Kernel { body: &body, output: 3, ..Kernel::default() }.threads(blocks, threads);
            assert_eq!(kernel.run(), [42, 1, 42], "{blocks} {threads} {pause}");
            let one = kernel.outcome(&Options { workers: 1, ..Options::default() });
            assert_eq!(one.output, [42, 1, 42]);
        }
    }
}

/// `bar.sync` of all: what is written before it is read after it.
#[test]
fn barriers_of_the_whole_block() {
    for barrier in [
        "bar.sync 0;",
        "barrier.sync 3;",
        "bar.cta.sync 15, 128;",
        "barrier.sync.aligned 1, 128;",
        "mov.u32 %r5, 7;\nbar.sync %r5;",
    ] {
        let body = format!(
            ".shared .b32 s[128];\nshl.b32 %r2, %tid, 2;\nst.shared.u32 [%r2], %tid;\n{barrier}\nxor.b32 %r3, %r2, 380;\n\
             ld.shared.u32 %r9, [%r3];{STORE}"
        );
        let output = Kernel { body: &body, output: 128, ..Kernel::default() }.threads(1, 128).run();
        assert_eq!(output, (0..128).map(|thread| thread ^ 95).collect::<Vec<u32>>(), "{barrier}");
    }
}

/// Two pairs of warps, each with a barrier of its own: `bar.sync a, b` for producers and `bar.arrive` for those who need not
/// wait (ISA, `bar`: the producer-consumer model).
#[test]
fn named_barriers_of_some_warps() {
    let body = ".shared .b32 s[128];\nshr.u32 %r2, %tid, 6;\nadd.u32 %r3, %r2, 1;\nshl.b32 %r4, %tid, 2;\n\
                st.shared.u32 [%r4], %tid;\nbar.sync %r3, 64;\nxor.b32 %r4, %r4, 128;\nld.shared.u32 %r9, [%r4];\n\
                st.global.u32 [%dst], %r9;";
    let output = Kernel { body, output: 128, ..Kernel::default() }.threads(1, 128).run();
    assert_eq!(output, (0..128).map(|thread| thread ^ 32).collect::<Vec<u32>>());
    // Warp 0 produces into one buffer, three times; warp 1 consumes.
    let body = ".shared .b32 s[32];\nand.b32 %r2, %tid, 31;\nshl.b32 %r2, %r2, 2;\nmov.u32 %r3, 0;\nmov.u32 %r9, 0;\n\
                setp.lt.u32 %p1, %tid, 32;\n@%p1 bra PRODUCE;\nbar.arrive 1, 64;\n\
                CONSUME:\nbar.sync 2, 64;\nld.shared.u32 %r4, [%r2];\nadd.u32 %r9, %r9, %r4;\nbar.arrive 1, 64;\n\
                add.u32 %r3, %r3, 1;\nsetp.lt.u32 %p2, %r3, 3;\n@%p2 bra CONSUME;\nst.global.u32 [%dst+-128], %r9;\nret;\n\
                PRODUCE:\nbar.sync 1, 64;\nmad.lo.u32 %r4, %r3, 100, %tid;\nst.shared.u32 [%r2], %r4;\nbar.arrive 2, 64;\n\
                add.u32 %r3, %r3, 1;\nsetp.lt.u32 %p2, %r3, 3;\n@%p2 bra PRODUCE;\nbar.sync 1, 64;";
    let output = Kernel { body, ..Kernel::default() }.threads(1, 64).run();
    assert_eq!(output, lanes(|lane| 300 + 3 * lane));
    // Without the barrier that says that the buffer is free there is a race.
    let racy = body
        .replace("PRODUCE:\nbar.sync 1, 64;", "PRODUCE:")
        .replace("bar.arrive 1, 64;", "")
        .replace("bar.sync 1, 64;", "");
    let found = Kernel { body: &racy, ..Kernel::default() }.threads(1, 64).outcome(&Options::checked(1)).findings;
    assert!(found.iter().any(|finding| finding.kind == Kind::Race), "{found:?}");
}

/// ISA, `bar`: without a number a barrier is for all threads, which is the same as their number.
#[test]
fn a_barrier_for_all_is_one_for_their_number() {
    let body = ".shared .b32 s;\nsetp.lt.u32 %p1, %tid, 32;\nsetp.eq.u32 %p2, %tid, 0;\n@%p1 bra FIRST;\nbar.sync 1;\n\
                ld.shared.u32 %r9, [s];\nst.global.u32 [%dst+-128], %r9;\nret;\nFIRST:\n@%p2 st.shared.u32 [s], 5;\n\
                bar.arrive 1, 64;";
    assert_eq!(Kernel { body, ..Kernel::default() }.threads(1, 64).run(), [5; 32]);
}

/// ISA, `bar.red`: the predicate over all threads.
#[test]
fn barriers_that_vote() {
    let body = "setp.lt.u32 %p1, %tid, 40;\nbar.red.popc.u32 %r2, 0, %p1;\nbar.red.popc.u32 %r3, 1, 64, !%p1;\n\
                barrier.red.and.pred %p2, 0, %p1;\nbarrier.cta.red.or.aligned.pred %p3, 0, %p1;\n\
                setp.lt.u32 %p4, %tid, 99;\nbar.red.and.pred %p5, 0, %p4;\nbar.red.or.pred %p6, 0, 64, !%p4;\n\
                mad.lo.u32 %r9, %r2, 100, %r3;\n@%p2 add.u32 %r9, %r9, 10000;\n@%p3 add.u32 %r9, %r9, 20000;\n\
                @%p5 add.u32 %r9, %r9, 40000;\n@%p6 add.u32 %r9, %r9, 80000;\nst.global.u32 [%dst], %r9;";
    assert_eq!(Kernel { body, output: 64, ..Kernel::default() }.threads(1, 64).run(), [64024; 64]);
    let one = Kernel { body, output: 40, ..Kernel::default() }.threads(1, 40).outcome(&Options::default());
    assert_eq!(one.output, [74000; 40], "lanes without a thread do not vote");
}

/// ISA, `bar`: threads that have exited are not waited for, be they whole warps or lanes.
#[test]
fn barriers_do_not_wait_for_those_who_left() {
    let gone = "setp.ge.u32 %p1, %tid, 70;\n@%p1 exit;\nand.b32 %r2, %tid, 3;\nsetp.eq.u32 %p2, %r2, 3;\n@%p2 exit;\n";
    let body = format!(
        "{gone}bar.sync 0;\nsetp.eq.u32 %p3, %tid, %tid;\nbar.red.popc.u32 %r9, 0, %p3;\nst.global.u32 [%dst], %r9;"
    );
    let expected: Vec<u32> =
        (0..128).map(|thread| if thread < 70 && thread % 4 != 3 { 53 } else { u32::MAX }).collect();
    assert_eq!(Kernel { body: &body, output: 128, ..Kernel::default() }.threads(1, 128).run(), expected);
    // Lanes may leave after others of their warp have arrived.
    for count in ["", ", 64"] {
        let body = format!(
            "and.b32 %r2, %tid, 1;\nsetp.eq.u32 %p1, %r2, 1;\n@!%p1 bra WAIT;\nmov.u32 %r3, 0;\nLOOP:\nadd.u32 %r3, %r3, 1;\n\
             setp.lt.u32 %p2, %r3, 300;\n@%p2 bra LOOP;\nexit;\nWAIT:\nbarrier.sync 1{count};\nst.global.u32 [%dst], 1;"
        );
        let expected: Vec<u32> = (0..64).map(|thread| if thread % 2 == 0 { 1 } else { u32::MAX }).collect();
        assert_eq!(Kernel { body: &body, output: 64, ..Kernel::default() }.threads(1, 64).run(), expected);
    }
    // A block of 48 threads fills two warps at a barrier for 64.
    let body = "bar.sync 1, 64;\nst.global.u32 [%dst], 1;";
    assert_eq!(Kernel { body, output: 48, ..Kernel::default() }.threads(1, 48).run(), [1; 48]);
}

/// ISA, `barrier` without `.aligned`: lanes of a warp may come from different places.
#[test]
fn barriers_that_are_not_aligned_join_divergent_lanes() {
    let body = "setp.lt.u32 %p1, %tid, 10;\nmov.u32 %r9, 1;\n@%p1 bra A;\nbarrier.sync 0;\nbra END;\nA:\nbarrier.sync 0;\n\
                mov.u32 %r9, 2;\nEND:\nst.global.u32 [%dst], %r9;";
    let kernel = Kernel { body, output: 64, ..Kernel::default() }.threads(1, 64);
    assert_eq!(kernel.run(), (0..64).map(|thread| if thread < 10 { 2 } else { 1 }).collect::<Vec<u32>>());
    let aligned = body.replace("barrier.sync", "bar.sync");
    let found = Kernel { body: &aligned, output: 64, ..Kernel::default() }.threads(1, 64).fault();
    assert_eq!(found.kind, Kind::Barrier);
    assert!(found.message.contains("elsewhere"), "{found}");
}

/// ISA, `barrier`: a thread waits "for all non-exited threads from its warp" before the warp has arrived; halves of two
/// warps are not one of 32 threads.
#[test]
fn warps_arrive_whole() {
    let body = "and.b32 %r2, %tid, 31;\nsetp.lt.u32 %p1, %r2, 16;\n@!%p1 bra SLEEP;\nbarrier.sync 1, 32;\n\
                st.global.u32 [%dst], 1;\nret;\nSLEEP:\nbar.warp.sync 0xffff0000;\nbarrier.sync 2, 32;";
    let found = Kernel { body, output: 64, ..Kernel::default() }.threads(1, 64).fault();
    assert_eq!(found.kind, Kind::Barrier);
    assert!(found.message.contains("16 threads of warp 0 wait at barrier 1"), "{found}");
    // A warp is whole when its other lanes come later, or have exited.
    for rest in ["barrier.sync 1, 64;\nst.global.u32 [%dst], 1;", "st.global.u32 [%dst], 1;\nexit;"] {
        let body = body.replace("1, 32;", "1, 64;").replace("barrier.sync 2, 32;", rest);
        assert_eq!(Kernel { body: &body, output: 64, ..Kernel::default() }.threads(1, 64).run(), [1; 64]);
    }
}

#[test]
fn misused_barriers_are_faults() {
    let of = |body: &str| Kernel { body, output: 64, ..Kernel::default() }.threads(1, 64).fault();
    for (body, kind, message) in [
        ("bar.sync 1, 40;", Kind::Undefined, "not a multiple of 32"),
        ("mov.u32 %r2, 0;\nbar.sync 1, %r2;", Kind::Undefined, "for 0 threads"),
        ("mov.u32 %r2, 16;\nbar.sync %r2;", Kind::Undefined, "no barrier 16"),
        ("shr.u32 %r2, %tid, 4;\nbarrier.sync %r2, 64;", Kind::Barrier, "different barriers"),
        ("setp.lt.u32 %p1, %tid, 32;\n@%p1 bar.sync 1, 96;\n@!%p1 bar.sync 1, 64;", Kind::Barrier, "others wait"),
        ("setp.lt.u32 %p1, %tid, 32;\n@%p1 bar.red.or.pred %p2, 1, %p1;\n@!%p1 bar.sync 1;", Kind::Undefined, ".red"),
    ] {
        let found = of(body);
        assert_eq!(found.kind, kind, "{body}: {found}");
        assert!(found.message.contains(message), "{body}: {found}");
    }
    for (body, reason) in [
        ("bar.arrive 0;", "were expected"),
        ("bar.sync;", "were expected"),
        ("bar.red.xor.pred %p1, 0, %p2;", "not supported"),
        ("bar.wait 0;", "not supported"),
        ("bar.red.popc.u32 %h2, 0, %p2;", "U32"),
        ("bra NOWHERE;", "NOWHERE"),
        ("brx.idx %r2, NOWHERE;", "NOWHERE"),
    ] {
        let refused = refusal(body);
        assert!(refused.contains(reason), "{body}: {refused}");
    }
}

/// What everybody waits for is named, with the lines.
#[test]
fn deadlocks_are_named() {
    let of = |body: &str| Kernel { body, output: 64, ..Kernel::default() }.threads(1, 64).fault();
    let found = of("setp.lt.u32 %p1, %tid, 32;\n@%p1 bar.sync 1, 64;");
    assert_eq!(found.kind, Kind::Barrier);
    assert!(found.message.contains("32 threads of warp 0 wait at barrier 1 (PTX line 5)"), "{found}");
    assert!(found.message.contains("32 threads have exited"), "{found}");
    assert_eq!(found.place.unwrap().ptx_line, 5);
    let found = of("setp.lt.u32 %p1, %tid, 32;\n@%p1 bar.sync 1;\n@!%p1 bar.sync 2;");
    assert_eq!(found.kind, Kind::Barrier);
    assert!(found.message.contains("barrier 1") && found.message.contains("barrier 2"), "{found}");
    let found = fault(
        "setp.lt.u32 %p1, %tid, 8;\n@!%p1 bra B;\nshfl.sync.idx.b32 %r2, %tid, 0, 31, -1;\nbra C;\nB:\n\
                       bar.warp.sync -1;\nC:",
    );
    assert_eq!(found.kind, Kind::Deadlock);
    assert!(found.message.contains("0xffffff00 of mask 0xffffffff"), "{found}");
    let found = of(
        ".shared .align 8 .b64 m;\nsetp.eq.u32 %p0, %tid, 0;\n@%p0 mbarrier.init.shared.b64 [m], 65;\nbar.sync 0;\n\
                    mbarrier.arrive.shared.b64 _, [m];\nLOOP:\nmbarrier.try_wait.parity.shared.b64 %p1, [m], 0;\n@!%p1 bra LOOP;",
    );
    assert_eq!(found.kind, Kind::Deadlock, "{found}");
}

/// Two blocks, each waiting for what the other one would do after its own wait.
#[test]
fn blocks_that_wait_for_each_other_are_found() {
    let body = "mov.u32 %r2, %ctaid.x;\nxor.b32 %r3, %r2, 1;\nmul.wide.u32 %l2, %r3, 4;\nadd.u64 %l2, %in, %l2;\n\
                WAIT:\nnanosleep.u32 50;\nld.acquire.gpu.global.u32 %r4, [%l2];\nsetp.eq.u32 %p1, %r4, 0;\n@%p1 bra WAIT;\n\
                st.release.gpu.global.u32 [%src], 1;";
    let kernel = Kernel { body, output: 2, input: &[0, 0], ..Kernel::default() }.threads(2, 1);
    for workers in [1, 2] {
        let Outcome { result, findings, .. } = kernel.outcome(&Options { workers, ..Options::default() });
        assert_eq!(result, Err(Kind::Deadlock), "{findings:?}");
    }
    assert_eq!(kernel.fault().kind, Kind::Deadlock);
    // The same with atomic operations that change nothing.
    let body = body.replace("ld.acquire.gpu.global.u32 %r4, [%l2];", "atom.global.cas.b32 %r4, [%l2], 7, 8;");
    assert_eq!(Kernel { body: &body, ..kernel.clone() }.fault().kind, Kind::Deadlock);
    // And without a pause, where only the limit tells it from hard work.
    let busy = body.replace("nanosleep.u32 50;\n", "");
    let kernel = Kernel { body: &busy, ..kernel };
    let Outcome { result, findings, .. } =
        kernel.outcome(&Options { instruction_limit: 1 << 21, ..Options::default() });
    assert_eq!(result, Err(Kind::Endless), "{findings:?}");
}

#[test]
fn endless_loops_reach_the_limit() {
    let body = "LOOP:\nadd.u32 %r2, %r2, 1;\nbra LOOP;";
    let outcome =
        Kernel { body, ..Kernel::default() }.outcome(&Options { instruction_limit: 1000, ..Options::default() });
    assert_eq!(outcome.result, Err(Kind::Endless));
    let finding = &outcome.findings[0];
    assert!(finding.message.contains("not over") && finding.place.as_ref().unwrap().ptx_line >= 5, "{finding}");
    let body = "mov.u32 %r2, 0;\nLOOP:\nadd.u32 %r2, %r2, 1;\nsetp.lt.u32 %p1, %r2, 100;\n@%p1 bra LOOP;";
    let outcome =
        Kernel { body, ..Kernel::default() }.outcome(&Options { instruction_limit: 1 << 20, ..Options::default() });
    assert_eq!(outcome.result, Ok(None));
}

#[test]
fn trap_ends_a_launch() {
    let found = fault("setp.eq.u32 %p1, %tid, 17;\n@%p1 trap;");
    assert_eq!((found.kind, found.thread.unwrap().thread), (Kind::Trap, [17, 0, 0]));
    assert_eq!(found.place.unwrap().ptx_line, 5);
    assert_eq!(run("setp.eq.u32 %p1, %tid, 32;\n@%p1 trap;\nbrkpt;\npmevent 7;\nst.global.u32 [%dst], 3;"), [3; 32]);
}

/// The cooperative pattern: every block counts itself in and waits until all have, again and again. (Waiting without a
/// pause takes a block's whole turn, which is long.)
#[test]
fn blocks_meet_at_a_barrier_of_the_grid() {
    for (pause, rounds) in [("", 2), ("nanosleep.u32 32;\n", 20)] {
        let body = format!(
            "mov.u32 %r2, %nctaid.x;\nmov.u32 %r3, 0;\nsetp.eq.u32 %p0, %tid, 0;\nROUND:\n\
             red.relaxed.gpu.global.add.u32 [%dst], 1;\nadd.u32 %r3, %r3, 1;\nmul.lo.u32 %r4, %r3, %r2;\nbar.sync 0;\n\
             @!%p0 bra JOIN;\nfence.acq_rel.gpu;\nred.relaxed.gpu.global.add.u32 [%in], 1;\n\
             WAIT:\n{pause}ld.relaxed.gpu.global.u32 %r5, [%in];\nsetp.lt.u32 %p1, %r5, %r4;\n@%p1 bra WAIT;\n\
             fence.acq_rel.gpu;\nJOIN:\nbar.sync 0;\nsetp.lt.u32 %p2, %r3, {rounds};\n@%p2 bra ROUND;"
        );
        let kernel = Kernel { body: &body, input: &[0], output: 6 * 64, ..Kernel::default() }.threads(6, 64);
        let shape = Shape { cooperative: true, ..kernel.shape.clone() };
        let kernel = Kernel { shape, ..kernel };
        assert_eq!(kernel.run(), [rounds - 1; 6 * 64], "{pause}");
        for workers in [1, 3] {
            let few = Options { workers, multiprocessors: 1, ..Options::default() };
            assert_eq!(kernel.outcome(&few).result, Ok(None), "{pause}");
        }
    }
}

#[test]
fn fences_and_pauses_are_accepted() {
    for body in [
        "membar.cta;",
        "membar.gl;",
        "membar.sys;",
        "fence.sc.gpu;",
        "fence.acq_rel.cta;",
        "fence.acq_rel.cluster;",
        "fence.proxy.async;",
        "fence.mbarrier_init.release.cluster;",
        "nanosleep.u32 5;",
        "mov.u32 %r2, 5;\nnanosleep.u32 %r2;",
    ] {
        assert_eq!(run(&format!("{body}\nst.global.u32 [%dst], 1;")), [1; 32], "{body}");
    }
}

/// A lane waits at an mbarrier for lanes of its own warp, which come later in the program.
#[test]
fn lanes_wait_for_lanes_of_their_warp_at_an_mbarrier() {
    let body = ".shared .align 8 .b64 m;\nsetp.eq.u32 %p0, %tid, 0;\n@%p0 mbarrier.init.shared.b64 [m], 31;\n\
                bar.warp.sync -1;\n@!%p0 bra ARRIVE;\nLOOP:\nmbarrier.try_wait.parity.shared.b64 %p1, [m], 0;\n\
                @!%p1 bra LOOP;\nbra END;\nARRIVE:\nmbarrier.arrive.shared.b64 _, [m];\nEND:\nst.global.u32 [%dst], 1;";
    assert_eq!(run(body), [1; 32]);
}

/// Lanes that went different ways meet at an instruction of the whole warp, in every order in which the ways are gone.
#[test]
fn lanes_meet_at_an_aligned_instruction() {
    let body = "mov.u32 %r2, %laneid;\nsetp.lt.u32 %p1, %r2, 5;\n@%p1 bra JOIN;\nadd.u32 %r2, %r2, 100;\n\
                mul.lo.u32 %r2, %r2, 3;\nJOIN:\nmovmatrix.sync.aligned.m8n8.trans.b16 %r3, %r2;\n\
                movmatrix.sync.aligned.m8n8.trans.b16 %r3, %r3;\nst.global.u32 [%dst], %r3;";
    for seed in 0..8 {
        let kernel = Kernel { body, output: 32, ..Kernel::default() }.threads(1, 32);
        let outcome = kernel.outcome(&Options { seed: Some(seed), ..Options::default() });
        assert_eq!(outcome.result, Ok(None), "seed {seed}");
        let want: Vec<u32> = (0..32).map(|lane| if lane < 5 { lane } else { (lane + 100) * 3 }).collect();
        assert_eq!(outcome.output, want, "seed {seed}");
    }
}
