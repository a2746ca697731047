//! Packing: operands copied, widened and laid out as the micro-kernel reads them.
//!
//! ```text
//! operand [extent, depth]            packed, panels of `width`
//!   e0: k0 k1 k2 …                     panel 0: k0: e0 e1 … │ k1: e0 e1 … │ …
//!   e1: k0 k1 k2 …            ─▶       panel 1: …
//! ```
//! The extent is padded with zeros to whole panels, so that the kernel never meets an edge while it reads.

use crate::Element;
use half::bf16;
use std::any::TypeId;
use std::sync::{Mutex, PoisonError};

/// A cache line of floats: packed panels start on one.
#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
pub(crate) struct Line([f32; 16]);

/// Buffers that wait to be used again: a product takes two and gives them back, since fresh pages cost more than packing.
static IDLE: Mutex<Vec<Vec<Line>>> = Mutex::new(Vec::new());

/// A buffer of floats on cache lines that returns to the idle ones when dropped.
pub struct Buffer(Vec<Line>);

impl Buffer {
    /// A buffer of at least `length` floats with arbitrary content.
    pub fn take(length: usize) -> Self {
        let needed = length.div_ceil(16);
        // The smallest that suffices, else a new one: short uses must not make long ones grow one buffer after another.
        let mut lines = {
            let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
            let fitting = (0..idle.len()).filter(|&index| idle[index].len() >= needed);
            let best = fitting.min_by_key(|&index| idle[index].len());
            best.map_or_else(Vec::new, |index| idle.swap_remove(index))
        };
        if lines.len() < needed {
            lines.resize(needed, Line([0.0; 16]));
        }
        Self(lines)
    }

    /// All of it, which may be more than was asked for.
    pub fn floats(&self) -> &[f32] {
        bytemuck::cast_slice(&self.0)
    }

    /// As [`floats`](Self::floats), to be written.
    pub fn floats_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < 64 {
            idle.push(std::mem::take(&mut self.0));
        }
    }
}

/// One operand as packing sees it: element (e, k) lies at `data + e · extent_stride + k · depth_stride`.
///
/// An address rather than a slice, since both operands may be parts of the matrix that C is a part of: only elements of
/// the operand itself are ever borrowed.
#[derive(Clone, Copy)]
pub(crate) struct Operand<T> {
    pub(crate) data: *const T,
    pub(crate) extent_stride: usize,
    pub(crate) depth_stride: usize,
}

// SAFETY: an operand is only read while a product lasts, which borrows what it lies in.
unsafe impl<T: Sync> Send for Operand<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Operand<T> {}

impl<T: Element> Operand<T> {
    /// The same operand of `depth` values of bf16 as pairs of neighbours in depth, each in the place of one f32 that is
    /// copied and never computed with. `None` if it is of another type or does not consist of aligned pairs.
    pub(crate) fn pairs(&self, depth: usize) -> Option<Operand<f32>> {
        let data = self.data.cast::<f32>();
        let even = depth.is_multiple_of(2) && self.extent_stride.is_multiple_of(2) && data.is_aligned();
        let fits = TypeId::of::<T>() == TypeId::of::<bf16>() && self.depth_stride == 1 && even;
        fits.then_some(Operand { data, extent_stride: self.extent_stride / 2, depth_stride: 1 })
    }

    /// `count` elements from (e, k) on, contiguous in whichever direction has stride one.
    ///
    /// # Safety
    /// They belong to the operand, lie side by side, and nobody writes them meanwhile.
    unsafe fn run(&self, e: usize, k: usize, count: usize) -> &[T] {
        // SAFETY: as the caller promises.
        unsafe { std::slice::from_raw_parts(self.data.add(e * self.extent_stride + k * self.depth_stride), count) }
    }
}

/// Panels packed together: lines of the extent are read 8 panels at a time, so that far-apart lines cost few pages.
pub(crate) const GROUP: usize = 8;

/// Packs `count` consecutive lines of the extent, from `first` on, over `depth` values of k from `from` on, into as many
/// panels of `depth · width` floats as they need.
///
/// # Safety
/// These elements belong to the operand and nobody writes them meanwhile.
pub(crate) unsafe fn pack_panels<T: Element>(
    operand: Operand<T>,
    (first, count): (usize, usize),
    (from, depth): (usize, usize),
    width: usize,
    panels: &mut [f32],
) {
    let panel = |start: usize| (first + start, width.min(count - start));
    if !count.is_multiple_of(width) {
        let padded = panels.len() - width * depth;
        panels[padded..].fill(0.0);
    }
    if operand.extent_stride == 1 {
        let whole = count / width * width;
        // SAFETY: as the caller promises; lines of the extent lie side by side.
        unsafe {
            match width {
                6 => pack_straight::<T, 6>(operand, (first, whole), (from, depth), panels),
                12 => pack_straight::<T, 12>(operand, (first, whole), (from, depth), panels),
                16 => pack_straight::<T, 16>(operand, (first, whole), (from, depth), panels),
                32 => pack_straight::<T, 32>(operand, (first, whole), (from, depth), panels),
                _ => pack_straight::<T, 4>(operand, (first, whole), (from, depth), panels),
            }
        }
        if whole < count {
            for k in 0..depth {
                let to = &mut panels[whole * depth + k * width..][..count - whole];
                // SAFETY: as above.
                T::widen(unsafe { operand.run(first + whole, from + k, count - whole) }, to);
            }
        }
        return;
    }
    for (index, panel_of) in panels.chunks_exact_mut(depth * width).enumerate() {
        let lines = panel(index * width);
        if operand.depth_stride == 1 {
            // SAFETY: as the caller promises; values of k lie side by side.
            unsafe { pack_turned(operand, lines, (from, depth), width, panel_of) };
            continue;
        }
        for (k, to) in panel_of.chunks_exact_mut(width).enumerate() {
            for (e, to) in to[..lines.1].iter_mut().enumerate() {
                // SAFETY: as the caller promises.
                *to = unsafe { operand.run(lines.0 + e, from + k, 1) }[0].to_f32();
            }
        }
    }
}

/// Whole panels of WIDTH lines of an operand whose lines of the extent lie side by side.
///
/// # Safety
/// As for [`pack_panels`], and the operand is contiguous along its extent.
unsafe fn pack_straight<T: Element, const WIDTH: usize>(
    operand: Operand<T>,
    (first, count): (usize, usize),
    (from, depth): (usize, usize),
    panels: &mut [f32],
) {
    for k in 0..depth {
        // SAFETY: as the caller promises.
        let lines = unsafe { operand.run(first, from + k, count) };
        for (lines, start) in lines.as_chunks::<WIDTH>().0.iter().zip((k * WIDTH..).step_by(depth * WIDTH)) {
            if let Some(to) = panels[start..].first_chunk_mut() {
                T::widen_array(lines, to);
            }
        }
    }
}

/// One panel of an operand that is contiguous in k: short runs of each line are widened into a square on the stack and
/// turned there.
///
/// # Safety
/// As for [`pack_panels`], and the operand's values of k lie side by side.
unsafe fn pack_turned<T: Element>(
    operand: Operand<T>,
    (first, count): (usize, usize),
    (from, depth): (usize, usize),
    width: usize,
    panel: &mut [f32],
) {
    const RUN: usize = 64;
    let mut lines = [[0f32; RUN]; 32];
    for k0 in (0..depth).step_by(RUN) {
        let run = RUN.min(depth - k0);
        for (e, to) in lines[..count].iter_mut().enumerate() {
            // SAFETY: as the caller promises.
            T::widen(unsafe { operand.run(first + e, from + k0, run) }, &mut to[..run]);
        }
        let panel = &mut panel[k0 * width..(k0 + run) * width];
        let whole = if run.is_multiple_of(4) { width / 4 * 4 } else { 0 };
        for e in (0..whole).step_by(4) {
            for k in (0..run).step_by(4) {
                // Four by four, which compilers turn into register shuffles.
                let square: [[f32; 4]; 4] = std::array::from_fn(|y| std::array::from_fn(|x| lines[e + y][k + x]));
                for x in 0..4 {
                    let turned: [f32; 4] = std::array::from_fn(|y| square[y][x]);
                    panel[(k + x) * width + e..][..4].copy_from_slice(&turned);
                }
            }
        }
        for (k, to) in panel.chunks_exact_mut(width).enumerate() {
            for (to, from) in to[whole..].iter_mut().zip(&lines[whole..count.max(whole)]) {
                *to = from[k];
            }
        }
    }
}
