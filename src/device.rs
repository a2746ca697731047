//! A GPU: its stream, its memory, and the kernels loaded on it.

use crate::module::{Entry, Source};
use crate::{Error, Number};
use cudarc::driver::sys::{CUfunction_attribute, CUmemPool_attribute, CUmemoryPool, CUresult};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, DeviceSlice,
    SyncOnDrop, ValidAsZeroBits, result, sys,
};
use cudarc::nvrtc::Ptx;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

/// The oldest compute capability with the instructions that the kernels are made of: `cp.async`, and `mma` for bf16 and tf32.
const OLDEST: (i32, i32) = (8, 0);

/// A GPU, and a stream of work on it. Clones share the stream.
#[derive(Clone, Debug)]
pub struct Device {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    loaded: Arc<Loaded>,
    pool: Option<Pool>,
}

/// The memory pool that a device's streams allocate from: it counts what they hold.
#[derive(Clone, Copy, Debug)]
struct Pool(CUmemoryPool);

// SAFETY: a handle of the driver, which is valid for as long as the device is there and may be used by all threads.
unsafe impl Send for Pool {}
// SAFETY: likewise.
unsafe impl Sync for Pool {}

impl Pool {
    /// The pool of a device, which keeps what is freed: by default it hands that back to the system whenever somebody waits
    /// for a stream, only to have it mapped anew for the next chunk. `None` where devices have no pools.
    fn of(context: &CudaContext) -> Result<Option<Self>, Error> {
        if !context.has_async_alloc() {
            return Ok(None);
        }
        context.bind_to_thread()?;
        // SAFETY: the handle of an open context's device.
        let pool = Self(unsafe { result::device::get_mem_pool(context.cu_device()) }?);
        pool.set(CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, u64::MAX)?;
        Ok(Some(pool))
    }

    fn get(self, attribute: CUmemPool_attribute) -> Result<u64, Error> {
        let mut value = 0_u64;
        // SAFETY: the pool of a device; the attributes that are asked for here have 64 bits.
        unsafe { result::mem_pool::get_attribute(self.0, attribute, (&raw mut value).cast()) }?;
        Ok(value)
    }

    fn set(self, attribute: CUmemPool_attribute, mut value: u64) -> Result<(), Error> {
        // SAFETY: as in `get`.
        Ok(unsafe { result::mem_pool::set_attribute(self.0, attribute, (&raw mut value).cast()) }?)
    }
}

/// What was loaded so far, by name.
#[derive(Debug, Default)]
struct Loaded {
    modules: Mutex<HashMap<&'static str, Arc<CudaModule>>>,
    functions: Mutex<HashMap<&'static str, CudaFunction>>,
}

/// How many devices the driver offers.
///
/// # Errors
/// [`Error::NoDriver`], or what the driver says.
fn count() -> Result<usize, Error> {
    // SAFETY: looks for the library and keeps it loaded. cudarc panics at the first call of a missing one.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::NoDriver);
    }
    match CudaContext::device_count() {
        Ok(count) => Ok(usize::try_from(count).unwrap_or(0)),
        Err(error) if error.0 == CUresult::CUDA_ERROR_NO_DEVICE => Ok(0),
        Err(error) => Err(error.into()),
    }
}

impl Device {
    /// How many devices there are.
    ///
    /// # Errors
    /// [`Error::NoDriver`] on a machine without one.
    pub fn count() -> Result<usize, Error> {
        count()
    }

    /// Opens a device, with a new stream on it.
    ///
    /// # Errors
    /// [`Error::NoDriver`], [`Error::NoDevice`], or [`Error::TooOldDevice`].
    pub fn open(ordinal: usize) -> Result<Self, Error> {
        let count = count()?;
        if ordinal >= count {
            return Err(Error::NoDevice { ordinal, count });
        }
        let context = CudaContext::new(ordinal)?;
        let capability = context.compute_capability()?;
        check_capability(ordinal, capability, || Ok(context.name()?))?;
        let (stream, pool) = (context.new_stream()?, Pool::of(&context)?);
        Ok(Self { context, stream, loaded: Arc::default(), pool })
    }

    /// The same device with another stream, whose work runs beside this one's.
    ///
    /// # Errors
    /// What the driver says.
    pub fn fork(&self) -> Result<Self, Error> {
        Ok(Self { stream: self.context.new_stream()?, ..self.clone() })
    }

    /// The device's number.
    pub fn ordinal(&self) -> usize {
        self.context.ordinal()
    }

    /// What tells it from every other device, also of other machines.
    ///
    /// # Errors
    /// What the driver says.
    pub fn identity(&self) -> Result<[u8; 16], Error> {
        Ok(self.context.uuid()?.bytes.map(|byte| byte as u8))
    }

    /// Its name, such as `NVIDIA A100-SXM4-80GB`.
    ///
    /// # Errors
    /// What the driver says.
    pub fn name(&self) -> Result<String, Error> {
        Ok(self.context.name()?)
    }

    /// Free and total bytes of its memory.
    ///
    /// # Errors
    /// What the driver says.
    pub fn memory(&self) -> Result<(usize, usize), Error> {
        Ok(self.context.mem_get_info()?)
    }

    /// Bytes of its memory that can be had: those that are free, and those that its pool keeps.
    ///
    /// # Errors
    /// What the driver says.
    pub fn available(&self) -> Result<usize, Error> {
        let (free, _) = self.memory()?;
        let kept = self.pool.map(|pool| {
            let reserved = pool.get(CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
            Ok::<_, Error>(reserved.saturating_sub(pool.get(CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?))
        });
        Ok(free.saturating_add(kept.transpose()?.unwrap_or(0) as usize))
    }

    /// Bytes of its memory that are allocated by this process now: what was freed counts no more, though the work before may
    /// still use it. `None` where devices have no memory pools, which count it.
    ///
    /// # Errors
    /// What the driver says.
    pub fn used(&self) -> Result<Option<u64>, Error> {
        self.pool.map(|pool| pool.get(CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)).transpose()
    }

    /// The most of [`Device::used`] since the start or the last [`Device::reset_peak`].
    ///
    /// # Errors
    /// What the driver says.
    pub fn peak(&self) -> Result<Option<u64>, Error> {
        self.pool.map(|pool| pool.get(CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)).transpose()
    }

    /// Starts [`Device::peak`] anew from what is used now. The pool is the device's: of several streams on it, for all.
    ///
    /// # Errors
    /// What the driver says.
    pub fn reset_peak(&self) -> Result<(), Error> {
        // The only value that it may be set to.
        self.pool.map_or(Ok(()), |pool| pool.set(CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, 0))
    }

    /// The stream on which everything is enqueued.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Waits until all work of the stream is done.
    ///
    /// # Errors
    /// If any of it failed.
    pub fn synchronize(&self) -> Result<(), Error> {
        Ok(self.stream.synchronize()?)
    }

    /// Memory for `length` elements, all zero.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], or what the driver says.
    pub fn zeros<T: DeviceRepr + ValidAsZeroBits>(&self, length: usize) -> Result<CudaSlice<T>, Error> {
        self.check_length::<T>(length)?;
        self.allocated::<T>(length, self.stream.alloc_zeros(length))
    }

    /// Memory for `length` numbers with whatever was there before: for what a kernel writes before anything reads it.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], or what the driver says.
    pub fn uninitialized<T: Number>(&self, length: usize) -> Result<CudaSlice<T>, Error> {
        self.scratch(length)
    }

    /// As [`Device::uninitialized`], of any elements.
    pub(crate) fn scratch<T: DeviceRepr>(&self, length: usize) -> Result<CudaSlice<T>, Error> {
        self.check_length::<T>(length)?;
        // SAFETY: kernels fill it before it is read; the emulated driver proves that of them.
        self.allocated::<T>(length, unsafe { self.stream.alloc(length) })
    }

    /// Checks that the bytes of `length` elements can be counted: cudarc multiplies without looking, and would hand out
    /// less memory than it says.
    fn check_length<T>(&self, length: usize) -> Result<(), Error> {
        if length.checked_mul(size_of::<T>()).is_some() {
            return Ok(());
        }
        let (free, total) = self.memory()?;
        Err(Error::OutOfMemory { ordinal: self.ordinal(), bytes: usize::MAX, free, total })
    }

    /// A copy of `values` on the device.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], or what the driver says.
    pub fn upload<T: DeviceRepr>(&self, values: &[T]) -> Result<CudaSlice<T>, Error> {
        self.allocated::<T>(values.len(), self.stream.clone_htod(values))
    }

    /// A copy of `values` on the host. Waits for the work before it.
    ///
    /// # Errors
    /// What the driver says, of this or of the work before.
    pub fn download<T: DeviceRepr>(&self, values: &impl DevicePtr<T>) -> Result<Vec<T>, Error> {
        self.check_device("what is downloaded", values)?;
        let copy = self.stream.clone_dtoh(values)?;
        self.synchronize()?;
        Ok(copy)
    }

    fn allocated<T>(
        &self,
        length: usize,
        result: Result<CudaSlice<T>, cudarc::driver::DriverError>,
    ) -> Result<CudaSlice<T>, Error> {
        result.map_err(|error| match (error.0, self.memory()) {
            (CUresult::CUDA_ERROR_OUT_OF_MEMORY, Ok((free, total))) => {
                Error::OutOfMemory { ordinal: self.ordinal(), bytes: length * size_of::<T>(), free, total }
            }
            _ => error.into(),
        })
    }

    /// Checks that a buffer lies on this device.
    pub(crate) fn check_device<T>(&self, what: &'static str, buffer: &impl DeviceSlice<T>) -> Result<(), Error> {
        let (found, expected) = (buffer.stream().context().ordinal(), self.ordinal());
        if found == expected { Ok(()) } else { Err(Error::OtherDevice { what, found, expected }) }
    }

    /// The address of what a kernel reads. The guard must be dropped after the launch.
    pub(crate) fn address<'a, T>(
        &'a self,
        what: &'static str,
        buffer: &'a impl DevicePtr<T>,
    ) -> Result<(u64, SyncOnDrop<'a>), Error> {
        self.check_device(what, buffer)?;
        Ok(buffer.device_ptr(&self.stream))
    }

    /// The address of what a kernel writes. The guard must be dropped after the launch.
    pub(crate) fn address_mut<'a, T>(
        &'a self,
        what: &'static str,
        buffer: &'a mut impl DevicePtrMut<T>,
    ) -> Result<(u64, SyncOnDrop<'a>), Error> {
        self.check_device(what, buffer)?;
        Ok(buffer.device_ptr_mut(&self.stream))
    }

    /// Launches a kernel; `arguments!` makes its arguments.
    ///
    /// # Safety
    /// The arguments must be those of the kernel, in number, order and type, and describe memory of this device that the
    /// kernel may access as its header says, until the launch is done.
    pub(crate) unsafe fn launch(
        &self,
        entry: &Entry,
        grid: (u32, u32, u32),
        arguments: &mut [*mut c_void],
    ) -> Result<(), Error> {
        if grid.0 == 0 || grid.1 == 0 || grid.2 == 0 {
            return Ok(());
        }
        let function = self.function(entry)?;
        self.context.bind_to_thread()?;
        let (block, stream) = ((entry.threads, 1, 1), self.stream.cu_stream());
        // SAFETY: the caller's promise; the function and the stream belong to the context that was just bound.
        unsafe { result::launch_kernel(function.cu_function(), grid, block, entry.shared, stream, arguments) }?;
        Ok(())
    }

    /// A kernel, loaded when it is first asked for.
    fn function(&self, entry: &Entry) -> Result<CudaFunction, Error> {
        let mut functions = self.loaded.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(entry.name) {
            return Ok(function.clone());
        }
        let function = self.module(entry.source)?.load_function(entry.name)?;
        // Beyond 48 KiB a kernel must have asked for its shared memory.
        let most = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(most, entry.shared as i32)?;
        functions.insert(entry.name, function.clone());
        Ok(function)
    }

    fn module(&self, source: &'static Source) -> Result<Arc<CudaModule>, Error> {
        let mut modules = self.loaded.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(source.name) {
            return Ok(module.clone());
        }
        let capability = self.context.compute_capability()?;
        let image = match source.machine_code(capability) {
            Some(bytes) => Ptx::from_binary(bytes.to_vec()),
            None => Ptx::from_src(source.ptx),
        };
        let module = self.context.load_module(image).map_err(|error| match (error.0, driver_version()) {
            // A driver that does not know a version cannot parse what is behind it.
            (CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION | CUresult::CUDA_ERROR_INVALID_PTX, Some(driver)) => {
                let version = source.ptx.lines().find(|line| line.starts_with(".version")).unwrap_or_default();
                Error::TooOldDriver { driver, capability, needed: version.to_owned(), kernel: source.name }
            }
            _ => error.into(),
        })?;
        modules.insert(source.name, module.clone());
        Ok(module)
    }
}

fn check_capability(
    ordinal: usize,
    capability: (i32, i32),
    name: impl FnOnce() -> Result<String, Error>,
) -> Result<(), Error> {
    if capability >= OLDEST { Ok(()) } else { Err(Error::TooOldDevice { ordinal, name: name()?, capability }) }
}

/// The release of CUDA that the driver is for.
fn driver_version() -> Option<i32> {
    let mut version = 0;
    // SAFETY: writes one number, and works without a context.
    let code = unsafe { sys::cuDriverGetVersion(&raw mut version) };
    (code == CUresult::CUDA_SUCCESS).then_some(version)
}

/// Pointers to the arguments of a kernel, as [`Device::launch`] takes them. They must be of the types that the kernel has.
macro_rules! arguments {
    ($($value:expr),* $(,)?) => {
        &mut [$(std::ptr::from_ref(&$value).cast_mut().cast::<std::ffi::c_void>()),*]
    };
}
pub(crate) use arguments;

/// How many thread blocks of `each` cover `count`.
pub(crate) fn blocks(count: u64, each: u32) -> Result<u32, Error> {
    let blocks = count.div_ceil(u64::from(each));
    // gridDim.x has 31 bits.
    u32::try_from(blocks)
        .ok()
        .filter(|&blocks| blocks < 1 << 31)
        .ok_or_else(|| Error::shape("a launch", format!("{blocks} thread blocks"), "fewer than 2^31"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The emulated driver offers no such device.
    #[test]
    fn a_device_without_the_instructions_is_refused() {
        let error = check_capability(1, (7, 5), || Ok("Tesla T4".to_owned())).unwrap_err();
        let text = "device 1, Tesla T4, has compute capability 7.5; the kernels need 8.0 (Ampere) or later";
        assert_eq!(error.to_string(), text);
        assert_eq!(check_capability(0, (12, 0), || Ok(String::new())), Ok(()));
    }
}
