//! The functions of `libnccl.so`.

use crate::clique::{Collective, Kind, Part};
use crate::codes::{CUDA_ERROR, Failure, INTERNAL_ERROR, INVALID_ARGUMENT, INVALID_USAGE, SUCCESS};
use crate::reduce::{Number, Reduction};
use crate::seat::{self, Seat};
use emulator_link::{Progress, Region};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{c_char, c_void};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

/// What ncclGetVersion says: 2.27.3.
const VERSION: i32 = 22703;

/// ncclUniqueId.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UniqueId {
    /// Bytes whose meaning only this library knows.
    pub internal: [u8; 128],
}

/// A communicator of one rank.
struct Communicator {
    seat: Arc<Seat>,
    device: i32,
    context: u64,
    /// Whether the device's context was retained for it.
    retained: bool,
    /// Collectives so far: all ranks call them in the same order.
    collectives: u64,
}

#[derive(Default)]
struct State {
    communicators: HashMap<u64, Communicator>,
}

fn state() -> MutexGuard<'static, State> {
    static STATE: LazyLock<Mutex<State>> = LazyLock::new(Mutex::default);
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a call inside of a group leaves for its end.
type Pending = Box<dyn FnOnce() -> Outcome>;

std::thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    static PENDING: RefCell<Vec<Pending>> = const { RefCell::new(Vec::new()) };
}

type Outcome<T = ()> = Result<T, Failure>;

fn fail<T>(result: u32, reason: impl Into<String>) -> Outcome<T> {
    Err((result, reason.into()))
}

fn cuda(code: u32) -> Failure {
    (CUDA_ERROR, format!("CUresult {code}"))
}

/// Carries a call out: no panic leaves, and what fails is said.
fn call(name: &str, body: impl FnOnce() -> Outcome) -> u32 {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)) {
        Ok(Ok(())) => SUCCESS,
        Ok(Err((result, reason))) => {
            eprintln!("emulator: {name}: result {result}: {reason}");
            result
        }
        Err(_) => INTERNAL_ERROR,
    }
}

/// Does something at the end of the group, or now if there is none.
fn at_end(action: impl FnOnce() -> Outcome + 'static) -> Outcome {
    if DEPTH.get() == 0 {
        return action();
    }
    PENDING.with_borrow_mut(|pending| pending.push(Box::new(action)));
    Ok(())
}

fn write<T>(to: *mut T, value: T) -> Outcome {
    if to.is_null() {
        return fail(INVALID_ARGUMENT, "the pointer for the result is null");
    }
    // SAFETY: the functions that get here demand a pointer to room for the result.
    unsafe { to.write(value) };
    Ok(())
}

fn with<T>(communicator: u64, body: impl FnOnce(&mut Communicator) -> Outcome<T>) -> Outcome<T> {
    match state().communicators.get_mut(&communicator) {
        Some(found) => body(found),
        None => fail(INVALID_ARGUMENT, format!("{communicator:#x} is no communicator, or was destroyed")),
    }
}

/// A number never given twice.
fn fresh() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0x0cc1_0000_0000_0000);
    NEXT.fetch_add(16, Ordering::Relaxed)
}

fn add(seat: Arc<Seat>, device: i32, context: u64, retained: bool) -> u64 {
    let handle = fresh();
    let communicator = Communicator { seat, device, context, retained, collectives: 0 };
    state().communicators.insert(handle, communicator);
    handle
}

/// Joins the ranks of `id`, in the calling thread's context.
fn join(communicator: *mut u64, ranks: i32, id: UniqueId, rank: i32) -> Outcome {
    let (Ok(ranks), Ok(rank)) = (usize::try_from(ranks), usize::try_from(rank)) else {
        return fail(INVALID_ARGUMENT, format!("rank {rank} of {ranks}"));
    };
    if rank >= ranks {
        return fail(INVALID_ARGUMENT, format!("rank {rank} of {ranks}"));
    }
    let device = emulator_link::current_device().map_err(cuda)?;
    let context = emulator_link::current_context().map_err(cuda)?;
    let seat = Arc::new(Seat::join(&id, rank, ranks)?);
    let handle = add(seat.clone(), device, context, false);
    write(communicator, handle)?;
    at_end(move || {
        seat.wait().inspect_err(|_| {
            state().communicators.remove(&handle);
        })
    })
}

/// Ends a communicator; `abort` lets what waits in streams go on.
fn end(communicator: u64, abort: bool) -> Outcome {
    let Some(ended) = state().communicators.remove(&communicator) else {
        return fail(INVALID_ARGUMENT, format!("{communicator:#x} is no communicator, or was destroyed"));
    };
    let Communicator { seat, device, retained, .. } = ended;
    if abort {
        seat.abort();
    }
    // Others may have waited for a rank that is gone now.
    drop(seat);
    emulator_link::resume();
    if retained {
        emulator_link::release(device).map_err(cuda)?;
    }
    Ok(())
}

fn parse(count: usize, number: u32) -> Outcome<(usize, Number)> {
    let unknown = || (INVALID_ARGUMENT, format!("number type {number} is not supported"));
    let number = Number::parse(number).ok_or_else(unknown)?;
    match count.checked_mul(number.size()).filter(|&bytes| bytes < 1 << 48) {
        Some(_) => Ok((count, number)),
        None => fail(INVALID_ARGUMENT, format!("{count} elements")),
    }
}

fn reduction(operation: u32) -> Outcome<Reduction> {
    Reduction::parse(operation).ok_or_else(|| (INVALID_ARGUMENT, format!("reduction {operation} is not supported")))
}

fn root(communicator: u64, root: i32) -> Outcome<usize> {
    with(communicator, |own| match usize::try_from(root) {
        Ok(root) if root < own.seat.ranks => Ok(root),
        _ => fail(INVALID_ARGUMENT, format!("there is no rank {root} among {}", own.seat.ranks)),
    })
}

/// Puts work into a stream of a communicator's device, at the end of the group.
fn enqueue(
    name: &str,
    (seat, context): (Arc<Seat>, u64),
    stream: u64,
    regions: Vec<Region>,
    mut work: impl FnMut(&Seat) -> Progress + Send + 'static,
) -> Outcome {
    let label = format!("{name} by rank {}", seat.rank);
    at_end(move || {
        let working = seat.clone();
        let enqueued = || emulator_link::enqueue(stream, &label, &regions, move || work(&working));
        emulator_link::in_context(context, enqueued).and_then(|result| result).map_err(cuda)?;
        seat.hurry();
        Ok(())
    })
}

/// # Safety
/// So many bytes are readable there.
unsafe fn read(address: u64, bytes: usize) -> Vec<u8> {
    match bytes {
        0 => Vec::new(),
        // SAFETY: as the caller promises.
        _ => unsafe { std::slice::from_raw_parts(address as *const u8, bytes) }.to_vec(),
    }
}

fn collective(
    name: &str,
    (send, receive): (u64, u64),
    (count, number): (usize, u32),
    kind: Kind,
    communicator: u64,
    stream: u64,
) -> Outcome {
    let (count, number) = parse(count, number)?;
    let collective = Collective { kind, number, count };
    let (seat, context, turn) = with(communicator, |own| {
        own.collectives += 1;
        Ok((own.seat.clone(), own.context, own.collectives))
    })?;
    let (given, taken) = collective.bytes(seat.rank, seat.ranks);
    // Two pieces of work: others wait for what this rank hands in, but never for what it then takes.
    let own = (seat, context);
    enqueue(name, own.clone(), stream, vec![Region::read(send, given as u64)], move |seat| {
        // SAFETY: the driver has checked that these bytes are there.
        let bytes = unsafe { read(send, given) }.into();
        seat.hand_in(turn, collective, Part { bytes, clock: emulator_link::clock() });
        Progress::Done
    })?;
    enqueue(name, own, stream, vec![Region::written(receive, taken as u64)], move |seat| {
        seat.take(turn, |share, clocks| {
            clocks.iter().for_each(emulator_link::follow);
            // SAFETY: the driver has checked that these bytes are there.
            unsafe { std::ptr::copy_nonoverlapping(share.as_ptr(), receive as *mut u8, share.len()) }
        })
    })
}

/// Exports functions: documented by reference, unable to panic.
macro_rules! api {
    ($(fn $name:ident($($argument:ident: $type:ty),* $(,)?) $body:block)*) => {
        $(
            #[doc = concat!("`", stringify!($name), "` of NCCL.")]
            ///
            /// # Safety
            /// Pointers and handles are as the documentation of NCCL demands.
            #[unsafe(no_mangle)]
            #[allow(non_snake_case, clippy::too_many_arguments)]
            pub unsafe extern "C" fn $name($($argument: $type),*) -> u32 {
                call(stringify!($name), move || $body)
            }
        )*
    };
}

api! {
    fn ncclGetVersion(version: *mut i32) { write(version, VERSION) }

    fn ncclGetUniqueId(id: *mut UniqueId) { write(id, seat::host()?) }

    fn ncclCommInitRank(communicator: *mut u64, ranks: i32, id: UniqueId, rank: i32) {
        join(communicator, ranks, id, rank)
    }

    // Every communicator is blocking, whatever the configuration says.
    fn ncclCommInitRankConfig(
        communicator: *mut u64,
        ranks: i32,
        id: UniqueId,
        rank: i32,
        _configuration: *const c_void,
    ) { join(communicator, ranks, id, rank) }

    fn ncclCommInitAll(communicators: *mut u64, count: i32, devices: *const i32) {
        let ranks = usize::try_from(count).unwrap_or(0);
        if ranks == 0 || communicators.is_null() {
            return fail(INVALID_ARGUMENT, format!("{count} devices"));
        }
        for (rank, seat) in Seat::all(ranks)?.into_iter().enumerate() {
            // SAFETY: the caller gives null or `count` devices.
            let device = if devices.is_null() { rank as i32 } else { unsafe { *devices.add(rank) } };
            let context = emulator_link::retain(device).map_err(cuda)?;
            // SAFETY: the caller has room for `count` communicators.
            write(unsafe { communicators.add(rank) }, add(Arc::new(seat), device, context, true))?;
        }
        Ok(())
    }

    fn ncclCommFinalize(communicator: u64) { with(communicator, |_| Ok(())) }

    fn ncclCommDestroy(communicator: u64) { end(communicator, false) }

    fn ncclCommAbort(communicator: u64) { end(communicator, true) }

    fn ncclCommCount(communicator: u64, count: *mut i32) {
        write(count, with(communicator, |own| Ok(own.seat.ranks as i32))?)
    }

    fn ncclCommUserRank(communicator: u64, rank: *mut i32) {
        write(rank, with(communicator, |own| Ok(own.seat.rank as i32))?)
    }

    fn ncclCommCuDevice(communicator: u64, device: *mut i32) {
        write(device, with(communicator, |own| Ok(own.device))?)
    }

    fn ncclCommGetAsyncError(communicator: u64, result: *mut u32) {
        write(result, with(communicator, |own| Ok(own.seat.error().unwrap_or(SUCCESS)))?)
    }

    fn ncclGroupStart() {
        DEPTH.set(DEPTH.get() + 1);
        Ok(())
    }

    fn ncclGroupEnd() {
        match DEPTH.get() {
            0 => return fail(INVALID_USAGE, "no group was started"),
            depth => DEPTH.set(depth - 1),
        }
        if DEPTH.get() > 0 {
            return Ok(());
        }
        let pending = PENDING.take();
        // All of them, also after an error: others may wait for them.
        let outcomes: Vec<Outcome> = pending.into_iter().map(|action| action()).collect();
        outcomes.into_iter().collect()
    }

    fn ncclAllReduce(
        send: u64,
        receive: u64,
        count: usize,
        number: u32,
        operation: u32,
        communicator: u64,
        stream: u64,
    ) {
        let kind = Kind::AllReduce(reduction(operation)?);
        collective("ncclAllReduce", (send, receive), (count, number), kind, communicator, stream)
    }

    fn ncclReduce(
        send: u64,
        receive: u64,
        count: usize,
        number: u32,
        operation: u32,
        to: i32,
        communicator: u64,
        stream: u64,
    ) {
        let kind = Kind::Reduce(reduction(operation)?, root(communicator, to)?);
        collective("ncclReduce", (send, receive), (count, number), kind, communicator, stream)
    }

    fn ncclBroadcast(
        send: u64,
        receive: u64,
        count: usize,
        number: u32,
        from: i32,
        communicator: u64,
        stream: u64,
    ) {
        let kind = Kind::Broadcast(root(communicator, from)?);
        collective("ncclBroadcast", (send, receive), (count, number), kind, communicator, stream)
    }

    fn ncclBcast(buffer: u64, count: usize, number: u32, from: i32, communicator: u64, stream: u64) {
        let kind = Kind::Broadcast(root(communicator, from)?);
        collective("ncclBcast", (buffer, buffer), (count, number), kind, communicator, stream)
    }

    fn ncclAllGather(send: u64, receive: u64, count: usize, number: u32, communicator: u64, stream: u64) {
        collective("ncclAllGather", (send, receive), (count, number), Kind::AllGather, communicator, stream)
    }

    fn ncclReduceScatter(
        send: u64,
        receive: u64,
        count: usize,
        number: u32,
        operation: u32,
        communicator: u64,
        stream: u64,
    ) {
        let kind = Kind::ReduceScatter(reduction(operation)?);
        collective("ncclReduceScatter", (send, receive), (count, number), kind, communicator, stream)
    }

    fn ncclSend(buffer: u64, count: usize, number: u32, to: i32, communicator: u64, stream: u64) {
        let (count, number) = parse(count, number)?;
        let (to, bytes) = (root(communicator, to)?, count * number.size());
        let own = with(communicator, |own| Ok((own.seat.clone(), own.context)))?;
        enqueue("ncclSend", own, stream, vec![Region::read(buffer, bytes as u64)], move |seat| {
            // SAFETY: the driver has checked that these bytes are there.
            let bytes = unsafe { read(buffer, bytes) }.into();
            seat.send(to, Part { bytes, clock: emulator_link::clock() });
            Progress::Done
        })
    }

    fn ncclRecv(buffer: u64, count: usize, number: u32, from: i32, communicator: u64, stream: u64) {
        let (count, number) = parse(count, number)?;
        let (from, bytes) = (root(communicator, from)?, count * number.size());
        let own = with(communicator, |own| Ok((own.seat.clone(), own.context)))?;
        enqueue("ncclRecv", own, stream, vec![Region::written(buffer, bytes as u64)], move |seat| {
            seat.receive(from, bytes, |message| {
                emulator_link::follow(&message.clock);
                // SAFETY: the driver has checked that these bytes are there.
                unsafe { std::ptr::copy_nonoverlapping(message.bytes.as_ptr(), buffer as *mut u8, bytes) }
            })
        })
    }
}

/// `ncclGetErrorString` of NCCL.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub extern "C" fn ncclGetErrorString(result: u32) -> *const c_char {
    match result {
        SUCCESS => c"no error",
        CUDA_ERROR => c"unhandled cuda error",
        2 => c"unhandled system error",
        INTERNAL_ERROR => c"internal error",
        INVALID_ARGUMENT => c"invalid argument",
        INVALID_USAGE => c"invalid usage",
        6 => c"remote process exited or there was a network error",
        7 => c"NCCL operation in progress",
        _ => c"unknown result code",
    }
    .as_ptr()
}

/// `ncclGetLastError` of NCCL: reasons are written to standard error when they occur.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub extern "C" fn ncclGetLastError(_communicator: u64) -> *const c_char {
    c"".as_ptr()
}
