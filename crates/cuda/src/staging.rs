//! How weights travel: from wherever the host has them, by way of pinned memory, to the device.
//!
//! ```text
//! memory map ─▶ piece 0 ─▶ device          filled by the host, copied by a stream;
//!      └──────▶ piece 1 ─▶ device          while one is copied, the other is filled
//! ```
//! From a memory map itself a stream copies no faster than the driver moves pages through pinned memory of its own, and the
//! caller waits meanwhile. Numbers of another type are rounded while a piece is filled, so that there is never a copy of a whole
//! weight on the host.

use std::ops::Range;

use cudarc::driver::{CudaSlice, HostSlice, PinnedHostSlice};
use prune_cuda::Device;

use crate::error::driver;
use crate::{Element, Error};

/// Bytes of a piece, at most: 128 MiB, which take some five milliseconds to travel, beside which it takes nothing to begin.
pub(crate) const PIECE: usize = 128 << 20;

/// Two pieces of pinned memory, as large as what went through them: at most as [`Staging::upload`] is told.
#[derive(Debug)]
pub(crate) struct Staging<T> {
    pieces: [Option<PinnedHostSlice<T>>; 2],
    /// The piece that was filled longer ago.
    next: usize,
}

impl<T> Default for Staging<T> {
    fn default() -> Self {
        Self { pieces: [None, None], next: 0 }
    }
}

impl<T: Element> Staging<T> {
    /// `length` numbers on the device, which come on its stream in pieces of at most `most`. `fill` is asked for each range of
    /// them in turn, and writes all of it. Waits for a piece to be free, not for the last copies.
    ///
    /// # Errors
    /// [`prune_cuda::Error::OutOfMemory`], or what the driver says.
    pub(crate) fn upload(
        &mut self,
        device: &Device,
        length: usize,
        most: usize,
        fill: impl Fn(Range<usize>, &mut [T]),
    ) -> Result<CudaSlice<T>, Error> {
        let stream = device.stream();
        let mut values = device.uninitialized::<T>(length.max(1))?;
        let most = most.max(1);
        for start in (0..length).step_by(most) {
            let range = start..length.min(start + most);
            let piece = self.next_piece(device, range.len())?;
            // Waits until the stream has passed the copy from this piece before, whose end its event tells of.
            fill(range.clone(), &mut piece.as_mut_slice().map_err(driver)?[..range.len()]);
            // SAFETY: the slice is used with this stream alone. The guard records the event of the piece behind the copy.
            let (filled, _copied) = unsafe { piece.stream_synced_slice(stream) };
            stream.memcpy_htod(&filled[..range.len()], &mut values.slice_mut(range)).map_err(driver)?;
        }
        Ok(values)
    }

    /// The piece whose turn it is, with room for `length` numbers. One that is too small is given back once it is copied.
    fn next_piece(&mut self, device: &Device, length: usize) -> Result<&mut PinnedHostSlice<T>, Error> {
        let place = &mut self.pieces[self.next];
        self.next = (self.next + 1) % 2;
        let piece = match place.take() {
            Some(piece) if piece.len() >= length => piece,
            smaller => {
                drop(smaller);
                // SAFETY: what is read of it, `fill` has written before. Not write-combined, as `alloc_pinned` has it:
                // whoever fills it may look at what is there already.
                unsafe { device.stream().context().alloc_pinned_with_flags(length, 0) }.map_err(driver)?
            }
        };
        Ok(place.insert(piece))
    }
}
