//! What lanes do together (PTX ISA 9.7.9 `shfl.sync`, 9.7.13 `vote`, `match`, `redux`, `elect`, `activemask`,
//! `bar.warp.sync`): values worked out from the pseudocode there.

use crate::machine::testing::{Kernel, fault, lanes, refusal, run};
use crate::report::Kind;

fn stored(body: &str) -> Vec<u32> {
    run(&format!("{body}\nst.global.u32 [%dst], %r9;"))
}

/// The value and the predicate of a shuffle of `100 + lane`.
fn shuffle(mode: &str, b: &str, c: u32) -> Vec<(u32, bool)> {
    let body = format!(
        "mov.u32 %r2, {b};\nadd.u32 %r3, %tid, 100;\nshfl.sync.{mode}.b32 %r4|%p1, %r3, %r2, {c}, -1;\n\
         shfl.sync.{mode}.b32 %r5, %r3, %r2, {c}, 0xffffffff;\nshfl.sync.{mode}.b32 _|%p2, %r3, %r2, {c}, -1;\n\
         selp.u32 %r9, 1000, 0, %p1;\n@%p2 add.u32 %r9, %r9, 2000;\nadd.u32 %r9, %r9, %r4;\nsetp.ne.u32 %p3, %r4, %r5;\n\
         @%p3 mov.u32 %r9, 0;"
    );
    let unpack = |word: u32| {
        assert!(word / 1000 == 0 || word / 1000 == 3, "{word}");
        (word % 1000, word >= 1000)
    };
    stored(&body).into_iter().map(unpack).collect()
}

fn expected(f: impl Fn(i32) -> (i32, bool)) -> Vec<(u32, bool)> {
    (0..32).map(|lane| (f(lane).0 as u32 + 100, f(lane).1)).collect()
}

/// Segments of 32, 16 and 8 lanes: c holds 32 − width in bits 8 to 12, and the clamp (0 for up, 31 for others) below.
#[test]
fn shuffles_stay_in_their_segment() {
    for width in [32, 16, 8, 4, 2, 1] {
        let segment = (32 - width as u32) << 8;
        for step in [0, 1, 2, 3, 7, 15, 31] {
            let start = |lane: i32| lane / width * width;
            let end = |lane: i32| start(lane) + width - 1;
            let or_own = |lane: i32, source: i32, inside: bool| (if inside { source } else { lane }, inside);
            let up = shuffle("up", &step.to_string(), segment);
            assert_eq!(
                up,
                expected(|lane| or_own(lane, lane - step, lane - step >= start(lane))),
                "up {step} of {width}"
            );
            let down = shuffle("down", &step.to_string(), segment | 31);
            assert_eq!(
                down,
                expected(|lane| or_own(lane, lane + step, lane + step <= end(lane))),
                "down {step} of {width}"
            );
            let butterfly = shuffle("bfly", &step.to_string(), segment | 31);
            let crossed = expected(|lane| or_own(lane, lane ^ step, lane ^ step <= end(lane)));
            assert_eq!(butterfly, crossed, "bfly {step} of {width}");
            let index = shuffle("idx", &step.to_string(), segment | 31);
            assert_eq!(index, expected(|lane| (start(lane) + step % width, true)), "idx {step} of {width}");
        }
    }
}

/// A clamp inside of a segment: lanes beyond it are out of range.
#[test]
fn shuffles_are_clamped() {
    assert_eq!(shuffle("idx", "9", 7), expected(|lane| (lane, false)));
    assert_eq!(shuffle("idx", "5", 7), expected(|_| (5, true)));
    assert_eq!(
        shuffle("down", "4", 20),
        expected(|lane| if lane + 4 <= 20 { (lane + 4, true) } else { (lane, false) })
    );
    assert_eq!(shuffle("up", "4", 8), expected(|lane| if lane - 4 >= 8 { (lane - 4, true) } else { (lane, false) }));
    // Only five bits of the operands count.
    assert_eq!(shuffle("idx", "37", 31), expected(|_| (5, true)));
    assert_eq!(shuffle("idx", "%tid", 31), expected(|lane| (lane, true)));
    let reverse = "sub.u32 %r2, 31, %tid;\nshfl.sync.idx.b32 %r9, %tid, %r2, 31, -1;";
    assert_eq!(stored(reverse), lanes(|lane| 31 - lane));
}

/// The usual reductions end with the sum where they should.
#[test]
fn sums_by_shuffles() {
    let mut body = "mov.u32 %r9, %tid;\n".to_owned();
    for step in [16, 8, 4, 2, 1] {
        body += &format!("shfl.sync.bfly.b32 %r2, %r9, {step}, 31, -1;\nadd.u32 %r9, %r9, %r2;\n");
    }
    assert_eq!(stored(&body), [496; 32]);
    let mut scan = "mov.u32 %r9, 1;\n".to_owned();
    for step in [1, 2, 4, 8, 16] {
        scan += &format!("shfl.sync.up.b32 %r2|%p1, %r9, {step}, 0, -1;\n@%p1 add.u32 %r9, %r9, %r2;\n");
    }
    assert_eq!(stored(&scan), lanes(|lane| lane + 1));
}

/// Each half of a warp names itself, at one instruction.
#[test]
fn member_masks_may_differ_between_lanes() {
    let body = "setp.lt.u32 %p1, %tid, 16;\nselp.b32 %r2, 0x0000ffff, 0xffff0000, %p1;\nselp.b32 %r3, 3, 20, %p1;\n\
                shfl.sync.idx.b32 %r4, %tid, %r3, 31, %r2;\nvote.sync.ballot.b32 %r5, %p1, %r2;\n\
                redux.sync.add.u32 %r6, 1, %r2;\nadd.u32 %r9, %r4, %r5;\nmad.lo.u32 %r9, %r6, 1000000, %r9;";
    assert_eq!(stored(body), lanes(|lane| 16_000_000 + if lane < 16 { 3 + 0xffff } else { 20 }));
    // The lanes with equal values find each other, then sum up among themselves: the first one's number.
    let body = "rem.u32 %r2, %tid, 5;\nmatch.any.sync.b32 %r3, %r2, -1;\nbrev.b32 %r4, %r3;\nclz.b32 %r4, %r4;\n\
                shfl.sync.idx.b32 %r5, %tid, %r4, 31, %r3;\nredux.sync.add.u32 %r6, %tid, %r3;\nmad.lo.u32 %r9, %r5, 1000, %r6;";
    let group = |lane: u32| (0..32).filter(move |other| other % 5 == lane % 5).sum::<u32>();
    assert_eq!(stored(body), lanes(|lane| lane % 5 * 1000 + group(lane)));
}

/// Lanes that come later are waited for, wherever they were before.
#[test]
fn lanes_arrive_at_different_times() {
    let body = "mov.u32 %r2, 0;\nNEXT:\nsetp.ge.u32 %p1, %r2, %tid;\n@%p1 bra DONE;\nadd.u32 %r2, %r2, 1;\nbra NEXT;\nDONE:\n\
                shfl.sync.down.b32 %r9, %r2, 1, 31, -1;";
    assert_eq!(stored(body), lanes(|lane| (lane + 1).min(31)));
    // Lanes that have exited are not waited for.
    let gone = "setp.gt.u32 %p1, %tid, 15;\n@%p1 exit;\nsetp.lt.u32 %p2, %tid, 8;\nvote.sync.ballot.b32 %r9, %p2, -1;";
    assert_eq!(stored(gone), lanes(|lane| if lane < 16 { 0xff } else { u32::MAX }));
    let late = "setp.lt.u32 %p1, %tid, 16;\n@%p1 bra WAIT;\nmov.u32 %r2, 0;\nLOOP:\nadd.u32 %r2, %r2, 1;\n\
                setp.lt.u32 %p2, %r2, 50;\n@%p2 bra LOOP;\nexit;\nWAIT:\nredux.sync.add.u32 %r9, 1, -1;";
    assert_eq!(stored(late), lanes(|lane| if lane < 16 { 16 } else { u32::MAX }));
    // Some of the lanes, in a branch of their own.
    let some = "mov.u32 %r9, 0;\nand.b32 %r2, %tid, 1;\nsetp.eq.u32 %p1, %r2, 0;\n@!%p1 bra END;\n\
                redux.sync.max.u32 %r9, %tid, 0x55555555;\nEND:";
    assert_eq!(stored(some), lanes(|lane| if lane % 2 == 0 { 30 } else { 0 }));
    // A guard on the instruction itself.
    let guarded = some.replace("@!%p1 bra END;\nredux", "@%p1 redux").replace("END:", "");
    assert_eq!(stored(&guarded), lanes(|lane| if lane % 2 == 0 { 30 } else { 0 }));
}

#[test]
fn a_mask_names_its_lanes() {
    let found = fault("shfl.sync.idx.b32 %r2, %tid, 0, 31, 0xff;");
    assert_eq!((found.kind, found.thread.unwrap().thread), (Kind::Mask, [8, 0, 0]));
    assert!(found.message.contains("0x000000ff") && found.message.contains("lane 8"), "{found}");
    // Too few come.
    let found = fault("setp.lt.u32 %p1, %tid, 4;\n@%p1 bra END;\nvote.sync.any.pred %p2, %p1, -1;\nEND:\nbar.sync 0;");
    assert_eq!(found.kind, Kind::Barrier, "{found}");
    assert!(found.message.contains("0xf of mask 0xffffffff"), "{found}");
}

#[test]
fn votes() {
    let body = |vote: &str| {
        format!("setp.lt.u32 %p1, %tid, 10;\nsetp.lt.u32 %p2, %tid, 32;\n{vote}\nselp.u32 %r9, 1, 0, %p3;")
    };
    for (vote, holds) in [
        ("vote.sync.all.pred %p3, %p1, -1;", 0),
        ("vote.sync.all.pred %p3, %p2, -1;", 1),
        ("vote.sync.any.pred %p3, %p1, -1;", 1),
        ("vote.sync.any.pred %p3, !%p2, -1;", 0),
        ("vote.sync.all.pred %p3, !%p1, -1;", 0),
        ("vote.sync.uni.pred %p3, %p1, -1;", 0),
        ("vote.sync.uni.pred %p3, %p2, -1;", 1),
        ("vote.sync.uni.pred %p3, !%p2, -1;", 1),
        ("vote.sync.any.pred %p3, 1, -1;", 1),
        ("vote.sync.any.pred %p3, 0, -1;", 0),
    ] {
        assert_eq!(stored(&body(vote)), [holds; 32], "{vote}");
    }
    assert_eq!(stored("setp.lt.u32 %p1, %tid, 10;\nvote.sync.ballot.b32 %r9, %p1, -1;"), [0x3ff; 32]);
    assert_eq!(stored("setp.lt.u32 %p1, %tid, 10;\nvote.sync.ballot.b32 %r9, !%p1, -1;"), [0xffff_fc00; 32]);
    // Lanes outside of the mask do not vote.
    let some = "mov.u32 %r9, 0;\nsetp.lt.u32 %p1, %tid, 10;\nsetp.lt.u32 %p2, %tid, 20;\n@%p2 vote.sync.ballot.b32 %r9, !%p1, 0xfffff;";
    assert_eq!(stored(some), lanes(|lane| if lane < 20 { 0xffc00 } else { 0 }));
}

#[test]
fn matches() {
    assert_eq!(stored("shr.u32 %r2, %tid, 3;\nmatch.any.sync.b32 %r9, %r2, -1;"), lanes(|lane| 0xff << (lane / 8 * 8)));
    // The upper half of a double counts too.
    let wide = "shr.u32 %r2, %tid, 4;\nmov.b64 %l2, {%r9, %r2};\nmatch.any.sync.b64 %r9, %l2, -1;";
    assert_eq!(stored(&format!("mov.u32 %r9, 5;\n{wide}")), lanes(|lane| if lane < 16 { 0xffff } else { 0xffff_0000 }));
    let all = |value: &str| {
        format!(
            "mov.u32 %r3, {value};\nmatch.all.sync.b32 %r2|%p1, %r3, -1;\nselp.u32 %r4, 1, 0, %p1;\n\
             match.all.sync.b32 %r5, %r3, -1;\nand.b32 %r2, %r2, %r5;\nxor.b32 %r9, %r2, %r4;"
        )
    };
    assert_eq!(stored(&all("7")), [0xffff_fffe; 32]);
    assert_eq!(stored(&all("%tid")), [0; 32]);
    let doubles = "mov.b64 %l2, {%tid, %r9};\nmatch.all.sync.b64 %r2|%p1, %l2, -1;\nselp.u32 %r9, 1, 0, %p1;";
    assert_eq!(stored(&format!("mov.u32 %r9, 5;\n{doubles}")), [0; 32]);
    assert_eq!(stored(&format!("mov.u32 %r9, 5;\n{}", doubles.replace("%tid,", "%r9,"))), [1; 32]);
}

#[test]
fn reductions() {
    for (operation, expected) in [
        ("add.u32", (0..32u32).map(|lane| lane.wrapping_sub(5)).fold(0, u32::wrapping_add)),
        ("add.s32", 336),
        ("min.u32", 0),
        ("max.u32", u32::MAX),
        ("min.s32", -5i32 as u32),
        ("max.s32", 26),
        ("and.b32", 0),
        ("or.b32", u32::MAX),
        ("xor.b32", (0..32u32).fold(0, |all, lane| all ^ lane.wrapping_sub(5))),
    ] {
        assert_eq!(
            stored(&format!("sub.u32 %r2, %tid, 5;\nredux.sync.{operation} %r9, %r2, -1;")),
            [expected; 32],
            "{operation}"
        );
    }
}

/// `elect.sync` picks one lane of the mask, here the lowest (ISA: deterministic for the same mask).
#[test]
fn one_is_elected() {
    let body = "setp.gt.u32 %p1, %tid, 6;\nmov.u32 %r9, 0;\n@!%p1 bra END;\nelect.sync %r2|%p2, 0xffffff80;\n\
                selp.u32 %r9, 100, 0, %p2;\nadd.u32 %r9, %r9, %r2;\nEND:";
    assert_eq!(
        stored(body),
        lanes(|lane| match lane {
            0..7 => 0,
            7 => 107,
            _ => 7,
        })
    );
    assert_eq!(stored("elect.sync _|%p2, -1;\nselp.u32 %r9, 1, 0, %p2;"), lanes(|lane| u32::from(lane == 0)));
}

#[test]
fn the_active_mask() {
    assert_eq!(stored("activemask.b32 %r9;"), [u32::MAX; 32]);
    let body = "mov.u32 %r9, 0;\nsetp.lt.u32 %p1, %tid, 12;\n@%p1 activemask.b32 %r9;";
    assert_eq!(stored(body), lanes(|lane| if lane < 12 { 0xfff } else { 0 }));
    let part = Kernel { body: "activemask.b32 %r9;\nst.global.u32 [%dst], %r9;", output: 20, ..Kernel::default() };
    assert_eq!(part.threads(1, 20).run(), [0xf_ffff; 20]);
}

/// ISA, `bar.warp.sync`: lanes of the mask wait for each other wherever they are, and see what was written before.
#[test]
fn a_barrier_of_a_warp_is_met_at_different_places() {
    let body = ".shared .b32 s[32];\nshl.b32 %r2, %tid, 2;\nsetp.lt.u32 %p1, %tid, 16;\n@%p1 bra LOW;\nadd.u32 %r3, %tid, 100;\n\
                st.shared.u32 [%r2], %r3;\nbar.warp.sync -1;\nbra END;\nLOW:\nadd.u32 %r3, %tid, 200;\nst.shared.u32 [%r2], %r3;\n\
                bar.warp.sync 0xffffffff;\nEND:\nxor.b32 %r2, %r2, 124;\nld.shared.u32 %r9, [%r2];";
    assert_eq!(stored(body), lanes(|lane| 31 - lane + if lane < 16 { 100 } else { 200 }));
    let racy = body.replace("bar.warp.sync -1;\n", "").replace("bar.warp.sync 0xffffffff;\n", "");
    let found = Kernel { body: &racy, ..Kernel::default() }.found();
    assert!(found.iter().any(|finding| finding.kind == Kind::Race), "{found:?}");
}

/// ISA, `shfl.sync`: lanes wait until all of the mask "have executed shfl.sync with the same qualifiers and same membermask
/// value", wherever in the program that is; each gives and gets by its own operands. So do the others of its kind.
#[test]
fn lanes_exchange_from_different_places() {
    let apart = |first: &str, second: &str| {
        format!(
            "setp.lt.u32 %p1, %tid, 16;\nadd.u32 %r2, %tid, 100;\nadd.u32 %r3, %tid, 200;\nmov.u32 %r9, 0;\n\
             @%p1 bra A;\n{second}\nbra END;\nA:\n{first}\nEND:"
        )
    };
    let shuffled = stored(&apart(
        "shfl.sync.bfly.b32 %r9, %r2, 16, 31, -1;",
        "shfl.sync.bfly.b32 %r4|%p2, %r3, 17, 31, -1;\n@%p2 add.u32 %r9, %r4, 1000;",
    ));
    // Lanes below 16 read lane + 16 where it holds 200 and more; the others read (lane ^ 17), which holds 100 and more.
    assert_eq!(shuffled, lanes(|lane| if lane < 16 { lane + 16 + 200 } else { (lane ^ 17) + 100 + 1000 }));
    let votes = stored(&apart(
        "setp.eq.u32 %p2, %tid, 3;\nvote.sync.ballot.b32 %r9, %p2, -1;",
        "setp.eq.u32 %p3, %tid, 20;\nvote.sync.ballot.b32 %r9, !%p3, -1;",
    ));
    assert_eq!(votes, [!(1 << 20) & 0xffff_0000 | 8; 32]);
    let sums = stored(&apart("redux.sync.add.u32 %r9, %r2, -1;", "redux.sync.add.u32 %r9, %r3, -1;"));
    assert_eq!(sums, [16 * 300 + 31 * 16; 32]);
    let matched = stored(&apart(
        "mov.u32 %r2, 7;\nmatch.any.sync.b32 %r9, %r2, -1;",
        "and.b32 %r5, %tid, 7;\nmatch.any.sync.b32 %r9, %r5, -1;",
    ));
    let sevens = 0xffff | 1 << 23 | 1 << 31;
    assert_eq!(matched, lanes(|lane| if lane < 16 || lane % 8 == 7 { sevens } else { 1 << lane | 1 << (lane ^ 8) }));
    let all = stored(&apart(
        "mov.u32 %r2, 7;\nmatch.all.sync.b32 %r9, %r2, -1;",
        "mov.u32 %r6, 7;\nmatch.all.sync.b32 %r9|%p4, %r6, -1;\n@!%p4 mov.u32 %r9, 0;",
    ));
    assert_eq!(all, [u32::MAX; 32]);
    let elected = stored(&apart("elect.sync %r9|%p2, -1;", "elect.sync %r9|%p3, -1;\n@%p3 mov.u32 %r9, 99;"));
    assert_eq!(elected, [0; 32]);
    // With other qualifiers it is another operation.
    for (first, second) in [
        ("shfl.sync.bfly.b32 %r9, %r2, 16, 31, -1;", "shfl.sync.idx.b32 %r9, %r2, 16, 31, -1;"),
        ("vote.sync.any.pred %p2, %p1, -1;", "vote.sync.all.pred %p2, %p1, -1;"),
        ("redux.sync.add.u32 %r9, %r2, -1;", "redux.sync.max.u32 %r9, %r2, -1;"),
        ("match.any.sync.b32 %r9, %r2, -1;", "match.any.sync.b64 %r9, %l2, -1;"),
        ("elect.sync %r9|%p2, -1;", "bar.warp.sync -1;"),
    ] {
        let found = fault(&apart(first, second));
        assert_eq!(found.kind, Kind::Deadlock, "{found}");
        assert!(found.message.contains("execute another operation"), "{found}");
    }
}

/// What a lane gets from one that does not take part is no value that could be meant.
#[test]
fn lanes_that_do_not_take_part_give_nothing() {
    let body = "mov.u32 %r9, 0;\nsetp.lt.u32 %p1, %tid, 8;\n@%p1 shfl.sync.idx.b32 %r9, 1, 20, 31, 0xff;";
    assert_eq!(stored(body), lanes(|lane| if lane < 8 { u32::MAX } else { 0 }));
}

#[test]
fn what_the_isa_does_not_have_is_refused() {
    for (body, reason) in [
        ("shfl.idx.b32 %r2, %r3, 0, 31;", ".sync"),
        ("vote.ballot.b32 %r2, %p1;", ".sync"),
        ("shfl.sync.b32 %r2, %r3, 0, 31, -1;", "mode"),
        ("shfl.sync.idx.b32 %r2, %r3, 0, 31;", "operands"),
        ("shfl.sync.idx.b32 %l2, %r3, 0, 31, -1;", "B32"),
        ("shfl.sync.idx.b32 %h2, %r3, 0, 31, -1;", "B32"),
        ("vote.sync.some.pred %p1, %p2, -1;", "mode"),
        ("redux.sync.add.f32 %r2, %r3, -1;", "F32"),
        ("redux.sync.mul.u32 %r2, %r3, -1;", "operation"),
        ("elect.sync %r2, -1;", "operands"),
        ("match.any.sync.b32 %r2, %l2, -1;", "B32"),
    ] {
        let refused = refusal(body);
        assert!(refused.contains(reason), "{body}: {refused}");
    }
}
