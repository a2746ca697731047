//! Launches: shapes, special registers, and orders that a seed repeats.

use super::testing::{Bench, Kernel, Shape};
use crate::options::Options;
use crate::report::{Finding, Kind};

/// PTX ISA 10: what each thread finds in its special registers, in grids and blocks of up to three dimensions.
#[test]
fn special_registers_of_every_shape() {
    let body = "mov.u32 %r2, %ntid.x;\nmov.u32 %r3, %ntid.y;\nmov.u32 %r4, %tid.y;\nmov.u32 %r5, %tid.z;\n\
                mad.lo.u32 %r6, %r5, %r3, %r4;\nmad.lo.u32 %r6, %r6, %r2, %tid;\nmov.u32 %r7, %nctaid.x;\nmov.u32 %r8, %nctaid.y;\n\
                mov.u32 %r9, %ctaid.x;\nmov.u32 %r10, %ctaid.y;\nmov.u32 %r11, %ctaid.z;\nmad.lo.u32 %r11, %r11, %r8, %r10;\n\
                mad.lo.u32 %r11, %r11, %r7, %r9;\nmov.u32 %r12, %ntid.z;\nmul.lo.u32 %r13, %r2, %r3;\nmul.lo.u32 %r13, %r13, %r12;\n\
                mad.lo.u32 %r14, %r11, %r13, %r6;\nmul.wide.u32 %l2, %r14, 4;\nadd.u64 %l2, %out, %l2;\n\
                mov.u32 %r15, %laneid;\nmov.u32 %r16, %warpid;\nmad.lo.u32 %r16, %r16, 32, %r15;\nsetp.ne.u32 %p1, %r16, %r6;\n\
                @%p1 trap;\nmov.u32 %r17, %nwarpid;\nadd.u32 %r18, %r13, 31;\nshr.u32 %r18, %r18, 5;\n\
                setp.ne.u32 %p1, %r17, %r18;\n@%p1 trap;\nst.global.u32 [%l2], %r14;";
    for (grid, block) in [
        ([1, 1, 1], [1, 1, 1]),
        ([5, 1, 1], [33, 1, 1]),
        ([3, 2, 1], [8, 5, 1]),
        ([2, 3, 4], [4, 3, 2]),
        ([2, 1, 1], [1024, 1, 1]),
        ([1, 2, 1], [16, 8, 8]),
    ] {
        let output = (grid.iter().product::<u32>() * block.iter().product::<u32>()) as usize;
        let kernel = Kernel { body, output, shape: Shape { grid, block, ..Shape::default() }, ..Kernel::default() };
        assert_eq!(kernel.run(), (0..output as u32).collect::<Vec<_>>(), "{grid:?} {block:?}");
    }
}

#[test]
fn masks_of_lanes() {
    for (name, of) in [
        ("eq", (|lane| 1 << lane) as fn(u32) -> u32),
        ("lt", |lane| (1 << lane) - 1),
        ("le", |lane| u32::MAX >> (31 - lane)),
        ("gt", |lane| !(u32::MAX >> (31 - lane))),
        ("ge", |lane| u32::MAX << lane),
    ] {
        let body = format!("mov.u32 %r2, %lanemask_{name};\nst.global.u32 [%dst], %r2;");
        assert_eq!(super::testing::run(&body), super::testing::lanes(of), "{name}");
    }
}

/// Ten blocks of three warps write down in which order they came.
fn order(seed: Option<u64>, number: usize) -> Vec<u32> {
    let body = "mov.u32 %r3, %laneid;\nsetp.ne.u32 %p1, %r3, 0;\n@%p1 exit;\nmov.u32 %r3, 0;\nNEXT:\natom.global.add.u32 %r2, [%in], 1;\n\
                mul.wide.u32 %l2, %r2, 4;\nadd.u64 %l2, %out, %l2;\nst.global.u32 [%l2], %gid;\nadd.u32 %r3, %r3, 1;\n\
                setp.lt.u32 %p2, %r3, 4;\n@%p2 bra NEXT;";
    let kernel = Kernel { body, input: &[0], output: 120, ..Kernel::default() }.threads(10, 96);
    let outcome = kernel.outcome(&Options { seed, ..Options::default() });
    assert_eq!(outcome.result, Ok(None), "{number}");
    let mut all = outcome.output.clone();
    all.sort_unstable();
    assert_eq!(all, (0..120).map(|index| index / 4 * 32).collect::<Vec<u32>>());
    outcome.output
}

#[test]
fn a_seed_gives_an_order() {
    let first = order(Some(1), 0);
    for repeat in 0..3 {
        assert_eq!(order(Some(1), repeat), first);
    }
    assert_ne!(order(Some(2), 0), first);
    assert!(!first.is_sorted());
}

#[test]
fn a_seed_gives_the_same_findings() {
    let body = ".shared .u32 s[64];\nshl.b32 %r2, %tid, 2;\nst.shared.u32 [%r2], %tid;\nxor.b32 %r2, %r2, 132;\n\
                ld.shared.u32 %r3, [%r2];\nst.global.u32 [%out], %r3;\nld.global.u32 %r4, [%in];\nst.global.u32 [%in], %r4;";
    let kernel = Kernel { body, ..Kernel::default() }.threads(8, 64);
    let first = kernel.outcome(&Options::checked(4));
    assert!(first.findings.iter().any(|finding| finding.kind == Kind::Race));
    // Messages name addresses, which are others in every run.
    let told = |findings: Vec<Finding>| -> Vec<_> {
        findings.into_iter().map(|found| (found.kind, found.place, found.thread, found.other)).collect()
    };
    let want = told(first.findings);
    for _ in 0..3 {
        let again = kernel.outcome(&Options::checked(4));
        assert_eq!((told(again.findings), again.output), (want.clone(), first.output.clone()));
    }
}

/// A device without multiprocessors still runs a block at a time.
#[test]
fn every_block_runs() {
    let kernel = Kernel { body: "st.global.u32 [%dst], %gid;", output: 100, ..Kernel::default() }.threads(100, 1);
    for (multiprocessors, workers) in [(0, 1), (0, 3), (1, 2), (108, 4)] {
        let outcome = kernel.outcome(&Options { multiprocessors, workers, ..Options::default() });
        assert_eq!(outcome.output, (0..100).collect::<Vec<u32>>(), "{multiprocessors} {workers}");
    }
}

#[test]
fn a_profile_is_made_where_it_is_asked_for() {
    let bench = Bench::new(&Options { profile: true, workers: 2, ..Options::default() });
    let kernel = Kernel { body: "st.global.u32 [%dst], %gid;", ..Kernel::default() }.threads(4, 8);
    let output = bench.words(0, &[0; 32]);
    let parameters = [output.to_le_bytes(), output.to_le_bytes()].concat();
    assert!(bench.launch(&kernel.text(), &kernel.shape, &parameters).unwrap().is_some());
    assert_eq!(bench.read(output, 32), super::testing::lanes(|lane| lane));
}
