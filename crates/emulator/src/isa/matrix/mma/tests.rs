//! Fragments, element by element, against the formulas of the ISA's sections "Matrix Fragments for mma.m…n…k…", written
//! down here once more as they stand there; sums by hand.

use crate::isa::{Op, matrix};
use crate::machine::registers::Registers;
use crate::program::{Addresses, Program, decode};
use crate::ptx::parse;

/// A small generator of numbers (xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 16
    }

    fn between(&mut self, low: i64, high: i64) -> i64 {
        low + (self.next() % (high - low + 1) as u64) as i64
    }
}

fn program(target: &str, instruction: &str) -> Result<Program, String> {
    let text = format!(
        ".version 9.0\n.target {target}\n.address_size 64\n.visible .entry k() {{\n.reg .b32 %a<4>, %b<4>, %c<4>, \
         %d<4>, %e;\n.reg .f32 %fc<4>, %fd<4>;\n.reg .f64 %da<8>, %db<4>, %dc<4>, %dd<4>;\n{instruction};\nret;\n}}\n"
    );
    let module = parse(&text).map_err(|error| error.to_string())?;
    decode(&module, &module.functions[0], &Addresses::new()).map_err(|error| error.message)
}

fn registers(stem: &str, count: usize) -> String {
    let names: Vec<String> = (0..count).map(|index| format!("{stem}{index}")).collect();
    format!("{{{}}}", names.join(", "))
}

/// Decodes `mma.…` with fragments of so many registers.
fn multiply(target: &str, form: &str, [d, a, b, c]: [usize; 4], rest: &str) -> Result<(matrix::Op, Registers), String> {
    let float = form.contains("f32.");
    let (d, c) = (registers(if float { "%fd" } else { "%d" }, d), registers(if float { "%fc" } else { "%c" }, c));
    let (a, b) = (registers("%a", a), registers("%b", b));
    let program = program(target, &format!("{form} {d}, {a}, {b}, {c}{rest}"))?;
    match &program.steps[0].op {
        Op::Matrix(op) => Ok((op.clone(), program.registers)),
        _ => Err("not a matrix operation".to_owned()),
    }
}

/// Row and column of element `index` of a lane's fragment.
type Formula = fn(lane: usize, index: usize) -> (usize, usize);

struct Case {
    form: &'static str,
    registers: [usize; 4],
    /// Bits of an element.
    bits: usize,
    rows: usize,
    depth: usize,
    a: Formula,
    /// Of B: the depth and the column.
    b: Formula,
    c: Formula,
    /// Least and greatest element of A and B.
    range: [(i64, i64); 2],
    encode: fn(i64) -> u32,
}

fn group(lane: usize) -> usize {
    lane >> 2
}

fn place(lane: usize) -> usize {
    lane % 4
}

fn below(lane: usize, lower: bool) -> usize {
    if lower { group(lane) + 8 } else { group(lane) }
}

/// The accumulators of all shapes of 16 rows: c0, c1 in row group, c2, c3 in row group + 8.
fn c16(lane: usize, i: usize) -> (usize, usize) {
    (below(lane, i >= 2), place(lane) * 2 + (i & 1))
}

fn c8(lane: usize, i: usize) -> (usize, usize) {
    (group(lane), place(lane) * 2 + i)
}

fn f16_bits(value: i64) -> u32 {
    half::f16::from_f32(value as f32).to_bits().into()
}

fn bf16_bits(value: i64) -> u32 {
    half::bf16::from_f32(value as f32).to_bits().into()
}

fn f32_bits(value: i64) -> u32 {
    (value as f32).to_bits()
}

fn low_bits(value: i64) -> u32 {
    value as u32
}

/// Integers from −4 to 4, which are exact, as e5m2: the upper byte of an f16.
fn e5m2_bits(value: i64) -> u32 {
    f16_bits(value) >> 8
}

fn e4m3_bits(value: i64) -> u32 {
    let table = [0u32, 0x38, 0x40, 0x44, 0x48, 0x4a, 0x4c, 0x4e, 0x50];
    table[value.unsigned_abs() as usize] | if value < 0 { 0x80 } else { 0 }
}

const DENSE: &[Case] = &[
    Case {
        form: "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
        registers: [4, 4, 2, 4],
        bits: 16,
        rows: 16,
        depth: 16,
        a: |lane, i| {
            (below(lane, !(i < 2 || (4..6).contains(&i))), place(lane) * 2 + (i & 1) + if i >= 4 { 8 } else { 0 })
        },
        b: |lane, i| (place(lane) * 2 + (i & 1) + if i >= 2 { 8 } else { 0 }, group(lane)),
        c: c16,
        range: [(-60, 60), (-60, 60)],
        encode: f16_bits,
    },
    Case {
        form: "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32",
        registers: [4, 2, 1, 4],
        bits: 16,
        rows: 16,
        depth: 8,
        a: |lane, i| (below(lane, i >= 2), place(lane) * 2 + (i & 1)),
        b: |lane, i| (place(lane) * 2 + i, group(lane)),
        c: c16,
        range: [(-60, 60), (-60, 60)],
        encode: bf16_bits,
    },
    Case {
        form: "mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32",
        registers: [4, 2, 1, 4],
        bits: 32,
        rows: 16,
        depth: 4,
        a: |lane, i| (below(lane, i == 1), place(lane)),
        b: |lane, _| (place(lane), group(lane)),
        c: c16,
        range: [(-900, 900), (-900, 900)],
        encode: f32_bits,
    },
    Case {
        form: "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
        registers: [4, 4, 2, 4],
        bits: 32,
        rows: 16,
        depth: 8,
        a: |lane, i| (below(lane, i == 1 || i == 3), place(lane) + if i >= 2 { 4 } else { 0 }),
        b: |lane, i| (place(lane) + if i == 1 { 4 } else { 0 }, group(lane)),
        c: c16,
        range: [(-900, 900), (-900, 900)],
        encode: f32_bits,
    },
    Case {
        form: "mma.sync.aligned.m8n8k16.row.col.s32.s8.u8.s32",
        registers: [2, 1, 1, 2],
        bits: 8,
        rows: 8,
        depth: 16,
        a: |lane, i| (group(lane), place(lane) * 4 + i),
        b: |lane, i| (place(lane) * 4 + i, group(lane)),
        c: c8,
        range: [(-128, 127), (0, 255)],
        encode: low_bits,
    },
    Case {
        form: "mma.sync.aligned.m16n8k16.row.col.s32.u8.s8.s32",
        registers: [4, 2, 1, 4],
        bits: 8,
        rows: 16,
        depth: 16,
        a: |lane, i| (below(lane, i >= 4), place(lane) * 4 + (i & 3)),
        b: |lane, i| (place(lane) * 4 + i, group(lane)),
        c: c16,
        range: [(0, 255), (-128, 127)],
        encode: low_bits,
    },
    Case {
        form: "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32",
        registers: [4, 4, 2, 4],
        bits: 8,
        rows: 16,
        depth: 32,
        a: |lane, i| {
            (below(lane, !(i < 4 || (8..12).contains(&i))), place(lane) * 4 + (i & 3) + if i >= 8 { 16 } else { 0 })
        },
        b: |lane, i| (place(lane) * 4 + (i & 3) + if i >= 4 { 16 } else { 0 }, group(lane)),
        c: c16,
        range: [(-128, 127), (-128, 127)],
        encode: low_bits,
    },
    Case {
        form: "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32",
        registers: [4, 4, 2, 4],
        bits: 8,
        rows: 16,
        depth: 32,
        a: |lane, i| {
            (below(lane, !(i < 4 || (8..12).contains(&i))), place(lane) * 4 + (i & 3) + if i >= 8 { 16 } else { 0 })
        },
        b: |lane, i| (place(lane) * 4 + (i & 3) + if i >= 4 { 16 } else { 0 }, group(lane)),
        c: c16,
        range: [(-8, 8), (-8, 8)],
        encode: e4m3_bits,
    },
    Case {
        form: "mma.sync.aligned.m16n8k16.row.col.f32.e5m2.e5m2.f32",
        registers: [4, 2, 1, 4],
        bits: 8,
        rows: 16,
        depth: 16,
        a: |lane, i| (below(lane, i >= 4), place(lane) * 4 + (i & 3)),
        b: |lane, i| (place(lane) * 4 + i, group(lane)),
        c: c16,
        range: [(-4, 4), (-4, 4)],
        encode: e5m2_bits,
    },
    Case {
        form: "mma.sync.aligned.m8n8k32.row.col.s32.s4.u4.s32",
        registers: [2, 1, 1, 2],
        bits: 4,
        rows: 8,
        depth: 32,
        a: |lane, i| (group(lane), place(lane) * 8 + i),
        b: |lane, i| (place(lane) * 8 + i, group(lane)),
        c: c8,
        range: [(-8, 7), (0, 15)],
        encode: low_bits,
    },
    Case {
        form: "mma.sync.aligned.m16n8k64.row.col.s32.u4.s4.s32",
        registers: [4, 4, 2, 4],
        bits: 4,
        rows: 16,
        depth: 64,
        a: |lane, i| {
            let col = place(lane) * 8 + (i & 7) + if i >= 16 { 32 } else { 0 };
            (below(lane, !(i < 8 || (16..24).contains(&i))), col)
        },
        b: |lane, i| (place(lane) * 8 + (i & 7) + if i >= 8 { 32 } else { 0 }, group(lane)),
        c: c16,
        range: [(0, 15), (-8, 7)],
        encode: low_bits,
    },
    Case {
        form: "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc",
        registers: [4, 4, 2, 4],
        bits: 1,
        rows: 16,
        depth: 256,
        a: |lane, i| {
            let col = place(lane) * 32 + (i & 31) + if i >= 64 { 128 } else { 0 };
            (below(lane, !(i < 32 || (64..96).contains(&i))), col)
        },
        b: |lane, i| (place(lane) * 32 + (i & 31) + if i >= 32 { 128 } else { 0 }, group(lane)),
        c: c16,
        range: [(0, 1), (0, 1)],
        encode: low_bits,
    },
];

/// What each fragment's registers are called.
fn named(op: &matrix::Op) -> &super::Multiply {
    match op {
        matrix::Op::Multiply(op) => op,
        _ => panic!("not a multiplication of words"),
    }
}

fn put(registers: &mut Registers, register: crate::machine::registers::W, lane: usize, shift: usize, bits: u32) {
    let mut word = *registers.word(register);
    word[lane] |= bits << shift;
    registers.set_word(register, 1 << lane, &word);
}

/// Fills a fragment from a matrix, and checks that every element of the matrix is somewhere.
fn fill(
    case: &Case,
    registers: &mut Registers,
    names: &[crate::machine::registers::W],
    elements: usize,
    at: impl Fn(usize, usize) -> u32,
) {
    let per_word = 32 / case.bits;
    let field = if case.bits == 32 { u32::MAX } else { (1 << case.bits) - 1 };
    for lane in 0..32 {
        for i in 0..elements {
            put(registers, names[i / per_word], lane, i % per_word * case.bits, at(lane, i) & field);
        }
    }
}

/// Runs a case with random integers, which are exact in every type.
fn run(case: &Case) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (op, mut registers) = multiply("sm_90a", case.form, case.registers, "").unwrap();
    let per_word = 32 / case.bits;
    let a: Vec<Vec<i64>> = (0..case.rows)
        .map(|_| (0..case.depth).map(|_| random.between(case.range[0].0, case.range[0].1)).collect())
        .collect();
    let b: Vec<Vec<i64>> =
        (0..case.depth).map(|_| (0..8).map(|_| random.between(case.range[1].0, case.range[1].1)).collect()).collect();
    let c: Vec<Vec<i64>> = (0..case.rows).map(|_| (0..8).map(|_| random.between(-999, 999)).collect()).collect();
    let float = case.form.contains("f32.");
    let names = named(&op).clone();
    fill(case, &mut registers, &names.a, case.registers[1] * per_word, |lane, i| {
        let (row, column) = (case.a)(lane, i);
        (case.encode)(a[row][column])
    });
    fill(case, &mut registers, &names.b, case.registers[2] * per_word, |lane, i| {
        let (row, column) = (case.b)(lane, i);
        (case.encode)(b[row][column])
    });
    for lane in 0..32 {
        for i in 0..case.registers[3] {
            let (row, column) = (case.c)(lane, i);
            let bits = if float { f32_bits(c[row][column]) } else { c[row][column] as u32 };
            put(&mut registers, names.c[i], lane, 0, bits);
        }
    }
    named(&op).execute(&mut registers).unwrap();
    let mut seen = 0;
    for lane in 0..32 {
        for i in 0..case.registers[0] {
            let (row, column) = (case.c)(lane, i);
            let bits = registers.word(names.d[i])[lane];
            let sum = c[row][column] + (0..case.depth).map(|depth| a[row][depth] * b[depth][column]).sum::<i64>();
            let expected = if float { f32_bits(sum) } else { sum as u32 };
            assert_eq!(bits, expected, "{} row {row} column {column}", case.form);
            seen += 1;
        }
    }
    assert_eq!(seen, case.rows * 8);
    let (_, flops) = op.flops().unwrap();
    assert_eq!(flops, (2 * case.rows * 8 * case.depth) as u64);
}

#[test]
fn dense_fragments_are_where_the_isa_says() {
    DENSE.iter().for_each(run);
}

/// "Matrix Fragments for mma.m16n8k16 with floating point type": f16 accumulators in two registers of pairs.
#[test]
fn half_accumulators_are_pairs_and_rounded_once() {
    let (op, mut registers) =
        multiply("sm_80", "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16", [2, 4, 2, 2], "").unwrap();
    let names = named(&op).clone();
    let mut random = Random(7);
    for lane in 0..32 {
        for register in 0..2 {
            let (low, high) = (random.between(-500, 500), random.between(-500, 500));
            put(&mut registers, names.c[register], lane, 0, f16_bits(low) | f16_bits(high) << 16);
        }
    }
    // Row 0 of A is 2048 and 1 at depths 0 and 1; column 0 of B is 1 there. 2048 + 1 + c is a tie where c is 0.
    put(&mut registers, names.a[0], 0, 0, f16_bits(2048) | f16_bits(1) << 16);
    put(&mut registers, names.b[0], 0, 0, f16_bits(1) | f16_bits(1) << 16);
    let before: Vec<u32> = (0..64).map(|i| registers.word(names.c[i / 32])[i % 32]).collect();
    named(&op).execute(&mut registers).unwrap();
    for i in 0..64 {
        let after = registers.word(names.d[i / 32])[i % 32];
        if i == 0 {
            let c = half::f16::from_bits(before[0] as u16).to_f64();
            assert_eq!(after & 0xffff, u32::from(half::f16::from_f32((c + 2049.0) as f32).to_bits()));
        } else {
            assert_eq!(after, before[i], "element pair {i}");
        }
    }
}

#[test]
fn half_sums_round_once() {
    let (op, mut registers) =
        multiply("sm_80", "mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16", [2, 2, 1, 2], "").unwrap();
    let names = named(&op).clone();
    // 2048 + 1 + 1: rounding after each product would stay at 2048.
    put(&mut registers, names.c[0], 0, 0, f16_bits(2048));
    put(&mut registers, names.a[0], 0, 0, f16_bits(1) | f16_bits(1) << 16);
    put(&mut registers, names.b[0], 0, 0, f16_bits(1) | f16_bits(1) << 16);
    named(&op).execute(&mut registers).unwrap();
    assert_eq!(registers.word(names.d[0])[0] & 0xffff, f16_bits(2050));
}

#[test]
fn tf32_ignores_the_lower_bits_and_nan_is_canonical() {
    let (op, mut registers) =
        multiply("sm_80", "mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32", [4, 2, 1, 4], "").unwrap();
    let names = named(&op).clone();
    put(&mut registers, names.a[0], 0, 0, 0x3f80_1fff);
    put(&mut registers, names.b[0], 0, 0, 1f32.to_bits());
    put(&mut registers, names.a[0], 4, 0, f32::INFINITY.to_bits());
    named(&op).execute(&mut registers).unwrap();
    assert_eq!(registers.word(names.d[0])[0], 1f32.to_bits());
    // Row 1: ∞ · 1 in column 0, ∞ · 0 in column 1.
    assert_eq!(registers.word(names.d[0])[4], f32::INFINITY.to_bits());
    assert_eq!(registers.word(names.d[1])[4], 0x7fff_ffff);
}

/// ISA, "mma": with .satfinite the result is clamped to the range of 32 bits, else it wraps.
#[test]
fn integers_wrap_or_are_clamped() {
    for (saturate, expected) in [("", i32::MIN), (".satfinite", i32::MAX)] {
        let form = format!("mma.sync.aligned.m16n8k16.row.col{saturate}.s32.s8.s8.s32");
        let (op, mut registers) = multiply("sm_80", &form, [4, 2, 1, 4], "").unwrap();
        let names = named(&op).clone();
        put(&mut registers, names.c[0], 0, 0, i32::MAX as u32);
        put(&mut registers, names.a[0], 0, 0, 1);
        put(&mut registers, names.b[0], 0, 0, 1);
        named(&op).execute(&mut registers).unwrap();
        assert_eq!(registers.word(names.d[0])[0] as i32, expected);
    }
}

#[test]
fn bits_by_xor() {
    let (op, mut registers) =
        multiply("sm_80", "mma.sync.aligned.m8n8k128.row.col.s32.b1.b1.s32.xor.popc", [2, 1, 1, 2], "").unwrap();
    let names = named(&op).clone();
    put(&mut registers, names.a[0], 0, 0, 0xff);
    put(&mut registers, names.b[0], 3, 0, 0xf0f);
    named(&op).execute(&mut registers).unwrap();
    // Row 0 against column 0: 8 bits of a word, 8 of another one; column 1 is empty.
    assert_eq!(registers.word(names.d[0])[0], 16);
    assert_eq!(registers.word(names.d[1])[0], 8);
    assert_eq!(registers.word(names.d[0])[4], 8);
}

#[test]
fn doubles() {
    type Case = (&'static str, [usize; 4], usize, usize, Formula, Formula, Formula);
    let shapes: [Case; 4] = [
        ("m8n8k4", [2, 1, 1, 2], 8, 4, |lane, _| (lane >> 2, lane % 4), |lane, _| (lane % 4, lane >> 2), c8),
        (
            "m16n8k4",
            [4, 2, 1, 4],
            16,
            4,
            |lane, i| (below(lane, i == 1), place(lane)),
            |lane, _| (place(lane), group(lane)),
            c16,
        ),
        (
            "m16n8k8",
            [4, 4, 2, 4],
            16,
            8,
            |lane, i| (below(lane, i % 2 == 1), place(lane) + if i >= 2 { 4 } else { 0 }),
            |lane, i| (place(lane) + if i == 1 { 4 } else { 0 }, group(lane)),
            c16,
        ),
        (
            "m16n8k16",
            [4, 8, 4, 4],
            16,
            16,
            |lane, i| (below(lane, i % 2 == 1), i / 2 * 4 + place(lane)),
            |lane, i| (i * 4 + place(lane), group(lane)),
            c16,
        ),
    ];
    for (shape, counts, rows, depth, a_at, b_at, c_at) in shapes {
        let [d, a, b, c] = ["%dd", "%da", "%db", "%dc"];
        let list = [(d, 0), (a, 1), (b, 2), (c, 3)].map(|(stem, i)| registers(stem, counts[i])).join(", ");
        let text = format!("mma.sync.aligned.{shape}.row.col.f64.f64.f64.f64 {list}");
        let program = program("sm_90", &text).unwrap();
        let Op::Matrix(matrix::Op::MultiplyDoubles(op)) = &program.steps[0].op else { panic!("{shape}") };
        let mut registers = program.registers.clone();
        let mut random = Random(3);
        let mut matrix = |rows: usize, columns: usize| -> Vec<Vec<f64>> {
            (0..rows).map(|_| (0..columns).map(|_| random.between(-1 << 20, 1 << 20) as f64).collect()).collect()
        };
        let (a, b, c) = (matrix(rows, depth), matrix(depth, 8), matrix(rows, 8));
        for lane in 0..32 {
            for (names, values, at) in [(&op.a, &a, a_at), (&op.b, &b, b_at), (&op.c, &c, c_at)] {
                for (i, name) in names.iter().enumerate() {
                    let (row, column) = at(lane, i);
                    registers.set_double(*name, 1 << lane, &[values[row][column].to_bits(); 32]);
                }
            }
        }
        op.execute(&mut registers);
        for lane in 0..32 {
            for (i, name) in op.d.iter().enumerate() {
                let (row, column) = c_at(lane, i);
                let sum = c[row][column] + (0..depth).map(|k| a[row][k] * b[k][column]).sum::<f64>();
                assert_eq!(f64::from_bits(registers.double(*name)[lane]), sum, "{shape} row {row} column {column}");
            }
        }
    }
}

/// "Matrix fragments for multiply-accumulate operation with sparse matrix A": where the stored elements of A, the
/// elements of B and the metadata lie.
struct Sparse {
    form: &'static str,
    registers: [usize; 4],
    bits: usize,
    depth: usize,
    /// Elements described together.
    chunk: usize,
    selectors: usize,
    /// Row, and first of the columns that the element may come from.
    a: Formula,
    b: Formula,
    /// Lane of the group, and first bit, of the metadata of a chunk of row `half`·8 + group.
    metadata: fn(selector: usize, half: usize, chunk: usize) -> (usize, usize),
    encode: fn(i64) -> u32,
    range: i64,
}

const SPARSE: &[Sparse] = &[
    Sparse {
        form: "m16n8k16.row.col.f32.f16.f16.f32",
        registers: [4, 2, 2, 4],
        bits: 16,
        depth: 16,
        chunk: 4,
        selectors: 4,
        a: |lane, i| (below(lane, i >= 2), place(lane) * 4),
        b: |lane, i| (place(lane) * 2 + (i & 1) + if i >= 2 { 8 } else { 0 }, group(lane)),
        metadata: |selector, half, chunk| (selector, half * 16 + chunk * 4),
        encode: f16_bits,
        range: 60,
    },
    Sparse {
        form: "m16n8k32.row.col.f32.bf16.bf16.f32",
        registers: [4, 4, 4, 4],
        bits: 16,
        depth: 32,
        chunk: 4,
        selectors: 2,
        a: |lane, i| (below(lane, !(i < 2 || (4..6).contains(&i))), place(lane) * 4 + if i >= 4 { 16 } else { 0 }),
        b: |lane, i| (place(lane) * 2 + (i & 1) + i / 2 * 8, group(lane)),
        metadata: |selector, half, chunk| (2 * selector + chunk / 4, half * 16 + chunk % 4 * 4),
        encode: bf16_bits,
        range: 60,
    },
    Sparse {
        form: "m16n8k8.row.col.f32.tf32.tf32.f32",
        registers: [4, 2, 2, 4],
        bits: 32,
        depth: 8,
        chunk: 2,
        selectors: 4,
        a: |lane, i| (below(lane, i == 1), place(lane) * 2),
        b: |lane, i| (place(lane) + if i == 1 { 4 } else { 0 }, group(lane)),
        metadata: |selector, half, chunk| (selector, half * 16 + chunk * 4),
        encode: f32_bits,
        range: 900,
    },
    Sparse {
        form: "m16n8k16.row.col.f32.tf32.tf32.f32",
        registers: [4, 4, 4, 4],
        bits: 32,
        depth: 16,
        chunk: 2,
        selectors: 2,
        a: |lane, i| (below(lane, i % 2 == 1), place(lane) * 2 + if i >= 2 { 8 } else { 0 }),
        b: |lane, i| (place(lane) + 4 * i, group(lane)),
        metadata: |selector, half, chunk| (2 * selector + chunk / 4, half * 16 + chunk % 4 * 4),
        encode: f32_bits,
        range: 900,
    },
    Sparse {
        form: "m16n8k32.row.col.s32.s8.s8.s32",
        registers: [4, 2, 2, 4],
        bits: 8,
        depth: 32,
        chunk: 4,
        selectors: 2,
        // Columns 8·place to 8·place + 7: the first two elements from the first chunk, the others from the second one.
        a: |lane, i| (below(lane, i >= 4), place(lane) * 8 + if i % 4 >= 2 { 4 } else { 0 }),
        b: |lane, i| (place(lane) * 4 + (i & 3) + if i >= 4 { 16 } else { 0 }, group(lane)),
        metadata: |selector, half, chunk| (2 * selector + half, chunk * 4),
        encode: low_bits,
        range: 127,
    },
    Sparse {
        form: "m16n8k64.row.col.s32.s8.s8.s32",
        registers: [4, 4, 4, 4],
        bits: 8,
        depth: 64,
        chunk: 4,
        selectors: 1,
        a: |lane, i| {
            let first = place(lane) * 8 + if i >= 8 { 32 } else { 0 };
            (below(lane, !(i < 4 || (8..12).contains(&i))), first + if i % 4 >= 2 { 4 } else { 0 })
        },
        b: |lane, i| (place(lane) * 4 + (i & 3) + i / 4 * 16, group(lane)),
        metadata: |_, half, chunk| (2 * (chunk / 8) + half, chunk % 8 * 4),
        encode: low_bits,
        range: 127,
    },
];

fn run_sparse(case: &Sparse, selector: usize, ordered: bool) {
    let mut random = Random(0x1234_5678 + selector as u64);
    let variant = if ordered { "sp::ordered_metadata" } else { "sp" };
    let form = format!("mma.{variant}.sync.aligned.{}", case.form);
    let (op, mut registers) = multiply("sm_80", &form, case.registers, &format!(", %e, {selector}")).unwrap();
    let names = named(&op).clone();
    let (per_word, kept) = (32 / case.bits, case.chunk / 2);
    let field = if case.bits == 32 { u32::MAX } else { (1 << case.bits) - 1 };
    let b: Vec<Vec<i64>> =
        (0..case.depth).map(|_| (0..8).map(|_| random.between(-case.range, case.range)).collect()).collect();
    let metadata = named(&op).metadata.unwrap().register;
    // For every row and chunk the kept columns, in the order in which they are stored, and the dense row.
    let mut a = vec![vec![0i64; case.depth]; 16];
    let mut columns = vec![vec![Vec::new(); case.depth / case.chunk]; 16];
    for row in 0..16 {
        for (chunk, stored) in columns[row].iter_mut().enumerate() {
            let first = chunk * case.chunk;
            let (chosen, bits) = match kept {
                1 => [(vec![first], 0b0100), (vec![first + 1], 0b1110)][random.between(0, 1) as usize].clone(),
                _ => {
                    let mut pair = [random.between(0, 3) as usize, 0];
                    pair[1] = (pair[0] + random.between(1, 3) as usize) % 4;
                    if ordered {
                        pair.sort();
                    }
                    (pair.map(|index| first + index).to_vec(), (pair[0] | pair[1] << 2) as u32)
                }
            };
            for &column in &chosen {
                a[row][column] = random.between(-case.range, case.range);
            }
            *stored = chosen;
            let (lane, shift) = (case.metadata)(selector, row / 8, chunk);
            put(&mut registers, metadata, 4 * (row % 8) + lane, shift, bits);
        }
    }
    for lane in 0..32 {
        let mut taken = std::collections::HashMap::new();
        for i in 0..case.registers[1] * per_word {
            let (row, first) = (case.a)(lane, i);
            let chunk = first / case.chunk;
            let next = taken.entry((row, chunk)).or_insert(0);
            let bits = (case.encode)(a[row][columns[row][chunk][*next]]) & field;
            *next += 1;
            put(&mut registers, names.a[i / per_word], lane, i % per_word * case.bits, bits);
        }
        assert!(taken.values().all(|&count| count == kept));
        for i in 0..case.registers[2] * per_word {
            let (row, column) = (case.b)(lane, i);
            let bits = (case.encode)(b[row][column]) & field;
            put(&mut registers, names.b[i / per_word], lane, i % per_word * case.bits, bits);
        }
    }
    named(&op).execute(&mut registers).unwrap();
    for lane in 0..32 {
        for i in 0..4 {
            let (row, column) = c16(lane, i);
            let sum = (0..case.depth).map(|depth| a[row][depth] * b[depth][column]).sum::<i64>();
            let expected = if case.form.contains("f32.") { f32_bits(sum) } else { sum as u32 };
            assert_eq!(registers.word(names.d[i])[lane], expected, "{form} {selector} row {row} column {column}");
        }
    }
    assert_eq!(op.flops().unwrap().1, (16 * 8 * case.depth) as u64);
}

#[test]
fn sparse_fragments_are_where_the_isa_says() {
    for case in SPARSE {
        for selector in 0..case.selectors {
            run_sparse(case, selector, true);
            run_sparse(case, selector, false);
        }
    }
}

/// Elements of B that no stored element of A meets have no part in the sum, not even infinite ones.
#[test]
fn what_is_not_selected_is_not_multiplied() {
    let form = "mma.sp::ordered_metadata.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32";
    let (op, mut registers) = multiply("sm_80", form, [4, 2, 2, 4], ", %e, 0").unwrap();
    let names = named(&op).clone();
    let metadata = names.metadata.unwrap().register;
    registers.set_word(metadata, u32::MAX, &[0x4444_4444; 32]);
    // Depths 0 and 1 of every chunk are kept; depth 2 of column 0 is infinite.
    put(&mut registers, names.b[0], 1, 0, 0x7c00);
    named(&op).execute(&mut registers).unwrap();
    assert_eq!(registers.word(names.d[0])[0], 0);
}

/// ISA: "0b0000, 0b0101, 0b1010, 0b1111 are invalid values for metadata"; ordered indices ascend; tf32 knows two
/// values.
#[test]
fn metadata_without_meaning_is_a_fault() {
    let shapes = [("f16", "m16n8k16"), ("tf32", "m16n8k8")];
    for (ordered, variant) in [(false, "sp"), (true, "sp::ordered_metadata")] {
        for (ty, shape) in shapes {
            let form = format!("mma.{variant}.sync.aligned.{shape}.row.col.f32.{ty}.{ty}.f32");
            let (op, mut registers) = multiply("sm_80", &form, [4, 2, 2, 4], ", %e, 1").unwrap();
            let metadata = named(&op).metadata.unwrap().register;
            for bits in 0..16u32 {
                registers.set_word(metadata, u32::MAX, &[bits * 0x1111_1111; 32]);
                let (low, high) = (bits & 3, bits >> 2);
                let valid = match ty {
                    "tf32" => bits == 0b0100 || bits == 0b1110,
                    _ if ordered => low < high,
                    _ => low != high,
                };
                assert_eq!(named(&op).execute(&mut registers).is_ok(), valid, "{form} {bits:#06b}");
            }
        }
    }
}

#[test]
fn forms_that_do_not_exist_are_named() {
    let f16 = "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f32";
    assert_eq!(multiply("sm_80", f16, [2, 4, 2, 4], "").err(), Some(format!("{f16} is not supported")));
    let volta = "mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32";
    assert_eq!(multiply("sm_80", volta, [4, 2, 2, 4], "").err(), Some(format!("{volta} is not supported")));
    let fp8 = "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e5m2.f32";
    assert_eq!(
        multiply("sm_80", fp8, [4, 4, 2, 4], "").err(),
        Some(format!("{fp8} needs sm_89 or later and PTX 8.4 or later, and the module is PTX 9.0 for sm_80"))
    );
    let mixed = "mma.sync.aligned.m16n8k16.row.col.f32.f16.bf16.f32";
    assert!(multiply("sm_80", mixed, [4, 4, 2, 4], "").is_err());
    let bf16 = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32";
    assert!(multiply("sm_80", bf16, [4, 3, 2, 4], "").is_err());
    assert!(multiply("sm_80", bf16, [4, 4, 2, 4], ", %e, 0").is_err());
    let sparse = "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32";
    assert!(multiply("sm_80", sparse, [4, 4, 4, 4], ", %e, 2").is_err());
    assert!(multiply("sm_80", sparse, [4, 4, 4, 4], "").is_err());
}
