//! Copies and fills: between hosts and devices, in rows, at once or in the order of a stream.

use super::error::{Answer, fail, invalid};
use super::queue::{Outcome, Work};
use super::{Code, Driver, Handle};
use crate::check::order::Stamp;
use crate::memory::{Owner, Touch};
use crate::report::Kind;

/// One end of a copy, as the caller names it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Side {
    /// Host memory.
    Host(u64),
    /// Memory of a device, or pinned memory.
    Device(u64),
    /// Whatever it is.
    Any(u64),
}

/// What an end turns out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Host memory that the driver knows nothing of.
    Pageable,
    /// Host memory that the user registered.
    Registered,
    /// Allocated by the driver, for the host.
    Pinned,
    Device,
}

impl Place {
    fn is_managed(self) -> bool {
        matches!(self, Self::Pinned | Self::Device)
    }
}

/// `height` rows of `width` bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) from_pitch: usize,
    pub(crate) to_pitch: usize,
}

impl Shape {
    /// One row.
    pub(crate) fn row(width: usize) -> Self {
        Self { width, height: 1, from_pitch: width, to_pitch: width }
    }
}

/// How far the caller waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// In the default stream; to and from the host it is over when the call returns.
    Synchronous,
    /// In this stream.
    In(Handle),
}

/// A copy in a stream.
pub(crate) struct Copy {
    from: u64,
    to: u64,
    from_managed: bool,
    to_managed: bool,
    shape: Shape,
    /// The source as it was when the copy was enqueued, rows without gaps.
    staged: Option<Vec<u8>>,
}

/// A fill in a stream: rows of `width` elements of `size` bytes.
pub(crate) struct Fill {
    address: u64,
    value: u32,
    size: usize,
    width: usize,
    height: usize,
    pitch: usize,
}

fn extent(width: usize, height: usize, pitch: usize) -> Answer<u64> {
    if height > 1 && pitch < width {
        return Err(invalid(format!("rows of {width} bytes do not fit into a pitch of {pitch}")));
    }
    let extent = (height - 1).checked_mul(pitch).and_then(|rows| rows.checked_add(width));
    extent.map(|extent| extent as u64).ok_or_else(|| invalid("the size overflows"))
}

impl Driver {
    fn place(&self, state: &super::State, side: Side, bytes: u64) -> Answer<(u64, Place)> {
        let (Side::Host(address) | Side::Device(address) | Side::Any(address)) = side;
        if address == 0 {
            return Err(invalid("a null pointer"));
        }
        if let (Side::Host(_) | Side::Any(_), false) = (side, self.memory.reserves(address)) {
            let registered = state.registered.range(..=address).next_back();
            let end = address.checked_add(bytes).ok_or_else(|| invalid("the memory ends past the last address"))?;
            let inside = registered.is_some_and(|(&start, &size)| end <= start + size);
            return Ok((address, if inside { Place::Registered } else { Place::Pageable }));
        }
        let allocation = self.memory_at(address, bytes).map_err(|(kind, reason)| invalid(reason).found(kind))?;
        match (side, allocation.owner) {
            (Side::Host(_), Owner::Device(device)) => {
                Err(invalid(format!("{address:#x} is memory of device {device}, not of the host")))
            }
            (_, Owner::Host) => Ok((address, Place::Pinned)),
            _ => Ok((address, Place::Device)),
        }
    }

    /// Copies rows.
    pub(crate) fn copy(&self, name: &str, to: Side, from: Side, shape: Shape, order: Order) -> Answer {
        let mut state = self.lock();
        let target = state.stream(match order {
            Order::Synchronous => 0,
            Order::In(stream) => stream,
        })?;
        if shape.width == 0 || shape.height == 0 {
            return Ok(());
        }
        let (from, from_place) = self.place(&state, from, extent(shape.width, shape.height, shape.from_pitch)?)?;
        let (to, to_place) = self.place(&state, to, extent(shape.width, shape.height, shape.to_pitch)?)?;
        // From CUDA's "API synchronization behavior": an asynchronous copy from pageable memory has read it when the
        // call returns, one to pageable memory has written it; a synchronous one between devices does not wait at
        // all.
        let wait = match order {
            Order::In(_) => to_place == Place::Pageable,
            Order::Synchronous => !(from_place == Place::Device && to_place == Place::Device),
        };
        let staged = match from_place == Place::Pageable && !wait {
            true if self.options.deferred || !state.queue.is_idle(target.line) => {
                let mut bytes = Vec::with_capacity(shape.width * shape.height);
                for row in 0..shape.height {
                    let start = (from + (row * shape.from_pitch) as u64) as *const u8;
                    // SAFETY: the caller of the driver promises that the source is readable for these rows.
                    bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(start, shape.width) });
                }
                Some(bytes)
            }
            _ => None,
        };
        let (from_managed, to_managed) = (from_place.is_managed(), to_place.is_managed());
        let copy = Copy { from, to, from_managed, to_managed, shape, staged };
        let (state, clock) = self.enqueue(state, &target, name, Work::Copy(copy));
        if wait {
            drop(self.wait_for(state, &clock, target.context)?);
        }
        Ok(())
    }

    /// Carries a copy out. What was allocated when it was enqueued may be freed by now.
    pub(crate) fn run_copy(&self, stamp: &Stamp, copy: Copy) -> Outcome {
        let Copy { from, to, shape, .. } = copy;
        let ends = [(copy.from_managed, from, shape.from_pitch), (copy.to_managed, to, shape.to_pitch)];
        for (_, address, pitch) in ends.into_iter().filter(|end| end.0) {
            let bytes = (shape.height - 1) * pitch + shape.width;
            if let Err((kind, reason)) = self.memory_at(address, bytes as u64) {
                return self.fault(kind, stamp, reason);
            }
        }
        let (width, height) = (shape.width as u64, shape.height as u64);
        if copy.from_managed {
            let stays = copy.to_managed && self.memory.find(to).is_some_and(|target| target.initialized.is_some());
            let touch = if stays { Touch::Move } else { Touch::Read };
            self.touch_rows(from, width, shape.from_pitch as u64, height, touch, stamp);
        }
        if copy.to_managed {
            self.touch_rows(to, width, shape.to_pitch as u64, height, Touch::Write, stamp);
        }
        for row in 0..shape.height {
            let start = match &copy.staged {
                Some(bytes) => bytes[row * shape.width..].as_ptr(),
                None => (from + (row * shape.from_pitch) as u64) as *const u8,
            };
            let end = to + (row * shape.to_pitch) as u64;
            // SAFETY: managed ends lie in live allocations, as was just checked; for others the caller of the driver
            // promises as much until the stream is synchronized.
            unsafe { std::ptr::copy(start, end as *mut u8, shape.width) };
            if copy.from_managed && copy.to_managed {
                self.memory.copy_state(from + (row * shape.from_pitch) as u64, end, width);
            }
        }
        Outcome::Done
    }

    /// Fills rows of `width` elements of `size` bytes with a value.
    pub(crate) fn fill(&self, name: &str, address: u64, value: u32, size: usize, shape: Shape, order: Order) -> Answer {
        let mut state = self.lock();
        let target = state.stream(match order {
            Order::Synchronous => 0,
            Order::In(stream) => stream,
        })?;
        let Shape { width, height, to_pitch: pitch, .. } = shape;
        if width == 0 || height == 0 {
            return Ok(());
        }
        if !address.is_multiple_of(size as u64) || height > 1 && !pitch.is_multiple_of(size) {
            return Err(invalid(format!("{address:#x} is not a multiple of {size}")).found(Kind::Misaligned));
        }
        let bytes = width.checked_mul(size).ok_or_else(|| invalid("the size overflows"))?;
        self.place(&state, Side::Device(address), extent(bytes, height, pitch)?)?;
        self.submit(state, &target, name, Work::Fill(Fill { address, value, size, width, height, pitch }));
        Ok(())
    }

    /// Carries a fill out.
    pub(crate) fn run_fill(&self, stamp: &Stamp, fill: Fill) -> Outcome {
        let Fill { address, value, size, width, height, pitch } = fill;
        let bytes = width * size;
        if let Err((kind, reason)) = self.memory_at(address, ((height - 1) * pitch + bytes) as u64) {
            return self.fault(kind, stamp, reason);
        }
        self.touch_rows(address, bytes as u64, pitch as u64, height as u64, Touch::Write, stamp);
        for row in 0..height {
            let start = (address + (row * pitch) as u64) as *mut u8;
            // SAFETY: the rows lie in a live allocation, aligned to the size of an element, as `fill` checked.
            unsafe {
                match size {
                    1 => start.write_bytes(value as u8, width),
                    2 => std::slice::from_raw_parts_mut(start.cast::<u16>(), width).fill(value as u16),
                    _ => std::slice::from_raw_parts_mut(start.cast::<u32>(), width).fill(value),
                }
            }
        }
        Outcome::Done
    }

    /// An operation met memory that is not there any more.
    fn fault(&self, kind: Kind, stamp: &Stamp, reason: String) -> Outcome {
        self.log(format_args!("{}: {reason}", stamp.label));
        self.report(kind, &stamp.label, reason);
        Outcome::Failed(Code::of(kind))
    }

    /// cuMemcpyPeer: both contexts must be there; peer access is not needed, copies go through the host then.
    pub(crate) fn check_peers(&self, to: Handle, from: Handle) -> Answer {
        let state = self.lock();
        for context in [to, from] {
            state.context(context).map_err(|failure| fail(Code::INVALID_CONTEXT, failure.reason))?;
        }
        Ok(())
    }
}
