//! The driver's objects and what may be done with them: contexts, streams, events, memory, modules, launches. The
//! functions of the C interface, in [`crate::api`], only translate arguments.
//!
//! One lock guards all objects. It is given up while an operation runs, so that host functions may block and threads
//! may enqueue meanwhile.

pub(crate) mod context;
pub(crate) mod copy;
pub(crate) mod device;
pub(crate) mod error;
pub(crate) mod event;
pub(crate) mod image;
pub(crate) mod launch;
pub(crate) mod leak;
pub(crate) mod module;
pub(crate) mod occupancy;
pub(crate) mod pool;
pub(crate) mod queue;
pub(crate) mod storage;
pub(crate) mod stream;

pub use error::Code;

use crate::check::order::Stamp;
use crate::memory::Memory;
use crate::options::Options;
use crate::profile::Profile;
use crate::report::{Finding, Findings, Kind};
use error::{Answer, Failure, fail};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

/// What C calls CUcontext, CUstream and so on: a number that is never given twice, in any of them.
pub(crate) type Handle = u64;

/// The emulated driver.
pub struct Driver {
    pub(crate) options: Options,
    pub(crate) memory: Memory,
    pub(crate) findings: Findings,
    pub(crate) profiles: Mutex<Vec<Profile>>,
    /// Event times count from here.
    pub(crate) started: Instant,
    state: Mutex<State>,
    /// Notified whenever an operation ended or was enqueued.
    pub(crate) changed: Condvar,
}

/// All objects.
pub(crate) struct State {
    pub(crate) initialized: bool,
    pub(crate) contexts: HashMap<Handle, context::Context>,
    pub(crate) primaries: Vec<context::Primary>,
    pub(crate) streams: HashMap<Handle, stream::Stream>,
    pub(crate) events: HashMap<Handle, event::Event>,
    pub(crate) modules: HashMap<Handle, module::Module>,
    pub(crate) functions: HashMap<Handle, module::Function>,
    /// What users allocated, by address.
    pub(crate) allocations: BTreeMap<u64, storage::Entry>,
    /// Host memory registered by users: first byte, bytes.
    pub(crate) registered: BTreeMap<u64, u64>,
    /// Memory that an operation in a stream is going to free.
    pub(crate) freeing: HashSet<u64>,
    /// The memory pool of each device.
    pub(crate) pools: Vec<pool::Pool>,
    pub(crate) queue: queue::Queue,
    /// Launches so far.
    pub(crate) launches: u64,
}

/// The lock on [`State`], held.
pub(crate) type Guard<'a> = MutexGuard<'a, State>;

static DRIVER: RwLock<Option<Arc<Driver>>> = RwLock::new(None);

/// Makes a driver with these settings that of the process. Objects of an earlier one are gone: their handles are
/// refused.
///
/// # Errors
/// If the settings make no sense, or the system has no addresses for the devices' memory.
pub fn configure(options: Options) -> Result<(), String> {
    let driver = Driver::new(options)?;
    *DRIVER.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(driver));
    Ok(())
}

/// The driver of the process: with [`Options::default`] if nobody chose others.
pub(crate) fn current() -> Answer<Arc<Driver>> {
    if let Some(driver) = &*DRIVER.read().unwrap_or_else(PoisonError::into_inner) {
        return Ok(driver.clone());
    }
    let mut slot = DRIVER.write().unwrap_or_else(PoisonError::into_inner);
    if let Some(driver) = &*slot {
        return Ok(driver.clone());
    }
    let driver = Driver::new(Options::default()).map_err(|reason| fail(Code::OUT_OF_MEMORY, reason))?;
    Ok(slot.insert(Arc::new(driver)).clone())
}

/// A new handle. Multiples of 16 far from anything mapped: whoever follows one as a pointer ends at once.
pub(crate) fn new_handle() -> Handle {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    HANDLES + NEXT.fetch_add(16, Ordering::Relaxed)
}

const HANDLES: u64 = 0x0e00_0000_0000_0000;

/// What is known of a handle that is not among the live ones.
pub(crate) fn not_found(what: &str, handle: Handle) -> Failure {
    let past = if handle >= HANDLES { "is not one, or was destroyed" } else { "was never created" };
    fail(Code::INVALID_HANDLE, format!("{what} {handle:#x} {past}"))
}

impl Driver {
    fn new(options: Options) -> Result<Self, String> {
        if options.multiprocessors == 0 || options.memory == 0 {
            return Err("a device has at least one multiprocessor and one byte of memory".to_owned());
        }
        if options.devices > 64 {
            return Err(format!("{} devices are more than the 64 there can be", options.devices));
        }
        if options.capability.0 < 8 {
            let (major, minor) = options.capability;
            return Err(format!("compute capability {major}.{minor} is below 8.0, where this machine begins"));
        }
        let memory = Memory::new(options.devices, options.memory)
            .map_err(|error| format!("no addresses for the memory of {} devices: {error}", options.devices))?;
        memory.watch(options.uninitialized, options.races);
        let state = State {
            initialized: false,
            contexts: HashMap::new(),
            primaries: vec![context::Primary::default(); options.devices],
            streams: HashMap::new(),
            events: HashMap::new(),
            modules: HashMap::new(),
            functions: HashMap::new(),
            allocations: BTreeMap::new(),
            registered: BTreeMap::new(),
            freeing: HashSet::new(),
            pools: vec![pool::Pool::default(); options.devices],
            queue: queue::Queue::new(options.seed.unwrap_or(0)),
            launches: 0,
        };
        Ok(Self {
            options,
            memory,
            findings: Findings::default(),
            profiles: Mutex::default(),
            started: Instant::now(),
            state: Mutex::new(state),
            changed: Condvar::new(),
        })
    }

    pub(crate) fn lock(&self) -> Guard<'_> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// cuInit.
    pub(crate) fn initialize(&self, flags: u32) -> Answer {
        if flags != 0 {
            return Err(error::invalid(format!("flags must be 0, not {flags}")));
        }
        if self.options.devices == 0 {
            return Err(fail(Code::NO_DEVICE, "there are no devices"));
        }
        self.lock().initialized = true;
        Ok(())
    }

    /// The index of a CUdevice.
    pub(crate) fn device(&self, device: i32) -> Answer<usize> {
        self.initialized()?;
        match usize::try_from(device) {
            Ok(device) if device < self.options.devices => Ok(device),
            _ => Err(fail(Code::INVALID_DEVICE, format!("no device {device} among {}", self.options.devices))),
        }
    }

    /// Fails before cuInit.
    pub(crate) fn initialized(&self) -> Answer {
        match self.lock().initialized {
            true => Ok(()),
            false => Err(fail(Code::NOT_INITIALIZED, "cuInit was not called")),
        }
    }

    /// The stamp of something that the host does by itself.
    pub(crate) fn host_stamp(&self, state: &mut State, label: &str) -> Stamp {
        state.queue.host_stamp(label)
    }

    /// Adds a finding that has no place in a program.
    pub(crate) fn report(&self, kind: Kind, whose: &str, message: String) {
        let kernel = whose.to_owned();
        self.findings.add(Finding { kind, kernel, place: None, thread: None, message, other: None });
    }

    /// Writes to the log, if there is one.
    pub(crate) fn log(&self, line: std::fmt::Arguments<'_>) {
        if self.options.log {
            eprintln!("emulator: {line}");
        }
    }
}

std::thread_local! {
    /// Whether the thread is inside of a host function, where calls of the driver are not permitted.
    static IN_CALLBACK: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Runs a host function of a stream, in which the driver refuses calls.
pub(crate) fn in_callback<T>(f: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            IN_CALLBACK.set(self.0);
        }
    }
    let _restore = Restore(IN_CALLBACK.replace(true));
    f()
}

/// Carries out a call of the C interface: what fails is logged and reported, and no panic leaves.
pub(crate) fn call(name: &str, body: impl FnOnce(&Driver) -> Answer) -> u32 {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        if IN_CALLBACK.get() {
            return Code::NOT_PERMITTED;
        }
        let driver = match current() {
            Ok(driver) => driver,
            Err(failure) => return failure.code,
        };
        let Err(failure) = body(&driver) else { return Code::SUCCESS };
        if failure.code != Code::NOT_READY {
            driver.log(format_args!("{name}: {}: {}", failure.code, failure.reason));
        }
        if let Some((kind, kernel)) = failure.finding {
            driver.report(kind, kernel.as_deref().unwrap_or(name), failure.reason);
        }
        failure.code
    }));
    outcome.unwrap_or(Code::UNKNOWN).0
}

/// A view of what the process's driver found, for tests that call it without loading the library.
#[derive(Clone, Copy, Debug)]
pub struct Inspection(());

/// What the process's driver found. A program that loads the library asks [`crate::loader::Loaded`] instead.
pub fn inspect() -> Inspection {
    Inspection(())
}

impl Inspection {
    /// Takes what was found since the last call.
    pub fn findings(self) -> Vec<Finding> {
        current().map(|driver| driver.findings.take()).unwrap_or_default()
    }

    /// What contexts have not given back.
    pub fn leaks(self) -> Vec<Finding> {
        current().map(|driver| driver.leaks()).unwrap_or_default()
    }
}
