//! GPUs as shards: NCCL behind [`prune::Collective`], and that behind [`prune_cuda::Shards`].
//!
//! NCCL moves the values, and a collective of the host, threads or ranks of MPI, sets it up and keeps watch: what NCCL
//! lacks is an answer to a shard that does not come.

use crate::Error;
use cudarc::driver::{CudaViewMut, DevicePtrMut, DeviceSlice};
use cudarc::nccl::result::{self, NcclError, NcclStatus};
use cudarc::nccl::{NcclType, sys};
use prune::{Collective, Disconnected, Memory, assert_parts};
use prune_cuda::Device;
use std::any::type_name;
use std::ffi::{CStr, c_char, c_void};
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The memory of a GPU.
#[derive(Clone, Copy, Debug)]
pub struct DeviceMemory;

impl Memory for DeviceMemory {
    type Mut<'a, T: 'a> = CudaViewMut<'a, T>;
    type Error = Error;
}

/// One shard of several, on a GPU of its own. A shard that is alone needs no NCCL.
///
/// Calls enqueue their work on the stream of the device and return. Before that the shards agree through the collective of
/// the host that all of them make the same call. So a shard that has failed, in whatever it did, ends all of them with an
/// error at their next call. Each finishes the calls that were agreed on, and gives its communicator up. Two things cannot be caught: a
/// device or a connection that dies while a call is under way, and a shard at which NCCL refuses what all have agreed on;
/// those that wait for its result then, such as for a copy to the host, wait until the launcher or the user ends them.
///
/// Numbers of f32 and f64 are added in NCCL's order, which may depend on how many GPUs there are and how they are connected
/// but is the same in every run; counts are exact. Of a Hessian, of which only the upper triangle matters, the whole square
/// is summed: it must be initialized, and to pack the triangle would take memory for half of it again to save half of what
/// is sent.
///
/// At the end all shards call [`Nccl::close`]. One that is dropped instead has failed.
pub struct Nccl<'a> {
    host: &'a dyn Collective,
    /// Absent where a shard is alone, and after an error.
    communicator: Mutex<Option<Communicator>>,
    /// Keeps the context, which must outlive the communicator: fields are dropped in their order.
    device: Device,
}

impl Drop for Nccl<'_> {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// A communicator, which is given up when dropped: that does not wait for the others.
struct Communicator(sys::ncclComm_t);

// SAFETY: NCCL ties a communicator to no thread; it wants calls one after another, for which there is a lock around it.
unsafe impl Send for Communicator {}

impl Drop for Communicator {
    fn drop(&mut self) {
        // SAFETY: it exists, and is not used again. What could fail here leaves nothing to do.
        let _ = unsafe { result::comm_abort(self.0) };
    }
}

impl<'a> Nccl<'a> {
    /// Connects the devices of all shards of `host`: of one machine, or, where the host's collective is that of MPI, of many.
    /// The shards must have a device each, and make this call from threads or processes of their own.
    ///
    /// # Errors
    /// [`Error::NoNccl`], what NCCL says, or that another shard failed.
    pub fn connect(device: &Device, host: &'a dyn Collective) -> Result<Self, Error> {
        let communicator = if host.size() > 1 { Some(join(device, host)?) } else { None };
        Ok(Self { host, device: device.clone(), communicator: Mutex::new(communicator) })
    }

    /// Fails where several shards are to speak and the library for it is missing.
    ///
    /// # Errors
    /// [`Error::NoNccl`].
    pub fn require(shards: usize) -> Result<(), Error> {
        // SAFETY: looks for the library. cudarc panics at the first call of a missing one.
        if shards == 1 || unsafe { sys::is_culib_present() } { Ok(()) } else { Err(Error::NoNccl) }
    }

    /// The collective of the host.
    pub fn host(&self) -> &'a dyn Collective {
        self.host
    }

    /// Replaces `values`, of one length on all shards, on shard `root` by their sum. On the others they stay.
    ///
    /// # Errors
    /// As [`Collective::sum_f32`].
    pub fn sum_to(&self, root: usize, mut values: CudaViewMut<'_, f32>) -> Result<(), Error> {
        let count = values.len();
        let call = format!("sum of {count} f32 on {root}");
        self.enqueue(&call, "ncclReduce", &mut values, |address, communicator, stream| {
            let (number, sum) = (f32::as_nccl_type(), sys::ncclRedOp_t::ncclSum);
            // SAFETY: as in `sum`.
            unsafe { result::reduce(address, address, count, number, sum, root as i32, communicator, stream) }
        })
    }

    /// Waits until the work on the device's stream is done, here and on all other shards, and ends the communication.
    ///
    /// # Errors
    /// If any of it failed, or another shard ended before.
    pub fn close(self) -> Result<(), Error> {
        self.device.synchronize()?;
        if self.size() == 1 {
            return Ok(());
        }
        // Nobody's device is at work for another one any more.
        self.agree("close")?;
        match self.lock().take().map(ManuallyDrop::new) {
            // SAFETY: it exists, all shards make this call, and it is not used again.
            Some(communicator) => check("ncclCommDestroy", unsafe { result::comm_destroy(communicator.0) }),
            None => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Communicator>> {
        self.communicator.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the communicator up, after the calls that all have agreed on: others may be waiting for this shard's part in them.
    fn give_up(&self) {
        let communicator = self.lock().take();
        if communicator.is_some() {
            // A stream that failed has no part in anything any more.
            let _ = self.device.synchronize();
        }
    }

    /// Makes sure that all shards live, and make this call.
    fn agree(&self, call: &str) -> Result<(), Error> {
        if self.lock().is_none() {
            return Err(Disconnected.into());
        }
        match self.host.gather(call.as_bytes()) {
            Ok(said) => {
                let same = said.iter().all(|other| other == call.as_bytes());
                let said = || said.iter().map(|other| String::from_utf8_lossy(other)).collect::<Vec<_>>();
                assert!(same, "shards that do not make the same call: {:?}", said());
                Ok(())
            }
            Err(gone) => {
                self.give_up();
                Err(gone.into())
            }
        }
    }

    /// Agrees on a `call` in words, and lets `work` enqueue NCCL's `function` for the memory at an address.
    fn enqueue<T>(
        &self,
        call: &str,
        function: &'static str,
        values: &mut CudaViewMut<'_, T>,
        work: impl FnOnce(*mut c_void, sys::ncclComm_t, sys::cudaStream_t) -> Result<NcclStatus, NcclError>,
    ) -> Result<(), Error> {
        if self.size() == 1 {
            return Ok(());
        }
        let stream = self.device.stream();
        // All that can fail here does so before the others rely on this shard.
        let (found, expected) = (values.stream().context().ordinal(), self.device.ordinal());
        if found != expected {
            return Err(prune_cuda::Error::OtherDevice { what: "the values of a collective", found, expected }.into());
        }
        let empty = values.is_empty();
        let (address, _written) = values.device_ptr_mut(stream);
        stream.context().bind_to_thread().map_err(prune_cuda::Error::from)?;
        self.agree(call)?;
        let mut communicator = self.lock();
        match &*communicator {
            None => return Err(Disconnected.into()),
            Some(_) if empty => return Ok(()),
            Some(Communicator(handle)) => check(function, work(address as _, *handle, stream.cu_stream() as _)),
        }
        .inspect_err(|_| {
            communicator.take();
        })
    }

    fn sum<T: NcclType>(&self, mut values: CudaViewMut<'_, T>) -> Result<(), Error> {
        let count = values.len();
        let call = format!("sum of {count} {}", type_name::<T>());
        self.enqueue(&call, "ncclAllReduce", &mut values, |address, communicator, stream| {
            let (number, sum) = (T::as_nccl_type(), sys::ncclRedOp_t::ncclSum);
            // SAFETY: `count` numbers of this type lie there, on the communicator's device, and nobody else has them until the
            // stream has passed this call: their view was taken for writing.
            unsafe { result::all_reduce(address, address, count, number, sum, communicator, stream) }
        })
    }
}

impl Collective<DeviceMemory> for Nccl<'_> {
    fn rank(&self) -> usize {
        self.host.rank()
    }

    fn size(&self) -> usize {
        self.host.size()
    }

    fn sum_f32(&self, values: CudaViewMut<'_, f32>) -> Result<(), Error> {
        self.sum(values)
    }

    fn sum_f64(&self, values: CudaViewMut<'_, f64>) -> Result<(), Error> {
        self.sum(values)
    }

    fn sum_u64(&self, values: CudaViewMut<'_, u64>) -> Result<(), Error> {
        self.sum(values)
    }

    fn broadcast(&self, root: usize, mut values: CudaViewMut<'_, f32>) -> Result<(), Error> {
        let count = values.len();
        let call = format!("broadcast of {count} f32 by {root}");
        self.enqueue(&call, "ncclBroadcast", &mut values, |address, communicator, stream| {
            let number = f32::as_nccl_type();
            // SAFETY: as in `sum`.
            unsafe { result::broadcast(address, address, count, number, root as i32, communicator, stream) }
        })
    }

    fn exchange(&self, mut values: CudaViewMut<'_, u8>, parts: &[Range<usize>]) -> Result<(), Error> {
        assert_parts(parts, self.size(), values.len());
        let call = format!("exchange of {parts:?} in {} bytes", values.len());
        // A broadcast for each part, as NCCL wants it where parts are of different lengths.
        self.enqueue(&call, "ncclBroadcast", &mut values, |address, communicator, stream| {
            result::group_start()?;
            let send = |(root, part): (i32, &Range<usize>)| {
                let at = address.wrapping_byte_add(part.start);
                // SAFETY: as in `sum`, of the part, which lies within.
                unsafe { result::broadcast(at, at, part.len(), u8::as_nccl_type(), root, communicator, stream) }
                    .map(drop)
            };
            let sent = (0..).zip(parts).filter(|(_, part)| !part.is_empty()).try_for_each(send);
            // Also after an error, or all later calls of this thread would belong to the group.
            let ended = result::group_end();
            sent.and(ended)
        })
    }

    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        self.host.gather(own).map_err(|gone| {
            self.give_up();
            gone.into()
        })
    }
}

/// Sets NCCL up: the first shard's id reaches the others through the host.
fn join(device: &Device, host: &dyn Collective) -> Result<Communicator, Error> {
    Nccl::require(host.size())?;
    device.stream().context().bind_to_thread().map_err(prune_cuda::Error::from)?;
    let own = match host.rank() {
        0 => result::get_uniqueid()
            .map_err(|error| refused("ncclGetUniqueId", error))?
            .internal
            .map(|byte| byte as u8)
            .to_vec(),
        _ => Vec::new(),
    };
    let id = host.gather(&own)?.swap_remove(0);
    let internal: [u8; 128] = id.try_into().map_err(|_| Disconnected)?;
    let id = sys::ncclUniqueId { internal: internal.map(|byte| byte as c_char) };
    let (size, rank) = (host.size() as i32, host.rank() as i32);
    let mut handle = std::ptr::null_mut();
    // SAFETY: there is room for one communicator, and the context of its device is bound to this thread.
    check("ncclCommInitRank", unsafe { result::comm_init_rank(&raw mut handle, size, id, rank) })?;
    Ok(Communicator(handle))
}

fn check(call: &'static str, result: Result<NcclStatus, NcclError>) -> Result<(), Error> {
    result.map(drop).map_err(|error| refused(call, error))
}

fn refused(call: &'static str, error: NcclError) -> Error {
    let text = |text: *const c_char| match text.is_null() {
        true => String::new(),
        // SAFETY: NCCL's texts end with a zero and are not changed before the next call of this thread.
        false => unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned(),
    };
    // SAFETY: both may be called at any time; the communicator of the latter is not used.
    let (meaning, last) =
        unsafe { (text(sys::ncclGetErrorString(error.0)), text(sys::ncclGetLastError(std::ptr::null_mut()))) };
    Error::Nccl { call, text: if last.is_empty() { meaning } else { format!("{meaning}, {last}") } }
}

/// What selections on devices ask of the other shards, by way of a collective.
pub struct Shards<'a>(pub &'a dyn Collective<DeviceMemory>);

impl prune_cuda::Shards for Shards<'_> {
    fn sum(&self, _: &Device, counts: &mut CudaViewMut<'_, u64>) -> Result<(), prune_cuda::Error> {
        Ok(self.0.sum_u64(counts.slice_mut(..))?)
    }

    /// By way of the host, which takes one wait for the stream: NCCL has no such sum, and a single number each is a message.
    fn before(&self, device: &Device, count: &mut CudaViewMut<'_, u64>) -> Result<(), prune_cuda::Error> {
        let own = device.download(count)?;
        let before = self.0.sum_before(own.into_iter().sum())?;
        Ok(device.stream().memcpy_htod(&[before], count)?)
    }
}
