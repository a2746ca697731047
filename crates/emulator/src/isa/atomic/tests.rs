//! Atomic operations (PTX ISA 9.7.13, `atom`, `red`): new and old values by hand, in every space, and under contention.

use crate::machine::testing::{Bench, Kernel, Shape, refusal};
use crate::options::Options;
use crate::report::{Finding, Kind};
use half::{bf16, f16};

/// New and old value of one operation by one thread, the same in global, shared and generic memory, by `atom` and, but for
/// compare-and-swap and exchange, by `red`.
fn atomic(operation: &str, ty: &str, old: u64, operands: &[u64]) -> (u64, u64) {
    let results: Vec<_> = ["global", "shared", "global ", "shared "]
        .into_iter()
        .map(|space| atomic_in(space, operation, ty, old, operands))
        .collect();
    assert!(results.iter().all(|result| *result == results[0]), "{operation}.{ty}: {results:x?}");
    results[0]
}

/// The same in one space, generic if there is a blank behind its name.
fn atomic_in(space: &str, operation: &str, ty: &str, old: u64, operands: &[u64]) -> (u64, u64) {
    let size = match ty {
        "b16" | "f16" | "bf16" => 2,
        "u64" | "s64" | "b64" | "f64" => 8,
        _ => 4,
    };
    let (register, width) = match size {
        2 => ("h", "b16"),
        8 => ("l", "b64"),
        _ => ("r", "b32"),
    };
    let (own, generic) = (space.trim(), space.ends_with(' '));
    let mut body = format!(".shared .align 8 .b64 s;\nmov.u64 %l10, {};\n", if own == "shared" { "s" } else { "%in" });
    if generic {
        body += &format!("cvta.{own}.u64 %l10, %l10;\n");
    }
    let dotted = if generic { String::new() } else { format!(".{own}") };
    let mask = if size == 8 { u64::MAX } else { (1 << (8 * size)) - 1 };
    let old = old & mask;
    let mut values = String::new();
    for (index, operand) in operands.iter().enumerate() {
        body += &format!("mov.{width} %{register}{}, {};\n", index + 3, operand & mask);
        values += &format!(", %{register}{}", index + 3);
    }
    let store = format!("mov.{width} %{register}2, {old};\nst{dotted}.{width} [%l10], %{register}2;\n");
    let noftz = if matches!(ty, "f16" | "f16x2" | "bf16" | "bf16x2") { ".noftz" } else { "" };
    body += &format!(
        "{store}atom{dotted}.{operation}{noftz}.{ty} %{register}2, [%l10]{values};\nld{dotted}.{width} %{register}9, [%l10];\n\
         st.global.{width} [%out], %{register}9;\nst.global.{width} [%out+8], %{register}2;\n"
    );
    let reduces = !matches!(operation, "cas" | "exch");
    if reduces {
        body += &format!(
            "{store}red{dotted}.{operation}{noftz}.{ty} [%l10]{values};\nld{dotted}.{width} %{register}9, [%l10];\n\
             st.global.{width} [%out+16], %{register}9;\n"
        );
    }
    let output = Kernel { body: &body, input: &[0; 4], output: 6, ..Kernel::default() }.threads(1, 1).run();
    let value = |index: usize| (u64::from(output[index]) | u64::from(output[index + 1]) << 32) & mask;
    if reduces {
        assert_eq!(value(0), value(4), "red and atom of {operation}.{ty}");
    }
    assert_eq!(value(2), old, "{operation}.{ty}");
    (value(0), value(2))
}

fn new(operation: &str, ty: &str, old: u64, operand: u64) -> u64 {
    atomic(operation, ty, old, &[operand]).0
}

#[test]
fn integers() {
    let minus = |n: i64| n as u64;
    for (operation, ty, old, operand, expected) in [
        ("add", "u32", 0xffff_ffff, 2, 1),
        ("add", "s32", 0x7fff_ffff, 1, 0x8000_0000),
        ("add", "u64", u64::MAX, 3, 2),
        ("add", "s64", minus(-5), 3, minus(-2)),
        ("min", "u32", 0xffff_ffff, 1, 1),
        ("min", "s32", 0xffff_ffff, 1, 0xffff_ffff),
        ("max", "u32", 0xffff_ffff, 1, 0xffff_ffff),
        ("max", "s32", 0xffff_ffff, 1, 1),
        ("min", "u64", u64::MAX, 1, 1),
        ("min", "s64", u64::MAX, 1, u64::MAX),
        ("max", "u64", 1 << 40, 1, 1 << 40),
        ("max", "s64", 1 << 63, 1, 1),
        ("and", "b32", 0xf0f0_ffff, 0x3c3c_1234, 0x3030_1234),
        ("or", "b32", 0xf0f0_0000, 0x0c0c_1234, 0xfcfc_1234),
        ("xor", "b32", 0xf0f0_ffff, 0x3c3c_0000, 0xcccc_ffff),
        ("and", "b64", u64::MAX, 0x1234_5678_9abc_def0, 0x1234_5678_9abc_def0),
        ("or", "b64", 1, 1 << 63, 1 << 63 | 1),
        ("xor", "b64", u64::MAX, 1, u64::MAX - 1),
        ("exch", "b32", 5, 6, 6),
        ("exch", "b64", 5, 1 << 50, 1 << 50),
    ] {
        assert_eq!(new(operation, ty, old, operand), expected, "{operation}.{ty} {old:#x} {operand:#x}");
    }
}

/// ISA, `atom`: inc is (old ≥ b) ? 0 : old + 1, dec is (old = 0 or old > b) ? b : old − 1.
#[test]
fn counters_wrap_at_their_bound() {
    for (old, bound, up, down) in
        [(0, 3, 1, 3), (2, 3, 3, 1), (3, 3, 0, 2), (7, 3, 0, 3), (0, 0, 0, 0), (1, 0xffff_ffff, 2, 0)]
    {
        assert_eq!(new("inc", "u32", old, bound), up, "inc {old} {bound}");
        assert_eq!(new("dec", "u32", old, bound), down, "dec {old} {bound}");
    }
}

#[test]
fn compare_and_swap() {
    for ty in ["b16", "b32", "b64"] {
        assert_eq!(atomic("cas", ty, 5, &[5, 9]), (9, 5), "{ty}");
        assert_eq!(atomic("cas", ty, 6, &[5, 9]), (6, 6), "{ty}");
    }
    // A half has a neighbor, which stays as it is.
    let body = "mov.b16 %h2, 0xffff;\nmov.b16 %h3, 0x1234;\natom.global.cas.b16 %h4, [%out+2], %h2, %h3;\nst.global.b16 [%out+4], %h4;";
    let output = Kernel { body, output: 2, ..Kernel::default() }.threads(1, 1).run();
    assert_eq!(output, [0x1234_ffff, u32::MAX]);
}

#[test]
fn floating_point() {
    let single = |x: f32| u64::from(x.to_bits());
    assert_eq!(new("add", "f32", single(1.5), single(-4.0)), single(-2.5));
    assert_eq!(new("add", "f32", single(1.0), single(f32::EPSILON / 2.0)), single(1.0), "ties to even");
    assert_eq!(new("add", "f32", single(f32::INFINITY), single(f32::NEG_INFINITY)), 0x7fff_ffff, "the canonical NaN");
    assert_eq!(new("add", "f64", 1.5f64.to_bits(), 1e300f64.to_bits()), 1e300f64.to_bits());
    let pair = |a: f32, b: f32| u64::from(f16::from_f32(a).to_bits()) | u64::from(f16::from_f32(b).to_bits()) << 16;
    let brain = |a: f32, b: f32| u64::from(bf16::from_f32(a).to_bits()) | u64::from(bf16::from_f32(b).to_bits()) << 16;
    assert_eq!(new("add", "f16x2", pair(1.5, -2.0), pair(0.25, 65504.0)), pair(1.75, 65504.0));
    assert_eq!(new("add", "bf16x2", brain(1.5, -2.0), brain(0.25, 3.0)), brain(1.75, 1.0));
    assert_eq!(new("add", "f16", pair(1.5, 0.0), pair(6e-8, 0.0)), pair(1.5, 0.0));
    assert_eq!(new("add", "f16", 1, 1), 2, "subnormal halves are kept: .noftz");
    assert_eq!(new("add", "bf16", brain(2.0, 0.0), brain(-2.0, 0.0)), 0);
}

/// ISA, `atom`: `atom.add.f32` flushes subnormal inputs and results in global memory, and keeps them in shared memory.
#[test]
fn sums_of_subnormals_depend_on_the_space() {
    for (old, operand, flushed, kept) in
        [(1, 1, 0, 2), (0x8000_0001, 0, 0, 0x8000_0001), (0x0080_0001, 0x8080_0000, 0, 1)]
    {
        for (space, expected) in [("global", flushed), ("global ", flushed), ("shared", kept), ("shared ", kept)] {
            let found = atomic_in(space, "add", "f32", old, &[operand]).0;
            assert_eq!(found, expected, "{old:#x} + {operand:#x} in {space}");
        }
    }
}

/// ISA, `atom` with vectors: each element is changed by itself, in global memory.
#[test]
fn vectors() {
    let body = "mov.b32 %r2, 0f3F800000;\nmov.b32 %r3, 0f40000000;\n\
                atom.global.add.v2.f32 {%r4, %r5}, [%in], {%r2, %r3};\nst.global.v2.u32 [%out], {%r4, %r5};\n\
                red.global.add.v4.f32 [%in], {%r2, %r2, %r3, %r3};\nld.global.v4.u32 {%r4, %r5, %r6, %r7}, [%in];\n\
                st.global.v4.u32 [%out+16], {%r4, %r5, %r6, %r7};\nmov.b32 %r8, 0x3c004000;\n\
                st.global.v2.u32 [%in], {0, 0};\nred.global.add.noftz.v2.f16x2 [%in], {%r8, %r8};\n\
                ld.global.v2.u32 {%r4, %r5}, [%in];\nst.global.v2.u32 [%out+8], {%r4, %r5};\n\
                mov.b16 %h2, 0x3f80;\nred.global.max.noftz.v2.bf16 [%in], {%h2, %h2};\nld.global.u32 %r4, [%in];\n\
                st.global.u32 [%out+32], %r4;";
    let bits = |x: f32| x.to_bits();
    let input = [bits(1.0), bits(1.0), bits(1.0), bits(1.0)];
    let output = Kernel { body, input: &input, output: 9, ..Kernel::default() }.threads(1, 1).run();
    assert_eq!(output[..2], [bits(1.0); 2]);
    assert_eq!(output[2..4], [0x3c00_4000; 2]);
    assert_eq!(output[4..8], [3.0, 4.0, 3.0, 3.0].map(bits));
    assert_eq!(output[8], 0x3f80_4000);
}

/// ISA, `atom`: `.min` and `.max` of halves are those of `min` and `max`: a number wins over NaN, two NaN give the
/// canonical one, and −0 is less than +0; each element by itself, of a vector of halves or of pairs.
#[test]
fn extremes_of_vectors_of_halves() {
    for (ty, one, two, nan) in [("f16", 0x3c00_u32, 0x4000_u32, 0x7e01_u32), ("bf16", 0x3f80, 0x4000, 0x7fc1)] {
        let (minus, plus, canonical) = (0x8000, 0, 0x7fff);
        // Old value, operand, least, greatest.
        let cases = [
            [nan, one, one, one],
            [two, nan | 0x8000, two, two],
            [nan, nan, canonical, canonical],
            [plus, minus, minus, plus],
            [minus, plus, minus, plus],
            [one, two, one, two],
            [one | 0x8000, two | 0x8000, two | 0x8000, one | 0x8000],
            [minus, one | 0x8000, one | 0x8000, minus],
        ];
        let words = |column: usize| -> [u32; 4] {
            std::array::from_fn(|pair| cases[2 * pair][column] | cases[2 * pair + 1][column] << 16)
        };
        let (old, operands) = (words(0), words(1));
        for (operation, expected) in [("min", words(2)), ("max", words(3))] {
            let load = "ld.global.v4.u32 {%r4, %r5, %r6, %r7}, [%in+16];\n";
            let pairs = format!("{operation}.noftz.v4.{ty}x2");
            // Halves come out of the pairs, and go back.
            let split = "mov.b32 {%h0, %h1}, %r4;\nmov.b32 {%h2, %h3}, %r5;\nmov.b32 {%h4, %h5}, %r6;\n\
                         mov.b32 {%h6, %h7}, %r7;\n";
            let halves = format!("{operation}.noftz.v8.{ty}");
            let eight = "{%h0, %h1, %h2, %h3, %h4, %h5, %h6, %h7}";
            let join = "mov.b32 %r4, {%h0, %h1};\nmov.b32 %r5, {%h2, %h3};\nmov.b32 %r6, {%h4, %h5};\n\
                        mov.b32 %r7, {%h6, %h7};\n";
            let four = "{%r4, %r5, %r6, %r7}";
            let (store, end) = ("st.global.v4.u32 [%out], {%r4, %r5, %r6, %r7};\n", "st.global.v4.u32 [%out+16], ");
            let reload = "ld.global.v4.u32 {%r4, %r5, %r6, %r7}, [%in];\n";
            for body in [
                format!("{load}atom.global.{pairs} {four}, [%in], {four};\n{store}{reload}{end}{four};"),
                format!(
                    "{load}{split}atom.global.{halves} {eight}, [%in], {eight};\n{join}{store}{reload}{end}{four};"
                ),
            ] {
                let input = [old, operands].concat();
                let kernel = Kernel { body: &body, input: &input, output: 8, ..Kernel::default() };
                let output = kernel.threads(1, 1).run();
                assert_eq!(output, [old, expected].concat(), "{body}");
            }
            for body in [
                format!("{load}red.global.{pairs} [%in], {four};\n{reload}{store}"),
                format!("{load}{split}red.global.{halves} [%in], {eight};\n{reload}{store}"),
            ] {
                let input = [old, operands].concat();
                let kernel = Kernel { body: &body, input: &input, output: 4, ..Kernel::default() };
                assert_eq!(kernel.threads(1, 1).run(), expected, "{body}");
            }
        }
    }
}

#[test]
fn lanes_take_turns_at_one_address() {
    let body = "atom.global.add.u32 %r2, [%out+128], 1;\nst.global.u32 [%dst], %r2;";
    let mut output = Kernel { body, output: 33, ..Kernel::default() }.run();
    assert_eq!(output.pop(), Some(31));
    output.sort_unstable();
    assert_eq!(output[0..31], (0..31).collect::<Vec<u32>>()[..]);
    assert_eq!(output[31], u32::MAX);
}

/// 64 blocks of 96 threads on four threads of the host: every sum is exact, each old value is seen once.
#[test]
fn many_blocks_on_many_threads() {
    let body = ".shared .u32 s;\nsetp.eq.u32 %p0, %tid, 0;\n@%p0 st.shared.u32 [s], 0;\nbar.sync 0;\n\
                atom.global.add.u32 %r2, [%in], 1;\nmul.wide.u32 %l2, %r2, 4;\nadd.u64 %l2, %out, %l2;\n\
                st.global.u32 [%l2], %gid;\nred.global.add.u64 [%in+8], 3;\nred.global.max.s32 [%in+4], %gid;\n\
                atom.shared.add.u32 %r3, [s], 1;\nbar.sync 0;\nld.shared.u32 %r4, [s];\nred.global.xor.b32 [%in+16], %r4;\n\
                mov.b32 %r5, 0f3F800000;\nred.global.add.f32 [%in+20], %r5;\n\
                AGAIN:\nld.relaxed.gpu.global.u32 %r6, [%in+24];\nadd.u32 %r7, %r6, 2;\n\
                atom.global.cas.b32 %r8, [%in+24], %r6, %r7;\nsetp.ne.u32 %p1, %r8, %r6;\n@%p1 bra AGAIN;";
    const THREADS: u32 = 64 * 96;
    for options in [Options { workers: 4, ..Options::default() }, Options::checked(7)] {
        let bench = Bench::new(&options);
        let (input, output) = (bench.words(0, &[0; 8]), bench.words(0, &[u32::MAX; THREADS as usize]));
        let parameters = [input.to_le_bytes(), output.to_le_bytes()].concat();
        let shape = Shape { grid: [64, 1, 1], block: [96, 1, 1], ..Shape::default() };
        let text = Kernel { body, ..Kernel::default() }.text();
        assert_eq!(bench.launch(&text, &shape, &parameters), Ok(None));
        let counts = bench.read(input, 7);
        assert_eq!(counts, [THREADS, THREADS - 1, 3 * THREADS, 0, 0, (THREADS as f32).to_bits(), 2 * THREADS]);
        let mut seen = bench.read(output, THREADS as usize);
        seen.sort_unstable();
        assert_eq!(seen, (0..THREADS).collect::<Vec<_>>());
        assert!(bench.findings.take().is_empty());
    }
}

#[test]
fn modifiers_are_accepted() {
    for instruction in [
        "atom.relaxed.gpu.global.add.u32 %r2, [%out], 1;",
        "atom.acq_rel.sys.global.add.u32 %r2, [%out], 1;",
        "atom.acquire.cta.add.u32 %r2, [%out], 1;",
        "atom.release.cluster.global.add.u32 _, [%out], 1;",
        "red.relaxed.gpu.global.add.u32 [%out], 1;",
        "red.release.gpu.global.L2::cache_hint.add.u32 [%out], 1, %l2;",
    ] {
        let output = Kernel { body: instruction, output: 1, ..Kernel::default() }.threads(1, 1).run();
        assert_eq!(output, [0], "{instruction}");
    }
}

#[test]
fn what_the_isa_does_not_have_is_refused() {
    for (body, reason) in [
        ("atom.global.add.b32 %r2, [%in], 1;", "not defined"),
        ("atom.global.add.s16 %h2, [%in], 1;", "not defined"),
        ("atom.global.add.pred %p2, [%in], 1;", "not defined"),
        ("atom.global.inc.s32 %r2, [%in], 1;", "not defined"),
        ("atom.global.and.u32 %r2, [%in], 1;", "not defined"),
        ("atom.global.min.f32 %r2, [%in], %r3;", "not defined"),
        ("atom.global.exch.b128 %l2, [%in], %l3;", "128-bit"),
        ("atom.local.add.u32 %r2, [%in], 1;", "global or shared"),
        ("atom.shared.v2.f32.add {%r2, %r3}, [%in], {%r4, %r5};", "vectors"),
        ("atom.global.v2.u32.add {%r2, %r3}, [%in], {%r4, %r5};", "vectors"),
        (
            "atom.global.v8.f32.add {%r2, %r3, %r4, %r5, %r2, %r3, %r4, %r5}, [%in], {%r2, %r3, %r4, %r5, %r2, %r3, %r4, %r5};",
            "vectors",
        ),
        ("atom.global.cas.b32 %r2, [%in], 1;", "new value"),
        ("atom.global.add.u32 %h2, [%in], 1;", "U32"),
        ("atom.global.cas.b16 %r2, [%in], %h2, %h3;", "B16"),
        ("atom.global.add.u64 %r2, [%in], 1;", "U64"),
        ("atom.global.min.noftz.f16x2 %r2, [%in], %r3;", "vectors only"),
        ("atom.global.u32 %r2, [%in], 1;", "operation"),
        ("red.global.v2.min.f16 [%in], {%h2, %h3};", "needs .noftz"),
        ("atom.global.add.noftz.f32 %r2, [%in], %r3;", "does not take .noftz"),
    ] {
        let refused = refusal(body);
        assert!(refused.contains(reason), "{body}: {refused}");
    }
}

/// Every thread of two blocks adds 1 to a word in shared or global memory by a loop around a compare-and-swap, which
/// begins with a plain load.
fn loop_of_swaps(first: &str, extra: &str) -> Vec<Finding> {
    let body = format!(
        "{first}\n{extra}\nagain: mov.b32 %r4, %r5;\nadd.u32 %r6, %r4, 1;\natom.global.cas.b32 %r5, [%out], %r4, %r6;\n\
         setp.ne.u32 %p1, %r5, %r4;\n@%p1 bra again;"
    );
    let outcome = Kernel { body: &body, ..Kernel::default() }.threads(2, 64).outcome(&Options::checked(3));
    assert!(outcome.result.is_ok());
    outcome.findings
}

#[test]
fn the_plain_load_in_front_of_a_loop_of_compare_and_swaps_is_no_race() {
    assert_eq!(loop_of_swaps("ld.global.u32 %r5, [%out];", ""), []);
    assert_eq!(loop_of_swaps("ld.u32 %r7, [%out];\nmov.u32 %r8, %r7;", "mov.b32 %r5, %r8;"), [], "through copies");
    // A load that nothing verifies, one of another width, and a guess that a plain store meets.
    let races = |first: &str, extra: &str| {
        let found = loop_of_swaps(first, extra);
        assert!(!found.is_empty() && found.iter().all(|finding| finding.kind == Kind::Race), "{found:?}");
    };
    races("ld.global.u32 %r5, [%out];\nld.global.u32 %r9, [%out];", "");
    races("ld.global.u16 %r7, [%out];", "mov.b32 %r5, %r7;");
    races("ld.global.u32 %r5, [%out];", "setp.eq.u32 %p2, %gid, 70;\n@%p2 st.global.u32 [%out], 5;");
}
