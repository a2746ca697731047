//! The dense products of a model, by cuBLAS.

use std::sync::Arc;

use cudarc::cublas::{result, sys};
use cudarc::driver::{CudaContext, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DeviceSlice};
use prune_cuda::Device;

use crate::error::{driver, shape};
use crate::{Element, Error};

/// A cuBLAS handle, bound to one stream for good.
///
/// That is what makes products repeat: cuBLAS gives the same bits in every run on devices of one architecture with as many
/// multiprocessors, unless one handle serves several streams at a time, which share its workspace then (cuBLAS
/// documentation, "Results reproducibility"). It allocates that workspace itself.
#[derive(Debug)]
pub(crate) struct Cublas {
    handle: sys::cublasHandle_t,
    /// Keeps the context, which must outlive the handle.
    stream: Arc<CudaStream>,
}

// SAFETY: cuBLAS may be called from several threads, even with one handle, as long as none changes its settings (cuBLAS
// documentation, "Thread safety"); nothing does once it is made, and it is destroyed by its last owner.
unsafe impl Send for Cublas {}
// SAFETY: likewise.
unsafe impl Sync for Cublas {}

impl Cublas {
    /// A handle for the stream of a device.
    pub(crate) fn open(device: &Device) -> Result<Self, Error> {
        // SAFETY: looks for the library and lets go of it. cudarc panics at the first call of a missing one.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::NoCublas);
        }
        let stream = device.stream().clone();
        bind(stream.context())?;
        let what = || format!("a handle on device {}", device.ordinal());
        let handle = result::create_handle().map_err(|error| refused(error, what))?;
        let cublas = Self { handle, stream };
        // SAFETY: both are alive, and of the context that was just bound.
        unsafe { result::set_stream(handle, cublas.stream.cu_stream().cast()) }
            .map_err(|error| refused(error, what))?;
        Ok(cublas)
    }

    /// Y ← β·Y + X·Wᵀ: `weight` W [rows, columns], `inputs` X [tokens, columns], `outputs` f32 Y [tokens, rows], all row-major
    /// without gaps. Products of `T` are summed in f32. Of f32 they are those of f32: tf32, with ten bits of each, is for whoever
    /// asks for it, which nothing does.
    pub(crate) fn multiply<T: Element>(
        &self,
        weight: &CudaView<'_, T>,
        inputs: &CudaView<'_, T>,
        [tokens, rows, columns]: [usize; 3],
        beta: f32,
        outputs: &mut CudaViewMut<'_, f32>,
    ) -> Result<(), Error> {
        check("a weight", weight, rows, columns)?;
        check("inputs", inputs, tokens, columns)?;
        check("outputs", outputs, tokens, rows)?;
        self.check_device("a weight", weight)?;
        self.check_device("inputs", inputs)?;
        self.check_device("outputs", outputs)?;
        if tokens == 0 || rows == 0 {
            return Ok(());
        }
        let size = |what, count: usize| i32::try_from(count).map_err(|_| shape(what, count, "fewer than 2^31"));
        let (m, n, k) =
            (size("outputs of a layer", rows)?, size("tokens", tokens)?, size("inputs of a layer", columns)?);
        let alpha = 1f32;
        bind(self.stream.context())?;
        let (w, _weight) = weight.device_ptr(&self.stream);
        let (x, _inputs) = inputs.device_ptr(&self.stream);
        let (y, _outputs) = outputs.device_ptr_mut(&self.stream);
        // What is row-major here is column-major and transposed there: Yᵀ = W·Xᵀ, where W is the transpose of what cuBLAS sees.
        // SAFETY: the handle is alive. The matrices are as large as was checked, on its device, and borrowed until the product is
        // enqueued on the stream that orders all that follows. α and β are read during the call.
        unsafe {
            result::gemm_ex(
                self.handle,
                sys::cublasOperation_t::CUBLAS_OP_T,
                sys::cublasOperation_t::CUBLAS_OP_N,
                m,
                n,
                k,
                (&raw const alpha).cast(),
                w as *const _,
                T::DATA,
                k,
                x as *const _,
                T::DATA,
                k,
                (&raw const beta).cast(),
                y as *mut _,
                sys::cudaDataType::CUDA_R_32F,
                m,
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .map_err(|error| refused(error, || format!("a product [{tokens}, {columns}] · [{columns}, {rows}]")))
    }

    fn check_device<T>(&self, what: &'static str, buffer: &impl DeviceSlice<T>) -> Result<(), Error> {
        let (found, expected) = (buffer.stream().context().ordinal(), self.stream.context().ordinal());
        if found == expected {
            return Ok(());
        }
        Err(prune_cuda::Error::OtherDevice { what, found, expected }.into())
    }
}

impl Drop for Cublas {
    fn drop(&mut self) {
        // A device that failed fails here too, and has said so before.
        if self.stream.context().bind_to_thread().is_ok() {
            // SAFETY: the handle is this one's own, and not used any more.
            let _ = unsafe { result::destroy_handle(self.handle) };
        }
    }
}

fn bind(context: &CudaContext) -> Result<(), Error> {
    context.bind_to_thread().map_err(driver)
}

fn check<T>(what: &'static str, buffer: &impl DeviceSlice<T>, rows: usize, columns: usize) -> Result<(), Error> {
    if rows.checked_mul(columns).is_some_and(|needed| needed <= buffer.len()) {
        return Ok(());
    }
    Err(shape(what, format!("{} elements", buffer.len()), format!("[{rows}, {columns}]")))
}

fn refused(error: result::CublasError, what: impl FnOnce() -> String) -> Error {
    Error::Cublas { status: format!("{:?}", error.0), what: what() }
}
