//! Products through cudarc's cuBLAS, compared with plain loops.

use cudarc::cublas::{CudaBlas, Gemm, GemmConfig, StridedBatchedConfig, sys};
use cudarc::driver::{CudaContext, CudaStream};
use emulator::loader::{self, Loaded};
use emulator::options::Options;
use emulator::report::Kind;
use half::{bf16, f16};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

const N: sys::cublasOperation_t = sys::cublasOperation_t::CUBLAS_OP_N;
const T: sys::cublasOperation_t = sys::cublasOperation_t::CUBLAS_OP_T;

/// One driver a process: tests take turns.
fn machine(options: &Options) -> (MutexGuard<'static, ()>, &'static Loaded) {
    static TURN: Mutex<()> = Mutex::new(());
    static LOADED: OnceLock<Loaded> = OnceLock::new();
    // The crate is named so that its library is built.
    std::hint::black_box(emulator_cublas::cublasGetStatusString(0));
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let loaded = LOADED.get_or_init(|| {
        let loaded = loader::load(options).unwrap();
        loader::load_cublas().unwrap();
        loaded
    });
    loaded.configure(options).unwrap();
    (turn, loaded)
}

/// Small multiples of 1/4, of which all sums and products here are exact in every type.
fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|index| ((index * 7 + index / 5) % 9) as f32 / 4.0 - 1.0).collect()
}

/// α · op(A) · op(B) + β · C with leading dimensions as small as they can be.
fn expected(config: &GemmConfig<f32>, a: &[f32], b: &[f32], c: &[f32]) -> Vec<f32> {
    let [m, n, k] = [config.m, config.n, config.k].map(|size| size as usize);
    let mut out = c.to_vec();
    for column in 0..n {
        for row in 0..m {
            let sum: f32 = (0..k)
                .map(|i| {
                    let left = if config.transa == N { a[i * m + row] } else { a[row * k + i] };
                    let right = if config.transb == N { b[column * k + i] } else { b[i * n + column] };
                    left * right
                })
                .sum();
            out[column * m + row] = config.alpha * sum + config.beta * c[column * m + row];
        }
    }
    out
}

fn config(transa: sys::cublasOperation_t, transb: sys::cublasOperation_t) -> GemmConfig<f32> {
    let (m, n, k) = (33, 10, 17);
    let (lda, ldb) = (if transa == N { m } else { k }, if transb == N { k } else { n });
    GemmConfig { transa, transb, m, n, k, alpha: 0.5, lda, ldb, beta: 2.0, ldc: m }
}

fn start() -> (Arc<CudaStream>, CudaBlas) {
    let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
    (stream.clone(), CudaBlas::new(stream).unwrap())
}

macro_rules! product {
    ($stream:ident, $blas:ident, $type:ty, $config:expr, $to:expr, $from:expr) => {{
        let config = $config;
        let (a, b, c) = (numbers(33 * 17), numbers(17 * 10), numbers(33 * 10));
        let upload = |values: &[f32]| {
            let values: Vec<$type> = values.iter().map(|&value| $to(value)).collect();
            $stream.clone_htod(&values).unwrap()
        };
        let (of_a, of_b, mut of_c) = (upload(&a), upload(&b), upload(&c));
        let GemmConfig { transa, transb, m, n, k, lda, ldb, ldc, .. } = config;
        let (alpha, beta) = ($to(config.alpha), $to(config.beta));
        let own = GemmConfig { transa, transb, m, n, k, alpha, lda, ldb, beta, ldc };
        // SAFETY: the matrices have these sizes.
        unsafe { $blas.gemm(own, &of_a, &of_b, &mut of_c) }.unwrap();
        let found: Vec<$type> = $stream.clone_dtoh(&of_c).unwrap();
        let rounded: Vec<f32> = expected(&config, &a, &b, &c).iter().map(|&value| $from($to(value))).collect();
        assert_eq!(found.into_iter().map($from).collect::<Vec<f32>>(), rounded);
    }};
}

#[test]
fn products_of_all_types_and_transpositions() {
    for options in [Options::default(), Options { deferred: true, seed: Some(3), ..Options::default() }] {
        let (_turn, loaded) = machine(&options);
        {
            let (stream, blas) = start();
            for config in [config(N, N), config(T, N), config(N, T), config(T, T)] {
                product!(stream, blas, f32, config, |value: f32| value, |value: f32| value);
                product!(stream, blas, f64, config, f64::from, |value: f64| value as f32);
                product!(stream, blas, f16, config, f16::from_f32, f16::to_f32);
                product!(stream, blas, bf16, config, bf16::from_f32, bf16::to_f32);
            }
        }
        assert_eq!(loaded.findings(), []);
    }
}

#[test]
fn batches_are_strided() {
    let (_turn, _) = machine(&Options::default());
    let (stream, blas) = start();
    let config = config(N, T);
    let (a, b, c) = (numbers(3 * 600), numbers(3 * 180), numbers(3 * 340));
    let (of_a, of_b) = (stream.clone_htod(&a).unwrap(), stream.clone_htod(&b).unwrap());
    let mut of_c = stream.clone_htod(&c).unwrap();
    let batch = StridedBatchedConfig { gemm: config, batch_size: 3, stride_a: 600, stride_b: 180, stride_c: 340 };
    // SAFETY: the matrices have these sizes.
    unsafe { blas.gemm_strided_batched(batch, &of_a, &of_b, &mut of_c) }.unwrap();
    let found: Vec<f32> = stream.clone_dtoh(&of_c).unwrap();
    for index in 0..3 {
        let (a, b) = (&a[index * 600..], &b[index * 180..]);
        let c = &c[index * 340..][..330];
        assert_eq!(found[index * 340..][..330], expected(&config, a, b, c));
        // What lies between the matrices stays.
        assert_eq!(found[index * 340 + 330..][..10], numbers(3 * 340)[index * 340 + 330..][..10]);
    }
}

#[test]
fn batches_beyond_all_memory_are_refused() {
    let (_turn, _) = machine(&Options { log: false, ..Options::default() });
    let (stream, blas) = start();
    let (a, b) = (stream.alloc_zeros::<f32>(600).unwrap(), stream.alloc_zeros::<f32>(600).unwrap());
    let mut c = stream.alloc_zeros::<f32>(600).unwrap();
    let mut multiply = |batch_size, stride_a| {
        let batch = StridedBatchedConfig { gemm: config(N, N), batch_size, stride_a, stride_b: 0, stride_c: 0 };
        // SAFETY: the emulator checks what is there.
        unsafe { blas.gemm_strided_batched(batch, &a, &b, &mut c) }
    };
    // What would be checked for each product does not fit into memory.
    assert_eq!(multiply(i32::MAX, 0).unwrap_err().0, sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED);
    multiply(3, i64::MAX / 2).unwrap();
    let error = stream.synchronize().unwrap_err();
    assert_eq!(error.0, cudarc::driver::sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
}

#[test]
fn a_matrix_that_is_too_small_is_an_illegal_access() {
    let (_turn, loaded) = machine(&Options { log: false, ..Options::default() });
    let (stream, blas) = start();
    let a = stream.alloc_zeros::<f32>(33 * 17 - 1).unwrap();
    let b = stream.alloc_zeros::<f32>(17 * 10).unwrap();
    let mut c = stream.alloc_zeros::<f32>(33 * 10).unwrap();
    // SAFETY: the emulator checks what is there.
    unsafe { blas.gemm(config(N, N), &a, &b, &mut c) }.unwrap();
    let error = stream.synchronize().unwrap_err();
    assert_eq!(error.0, cudarc::driver::sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    let findings = loaded.findings();
    assert_eq!(findings[0].kind, Kind::OutOfBounds);
    assert!(findings[0].kernel.starts_with("cublasSgemm 33x10x17 on stream"), "{}", findings[0].kernel);
    // SAFETY: the leading dimension is refused.
    let refused = unsafe { blas.gemm(GemmConfig { lda: 32, ..config(N, N) }, &a, &b, &mut c) };
    assert_eq!(refused.unwrap_err().0, sys::cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE);
}
