//! Loads and stores (PTX ISA 9.7.9, `ld`, `ldu`, `st`): values by hand, and what is found where an address is bad.

use crate::machine::testing::{Bench, Kernel, Shape, fault, lanes, refusal, run};
use crate::memory::Touch;
use crate::options::Options;
use crate::program::{Addresses, LOCAL_WINDOW, PARAMETER_WINDOW, SHARED_WINDOW};
use crate::ptx::ast::Space;
use crate::report::{Findings, Kind};

/// What one thread leaves in four words, given four.
fn one(body: &str) -> Vec<u32> {
    let input = [0x8091_a2f3, 0x7766_5544, 0xffee_ddcc, 0x0102_0304];
    Kernel { body, input: &input, output: 8, ..Kernel::default() }.threads(1, 1).run()
}

/// ISA, `ld`: signed types are extended by their sign to the width of the register, all others by zeros.
#[test]
fn a_load_extends_to_its_register() {
    for (ty, narrow, wide) in [
        ("u8", 0xf3, 0xf3),
        ("b8", 0xf3, 0xf3),
        ("s8", 0xffff_fff3, 0xffff_ffff_ffff_fff3),
        ("u16", 0xa2f3, 0xa2f3),
        ("b16", 0xa2f3, 0xa2f3),
        ("s16", 0xffff_a2f3, 0xffff_ffff_ffff_a2f3),
        ("u32", 0x8091_a2f3, 0x8091_a2f3),
        ("b32", 0x8091_a2f3, 0x8091_a2f3),
        ("s32", 0x8091_a2f3, 0xffff_ffff_8091_a2f3_u64),
    ] {
        let output = one(&format!(
            "ld.global.{ty} %r2, [%in];\nst.global.u32 [%out], %r2;\nld.global.{ty} %l2, [%in];\n\
             st.global.u64 [%out+8], %l2;"
        ));
        assert_eq!(output[0], narrow, "{ty}");
        assert_eq!(u64::from(output[3]) << 32 | u64::from(output[2]), wide, "{ty}");
    }
    for (ty, value) in [("u8", 0xf3), ("s8", 0xfff3), ("b8", 0xf3), ("s16", 0xa2f3)] {
        // What lies above a half stays zero.
        let output = one(&format!("ld.global.{ty} %h2, [%in];\ncvt.u32.u16 %r2, %h2;\nst.global.u32 [%out], %r2;"));
        assert_eq!(output[0], value, "{ty}");
    }
    for ty in ["u64", "s64", "b64", "f64"] {
        let output = one(&format!("ld.global.{ty} %l2, [%in+8];\nst.global.{ty} [%out], %l2;"));
        assert_eq!(output[..2], [0xffee_ddcc, 0x0102_0304], "{ty}");
    }
    assert_eq!(one("ld.global.f32 %r2, [%in+4];\nst.global.f32 [%out], %r2;")[0], 0x7766_5544);
}

/// The registers of a vector may differ in width, and some may be left out.
#[test]
fn every_element_of_a_vector_extends_to_its_own_register() {
    assert_eq!(one("ld.global.v2.s8 {%r2, _}, [%in];\nst.global.u32 [%out], %r2;")[0], 0xffff_fff3);
    assert_eq!(one("ld.global.v2.s8 {%r2, %h2}, [%in];\nst.global.u32 [%out], %r2;")[0], 0xffff_fff3);
    let output = one("ld.global.v4.s8 {%h2, %l2, _, %r2}, [%in];\nst.global.u16 [%out], %h2;\n\
                      st.global.u64 [%out+8], %l2;\nst.global.u32 [%out+16], %r2;");
    assert_eq!(output[..5], [0xffff_fff3, u32::MAX, 0xffff_ffa2, u32::MAX, 0xffff_ff80]);
}

#[test]
fn vectors_lie_one_after_another() {
    for (ty, register) in [("u8", "r"), ("s16", "r"), ("b32", "r"), ("u32", "l"), ("f32", "r")] {
        for count in [2, 4] {
            let names: Vec<_> = (2..2 + count).map(|index| format!("%{register}{index}")).collect();
            let names = names.join(", ");
            let output = one(&format!(
                "ld.global.v{count}.{ty} {{{names}}}, [%in];\nst.global.v{count}.{ty} [%out], {{{names}}};"
            ));
            let size = count
                * match ty {
                    "u8" => 1,
                    "s16" => 2,
                    _ => 4,
                };
            let input = [0x8091_a2f3u32, 0x7766_5544, 0xffee_ddcc, 0x0102_0304].map(u32::to_le_bytes).concat();
            let output = output.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
            assert_eq!(output[..size], input[..size], "v{count}.{ty}");
            assert!(output[size..].iter().all(|&byte| byte == 0xff), "v{count}.{ty}");
        }
    }
    let eight = one("ld.global.v2.u64 {%l2, %l3}, [%in];\nst.global.v4.b64 [%out], {%l3, %l2, %l3, 5};");
    assert_eq!(eight, [0xffee_ddcc, 0x0102_0304, 0x8091_a2f3, 0x7766_5544, 0xffee_ddcc, 0x0102_0304, 5, 0]);
    let eight =
        one("st.global.v8.b32 [%out], {1, 2, 3, 4, 5, 6, 7, 8};\nld.global.v8.b32 {%r2, %r3, %r4, %r5, %r6, %r7, \
                     %r8, %r9}, [%out];\nadd.u32 %r2, %r2, %r9;\nst.global.u32 [%out], %r2;");
    assert_eq!(eight, [9, 2, 3, 4, 5, 6, 7, 8]);
}

/// ISA, `st`: of a wider register the lower bits are stored; nothing beside them changes.
#[test]
fn a_store_cuts_its_register() {
    assert_eq!(one("st.global.u8 [%out+1], 0x1234;")[0], 0xffff_34ff);
    assert_eq!(one("mov.u32 %r2, 0x12345678;\nst.global.u8 [%out+3], %r2;")[0], 0x78ff_ffff);
    assert_eq!(one("mov.u32 %r2, 0x12345678;\nst.global.b16 [%out+2], %r2;")[0], 0x5678_ffff);
    assert_eq!(one("mov.u64 %l2, 0x1122334455667788;\nst.global.u32 [%out], %l2;")[..2], [0x5566_7788, u32::MAX]);
    assert_eq!(one("st.global.s32 [%out], -2;\nst.global.f32 [%out+4], 0f3F800000;")[..2], [0xffff_fffe, 0x3f80_0000]);
    assert_eq!(one("st.global.u64 [%out], -2;")[..3], [0xffff_fffe, u32::MAX, u32::MAX]);
    assert_eq!(one("st.global.f64 [%out], 0d3FF0000000000000;")[..2], [0, 0x3ff0_0000]);
    assert_eq!(one("mov.u32 %r2, %ntid.x;\nst.global.u32 [%out], %r2;")[0], 1);
}

#[test]
fn an_address_is_a_register_a_name_or_both() {
    let body = ".shared .align 8 .b32 s[4];\n.local .align 8 .b32 t[4];\n\
                st.shared.u32 [s], 1;\nst.shared.u32 [s+4], 2;\nmov.u32 %r2, s;\nld.shared.u32 %r3, [%r2+4];\n\
                mov.u64 %l2, s;\nld.shared.u32 %r4, [%l2];\nst.local.u32 [t+8], 3;\nmov.u32 %r2, t;\n\
                ld.local.u32 %r5, [%r2+8];\nmov.u64 %l2, t+16;\nld.local.u32 %r6, [%l2+-8];\nld.u32 %r7, [s+4];\n\
                st.global.v4.u32 [%out], {%r3, %r4, %r5, %r6};\nst.global.u32 [%out+16], %r7;\nst.shared.u32 [8], 9;\n\
                ld.shared.u32 %r3, [s+8];\nst.global.u32 [%out+20], %r3;";
    assert_eq!(one(body)[..6], [2, 1, 3, 3, 2, 9]);
}

/// ISA, generic addressing: shared, local and parameter memory are windows, and lanes may differ in where they go.
#[test]
fn lanes_go_to_different_spaces_at_one_instruction() {
    let body = ".shared .b32 s[32];\n.local .b32 t[2];\nmul.wide.u32 %l2, %tid, 4;\nmov.u64 %l3, s;\n\
                cvta.shared.u64 %l3, %l3;\nadd.u64 %l3, %l3, %l2;\nmov.u64 %l4, t;\ncvta.local.u64 %l4, %l4;\n\
                rem.u32 %r2, %tid, 3;\nsetp.eq.u32 %p1, %r2, 0;\nsetp.eq.u32 %p2, %r2, 1;\n\
                selp.b64 %l5, %l3, %dst, %p1;\nselp.b64 %l5, %l4, %l5, %p2;\nadd.u32 %r3, %tid, 50;\n\
                st.u32 [%l5], %r3;\nld.u32 %r4, [%l5];\n\
                @%p1 add.u32 %r4, %r4, 100;\n@%p2 add.u32 %r4, %r4, 200;\nst.global.u32 [%dst], %r4;";
    assert_eq!(run(body), lanes(|lane| lane + 50 + [100, 200, 0][lane as usize % 3]));
    let body = "mov.u64 %l2, b;\nld.param.u64 %l3, [%l2];\ncvta.param.u64 %l2, %l2;\nld.u64 %l4, [%l2];\n\
                ld.param.u32 %r2, [b+4];\nsub.u64 %l3, %l3, %out;\nsub.u64 %l4, %l4, %out;\nor.b64 %l3, %l3, %l4;\n\
                st.global.u64 [%out], %l3;\nshr.u64 %l5, %out, 32;\ncvt.u32.u64 %r3, %l5;\nsub.u32 %r3, %r3, %r2;\n\
                st.global.u32 [%out+8], %r3;";
    assert_eq!(one(body)[..3], [0; 3]);
}

/// Modifiers of caches, of order and of scope change no value (ISA, cache operators; memory consistency model).
#[test]
fn hints_and_orders_are_accepted() {
    for load in [
        "ld.global.nc",
        "ld.global.ca",
        "ld.global.cg",
        "ld.global.cs",
        "ld.global.lu",
        "ld.global.cv",
        "ld.weak.global",
        "ld.volatile.global",
        "ld.volatile",
        "ld.relaxed.cta.global",
        "ld.relaxed.gpu.global",
        "ld.acquire.gpu.global",
        "ld.acquire.sys",
        "ld.acquire.cluster.global",
        "ld.mmio.relaxed.sys.global",
        "ld.global.nc.L1::no_allocate",
        "ld.global.nc.L1::evict_last.L2::128B",
        "ld.global.L1::evict_first.L2::64B",
        "ldu.global",
    ] {
        assert_eq!(one(&format!("{load}.u32 %r2, [%in];\nst.global.u32 [%out], %r2;"))[0], 0x8091_a2f3, "{load}");
    }
    for store in [
        "st.global.wb",
        "st.global.cg",
        "st.global.cs",
        "st.global.wt",
        "st.weak.global",
        "st.volatile.global",
        "st.relaxed.sys.global",
        "st.release.gpu",
        "st.release.cta.global",
        "st.global.L1::no_allocate",
    ] {
        assert_eq!(one(&format!("{store}.u32 [%out], 7;"))[0], 7, "{store}");
    }
    let policy = "createpolicy.fractional.L2::evict_last.b64 %l9, 1.0;\n";
    let body = "ld.global.nc.L2::cache_hint.v2.u32 {%r2, %r3}, [%in], %l9;\n\
                st.global.L2::cache_hint.v2.u32 [%out], {%r3, %r2}, %l9;";
    assert_eq!(one(&format!("{policy}{body}"))[..2], [0x7766_5544, 0x8091_a2f3]);
    let shared = ".shared .u32 s;\nst.volatile.shared.u32 [s], 3;\nld.volatile.shared::cta.u32 %r2, [s];\n\
                  ld.acquire.cta.shared.u32 %r3, [s];\nst.global.v2.u32 [%out], {%r2, %r3};";
    assert_eq!(one(shared)[..2], [3, 3]);
}

#[test]
fn what_the_isa_does_not_have_is_refused() {
    for (body, reason) in [
        ("st.const.u32 [%in], 1;", "cannot be written"),
        ("st.param.u32 [a], 1;", "cannot be written"),
        ("ld.global.v3.u32 {%r2, %r3, %r4}, [%in];", ".v3"),
        ("ld.global.v2.u32 %r2, [%in];", "2 registers"),
        ("ld.global.u32 {%r2, %r3}, [%in];", "1 registers"),
        ("ld.global.b128 %l2, [%in];", "128-bit"),
        ("ld.global.pred %p1, [%in];", "type"),
        ("ld.global.u32 %h2, [%in];", "too narrow"),
        ("ld.global.u64 %r2, [%in];", "too narrow"),
        ("st.global.u64 [%out], %r2;", "too narrow"),
        ("ld.global.v8.b64 {%l2, %l3, %l4, %l5, %l6, %l7, %l8, %l9}, [%in];", "no vectors"),
        ("ld.global.u32 %r2, [%in], %l2;", "cache_hint"),
        ("ld.global.u32.fast %r2, [%in];", ".fast"),
        ("ld.global.u32 %r2, %in;", "brackets"),
        ("ld.global.u32 %r2, [nothing];", "nothing"),
        ("ld.global.u32 %r2, [%p1];", "%p1"),
    ] {
        let refused = refusal(body);
        assert!(refused.contains(reason) && refused.contains("line 4"), "{body}: {refused}");
    }
    let wide = Kernel { target: "sm_90", body: "ld.global.v4.b64 {%l2, %l3, %l4, %l5}, [%in];", ..Kernel::default() };
    assert!(wide.refusal().contains("sm_100 or later"), "{}", wide.refusal());
}

/// ISA 6.4.1: an address must be a multiple of the size of the access, of a whole vector too.
#[test]
fn misaligned_accesses_are_faults() {
    for body in [
        "ld.global.u16 %r2, [%in+1];",
        "ld.global.u32 %r2, [%in+2];",
        "ld.global.u64 %l2, [%in+4];",
        "ld.global.v2.u32 {%r2, %r3}, [%in+4];",
        "ld.global.v4.u32 {%r2, %r3, %r4, %r5}, [%in+8];",
        "ld.global.v4.u8 {%r2, %r3, %r4, %r5}, [%in+2];",
        "st.global.v8.b32 [%out+16], {1, 2, 3, 4, 5, 6, 7, 8};",
        ".shared .align 16 .b8 s[64];\nst.shared.u32 [s+2], 1;",
        ".shared .align 16 .b8 s[64];\nst.shared.v4.u32 [s+8], {1, 1, 1, 1};",
        ".local .align 16 .b8 t[64];\nst.local.u64 [t+4], 1;",
        "ld.param.u32 %r2, [a+2];",
        "mov.u64 %l2, 16777218;\nst.u32 [%l2], 1;",
        "atom.global.add.u64 %l2, [%in+4], 1;",
    ] {
        let found = fault(body);
        assert_eq!(found.kind, Kind::Misaligned, "{body}: {found}");
    }
    let found = fault(
        "and.b32 %r2, %tid, 8;\nshr.u32 %r2, %r2, 3;\ncvt.u64.u32 %l2, %r2;\nadd.u64 %l2, %src, %l2;\n\
                       ld.global.u32 %r3, [%l2];",
    );
    assert_eq!((found.thread.unwrap().thread, found.place.unwrap().ptx_line), ([8, 0, 0], 8));
}

/// The first byte past the end of each space, and one byte of an access past it.
#[test]
fn accesses_end_where_their_space_ends() {
    let shared = ".shared .align 8 .b8 s[24];\n";
    let local = ".local .align 16 .b8 t[32];\n";
    for (head, last, past) in [
        ("", "ld.global.u8 %r2, [%in+127];", "ld.global.u8 %r2, [%in+128];"),
        ("", "st.global.u32 [%out+124], 0;", "st.global.u32 [%out+128], 0;"),
        ("", "ld.global.u32 %r2, [%in];", "ld.global.u32 %r2, [%in+-4];"),
        (shared, "st.shared.u8 [s+23], 1;", "st.shared.u8 [s+24], 1;"),
        (shared, "st.shared.v2.u32 [s+16], {1, 1};", "st.shared.v4.u32 [s+16], {1, 1, 1, 1};"),
        (shared, "st.shared.u32 [s], 1;", "st.shared.u32 [s+-4], 1;"),
        (local, "st.local.u64 [t+24], 1;", "st.local.u64 [t+32], 1;"),
        (local, "st.local.u8 [t+31], 1;", "st.local.u8 [t+32], 1;"),
        ("", "ld.param.u64 %l2, [b];", "ld.param.u64 %l2, [b+8];"),
        ("", "ld.param.u8 %r2, [b+7];", "ld.param.u8 %r2, [b+8];"),
    ] {
        let with = |access: &str| format!("{head}{access}");
        let outcome = Kernel { body: &with(last), ..Kernel::default() }.outcome(&Options::default());
        assert_eq!(outcome.result, Ok(None), "{last}");
        let found = fault(&with(past));
        assert_eq!(found.kind, Kind::OutOfBounds, "{past}: {found}");
    }
    // A buffer of 126 bytes: the last word has two bytes inside of it.
    let bench = Bench::new(&Options::default());
    let (input, output) = (bench.blank(0, 126), bench.blank(0, 126));
    let parameters = [input.to_le_bytes(), output.to_le_bytes()].concat();
    let kernel = Kernel { body: "ld.global.u32 %r2, [%src];", ..Kernel::default() };
    assert_eq!(bench.launch(&kernel.text(), &kernel.shape, &parameters), Err(Kind::OutOfBounds));
    let found = bench.findings.take().pop().unwrap();
    assert!(found.message.contains("of which 2 lie past the end of the 126 bytes"), "{found}");
    assert_eq!(found.thread.unwrap().thread, [31, 0, 0]);
}

#[test]
fn windows_of_generic_addresses_end_too() {
    let declared =
        ".shared .align 8 .b8 s[24];\n.local .align 16 .b8 t[32];\nst.shared.u8 [s], 1;\nst.local.u8 [t], 1;\n";
    for (window, size) in [(SHARED_WINDOW, 24), (LOCAL_WINDOW, 32), (PARAMETER_WINDOW, 16)] {
        let read = |offset: i64| format!("{declared}mov.u64 %l2, {window};\nld.u8 %r2, [%l2+{offset}];");
        let outcome = Kernel { body: &read(size - 1), ..Kernel::default() }.outcome(&Options::default());
        assert_eq!(outcome.result, Ok(None), "{window:#x}");
        assert_eq!(fault(&read(size)).kind, Kind::OutOfBounds, "{window:#x}");
        assert_eq!(fault(&read(-1)).kind, Kind::OutOfBounds, "{window:#x}");
    }
}

#[test]
fn null_and_wild_pointers_find_nothing() {
    for body in
        ["ld.global.u32 %r2, [0];", "mov.u64 %l2, 0;\nst.u32 [%l2], 1;", "mov.u64 %l2, -4;\nld.global.u32 %r2, [%l2];"]
    {
        let found = fault(body);
        assert_eq!(found.kind, Kind::OutOfBounds, "{found}");
        assert!(found.message.contains("no memory is allocated"), "{found}");
    }
    // A predicate keeps lanes away from it.
    assert_eq!(
        run("setp.eq.u32 %p1, %tid, 99;\nmov.u64 %l2, 0;\n@%p1 ld.global.u32 %r2, [%l2];\nst.global.u32 [%dst], 1;"),
        [1; 32]
    );
}

#[test]
fn freed_memory_and_that_of_others_is_named() {
    let body = "ld.global.u32 %r2, [%src];\nst.global.u32 [%dst], %r2;";
    let kernel = Kernel { body, ..Kernel::default() };
    let bench = Bench::new(&Options::default());
    let (mine, theirs) = (bench.words(0, &[1; 32]), bench.words(1, &[2; 32]));
    let launch = |input: u64, output: u64, peers: &'static [bool]| {
        let parameters = [input.to_le_bytes(), output.to_le_bytes()].concat();
        let result = bench.launch(&kernel.text(), &Shape { peers, ..Shape::default() }, &parameters);
        (result, bench.findings.take().pop().map(|finding| finding.message))
    };
    let (result, message) = launch(theirs, mine, &[]);
    assert_eq!(result, Err(Kind::PeerAccess));
    assert!(message.unwrap().contains("memory of device 1 that device 0 has no access to"));
    assert_eq!(launch(mine, theirs, &[true, false]).0, Err(Kind::PeerAccess));
    assert_eq!(launch(theirs, mine, &[true, true]).0, Ok(None));
    assert_eq!(bench.read(mine, 32), [2; 32]);
    bench.memory.free(theirs).unwrap();
    let (result, message) = launch(theirs, mine, &[true, true]);
    assert_eq!(result, Err(Kind::UseAfterFree));
    assert!(message.unwrap().contains("that were freed"));
    let pinned = bench.memory.allocate(crate::memory::Owner::Host, 128).unwrap();
    assert_eq!(launch(mine, pinned, &[]).0, Ok(None));
    assert_eq!(bench.read(pinned, 32), [2; 32]);
}

/// A byte that nobody wrote is found where it is read, once for an instruction, with the first thread that does so.
#[test]
fn reads_of_what_nobody_wrote_are_found() {
    for (space, body) in [
        (
            "shared",
            ".shared .b32 s[32];\nmad.lo.u32 %r2, %tid, 4, 0;\nsetp.ne.u32 %p1, %tid, 9;\n@%p1 st.shared.u32 [%r2], 1;\nld.shared.u32 %r3, [%r2];",
        ),
        (
            "local",
            ".local .b32 t[2];\nmov.u32 %r2, t;\nsetp.ne.u32 %p1, %tid, 9;\n@%p1 st.local.u32 [%r2], 1;\nld.local.u32 %r3, [%r2];",
        ),
    ] {
        let found = Kernel { body, ..Kernel::default() }.found();
        let [finding] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((finding.kind, finding.thread.unwrap().thread), (Kind::Uninitialized, [9, 0, 0]), "{finding}");
        assert!(finding.message.contains(space), "{finding}");
        assert_eq!(finding.place.as_ref().unwrap().ptx_line, 8);
    }
    // Half of a word is not enough for the word, but for the half.
    let half = ".shared .b32 s;\nst.shared.u16 [s], 1;\nld.shared.u16 %r2, [s];";
    assert!(Kernel { body: half, ..Kernel::default() }.threads(1, 1).found().is_empty());
    let whole = half.replace("ld.shared.u16", "ld.shared.u32");
    assert_eq!(Kernel { body: &whole, ..Kernel::default() }.threads(1, 1).found().len(), 1);
    // Every block begins anew, and every thread's local memory is its own.
    let blocks = ".shared .b32 s;\nmov.u32 %r3, %ctaid.x;\nsetp.eq.u32 %p1, %r3, 0;\n@%p1 st.shared.u32 [s], 1;\nld.shared.u32 %r2, [s];";
    let found = Kernel { body: blocks, ..Kernel::default() }.threads(2, 1).found();
    assert_eq!(found.iter().map(|finding| finding.thread.unwrap().block).collect::<Vec<_>>(), [[1, 0, 0]]);
}

#[test]
fn global_memory_is_written_by_kernels_copies_and_memsets() {
    let kernel = Kernel { body: "ld.global.u32 %r2, [%src];\nst.global.u32 [%dst], %r2;", ..Kernel::default() };
    let mut bench = Bench::new(&Options::checked(1));
    let (blank, middle, last) = (bench.blank(0, 128), bench.blank(0, 128), bench.blank(0, 128));
    let launch = |bench: &mut Bench, input: u64, output: u64| {
        let parameters = [input.to_le_bytes(), output.to_le_bytes()].concat();
        // The like of a finding is not kept twice.
        bench.findings = Findings::default();
        bench.launch(&kernel.text(), &kernel.shape, &parameters).unwrap();
        bench.findings.take().iter().map(|finding| finding.kind).collect::<Vec<_>>()
    };
    assert_eq!(launch(&mut bench, blank, middle), [Kind::Uninitialized]);
    assert_eq!(launch(&mut bench, middle, last), [], "the kernel wrote it");
    let again = bench.blank(0, 128);
    let stamp = crate::check::order::Stamp { stream: 0, sequence: 1, known: [].into(), label: "memset".into() };
    bench.memory.touch(again..again + 64, Touch::Write, &stamp, &bench.findings);
    assert_eq!(launch(&mut bench, again, last), [Kind::Uninitialized], "only half of it was set");
    bench.memory.touch(again + 64..again + 128, Touch::Write, &stamp, &bench.findings);
    assert_eq!(launch(&mut bench, again, last), []);
    // A copy carries along what was written.
    let copy = bench.blank(0, 128);
    bench.memory.copy_state(blank, copy, 128);
    assert_eq!(launch(&mut bench, copy, last), [Kind::Uninitialized]);
    bench.memory.copy_state(again, copy, 128);
    assert_eq!(launch(&mut bench, copy, last), []);
}

#[test]
fn variables_of_the_module_are_reached_by_name_and_by_address() {
    let head = ".global .align 4 .u32 g[2];\n.const .align 4 .u32 c[2];";
    let body = "ld.global.u32 %r2, [g+4];\nld.const.u32 %r3, [c];\nmov.u64 %l2, g;\nld.global.u32 %r4, [%l2];\n\
                mov.u64 %l3, c+4;\ncvta.const.u64 %l3, %l3;\nld.u32 %r5, [%l3];\nst.global.v4.u32 [%out], {%r2, %r3, %r4, %r5};\n\
                ld.u32 %r6, [g];\nst.global.u32 [%out+16], %r6;\nst.global.u32 [g], 9;";
    let bench = Bench::new(&Options::checked(1));
    let (global, constant) = (bench.words(0, &[1, 2]), bench.words(0, &[3, 4]));
    let addresses =
        Addresses::from([("g".to_owned(), (Space::Global, global)), ("c".to_owned(), (Space::Constant, constant))]);
    let output = bench.words(0, &[0; 8]);
    let kernel = Kernel { head, body, ..Kernel::default() };
    let parameters = [output.to_le_bytes(), output.to_le_bytes()].concat();
    let shape = Shape { block: [1; 3], addresses, ..Shape::default() };
    assert_eq!(bench.launch(&kernel.text(), &shape, &parameters), Ok(None));
    assert_eq!(bench.read(output, 5), [2, 3, 1, 4, 1]);
    assert_eq!(bench.read(global, 1), [9]);
    assert!(bench.findings.take().is_empty());
}
