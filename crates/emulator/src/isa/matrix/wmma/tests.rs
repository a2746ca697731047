//! `wmma` (PTX ISA 9.7.14.4): products of every shape and type against sums of whole numbers, which are exact in all of
//! them; which element each register holds, as ptxas compiles loads for sm_80; and what is found.

use super::*;
use crate::machine::testing::{Kernel, run};
use crate::options::Options;

/// A product, with rows and columns in memory longer than they need to be.
struct Case {
    shape: &'static str,
    /// Of D, A, B, C.
    types: [&'static str; 4],
    /// What stands for the types in `wmma.mma`.
    form: &'static str,
    registers: [usize; 4],
}

const CASES: &[Case] = &[
    Case { shape: "m16n16k16", types: ["f32", "f16", "f16", "f32"], form: "f32.f32", registers: [8, 8, 8, 8] },
    Case { shape: "m16n16k16", types: ["f16", "f16", "f16", "f16"], form: "f16.f16", registers: [4, 8, 8, 4] },
    Case { shape: "m8n32k16", types: ["f32", "f16", "f16", "f16"], form: "f32.f16", registers: [8, 8, 8, 4] },
    Case { shape: "m8n32k16", types: ["f16", "f16", "f16", "f16"], form: "f16.f16", registers: [4, 8, 8, 4] },
    Case { shape: "m32n8k16", types: ["f16", "f16", "f16", "f32"], form: "f16.f32", registers: [4, 8, 8, 8] },
    Case {
        shape: "m16n16k16",
        types: ["f32", "bf16", "bf16", "f32"],
        form: "f32.bf16.bf16.f32",
        registers: [8, 4, 4, 8],
    },
    Case {
        shape: "m8n32k16",
        types: ["f32", "bf16", "bf16", "f32"],
        form: "f32.bf16.bf16.f32",
        registers: [8, 2, 8, 8],
    },
    Case {
        shape: "m32n8k16",
        types: ["f32", "bf16", "bf16", "f32"],
        form: "f32.bf16.bf16.f32",
        registers: [8, 8, 2, 8],
    },
    Case {
        shape: "m16n16k8",
        types: ["f32", "tf32", "tf32", "f32"],
        form: "f32.tf32.tf32.f32",
        registers: [8, 4, 4, 8],
    },
    Case { shape: "m16n16k16", types: ["s32", "s8", "s8", "s32"], form: "s32.s8.s8.s32", registers: [8, 2, 2, 8] },
    Case { shape: "m8n32k16", types: ["s32", "u8", "u8", "s32"], form: "s32.u8.u8.s32", registers: [8, 1, 4, 8] },
    Case {
        shape: "m32n8k16",
        types: ["s32", "s8", "s8", "s32"],
        form: "s32.s8.s8.s32.satfinite",
        registers: [8, 4, 1, 8],
    },
    Case { shape: "m8n8k4", types: ["f64", "f64", "f64", "f64"], form: "f64.f64.f64.f64.rn", registers: [2, 1, 1, 2] },
];

fn bytes(ty: &str) -> usize {
    match ty {
        "s8" | "u8" => 1,
        "f16" | "bf16" => 2,
        "f64" => 8,
        _ => 4,
    }
}

fn encode(ty: &str, value: i64) -> Vec<u8> {
    match ty {
        "s8" | "u8" => vec![value as u8],
        "f16" => half::f16::from_f32(value as f32).to_bits().to_le_bytes().to_vec(),
        "bf16" => half::bf16::from_f32(value as f32).to_bits().to_le_bytes().to_vec(),
        "s32" => (value as i32).to_le_bytes().to_vec(),
        "f64" => (value as f64).to_le_bytes().to_vec(),
        _ => (value as f32).to_le_bytes().to_vec(),
    }
}

/// A matrix in memory: rows by columns, by row or by column, with a stride.
struct InMemory {
    rows: usize,
    columns: usize,
    by_row: bool,
    stride: usize,
}

impl InMemory {
    /// Lines that are longer by what makes 16 bytes.
    fn padded(rows: usize, columns: usize, by_row: bool, ty: &str) -> Self {
        Self { rows, columns, by_row, stride: if by_row { columns } else { rows } + 16 / bytes(ty) }
    }

    fn at(&self, row: usize, column: usize) -> usize {
        if self.by_row { row * self.stride + column } else { column * self.stride + row }
    }

    fn lay_out(&self, ty: &str, fill: u8, value: impl Fn(usize, usize) -> i64) -> Vec<u8> {
        let lines = if self.by_row { self.rows } else { self.columns };
        let mut memory = vec![fill; (lines * self.stride * bytes(ty)).next_multiple_of(32)];
        for row in 0..self.rows {
            for column in 0..self.columns {
                let at = self.at(row, column) * bytes(ty);
                memory[at..at + bytes(ty)].copy_from_slice(&encode(ty, value(row, column)));
            }
        }
        memory
    }

    fn layout(&self) -> &'static str {
        if self.by_row { "row" } else { "col" }
    }
}

fn names(stem: &str, from: usize, count: usize) -> String {
    let names: Vec<String> = (from..from + count).map(|number| format!("{stem}{number}")).collect();
    format!("{{{}}}", names.join(", "))
}

fn to_words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect()
}

fn product(case: &Case, [a_by_row, b_by_row, c_by_row, d_by_row]: [bool; 4], space: &str) {
    let Shape { rows, columns, depth } = Shape::parse(case.shape).unwrap();
    let [d_type, a_type, b_type, c_type] = case.types;
    let signed = a_type != "u8";
    let small = |number: usize| (number * 7919 % 13) as i64 - if signed { 6 } else { 0 };
    let a_of = |row: usize, k: usize| small(row * depth + k);
    let b_of = |k: usize, column: usize| small(1000 + k * columns + column);
    let c_of = |row: usize, column: usize| small(5000 + row * columns + column);
    let a = InMemory::padded(rows, depth, a_by_row, a_type);
    let b = InMemory::padded(depth, columns, b_by_row, b_type);
    let c = InMemory::padded(rows, columns, c_by_row, c_type);
    let d = InMemory::padded(rows, columns, d_by_row, d_type);
    let a_bytes = a.lay_out(a_type, 0x55, a_of);
    let b_bytes = b.lay_out(b_type, 0x55, b_of);
    let c_bytes = c.lay_out(c_type, 0x55, c_of);
    let want = d.lay_out(d_type, 0xff, |row, column| {
        (0..depth).map(|k| a_of(row, k) * b_of(k, column)).sum::<i64>() + c_of(row, column)
    });
    let stem = |ty: &str| if ty == "f64" { "%y" } else { "%x" };
    let [in_d, in_a, in_b, in_c] = [0, 1, 2, 3].map(|index| {
        let from = case.registers[..index].iter().sum();
        names(stem(case.types[index]), from, case.registers[index])
    });
    let (shape, form) = (case.shape, case.form);
    let (b_from, c_from) = (a_bytes.len(), a_bytes.len() + b_bytes.len());
    let body = format!(
        ".reg .b32 %x<40>; .reg .f64 %y<8>;\n\
         wmma.load.a.sync.aligned.{}.{shape}{space}.{a_type} {in_a}, [%in], {};\n\
         wmma.load.b.sync.aligned.{}.{shape}{space}.{b_type} {in_b}, [%in+{b_from}], {};\n\
         wmma.load.c.sync.aligned.{}.{shape}{space}.{c_type} {in_c}, [%in+{c_from}], {};\n\
         wmma.mma.sync.aligned.{}.{}.{shape}.{form} {in_d}, {in_a}, {in_b}, {in_c};\n\
         wmma.store.d.sync.aligned.{}.{shape}{space}.{d_type} [%out], {in_d}, {};",
        a.layout(),
        a.stride,
        b.layout(),
        b.stride,
        c.layout(),
        c.stride,
        a.layout(),
        b.layout(),
        d.layout(),
        d.stride
    );
    let input = to_words(&[a_bytes, b_bytes, c_bytes].concat());
    let kernel = Kernel { body: &body, input: &input, output: want.len() / 4, ..Kernel::default() };
    assert_eq!(kernel.run(), to_words(&want), "{shape} {form} {} {} {}", a.layout(), b.layout(), d.layout());
}

#[test]
fn products_are_those_of_the_matrices_in_memory() {
    for case in CASES {
        product(case, [true, false, true, true], "");
        product(case, [false, true, false, true], ".global");
        product(case, [true, true, true, false], ".global");
    }
}

/// The registers of a fragment hold these elements: by register, for the element in a lane of group g at place p with
/// index i in its register, its line and place in it.
fn holds(
    load: &str,
    element: usize,
    registers: usize,
    stride: usize,
    want: impl Fn(usize, usize, usize, usize) -> (usize, usize),
) {
    // Element n in memory is n.
    let bytes: Vec<u8> = (0..2048 / element).flat_map(|n| (n as u32).to_le_bytes()[..element].to_vec()).collect();
    let fragment = names("%x", 0, registers);
    for register in 0..registers {
        let body = format!(
            ".reg .b32 %x<8>;\nwmma.load.{load} {fragment}, [%in], {stride};\nst.global.u32 [%dst], %x{register};"
        );
        let got = Kernel { body: &body, input: &to_words(&bytes), ..Kernel::default() }.run();
        for (lane, word) in got.iter().enumerate() {
            for index in 0..4 / element {
                let (line, place) = want(register, lane / 4, lane % 4, index);
                let mask = u32::MAX >> (32 - 8 * element);
                let number = (line * stride + place) as u32 & mask;
                assert_eq!(word >> (8 * element * index) & mask, number, "{load} %x{register} lane {lane} {index}");
            }
        }
    }
}

/// What `ptxas -arch=sm_80` makes of a load and a store of each register.
#[test]
fn registers_hold_the_elements_that_they_hold_on_sm_80() {
    // LDG [base + g·stride + 4p] for register 0, + 8 lines for 1, + 16 bytes for 2, both for 3; 4 to 7 repeat them.
    let wide = |register: usize, g: usize, p: usize, i: usize| {
        (register / 4 * 16 + register % 2 * 8 + g, register / 2 % 2 * 8 + 2 * p + i)
    };
    let repeated = move |register: usize, g: usize, p: usize, i: usize| wide(register % 4, g, p, i);
    holds("a.sync.aligned.row.m16n16k16.f16", 2, 8, 16, repeated);
    holds("a.sync.aligned.row.m32n8k16.f16", 2, 8, 24, wide);
    holds("b.sync.aligned.col.m8n32k16.bf16", 2, 8, 16, wide);
    // The same elements by the other way through memory.
    holds("a.sync.aligned.col.m16n16k16.f16", 2, 8, 16, |register, g, p, i| {
        let (row, k) = repeated(register, g, p, i);
        (k, row)
    });
    let narrow = |register: usize, g: usize, p: usize, i: usize| (register / 2 * 8 + g, register % 2 * 8 + 2 * p + i);
    holds("b.sync.aligned.col.m16n16k16.f16", 2, 8, 16, move |register, g, p, i| narrow(register % 4, g, p, i));
    holds("b.sync.aligned.col.m32n8k16.f16", 2, 8, 16, move |register, g, p, i| narrow(register % 2, g, p, i));
    holds("a.sync.aligned.row.m8n32k16.f16", 2, 8, 16, move |register, g, p, i| narrow(register % 2, g, p, i));
    holds("a.sync.aligned.row.m16n16k8.tf32", 4, 4, 8, |register, g, p, _| {
        (register % 2 * 8 + g, register / 2 * 4 + p)
    });
    holds("b.sync.aligned.col.m16n16k8.tf32", 4, 4, 8, |register, g, p, _| {
        (register / 2 * 8 + g, register % 2 * 4 + p)
    });
    holds("b.sync.aligned.col.m8n32k16.s8", 1, 4, 16, |register, g, p, i| (register * 8 + g, 4 * p + i));
    holds("a.sync.aligned.row.m32n8k16.u8", 1, 4, 16, |register, g, p, i| (register * 8 + g, 4 * p + i));
    holds("b.sync.aligned.row.m16n16k16.s8", 1, 2, 16, |register, g, p, i| (4 * p + i, register * 8 + g));
    // Accumulators: those of m8n32 are turned.
    holds("c.sync.aligned.row.m16n16k16.f32", 4, 8, 16, |register, g, p, _| {
        (register / 2 % 2 * 8 + g, register / 4 * 8 + 2 * p + register % 2)
    });
    holds("c.sync.aligned.row.m8n32k16.f32", 4, 8, 32, |register, g, p, _| {
        (2 * p + register % 2, register / 2 * 8 + g)
    });
    holds("c.sync.aligned.row.m8n32k16.f16", 2, 4, 32, |register, g, p, i| (2 * p + i, register * 8 + g));
    holds("c.sync.aligned.row.m16n16k16.f16", 2, 4, 16, |register, g, p, i| {
        (register % 2 * 8 + g, register / 2 * 8 + 2 * p + i)
    });
}

const SHARED: &str = ".reg .b32 %x<8>;\n.shared .align 32 .b8 s[512];\nmov.u32 %r2, s;\nshl.b32 %r3, %tid, 4;\n\
                      add.u32 %r3, %r2, %r3;\nst.shared.v4.u32 [%r3], {%tid, %tid, %tid, %tid};\n";
const LOAD: &str =
    "wmma.load.a.sync.aligned.row.m16n16k16.shared.f16 {%x0, %x1, %x2, %x3, %x4, %x5, %x6, %x7}, [s], 16;\n";

/// Register 3 holds rows 8 and on, columns 8 and on: row g + 8 begins with the 16 bytes of thread 2g + 16.
#[test]
fn matrices_may_be_in_shared_memory() {
    let want: Vec<u32> = (0..32).map(|lane| 2 * (lane / 4 + 8) + 1).collect();
    let stored = "bar.warp.sync -1;\n";
    assert_eq!(run(&format!("{SHARED}{stored}{LOAD}st.global.u32 [%dst], %x3;")), want);
    let generic = LOAD.replace(".shared", "").replace("[s], 16", "[%l1]");
    let body =
        format!("{SHARED}{stored}mov.u64 %l0, s;\ncvta.shared.u64 %l1, %l0;\n{generic}st.global.u32 [%dst], %x3;");
    assert_eq!(run(&body), want);
}

fn found(body: &str) -> Vec<Kind> {
    Kernel { body, ..Kernel::default() }.found().iter().map(|finding| finding.kind).collect()
}

#[test]
fn accesses_are_checked() {
    assert!(found(&format!("{SHARED}{LOAD}")).contains(&Kind::Race));
    let half = SHARED.replace("st.shared.v4", "setp.lt.u32 %p1, %tid, 16;\n@%p1 st.shared.v4");
    assert!(found(&format!("{half}bar.warp.sync -1;\n{LOAD}")).contains(&Kind::Uninitialized));
    let fault = |load: &str| Kernel { body: &format!("{SHARED}{load}"), ..Kernel::default() }.fault().kind;
    assert_eq!(fault(&LOAD.replace("[s], 16", "[s+32], 16")), Kind::OutOfBounds);
    assert_eq!(fault(&LOAD.replace("[s], 16", "[s+16], 16")), Kind::Misaligned);
    assert_eq!(fault(&LOAD.replace("[s], 16", "[s], 20")), Kind::Misaligned);
    assert_eq!(fault(&LOAD.replace("[s], 16", "[s], %tid")), Kind::Undefined);
    assert_eq!(fault(&LOAD.replace("[s], 16", "[%r3], 16")), Kind::Undefined);
    assert_eq!(fault(&format!("setp.lt.u32 %p1, %tid, 8;\n@%p1 {LOAD}")), Kind::Barrier);
}

/// ISA: with `.satfinite` integer sums are clamped, without it they wrap around.
#[test]
fn integers_wrap_or_are_clamped() {
    for (saturate, want) in [(".satfinite", 0x7fff_ffffu32), ("", 0x8000_000f)] {
        let body = format!(
            ".reg .b32 %x<20>;\nmov.u32 %x8, 0x01010101;\nmov.u32 %r9, 0x7fffffff;\n\
             wmma.mma.sync.aligned.row.col.m16n16k16.s32.s8.s8.s32{saturate} {}, {{%x8, %x8}}, {{%x8, %x8}}, \
             {{%r9, %r9, %r9, %r9, %r9, %r9, %r9, %r9}};\nst.global.u32 [%dst], %x7;",
            names("%x", 0, 8)
        );
        assert_eq!(run(&body), vec![want; 32]);
    }
}

/// D may be where A is.
#[test]
fn results_may_replace_multiplicands() {
    let body = "mov.u32 %r2, 0x3c003c00;\nmov.u32 %r3, 0x3c003c00;\nmov.u32 %r4, 0x3c003c00;\nmov.u32 %r5, 0x3c003c00;\n\
                mov.u32 %r6, 0x3c003c00;\nmov.u32 %r7, 0;\n\
                wmma.mma.sync.aligned.row.col.m16n16k16.f16.f16 {%r2, %r3, %r4, %r5}, \
                {%r2, %r3, %r4, %r5, %r2, %r3, %r4, %r5}, {%r6, %r6, %r6, %r6, %r6, %r6, %r6, %r6}, \
                {%r7, %r7, %r7, %r7};\nst.global.u32 [%dst], %r5;";
    // 16 = 1.0 · 2⁴, twice.
    assert_eq!(run(body), vec![0x4c00_4c00; 32]);
}

#[test]
fn loads_and_products_are_counted() {
    let body = format!(
        ".reg .f32 %f<8>;\n{SHARED}bar.warp.sync -1;\n{LOAD}wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32 {f}, {x}, {x}, {f};",
        f = names("%f", 0, 8),
        x = names("%x", 0, 8)
    );
    let options = Options { profile: true, ..Options::default() };
    let profile = Kernel { body: &body, ..Kernel::default() }.outcome(&options).result.unwrap().unwrap();
    let text = profile.to_string();
    assert!(text.contains("1 × m16n16k16.f32.f32: 8.19k flops"), "{text}");
    // Four words of each lane.
    assert!(text.contains("shared loads       512B in      4 requests"), "{text}");
}

#[test]
fn forms_that_do_not_exist_are_refused() {
    let refusal = |body: &str| Kernel { body, ..Kernel::default() }.refusal();
    for form in [
        "wmma.load.a.sync.aligned.row.m16n16k16.f64 {%l1}, [%in], 16;",
        "wmma.load.a.sync.aligned.row.m16n16k8.f16 {%r1, %r2, %r3, %r4}, [%in], 16;",
        "wmma.load.a.sync.aligned.row.m8n8k32.s4 {%r1}, [%in], 32;",
        "wmma.load.d.sync.aligned.row.m16n16k16.f16 {%r1, %r2, %r3, %r4}, [%in], 16;",
        "wmma.load.a.sync.aligned.m16n16k16.f16 {%r1, %r2, %r3, %r4, %r5, %r6, %r7, %r8}, [%in], 16;",
        "wmma.mma.sync.aligned.row.col.m16n16k16.s32.s8.u8.s32 {%r1}, {%r1}, {%r1}, {%r1};",
        "wmma.mma.sync.aligned.row.col.m8n8k4.f64.f64.f64.f64.rz {%l1, %l2}, {%l3}, {%l4}, {%l5, %l6};",
    ] {
        assert!(refusal(form).contains("is not supported"), "{form}: {}", refusal(form));
    }
    let short = "wmma.load.a.sync.aligned.row.m16n16k16.f16 {%r1, %r2, %r3, %r4}, [%in], 16;";
    assert!(refusal(short).contains("a vector of 4 registers where 8 are taken"));
    let local = "wmma.load.a.sync.aligned.row.m16n16k16.local.s8 {%r1, %r2}, [%in], 16;";
    assert!(refusal(local).contains("is not supported"));
}
