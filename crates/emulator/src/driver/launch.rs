//! Launches: what is checked before one is enqueued, and the running of every kind of operation.

use super::device::{BLOCK_LIMITS, BLOCK_THREADS, GRID_LIMITS, limits};
use super::error::{Answer, Code, Failure, fail, invalid};
use super::module::Function;
use super::occupancy::{Demand, registers, resident_blocks};
use super::queue::{Outcome, Work};
use super::{Driver, Handle, State};
use crate::check::order::Stamp;
use crate::machine::launch::{Launch, run};
use crate::program::Program;
use crate::report::Kind;
use std::ffi::c_void;
use std::sync::{Arc, PoisonError};

/// A launch as the caller describes it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) function: Handle,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared: u32,
    pub(crate) stream: Handle,
    pub(crate) cooperative: bool,
}

/// A launch that may run.
pub(crate) struct Prepared {
    program: Arc<Program>,
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_shared: usize,
    parameters: Vec<u8>,
    cooperative: bool,
    number: u64,
}

/// Where an operation runs.
pub(crate) struct Surroundings {
    pub(crate) device: usize,
    /// For each device whether its memory may be accessed.
    pub(crate) peers: Vec<bool>,
}

/// Keys of the `extra` argument of a launch.
const BUFFER_POINTER: usize = 1;
const BUFFER_SIZE: usize = 2;

impl Driver {
    /// The device of a context, and those whose memory it may access.
    pub(crate) fn surroundings(&self, state: &State, context: Handle) -> Surroundings {
        let mut peers = vec![false; self.options.devices];
        let Some(context) = state.contexts.get(&context) else { return Surroundings { device: 0, peers } };
        let reachable = context.peers.iter().filter_map(|peer| Some(state.contexts.get(peer)?.device));
        for device in reachable.chain([context.device]) {
            peers[device] = true;
        }
        Surroundings { device: context.device, peers }
    }

    /// cuLaunchKernel and its like.
    ///
    /// # Safety
    /// `parameters` and `extra` are null or as cuLaunchKernel wants them.
    pub(crate) unsafe fn launch(
        &self,
        request: &Request,
        parameters: *const *const c_void,
        extra: *const *const c_void,
    ) -> Answer {
        self.lock().current()?;
        let function = self.function(request.function)?;
        let name = function.program.name.clone();
        let refuse = |failure: Failure| failure.found_in(Kind::InvalidLaunch, &name);
        self.check(request, &function).map_err(refuse)?;
        // SAFETY: as the caller promises.
        let parameters = unsafe { gather(&function.program, parameters, extra) }.map_err(refuse)?;
        let mut state = self.lock();
        let target = state.stream(request.stream)?;
        if target.context != function.context {
            return Err(fail(Code::INVALID_HANDLE, format!("{name} and the stream belong to different contexts")));
        }
        state.launches += 1;
        let prepared = Prepared {
            program: function.program,
            grid: request.grid,
            block: request.block,
            dynamic_shared: request.shared as usize,
            parameters,
            cooperative: request.cooperative,
            number: state.launches,
        };
        self.submit(state, &target, &format!("kernel {name}"), Work::Launch(Box::new(prepared)));
        Ok(())
    }

    /// Whether thread blocks of this size, so many of them, can be.
    fn check(&self, request: &Request, function: &Function) -> Answer {
        let Request { grid, block, shared, .. } = *request;
        let program = &function.program;
        if grid.contains(&0) || block.contains(&0) {
            return Err(invalid(format!("a grid of {grid:?} thread blocks of {block:?} threads is empty")));
        }
        if (0..3).any(|axis| grid[axis] > GRID_LIMITS[axis]) {
            return Err(invalid(format!("a grid of {grid:?} thread blocks exceeds {GRID_LIMITS:?}")));
        }
        let threads = block.iter().map(|&threads| u64::from(threads)).product();
        if (0..3).any(|axis| block[axis] > BLOCK_LIMITS[axis]) || threads > BLOCK_THREADS {
            return Err(invalid(format!("{block:?} threads exceed {BLOCK_LIMITS:?}, or {BLOCK_THREADS} in all")));
        }
        if let Some(required) = program.required_threads.filter(|&required| required != block) {
            return Err(invalid(format!("thread blocks have {block:?} threads, but .reqntid says {required:?}")));
        }
        if threads > u64::from(program.max_threads) {
            return Err(invalid(format!("{threads} threads exceed the {} of .maxntid", program.max_threads)));
        }
        if shared > function.dynamic_limit {
            let (limit, declared) = (function.dynamic_limit, program.static_shared);
            return Err(invalid(format!(
                "{shared} bytes of dynamic shared memory exceed {limit} (beside {declared} declared ones); \
                 cuFuncSetAttribute raises the limit"
            )));
        }
        let per_multiprocessor = self.resident(function, threads, u64::from(shared));
        if per_multiprocessor == 0 {
            return Err(fail(
                Code::LAUNCH_OUT_OF_RESOURCES,
                format!("a thread block of {threads} threads does not fit onto a multiprocessor"),
            ));
        }
        let blocks: u64 = grid.iter().fold(1, |blocks, &along| blocks.saturating_mul(u64::from(along)));
        let resident = u64::from(per_multiprocessor) * u64::from(self.options.multiprocessors);
        if request.cooperative && blocks > resident {
            return Err(fail(
                Code::COOPERATIVE_LAUNCH_TOO_LARGE,
                format!("{blocks} thread blocks, of which only {resident} can be resident at once"),
            ));
        }
        Ok(())
    }

    fn resident(&self, function: &Function, threads: u64, dynamic: u64) -> u32 {
        let shared = function.program.static_shared as u64 + dynamic;
        let demand = Demand { threads, registers: registers(&function.program), shared };
        resident_blocks(&limits(self.options.capability), demand)
    }

    /// cuOccupancyMaxActiveBlocksPerMultiprocessor.
    pub(crate) fn occupancy(&self, function: Handle, threads: i32, dynamic: usize) -> Answer<i32> {
        let function = self.function(function)?;
        let threads = u64::try_from(threads).ok().filter(|&threads| threads > 0);
        let threads = threads.ok_or_else(|| invalid("a thread block has at least one thread"))?;
        if threads > u64::from(function.program.max_threads) {
            return Ok(0);
        }
        Ok(self.resident(&function, threads, dynamic as u64) as i32)
    }

    /// cuOccupancyAvailableDynamicSMemPerBlock: what each of so many resident thread blocks may have.
    pub(crate) fn available_shared(&self, function: Handle, blocks: i32, threads: i32) -> Answer<usize> {
        let own = self.function(function)?;
        if blocks <= 0 || self.occupancy(function, threads, 0)? < blocks {
            return Err(invalid(format!("{blocks} thread blocks of {threads} threads do not fit a multiprocessor")));
        }
        let limits = limits(self.options.capability);
        let each = u64::from(limits.shared) / blocks as u64 / 128 * 128;
        let each = each.saturating_sub(u64::from(super::device::SHARED_RESERVED)).min(u64::from(limits.shared_optin));
        Ok(each.saturating_sub(own.program.static_shared as u64) as usize)
    }

    /// cuOccupancyMaxPotentialBlockSize: thread blocks that fill the device, and their threads.
    pub(crate) fn potential_block(
        &self,
        function: Handle,
        dynamic: impl Fn(i32) -> usize,
        most: i32,
    ) -> Answer<(i32, i32)> {
        let limit = self.function(function)?.program.max_threads.min(BLOCK_THREADS as u32) as i32;
        let limit = if most > 0 { limit.min(most) } else { limit };
        let mut best = (0, 0);
        let sizes = (1..=limit / 32).rev().map(|warps| warps * 32);
        for threads in std::iter::once(limit).chain(sizes) {
            let blocks = self.occupancy(function, threads, dynamic(threads))?;
            if blocks * threads > best.0 * best.1 {
                best = (blocks, threads);
            }
        }
        Ok((best.0 * self.options.multiprocessors as i32, best.1))
    }

    /// Runs an operation.
    pub(crate) fn execute(&self, surroundings: &Surroundings, stamp: &Stamp, work: Work) -> Outcome {
        if self.options.races {
            self.memory.labels().add(stamp);
        }
        match work {
            Work::Copy(copy) => self.run_copy(stamp, copy),
            Work::Fill(fill) => self.run_fill(stamp, fill),
            Work::Launch(launch) => self.run_launch(surroundings, stamp, &launch),
            Work::Record(event) => {
                self.run_record(event, stamp.stream as usize, stamp.sequence);
                Outcome::Done
            }
            Work::Allocate(address) => {
                self.memory.touch_all(address, stamp, &self.findings);
                Outcome::Done
            }
            Work::Free(address) => {
                self.run_free(address, stamp);
                Outcome::Done
            }
            Work::Host(host) => {
                // SAFETY: whoever enqueued it gave a function for this data, to be called from any thread.
                super::in_callback(|| unsafe { (host.function)(host.data) });
                Outcome::Done
            }
            Work::External(external) => self.run_external(surroundings, stamp, external),
        }
    }

    fn run_launch(&self, surroundings: &Surroundings, stamp: &Stamp, prepared: &Prepared) -> Outcome {
        let launch = Launch {
            program: &prepared.program,
            grid: prepared.grid,
            block: prepared.block,
            dynamic_shared: prepared.dynamic_shared,
            parameters: &prepared.parameters,
            cooperative: prepared.cooperative,
            device: surroundings.device,
            peers: &surroundings.peers,
            options: &self.options,
            stamp: stamp.clone(),
            number: prepared.number,
        };
        match run(&launch, &self.memory, &self.findings) {
            Ok(profile) => {
                self.profiles.lock().unwrap_or_else(PoisonError::into_inner).extend(profile);
                Outcome::Done
            }
            Err(kind) => Outcome::Failed(Code::of(kind)),
        }
    }
}

/// Copies the parameters of a launch: each from its pointer, or all from a buffer.
///
/// # Safety
/// As for [`Driver::launch`].
unsafe fn gather(program: &Program, each: *const *const c_void, extra: *const *const c_void) -> Answer<Vec<u8>> {
    let bytes = program.parameter_bytes();
    if !extra.is_null() {
        if !each.is_null() {
            return Err(invalid("parameters are given both one by one and in a buffer"));
        }
        // SAFETY: `extra` is a list of keys and values that ends with a null key.
        let (buffer, size) = unsafe { read_extra(extra) }?;
        // The buffer may or may not be padded to the alignment of the whole.
        if size != bytes && size != bytes.next_multiple_of(8) {
            return Err(invalid(format!("{size} bytes of parameters are given, the kernel takes {bytes}")));
        }
        let mut values = vec![0; bytes];
        return match buffer.is_null() && bytes > 0 {
            true => Err(invalid("the buffer of parameters is null")),
            false => {
                // SAFETY: the caller says that so many bytes are there, and `size` is not below `bytes`.
                unsafe { std::ptr::copy_nonoverlapping(buffer.cast(), values.as_mut_ptr(), bytes) };
                Ok(values)
            }
        };
    }
    let count = program.parameters.len();
    if each.is_null() && count > 0 {
        return Err(invalid(format!("the kernel takes {count} parameters, none are given")));
    }
    let mut values = vec![0; bytes];
    for (index, &(offset, size)) in program.parameters.iter().enumerate() {
        let given = || invalid(format!("parameter {index} of {count} ({size} bytes) is not there: too few are given?"));
        let mut pointer = [0; 8];
        // What lies behind the end of the list is not known, so neither of both reads may be taken for granted.
        read_own(each.wrapping_add(index) as u64, &mut pointer).ok_or_else(given)?;
        read_own(u64::from_ne_bytes(pointer), &mut values[offset..offset + size]).ok_or_else(given)?;
    }
    Ok(values)
}

/// # Safety
/// `extra` is a list of keys and values that ends with a null key.
unsafe fn read_extra(extra: *const *const c_void) -> Answer<(*const c_void, usize)> {
    let (mut buffer, mut size) = (std::ptr::null(), None);
    for index in 0.. {
        // SAFETY: the list has not ended yet.
        let key = unsafe { *extra.add(2 * index) } as usize;
        if key == 0 {
            break;
        }
        // SAFETY: a value follows every key.
        let value = unsafe { *extra.add(2 * index + 1) };
        match key {
            BUFFER_POINTER => buffer = value,
            // SAFETY: the value of this key points to a size_t.
            BUFFER_SIZE if !value.is_null() => size = Some(unsafe { *value.cast::<usize>() }),
            _ => return Err(invalid(format!("there is no launch option {key}"))),
        }
    }
    Ok((buffer, size.ok_or_else(|| invalid("the size of the parameters is not given"))?))
}

/// Reads memory of this process that may not be there.
fn read_own(address: u64, to: &mut [u8]) -> Option<()> {
    if address == 0 {
        return None;
    }
    let local = libc::iovec { iov_base: to.as_mut_ptr().cast(), iov_len: to.len() };
    let remote = libc::iovec { iov_base: address as *mut c_void, iov_len: to.len() };
    // SAFETY: the destination is a slice of that length; the kernel answers EFAULT where the source is not mapped.
    let read = unsafe { libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0) };
    if read == to.len() as isize {
        return Some(());
    }
    if read < 0 && matches!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) {
        // Where the system does not let a process look at itself, the caller is trusted, as the real driver does.
        // SAFETY: cuLaunchKernel demands that the parameters are readable.
        unsafe { std::ptr::copy_nonoverlapping(address as *const u8, to.as_mut_ptr(), to.len()) };
        return Some(());
    }
    None
}
