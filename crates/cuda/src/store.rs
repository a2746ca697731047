//! Where activations lie between stages: in the memory of the device, in the host's, or in a file. They are numbers that only
//! the device looks at; outside of it they travel on the stream of its work, which so waits for them. The host waits for those
//! of a file, whose pages the driver copies through pinned ones.

use std::fs::File;
use std::io;
#[cfg(not(target_os = "linux"))]
use std::io::Read;
use std::ops::Range;
#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use cudarc::driver::{CudaSlice, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, PinnedHostSlice, result};
use memmap2::MmapMut;
use prune_cuda::{Device, MatrixMut, MatrixRef};

use crate::error::driver;
use crate::{Element, Error};

/// Where numbers lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the memory of the device.
    Device,
    /// In memory of the host that the device reads and writes by itself.
    Host,
    /// In a file without a name, in this folder.
    File(PathBuf),
}

/// Numbers that lie somewhere, all zero at first.
pub struct Store<D: Element> {
    length: usize,
    values: Values<D>,
}

enum Values<D> {
    Device(CudaSlice<D>),
    Host(Outside),
}

impl<D: Element> Store<D> {
    /// Room for `length` numbers.
    ///
    /// # Errors
    /// [`prune_cuda::Error::OutOfMemory`], [`Error::File`], or what the driver says.
    pub fn new(device: &Device, place: &Place, length: usize) -> Result<Self, Error> {
        let values = match Outside::new(device, place, length * size_of::<D>())? {
            None => Values::Device(device.zeros(length.max(1))?),
            Some(outside) => Values::Host(outside),
        };
        Ok(Self { length, values })
    }

    /// How many numbers there are.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Moves all numbers out of the device's memory.
    ///
    /// # Errors
    /// As [`Store::new`].
    pub fn move_out(&mut self, device: &Device, place: &Place) -> Result<(), Error> {
        let Values::Device(values) = &self.values else { return Ok(()) };
        let Some(mut outside) = Outside::new(device, place, self.length * size_of::<D>())? else { return Ok(()) };
        outside.write(0, &values.slice(..self.length))?;
        self.values = Values::Host(outside);
        Ok(())
    }

    /// Whether they lie in the memory of the device.
    pub fn is_on_device(&self) -> bool {
        matches!(self.values, Values::Device(_))
    }

    /// Hands some of the numbers to work on the device: where they are, or a copy.
    ///
    /// # Errors
    /// If there is no room for a copy, and those of `work`.
    pub fn with<R, E: From<Error>>(
        &self,
        device: &Device,
        range: Range<usize>,
        work: impl FnOnce(&CudaSlice<D>, usize) -> Result<R, E>,
    ) -> Result<R, E> {
        match &self.values {
            Values::Device(values) => work(values, range.start),
            Values::Host(outside) => {
                let mut copy = device.uninitialized::<D>(range.len().max(1)).map_err(Error::from)?;
                outside.read(range.start * size_of::<D>(), &mut copy.slice_mut(..range.len()))?;
                work(&copy, 0)
            }
        }
    }

    /// Takes numbers over.
    ///
    /// # Errors
    /// What the driver says.
    pub fn put(&mut self, device: &Device, first: usize, from: &CudaView<'_, D>) -> Result<(), Error> {
        match &mut self.values {
            Values::Device(values) => {
                let mut to = values.slice_mut(first..first + from.len());
                device.stream().memcpy_dtod(from, &mut to).map_err(driver)
            }
            Values::Host(outside) => outside.write(first * size_of::<D>(), from),
        }
    }

    /// Rows [tokens, columns] from the number `first` on, in f32.
    ///
    /// # Errors
    /// If there is no room for the work.
    pub fn widen(&self, device: &Device, first: usize, to: &mut MatrixMut<'_, f32>) -> Result<(), Error> {
        let (tokens, columns) = (to.rows(), to.columns());
        self.with(device, first..first + tokens * columns, |values, first| {
            let from = MatrixRef::new(values.slice(first..first + tokens * columns), tokens, columns)?;
            Ok(D::widen_on(device, &from, to)?)
        })
    }

    /// Takes rows over, rounded. What is returned holds one number: the first whose rounding is not finite, counted in row-major
    /// order, or `u64::MAX`.
    ///
    /// # Errors
    /// If there is no room for the work.
    pub fn narrow(
        &mut self,
        device: &Device,
        first: usize,
        from: &MatrixRef<'_, f32>,
    ) -> Result<CudaSlice<u64>, Error> {
        let (tokens, columns) = (from.rows(), from.columns());
        let length = tokens * columns;
        match &mut self.values {
            Values::Device(values) => {
                let mut to = MatrixMut::new(values.slice_mut(first..first + length), tokens, columns)?;
                Ok(D::narrow_on(device, from, &mut to)?)
            }
            Values::Host(outside) => {
                let mut copy = device.uninitialized::<D>(length.max(1))?;
                let mut to = MatrixMut::new(copy.slice_mut(..length), tokens, columns)?;
                let flag = D::narrow_on(device, from, &mut to)?;
                outside.write(first * size_of::<D>(), &copy.slice(..length))?;
                Ok(flag)
            }
        }
    }
}

/// Bytes outside of the device, which its stream alone reads and writes.
struct Outside {
    device: Device,
    bytes: Bytes,
}

enum Bytes {
    Pinned(PinnedHostSlice<u8>),
    File(MmapMut),
}

impl Outside {
    /// So many bytes, all zero; `None` where they are to lie on the device.
    fn new(device: &Device, place: &Place, length: usize) -> Result<Option<Self>, Error> {
        let bytes = match place {
            Place::Device => return Ok(None),
            Place::Host => Bytes::Pinned(pinned(device, length.max(1))?),
            Place::File(folder) => Bytes::File(file(folder, length.max(1))?),
        };
        Ok(Some(Self { device: device.clone(), bytes }))
    }

    fn address(&self) -> Result<*mut u8, Error> {
        Ok(match &self.bytes {
            Bytes::Pinned(bytes) => bytes.as_ptr().map_err(driver)?.cast_mut(),
            Bytes::File(bytes) => bytes.as_ptr().cast_mut(),
        })
    }

    fn read<D>(&self, first: usize, to: &mut CudaViewMut<'_, D>) -> Result<(), Error> {
        let length = to.len() * size_of::<D>();
        let stream = self.device.stream();
        let (target, _writing) = to.device_ptr_mut(stream);
        stream.context().bind_to_thread().map_err(driver)?;
        // SAFETY: the caller stays within the bytes; they live until the stream has passed the copy, for which `drop` waits, and
        // nothing but the stream writes to them.
        unsafe {
            let source = std::slice::from_raw_parts(self.address()?.add(first), length);
            result::memcpy_htod_async(target, source, stream.cu_stream()).map_err(driver)
        }
    }

    fn write<D>(&mut self, first: usize, from: &CudaView<'_, D>) -> Result<(), Error> {
        let length = from.len() * size_of::<D>();
        let stream = self.device.stream();
        let (source, _reading) = from.device_ptr(stream);
        stream.context().bind_to_thread().map_err(driver)?;
        // SAFETY: as in `read`.
        unsafe {
            let target = std::slice::from_raw_parts_mut(self.address()?.add(first), length);
            result::memcpy_dtoh_async(target, source, stream.cu_stream()).map_err(driver)
        }
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // A stream that failed does not copy any more.
        let _ = self.device.synchronize();
    }
}

/// Memory of the host that the device reads and writes by itself, all zero.
pub(crate) fn pinned(device: &Device, length: usize) -> Result<PinnedHostSlice<u8>, Error> {
    // SAFETY: all of it is written before anything reads it, just below. Not write-combined, as `alloc_pinned` has it: the host
    // reads what comes back.
    let mut bytes = unsafe { device.stream().context().alloc_pinned_with_flags::<u8>(length, 0) }.map_err(driver)?;
    bytes.as_mut_slice().map_err(driver)?.fill(0);
    Ok(bytes)
}

fn file(folder: &Path, length: usize) -> Result<MmapMut, Error> {
    let refused = |source| Error::File { folder: folder.to_owned(), bytes: length as u64, source };
    let file = tempfile::tempfile_in(folder).map_err(refused)?;
    reserve(&file, length as u64).map_err(refused)?;
    // SAFETY: the file has no name by which another process could open and shorten it.
    unsafe { MmapMut::map_mut(&file) }.map_err(refused)
}

/// Makes a file so long, on blocks of the disk that are its own from then on: where a page of a map finds no block, the system ends
/// the program.
#[cfg(target_os = "linux")]
fn reserve(file: &File, length: u64) -> io::Result<()> {
    let length = i64::try_from(length).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open; nothing else is touched.
    match unsafe { libc::posix_fallocate64(file.as_raw_fd(), 0, length) } {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

#[cfg(not(target_os = "linux"))]
fn reserve(mut file: &File, length: u64) -> io::Result<()> {
    io::copy(&mut io::repeat(0).take(length), &mut file).map(drop)
}
