//! Micro-kernels: one tile of C from one packed panel of A and one of B, held in registers throughout.
//!
//! A panel of A is `rows` elements for each k, one of B `columns` elements for each k; the products are summed in the
//! order of k. The tile sizes fill the register file: AVX-512 has 32 registers of 16 lanes (12 × 32: 24 accumulators,
//! two columns of B, one broadcast), AVX2 16 of 8 (6 × 16: 12 accumulators, two, one).

use std::sync::OnceLock;

/// Where a tile goes: `C ← beta·C + alpha·tile`.
#[derive(Clone, Copy)]
pub(crate) struct Update {
    pub(crate) alpha: f32,
    pub(crate) beta: f32,
}

/// `(depth, a, b, c, row stride of c, update)`; see [`Kernel`] for what must hold.
type Run = unsafe fn(usize, *const f32, *const f32, *mut f32, usize, Update);

/// A micro-kernel with the size of its tile.
///
/// `run` reads `depth · rows` floats at `a` and `depth · columns` at `b`, and reads (unless beta is zero) and writes a
/// [rows, columns] tile at `c`; the caller promises that these lie inside their buffers and that nobody else uses the
/// tile meanwhile.
#[derive(Clone, Copy)]
pub(crate) struct Kernel {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) run: Run,
}

/// The largest tile of any kernel, for buffers on the stack.
pub(crate) const LARGEST_TILE: usize = 12 * 32;

impl Kernel {
    /// The fastest kernel that this processor runs.
    pub(crate) fn get() -> Kernel {
        static KERNEL: OnceLock<Kernel> = OnceLock::new();
        *KERNEL.get_or_init(|| Kernel::all()[0].1)
    }

    /// A kernel for panels of pairs of bf16, neighbours in depth, each in the place of one float; it does twice the
    /// operations of [`Kernel::get`] in the same time. The products are exact, and denormals count as zero.
    pub(crate) fn pairs() -> Option<Kernel> {
        #[cfg(target_arch = "x86_64")]
        if std::is_x86_feature_detected!("avx512f") && std::is_x86_feature_detected!("avx512bf16") {
            return Some(Kernel { rows: 12, columns: 32, run: x86::avx512_pairs });
        }
        None
    }

    /// Every kernel that this processor runs, with its name, the fastest first.
    pub(crate) fn all() -> Vec<(&'static str, Kernel)> {
        let mut kernels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if std::is_x86_feature_detected!("avx512f") {
                kernels.push(("avx512", Kernel { rows: 12, columns: 32, run: x86::avx512 }));
            }
            if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
                kernels.push(("avx2", Kernel { rows: 6, columns: 16, run: x86::avx2 }));
            }
        }
        kernels.push(("portable", Kernel { rows: 4, columns: 16, run: portable }));
        kernels
    }
}

/// Plain loops over fixed sizes, which every compiler target vectorizes to what it has.
///
/// # Safety
/// See [`Kernel`].
unsafe fn portable(depth: usize, a: *const f32, b: *const f32, c: *mut f32, stride: usize, update: Update) {
    let mut tile = [[0f32; 16]; 4];
    for k in 0..depth {
        // SAFETY: the caller promises `depth` times 4 floats at `a` and 16 at `b`.
        let (a, b) = unsafe { (&*a.add(k * 4).cast::<[f32; 4]>(), &*b.add(k * 16).cast::<[f32; 16]>()) };
        for (row, &a) in tile.iter_mut().zip(a) {
            for (sum, &b) in row.iter_mut().zip(b) {
                *sum += a * b;
            }
        }
    }
    for (i, row) in tile.iter().enumerate() {
        // SAFETY: the caller promises a [4, 16] tile at `c`.
        let c = unsafe { &mut *c.add(i * stride).cast::<[f32; 16]>() };
        for (c, &sum) in c.iter_mut().zip(row) {
            let kept = if update.beta == 0.0 { 0.0 } else { update.beta * *c };
            *c = kept + update.alpha * sum;
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Update;
    use std::arch::x86_64::*;
    use std::mem::transmute;

    /// A kernel over 16-lane vectors; `$product` is one step of the depth on a broadcast `$a`, a vector `$b` and a `$sum`.
    macro_rules! avx512 {
        ($(#[$meta:meta])* $name:ident, $features:literal, |$a:ident, $b:ident, $sum:ident| $product:expr) => {
            $(#[$meta])*
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $name(
                depth: usize,
                mut a: *const f32,
                mut b: *const f32,
                c: *mut f32,
                stride: usize,
                update: Update,
            ) {
                // C is asked for before it is needed: where the products are short, waiting for it would cost as much as
                // they do.
                for i in 0..12 {
                    _mm_prefetch::<_MM_HINT_T0>(c.wrapping_add(i * stride).cast());
                    _mm_prefetch::<_MM_HINT_T0>(c.wrapping_add(i * stride + 16).cast());
                }
                let mut tile = [[_mm512_setzero_ps(); 2]; 12];
                for _ in 0..depth {
                    // SAFETY: the caller promises `depth` times 12 floats at `a` and 32 at `b`.
                    unsafe {
                        let halves = [_mm512_loadu_ps(b), _mm512_loadu_ps(b.add(16))];
                        for (i, row) in tile.iter_mut().enumerate() {
                            let $a = _mm512_set1_ps(*a.add(i));
                            for ($sum, $b) in row.iter_mut().zip(halves) {
                                *$sum = $product;
                            }
                        }
                        a = a.add(12);
                        b = b.add(32);
                    }
                }
                let (alpha, beta) = (_mm512_set1_ps(update.alpha), _mm512_set1_ps(update.beta));
                for (i, row) in tile.iter().enumerate() {
                    for (half, &sum) in row.iter().enumerate() {
                        // SAFETY: the caller promises a [12, 32] tile at `c`.
                        unsafe {
                            let c = c.add(i * stride + half * 16);
                            let kept = match update.beta {
                                0.0 => _mm512_setzero_ps(),
                                _ => _mm512_mul_ps(beta, _mm512_loadu_ps(c)),
                            };
                            _mm512_storeu_ps(c, _mm512_fmadd_ps(alpha, sum, kept));
                        }
                    }
                }
            }
        };
    }

    avx512! {
        /// # Safety
        /// See [`super::Kernel`]; the processor has AVX-512F.
        avx512, "avx512f", |a, b, sum| _mm512_fmadd_ps(a, b, *sum)
    }

    avx512! {
        /// Every float of the panels is a pair of bf16, neighbours in depth.
        ///
        /// # Safety
        /// See [`super::Kernel`]; the processor has AVX-512F and AVX-512_BF16.
        avx512_pairs, "avx512f,avx512bf16", |a, b, sum| {
            _mm512_dpbf16_ps(*sum, transmute::<__m512, __m512bh>(a), transmute::<__m512, __m512bh>(b))
        }
    }

    /// # Safety
    /// See [`super::Kernel`]; the processor has AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn avx2(
        depth: usize,
        mut a: *const f32,
        mut b: *const f32,
        c: *mut f32,
        stride: usize,
        update: Update,
    ) {
        let mut tile = [[_mm256_setzero_ps(); 2]; 6];
        for _ in 0..depth {
            // SAFETY: the caller promises `depth` times 6 floats at `a` and 16 at `b`.
            unsafe {
                let (b0, b1) = (_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8)));
                for (i, row) in tile.iter_mut().enumerate() {
                    let a = _mm256_broadcast_ss(&*a.add(i));
                    row[0] = _mm256_fmadd_ps(a, b0, row[0]);
                    row[1] = _mm256_fmadd_ps(a, b1, row[1]);
                }
                a = a.add(6);
                b = b.add(16);
            }
        }
        let (alpha, beta) = (_mm256_set1_ps(update.alpha), _mm256_set1_ps(update.beta));
        for (i, row) in tile.iter().enumerate() {
            for (half, &sum) in row.iter().enumerate() {
                // SAFETY: the caller promises a [6, 16] tile at `c`.
                unsafe {
                    let c = c.add(i * stride + half * 8);
                    let kept =
                        if update.beta == 0.0 { _mm256_setzero_ps() } else { _mm256_mul_ps(beta, _mm256_loadu_ps(c)) };
                    _mm256_storeu_ps(c, _mm256_fmadd_ps(alpha, sum, kept));
                }
            }
        }
    }
}
