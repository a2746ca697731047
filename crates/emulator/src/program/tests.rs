//! What the decoder makes of declarations, scopes and calls (PTX ISA 5 and 7), seen in what kernels then do.

use crate::machine::testing::{Bench, Kernel, Shape, lanes, program, refusal};
use crate::options::Options;
use crate::program::Addresses;

fn with(head: &str, body: &str) -> Vec<u32> {
    Kernel { head, body: &format!("{body}\nst.global.u32 [%dst], %r9;"), ..Kernel::default() }.run()
}

/// ISA 5.4: every parameter lies at a multiple of its alignment; arrays and structs keep theirs.
#[test]
fn parameters_lie_at_their_alignment() {
    let text = ".version 9.0 .target sm_80 .address_size 64 .visible .entry k(.param .u8 a, .param .u16 b, .param .u8 c, \
                .param .u64 d, .param .align 4 .b8 e[6], .param .align 16 .b8 f[20], .param .f32 g, .param .u64 out) {\n\
                .reg .b32 %r<20>; .reg .b64 %l<20>; ld.param.u64 %l0, [out]; ld.param.u8 %r0, [a]; ld.param.s16 %r1, [b];\n\
                ld.param.u8 %r2, [c]; ld.param.u64 %l1, [d]; ld.param.u8 %r3, [e+5]; ld.param.v4.u32 {%r4, %r5, %r6, %r7}, [f];\n\
                ld.param.u32 %r8, [f+16]; ld.param.f32 %r9, [g]; mov.u64 %l2, f; ld.param.u32 %r10, [%l2+4];\n\
                st.global.v4.u32 [%l0], {%r0, %r1, %r2, %r3}; st.global.u64 [%l0+16], %l1;\n\
                st.global.v2.u32 [%l0+24], {%r4, %r7}; st.global.v4.u32 [%l0+32], {%r8, %r9, %r10, 0}; ret; }";
    let decoded = program(text, &Addresses::new()).unwrap();
    let expected = [(0, 1), (2, 2), (4, 1), (8, 8), (16, 6), (32, 20), (52, 4), (56, 8)];
    assert_eq!(decoded.parameters, expected);
    assert_eq!(decoded.parameter_bytes(), 64);
    let bench = Bench::new(&Options::default());
    let output = bench.words(0, &[0; 12]);
    let mut parameters: Vec<u8> = (0..64).collect();
    parameters[3] = 0x80;
    parameters[56..].copy_from_slice(&output.to_le_bytes());
    let shape = Shape { block: [1; 3], ..Shape::default() };
    assert_eq!(bench.launch(text, &shape, &parameters), Ok(None));
    let at = |offset: usize| u32::from_le_bytes(std::array::from_fn(|i| (offset + i) as u8));
    let read = bench.read(output, 11);
    assert_eq!(read, [0, 0xffff_8002, 4, 21, at(8), at(12), at(32), at(44), at(48), at(52), at(36)]);
}

/// Shared variables with a size come first, what the launch gives after them; all arrays without one begin there.
#[test]
fn shared_memory_is_laid_out() {
    let head = ".extern .shared .align 16 .b8 d1[];\n.extern .shared .align 32 .u32 d2[];\n.shared .align 2 .b8 m[3];\n\
                .shared .u32 unused[100];";
    let body = ".shared .align 8 .b8 s[9];\n.shared .u16 t;\nmov.u32 %r2, s;\nmov.u32 %r3, t;\nmov.u32 %r4, m;\n\
                mov.u32 %r5, d1;\nmov.u32 %r6, d2;\nmov.u32 %r7, %dynamic_smem_size;\nmov.u32 %r8, %total_smem_size;\n\
                st.shared.u8 [d2+99], 1;\n\
                st.global.v4.u32 [%out], {%r2, %r3, %r4, %r5};\nst.global.v4.u32 [%out+16], {%r6, %r7, %r8, 0};";
    let kernel = Kernel { head, body, ..Kernel::default() }.threads(1, 1);
    let program = program(&kernel.text(), &Addresses::new()).unwrap();
    assert_eq!((program.static_shared, program.dynamic_offset), (15, 32));
    let shape = Shape { dynamic_shared: 100, ..kernel.shape.clone() };
    let kernel = Kernel { shape, ..kernel };
    assert_eq!(kernel.run()[..7], [0, 10, 12, 32, 32, 100, 132]);
    let short = Kernel { shape: Shape { dynamic_shared: 99, ..kernel.shape.clone() }, ..kernel };
    assert_eq!(short.fault().kind, crate::report::Kind::OutOfBounds);
}

/// ISA 5.1.5: local memory is each thread's own; its generic address goes through a window (`%SPL` and `%SP` of nvcc).
#[test]
fn local_memory_is_of_a_thread() {
    let body = ".local .align 8 .b8 __local_depot0[16];\n.reg .b64 %SP, %SPL;\nmov.u64 %SPL, __local_depot0;\n\
                cvta.local.u64 %SP, %SPL;\nadd.u64 %l2, %SP, 8;\nst.u32 [%l2], %tid;\nadd.u64 %l3, %SPL, 8;\nbar.warp.sync -1;\n\
                ld.local.u32 %r9, [%l3];";
    assert_eq!(with("", body), lanes(|lane| lane));
}

/// ISA 4.4 and 5: names of an inner scope hide those outside; labels are of their scope.
#[test]
fn scopes_hide_names() {
    let body = "mov.u32 %r9, 1;\n{ .reg .b32 %r9; .reg .b32 %x; mov.u32 %r9, 50; mov.u32 %x, 60;\nL: { .reg .b32 %x; \
                mov.u32 %x, 70; bra L2;\nL2: }\nadd.u32 %r8, %x, %r9; }\n{ bra L;\nmov.u32 %r8, 0;\nL: add.u32 %r9, %r9, %r8; }";
    assert_eq!(with("", body), [111; 32]);
    assert!(refusal("{ .reg .b32 %x; }\nmov.u32 %x, 1;").contains("%x"));
}

const SQUARE: &str = ".func (.reg .b32 y) square(.reg .b32 x) { .reg .pred %p; setp.gt.u32 %p, x, 10; @%p bra BIG; \
                      mul.lo.u32 x, x, x; mov.u32 y, x; ret;\nBIG: mov.u32 y, 1000; ret; }";

/// ISA 7.1: parameters are given by value; labels and registers of each call are its own.
#[test]
fn functions_with_register_parameters() {
    let body = "mov.u32 %r3, %tid;\ncall (%r4), square, (%r3);\nadd.u32 %r5, %r3, 1;\ncall (%r6), square, (%r5);\n\
                call (%r5), square, (%r5);\ncall (%r7), square, (3);\ncall (_), square, (%r7);\nsub.u32 %r5, %r5, %r6;\n\
                mad.lo.u32 %r9, %r3, 1000000, %r4;\nadd.u32 %r9, %r9, %r7;\nadd.u32 %r9, %r9, %r5;";
    let square = |x: u32| if x > 10 { 1000 } else { x * x };
    assert_eq!(with(SQUARE, body), lanes(|lane| 1_000_000 * lane + square(lane) + 9));
    // A result that is an argument too, and lanes outside of a guard.
    let guarded = "mov.u32 %r9, %tid;\nsetp.lt.u32 %p1, %tid, 5;\n@%p1 call (%r9), square, (%r9);\n@!%p1 call (%r9), square, (2);";
    assert_eq!(with(SQUARE, guarded), lanes(|lane| if lane < 5 { lane * lane } else { 4 }));
}

const NESTED: &str = ".func (.param .b32 r) inner(.param .b32 p) { .reg .b32 %a; ld.param.u32 %a, [p]; add.u32 %a, %a, 1; \
                      st.param.b32 [r], %a; ret; }\n.func (.param .align 8 .b8 r[16]) outer(.param .b64 p, .param .align 4 .b8 \
                      q[8]) { .reg .b32 %a, %b; .reg .b64 %l; .reg .pred %p; ld.param.u64 %l, [p]; cvt.u32.u64 %a, %l; \
                      ld.param.u32 %b, [q+4]; { .param .b32 x; .param .b32 y; st.param.b32 [x], %a; call.uni (y), inner, (x); \
                      ld.param.b32 %a, [y]; } st.param.v2.b32 [r], {%a, %b}; setp.gt.u32 %p, %a, 9; @%p ret; \
                      st.param.b32 [r+8], 7; ret; }";

#[test]
fn functions_with_parameters_in_memory() {
    let call = "{ .param .b64 a0; .param .align 4 .b8 a1[8]; .param .align 8 .b8 r0[16]; cvt.u64.u32 %l2, %tid; \
                st.param.b64 [a0], %l2; st.param.b32 [a1+4], 40; st.param.b32 [r0+8], 5;\n\
                call.uni (r0), outer, (a0, a1);\nld.param.v2.b32 {%r2, %r3}, [r0]; ld.param.b32 %r4, [r0+8]; }\n\
                mad.lo.u32 %r9, %r4, 1000, %r3;\nadd.u32 %r9, %r9, %r2;";
    assert_eq!(with(NESTED, call), lanes(|lane| lane + 1 + 40 + if lane + 1 > 9 { 5000 } else { 7000 }));
    // ISA 7.1, `call`: registers and constants may be given for parameters in memory.
    let direct = "call (%r2), inner, (%tid);\ncall (%r3), inner, (41);\nmad.lo.u32 %r9, %r2, 100, %r3;";
    assert_eq!(with(NESTED, direct), lanes(|lane| 100 * (lane + 1) + 42));
}

/// A shared variable of a function is one of the thread block, however often the function is called.
#[test]
fn shared_variables_of_functions_are_not_doubled() {
    let head = ".func count() { .shared .b32 s; .reg .b32 %a; atom.shared.add.u32 %a, [s], 1; ret; }\n\
                .func (.reg .b32 y) get(.reg .b32 x) { .shared .b32 s; ld.shared.u32 y, [s]; ret; }";
    let body = "call count;\ncall count, ();\nmov.u32 %r9, 0;";
    let kernel = Kernel { head, body, ..Kernel::default() };
    let decoded = program(&kernel.text(), &Addresses::new()).unwrap();
    assert_eq!(decoded.static_shared, 4);
}

#[test]
fn what_cannot_be_called_is_refused() {
    let head = ".func twice(.reg .b32 x) { call thrice, (x); ret; }\n.func thrice(.reg .b32 x) { call twice, (x); ret; }\n\
                .extern .func far(.reg .b32 x);";
    for (body, reason) in [
        ("call twice, (%r2);", "calls itself"),
        ("call twice;", "takes 1 arguments"),
        ("call twice, (%r2, %r3);", "takes 1 arguments"),
        ("call (%r2), twice, (%r3);", "returns 0"),
        ("call far, (%r2);", "no function far"),
        ("call nothing;", "no function nothing"),
        ("call (%r1), malloc, (%r2);", "malloc is not supported"),
        ("call free, (%r2);", "free is not supported"),
        ("call %r1;", "what %r1 points to, which is not supported"),
        ("call twice, (%l2);", "B64"),
        ("call twice, (%nothing);", "%nothing"),
    ] {
        let refused = Kernel { head, body, ..Kernel::default() }.refusal();
        assert!(refused.contains(reason), "{body}: {refused}");
    }
}

/// An instruction that is not known is refused with its line; so is a register of another size than the result's.
#[test]
fn what_is_not_known_is_refused() {
    assert_eq!(
        refusal("mov.u32 %r2, 1;\nfrobnicate.u32 %r2;"),
        "PTX line 5: this instruction is not supported: `frobnicate.u32`"
    );
    assert!(refusal(".reg .b128 %q;").contains("128-bit"));
    for body in [
        "add.u16 %r2, %h3, %h4;",
        "add.u32 %h2, %r3, %r4;",
        "mul.wide.u16 %h2, %h3, %h4;",
        "popc.b64 %h2, %l2;",
        "and.b16 %r2, %h3, %h4;",
        "shl.b32 %h2, %r3, 1;",
        "lop3.b32 %h2, %r3, %r4, %r5, 1;",
        "mov.b32 %h2, %r3;",
        "mov.u16 %r2, %h3;",
        "selp.u32 %h2, %r3, %r4, %p1;",
        "set.lt.u32.u32 %h2, %r3, %r4;",
        "add.f32 %h2, %r3, %r4;",
        "add.f16 %r2, %h3, %h4;",
        "fma.rn.f16x2 %h2, %r3, %r4, %r5;",
        "cvt.rn.f16x2.f32 %h2, %r3, %r4;",
        "add.f64 %r2, %l3, %l4;",
        "add.u32 %b2, %r3, %r4;",
        "cvt.u32.u16 %h2, %h3;",
    ] {
        refusal(body);
    }
    // Wider registers are fine where the ISA relaxes it (9.4.1: ld, st, cvt).
    assert_eq!(with("", "mov.u32 %r2, 0x12345;\ncvt.u16.u32 %r9, %r2;"), [0x2345; 32]);
    // Only a few instructions have results that can be discarded.
    assert_eq!(with("", "setp.lt.u32 _|%p1, %gid, 5;\nselp.u32 %r9, 2, 1, %p1;")[..6], [1, 1, 1, 1, 1, 2]);
    assert!(refusal("add.u32 _, %r2, 1;").contains("cannot be discarded"));
}

/// ptxas: "uses too much parameter space", 4352 bytes before PTX 8.1 and 32764 since.
#[test]
fn kernels_have_only_so_many_bytes_of_parameters() {
    for (version, most) in [("8.0", 4352), ("8.1", 32764)] {
        let of = |bytes: usize| {
            let head = format!(".version {version}\n.target sm_80\n.address_size 64\n");
            program(
                &format!("{head}.entry k(.param .u32 a, .param .b8 b[{}]) {{ ret; }}", bytes - 4),
                &Addresses::new(),
            )
        };
        assert!(of(most).is_ok());
        assert!(of(most + 1).is_err_and(|error| error.contains("bytes of parameters")), "{version}");
    }
}
