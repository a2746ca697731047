//! SIMD video instructions, PTX ISA 9.7.18: `vadd`, `vsub`, `vavrg`, `vabsdiff`, `vmin` and `vmax` on two halves or four
//! bytes of a word. nvcc makes `vabsdiff2` and `vabsdiff4` of `__vabsdiffu4`, `__vsadu2` and their like.
//!
//! Covered are elements in their own places and results in all of them, as without selectors and masks.

use super::Decoded;
use super::forms::{check, no_type, operands};
use crate::machine::registers::{Registers, W};
use crate::program::Scope;
use crate::ptx::ast::{Instruction, Operand, Type};

/// What is done with each pair of elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // named as in PTX
pub enum Kind {
    Add,
    Subtract,
    Average,
    Difference,
    Min,
    Max,
}

/// What becomes of the results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Combine {
    /// Each is cut to its width.
    Cut,
    /// Each is clamped to the least and greatest signed (`true`) or unsigned number of its width.
    Saturate(bool),
    /// Their sum is added to a word.
    Accumulate,
}

/// An operation on all elements of two words.
#[derive(Clone, Debug)]
pub struct Op {
    kind: Kind,
    /// Bits of an element.
    bits: u32,
    /// Whether the elements of the first and of the second word are signed.
    signed: (bool, bool),
    combine: Combine,
    to: W,
    a: W,
    b: W,
    c: W,
}

/// Decodes what belongs to this family.
///
/// # Errors
/// If the operands are not what the instruction takes.
pub fn decode(scope: &mut Scope<'_>, instruction: &Instruction) -> Decoded {
    let opcode = instruction.opcode.as_str();
    let (name, bits) = match (opcode.strip_suffix('2'), opcode.strip_suffix('4')) {
        (Some(name), _) => (name, 16),
        (_, Some(name)) => (name, 8),
        _ => return Ok(None),
    };
    let kind = match name {
        "vadd" => Kind::Add,
        "vsub" => Kind::Subtract,
        "vavrg" => Kind::Average,
        "vabsdiff" => Kind::Difference,
        "vmin" => Kind::Min,
        "vmax" => Kind::Max,
        _ => return Ok(None),
    };
    check(instruction, &["sat", "add"], 3)?;
    let types: Vec<Type> = instruction.types().collect();
    let [to_type, a_type, b_type] = types.as_slice() else { return no_type(instruction) };
    if types.iter().any(|ty| !matches!(ty, Type::U32 | Type::S32)) {
        return no_type(instruction);
    }
    let combine = match (instruction.has("sat"), instruction.has("add")) {
        (false, false) => Combine::Cut,
        (true, false) => Combine::Saturate(to_type.is_signed()),
        (false, true) => Combine::Accumulate,
        (true, true) => return Err(format!("{opcode} takes either .sat or .add")),
    };
    let [d, a, b, c] = operands(instruction)?;
    if ![a, b, c].iter().all(|operand| matches!(operand, Operand::Name(_))) {
        return Err(format!("{opcode} takes registers"));
    }
    Ok(Some(super::Op::Video(Op {
        kind,
        bits,
        signed: (a_type.is_signed(), b_type.is_signed()),
        combine,
        to: scope.word_to(d, *to_type)?,
        a: scope.word(a, *a_type)?,
        b: scope.word(b, *b_type)?,
        c: scope.word(c, *to_type)?,
    })))
}

impl Op {
    /// Carries it out for the lanes in `mask`.
    #[inline(always)]
    pub fn execute(&self, registers: &mut Registers, mask: u32) {
        // One loop over lanes for each operation, without a choice inside.
        match self.kind {
            Kind::Add => self.apply(registers, mask, |a, b| a + b),
            Kind::Subtract => self.apply(registers, mask, |a, b| a - b),
            // Halves are rounded away from zero.
            Kind::Average => self.apply(registers, mask, |a, b| (a + b + i32::from(a + b >= 0)) >> 1),
            Kind::Difference => self.apply(registers, mask, |a, b| (a - b).abs()),
            Kind::Min => self.apply(registers, mask, i32::min),
            Kind::Max => self.apply(registers, mask, i32::max),
        }
    }

    #[inline(always)]
    fn apply(&self, registers: &mut Registers, mask: u32, f: impl Fn(i32, i32) -> i32) {
        let Self { bits, signed, combine, .. } = *self;
        let extend = |word: u32, first: u32, signed: bool| {
            let high = word << (32 - bits - first);
            if signed { high as i32 >> (32 - bits) } else { (high >> (32 - bits)) as i32 }
        };
        let (low, high) = match combine {
            Combine::Saturate(true) => (-1 << (bits - 1), (1 << (bits - 1)) - 1),
            Combine::Saturate(false) => (0, (1 << bits) - 1),
            Combine::Cut | Combine::Accumulate => (i32::MIN, i32::MAX),
        };
        registers.map3(self.to, mask, self.a, self.b, self.c, |a, b, c| {
            let (mut sum, mut merged) = (c, 0);
            for first in (0..32).step_by(bits as usize) {
                let result = f(extend(a, first, signed.0), extend(b, first, signed.1)).clamp(low, high);
                sum = sum.wrapping_add(result as u32);
                merged |= (result as u32 & (u32::MAX >> (32 - bits))) << first;
            }
            if combine == Combine::Accumulate { sum } else { merged }
        });
    }
}

#[cfg(test)]
mod tests {
    //! Values by the pseudocode of PTX ISA 9.7.18.

    use crate::isa::testing::{refusal, run, word};
    use crate::machine::registers::W;

    #[test]
    fn elements_are_taken_apart() {
        let of = |form: &str, a: u64, b: u64| word(&format!("{form} %r9, %r0, %r1, %r2;"), [a, b, 1000]);
        // Bytes, the highest first: |0x10 − 0xff|, |0x80 − 0x7f|, |0 − 1|, |5 − 5|.
        assert_eq!(of("vabsdiff4.u32.u32.u32", 0x1080_0005, 0xff7f_0105), 0xef01_0100);
        assert_eq!(of("vabsdiff4.u32.u32.u32.add", 0x1080_0005, 0xff7f_0105), 1000 + 0xef + 1 + 1);
        // Signed: |16 + 1|, |−128 − 127|, |0 − 1|, 0.
        assert_eq!(of("vabsdiff4.s32.s32.s32", 0x1080_0005, 0xff7f_0105), 0x11ff_0100);
        assert_eq!(of("vabsdiff4.s32.s32.s32.sat", 0x1080_0005, 0xff7f_0105), 0x117f_0100);
        assert_eq!(of("vabsdiff2.u32.u32.u32", 0xffff_0001, 0x0001_0003), 0xfffe_0002);
        assert_eq!(of("vabsdiff2.u32.u32.u32.add", 0xffff_0001, 0x0001_0003), 1000 + 0xfffe + 2);
        assert_eq!(of("vadd4.u32.u32.u32", 0xff01_7f80, 0x0102_0180), 0x0003_8000);
        assert_eq!(of("vadd4.u32.u32.u32.sat", 0xff01_7f80, 0x0102_0180), 0xff03_80ff);
        assert_eq!(of("vadd4.s32.s32.s32.sat", 0xff01_7f80, 0x0102_0180), 0x0003_7f80);
        assert_eq!(of("vsub2.u32.u32.u32.sat", 0x0001_8000, 0x0002_0001), 0x0000_7fff);
        assert_eq!(of("vsub2.s32.s32.s32.sat", 0x0001_8000, 0x0002_0001), 0xffff_8000);
        // −1 − 1 as signed numbers, in two halves.
        assert_eq!(of("vsub2.s32.s32.s32.add", 0xffff_ffff, 0x0001_0001), 1000 - 4);
        assert_eq!(of("vmin4.s32.s32.s32", 0x80ff_7f00, 0x7f01_80ff), 0x80ff_80ff);
        assert_eq!(of("vmin4.u32.u32.u32", 0x80ff_7f00, 0x7f01_80ff), 0x7f01_7f00);
        assert_eq!(of("vmax2.s32.s32.s32", 0x8000_0005, 0x0001_fffb), 0x0001_0005);
        // (1 + 2 + 1) / 2; (−1 − 2) / 2 = −1.5, which is rounded to −2; (−1 + 0) / 2 to −1.
        assert_eq!(of("vavrg4.s32.s32.s32", 0x01ff_ff00, 0x02fe_0000), 0x02fe_ff00);
        assert_eq!(of("vavrg2.u32.u32.u32", 0xffff_0001, 0xfffe_0000), 0xffff_0001);
        // A signed and an unsigned word: −1 + 255.
        assert_eq!(of("vadd4.s32.s32.u32.add", 0xffff_ffff, 0xffff_ffff), 1000 + 4 * 254);
    }

    #[test]
    fn other_lanes_keep_what_they_have() {
        let body = "mov.u32 %r9, 7;\nvadd2.u32.u32.u32 %r9, %r0, %r0, %r0;";
        let body = body.replace("vadd2", "@%p1 vadd2");
        let words = run(&body, u32::MAX, |lane| [1, lane as u64], |registers| *registers.word(W(9)));
        assert!(words.iter().enumerate().all(|(lane, &word)| word == if lane % 2 == 1 { 2 } else { 7 }));
    }

    #[test]
    fn what_is_not_there_is_refused() {
        for (body, reason) in [
            ("vadd4.u32.u32.u32.sat.add %r9, %r0, %r1, %r2;", "either .sat or .add"),
            ("vadd4.u32.u32.u16 %r9, %r0, %r1, %r2;", "does not exist"),
            ("vadd4.u32.u32.u32 %r9, %r0, %r1;", "takes 4 operands"),
            ("vadd4.u32.u32.u32 %r9, %r0, 1, %r2;", "takes registers"),
            ("vadd4.u32.u32.u32 %r9, %r0, %r1, 0;", "takes registers"),
            ("vadd4.u32.u32.u32 _, %r0, %r1, %r2;", "cannot be discarded"),
            ("vset4.u32.u32.eq %r9, %r0, %r1, %r2;", "not supported"),
        ] {
            assert!(refusal(body).contains(reason), "{body}: {}", refusal(body));
        }
    }
}
