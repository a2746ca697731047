//! The crates that the products of this workspace could have come from, side by side: verified against each other, then
//! timed in turns, so that what else the machine does meets all of them.
//!
//! `cargo bench -p linalg`; `RAYON_NUM_THREADS=1 MATMUL_NUM_THREADS=1` in front for one thread. Best of several rounds.

use faer::linalg::matmul::triangular::{BlockStructure, matmul as triangular_matmul};
use faer::{Accum, MatMut, MatRef, Par, Side};
use linalg::{MatrixMut, MatrixRef, Region};
use std::time::{Duration, Instant};

const ROUNDS: usize = 7;

/// One way to do a task: what it is called, and what does it and tells how long that took.
type Candidate<'a> = (&'static str, Box<dyn FnMut() -> Duration + 'a>);

/// Times the candidates in turns and prints their best rates.
fn compare(task: &str, operations: f64, mut candidates: Vec<Candidate<'_>>) {
    let mut best = vec![Duration::MAX; candidates.len()];
    for _ in 0..ROUNDS {
        for (best, (_, run)) in best.iter_mut().zip(&mut candidates) {
            *best = run().min(*best);
        }
    }
    print!("{task:34}");
    for (best, (name, _)) in best.iter().zip(&candidates) {
        print!("  {name} {:>4.0}", operations / best.as_secs_f64() / 1e9);
    }
    println!("  GFLOP/s");
}

fn timed(run: impl FnOnce()) -> Duration {
    let started = Instant::now();
    run();
    started.elapsed()
}

/// Small whole numbers, whose products are exact in f32 in every order of summation.
fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919) % 13) as f32 - 6.0).collect()
}

fn row_major(data: &[f32], rows: usize, columns: usize) -> MatRef<'_, f32> {
    MatRef::from_row_major_slice(data, rows, columns)
}

fn product(m: usize, n: usize, k: usize) {
    let (a, b) = (numbers(m * k), numbers(k * n));
    let mut outputs: [Vec<f32>; 4] = std::array::from_fn(|_| vec![0.0; m * n]);
    let [ours, faers, gemms, matrixmultiplys] = &mut outputs;
    let (a, b) = (&a[..], &b[..]);
    compare(
        &format!("product [{m}, {k}] x [{k}, {n}]"),
        2.0 * (m * n * k) as f64,
        vec![
            (
                "ours",
                Box::new(|| {
                    let (a, b) = (MatrixRef::new(a, m, k), MatrixRef::new(b, k, n));
                    timed(|| linalg::gemm(1.0, a, b, 0.0, MatrixMut::new(ours, m, n), Region::Full))
                }),
            ),
            (
                "faer",
                Box::new(|| {
                    let target = MatMut::from_row_major_slice_mut(faers, m, n);
                    let (a, b) = (row_major(a, m, k), row_major(b, k, n));
                    timed(|| faer::linalg::matmul::matmul(target, Accum::Replace, a, b, 1.0, Par::rayon(0)))
                }),
            ),
            (
                "gemm",
                Box::new(|| {
                    let threads = gemm::Parallelism::Rayon(0);
                    let (m_, n_, k_) = (m as isize, n as isize, k as isize);
                    let (to, a, b) = (gemms.as_mut_ptr(), a.as_ptr(), b.as_ptr());
                    let _ = (m_, k_);
                    // SAFETY: the strides are those of row-major matrices of these sizes.
                    timed(|| unsafe {
                        gemm::gemm(
                            m, n, k, to, 1, n_, false, a, 1, k_, b, 1, n_, 0.0, 1.0, false, false, false, threads,
                        )
                    })
                }),
            ),
            (
                "matrixmultiply",
                Box::new(|| {
                    let (n_, k_) = (n as isize, k as isize);
                    let (to, a, b) = (matrixmultiplys.as_mut_ptr(), a.as_ptr(), b.as_ptr());
                    // SAFETY: as above.
                    timed(|| unsafe { matrixmultiply::sgemm(m, k, n, 1.0, a, k_, 1, b, n_, 1, 0.0, to, n_, 1) })
                }),
            ),
        ],
    );
    let [ours, others @ ..] = &outputs;
    assert!(others.iter().all(|other| other == ours), "the candidates disagree");
}

fn gram(tokens: usize, n: usize) {
    let x = numbers(tokens * n);
    let mut outputs: [Vec<f32>; 2] = std::array::from_fn(|_| vec![0.0; n * n]);
    let [ours, faers] = &mut outputs;
    let x = &x[..];
    compare(
        &format!("one triangle of XᵀX, X [{tokens}, {n}]"),
        (tokens * n * n) as f64,
        vec![
            (
                "ours",
                Box::new(|| {
                    let x = MatrixRef::new(x, tokens, n);
                    let target = MatrixMut::new(ours, n, n);
                    timed(|| linalg::gemm(1.0, x.transposed(), x, 0.0, target, Region::Upper))
                }),
            ),
            (
                "faer",
                Box::new(|| {
                    let x = row_major(x, tokens, n);
                    let target = MatMut::from_row_major_slice_mut(faers, n, n);
                    let (triangle, whole) = (BlockStructure::TriangularUpper, BlockStructure::Rectangular);
                    timed(|| {
                        triangular_matmul(
                            target,
                            triangle,
                            Accum::Replace,
                            x.transpose(),
                            whole,
                            x,
                            whole,
                            1.0,
                            Par::rayon(0),
                        )
                    })
                }),
            ),
        ],
    );
    let [ours, faers] = &outputs;
    assert!((0..n).all(|i| ours[i * n + i..(i + 1) * n] == faers[i * n + i..(i + 1) * n]), "the candidates disagree");
}

/// faer's Cholesky factorization; this workspace's own factor is timed by `cargo bench -p prune`.
fn cholesky(n: usize) {
    let matrix = faer::Mat::from_fn(n, n, |i, j| if i == j { n as f32 } else { 1.0 / (1 + i.abs_diff(j)) as f32 });
    let factorization: Vec<Candidate<'_>> = vec![(
        "faer",
        Box::new(|| {
            timed(|| {
                let factor = matrix.llt(Side::Lower);
                assert!(factor.is_ok(), "a positive definite matrix");
            })
        }),
    )];
    compare(&format!("Cholesky {n}"), (n as f64).powi(3) / 3.0, factorization);
}

fn main() {
    println!("{} threads, best of {ROUNDS}", rayon::current_num_threads());
    product(2048, 2048, 2048);
    product(2048, 1536, 576);
    product(2048, 576, 576);
    product(128, 4096, 2048);
    gram(2048, 576);
    gram(2048, 1536);
    gram(8192, 2048);
    gram(2048, 4096);
    cholesky(2048);
    cholesky(4096);
}
