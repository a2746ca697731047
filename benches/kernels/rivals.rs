//! What libraries of CUDA offer for the same jobs, where they are installed: products of cuBLAS, Cholesky of cuSOLVER.

use cudarc::cublas::{CudaBlas, result::gemm_ex, sys as blas};
use cudarc::cusolver::{safe::DnHandle, sys as solver};
use cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut};
use prune_cuda::{Device, Error};
use std::ffi::c_void;
use std::ptr::from_ref;

/// The libraries that there are.
pub(crate) struct Rivals {
    blas: Option<CudaBlas>,
    solver: Option<DnHandle>,
}

/// A type that cuBLAS multiplies, with sums in f32.
pub(crate) trait Factor {
    const TYPE: blas::cudaDataType;
}

impl Factor for half::f16 {
    const TYPE: blas::cudaDataType = blas::cudaDataType::CUDA_R_16F;
}

impl Factor for half::bf16 {
    const TYPE: blas::cudaDataType = blas::cudaDataType::CUDA_R_16BF;
}

impl Factor for f32 {
    const TYPE: blas::cudaDataType = blas::cudaDataType::CUDA_R_32F;
}

impl Rivals {
    /// Those that can be loaded.
    pub(crate) fn new(device: &Device) -> Self {
        let stream = device.stream();
        // SAFETY: both look for a library and keep it loaded; cudarc panics at the first call of one that is missing.
        let (has_blas, has_solver) = unsafe { (blas::is_culib_present(), solver::is_culib_present()) };
        Self {
            blas: has_blas.then(|| CudaBlas::new(stream.clone()).ok()).flatten(),
            solver: has_solver.then(|| DnHandle::new(stream.clone()).ok()).flatten(),
        }
    }

    /// All of XᵀX, X [tokens, columns] row-major: cuBLAS has no triangle for 16-bit inputs. `false` without cuBLAS.
    pub(crate) fn gram<T: Factor>(
        &self,
        device: &Device,
        inputs: &CudaSlice<T>,
        hessian: &mut CudaSlice<f32>,
        tokens: usize,
        columns: usize,
    ) -> Result<bool, Error> {
        let Some(library) = &self.blas else { return Ok(false) };
        let (x, _reading) = inputs.device_ptr(device.stream());
        let (h, _writing) = hessian.device_ptr_mut(device.stream());
        let (n, k, one, zero) = (columns as i32, tokens as i32, 1.0f32, 0.0f32);
        // In the column order of cuBLAS, X lies as Xᵀ: H = Xᵀ · (Xᵀ)ᵀ.
        // SAFETY: the matrices are of these sizes and live on the device until the work is done.
        let result = unsafe {
            gemm_ex(
                *library.handle(),
                blas::cublasOperation_t::CUBLAS_OP_N,
                blas::cublasOperation_t::CUBLAS_OP_T,
                n,
                n,
                k,
                from_ref(&one).cast::<c_void>(),
                x as *const c_void,
                T::TYPE,
                n,
                x as *const c_void,
                T::TYPE,
                n,
                from_ref(&zero).cast::<c_void>(),
                h as *mut c_void,
                blas::cudaDataType::CUDA_R_32F,
                n,
                blas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        Ok(result.is_ok())
    }

    /// Cholesky of H [n, n] in place, one triangle. `false` without cuSOLVER.
    pub(crate) fn cholesky(&self, device: &Device, hessian: &mut CudaSlice<f32>, n: usize) -> Result<bool, Error> {
        let Some(library) = &self.solver else { return Ok(false) };
        let (lower, n) = (solver::cublasFillMode_t::CUBLAS_FILL_MODE_LOWER, n as i32);
        let mut length = 0;
        let mut info = device.zeros::<i32>(1)?;
        let (h, _writing) = hessian.device_ptr_mut(device.stream());
        // SAFETY: asks for a size only.
        let code =
            unsafe { solver::cusolverDnSpotrf_bufferSize(library.cu(), lower, n, h as *mut f32, n, &raw mut length) };
        if code != solver::cusolverStatus_t::CUSOLVER_STATUS_SUCCESS {
            return Ok(false);
        }
        let mut work = device.zeros::<f32>(usize::try_from(length).unwrap_or(0).max(1))?;
        let (work, _working) = work.device_ptr_mut(device.stream());
        let (info, _telling) = info.device_ptr_mut(device.stream());
        // SAFETY: the matrix is [n, n], the work space as long as was asked for; both live until the work is done, since
        // memory is given back in the order of the stream.
        let code = unsafe {
            solver::cusolverDnSpotrf(
                library.cu(),
                lower,
                n,
                h as *mut f32,
                n,
                work as *mut f32,
                length,
                info as *mut i32,
            )
        };
        Ok(code == solver::cusolverStatus_t::CUSOLVER_STATUS_SUCCESS)
    }
}
