//! What is benchmarked: a kernel at a shape, what it must cost, and what a device can do at most.

use crate::rivals::Rivals;
use cudarc::driver::CudaSlice;
use cudarc::driver::sys::CUevent_flags;
use prune_cuda::{Device, Error};

/// What limits a kernel, besides memory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rate {
    /// 16-bit products on tensor cores.
    Tensor,
    /// 16-bit products on tensor cores with a 2:4 operand, counted as if dense.
    Sparse,
    /// f32 products made of three of tf32.
    Split,
    /// f32 multiply-adds.
    Single,
    /// Nothing but memory.
    Memory,
}

/// What a device can do at most, by its data sheet, operations and bytes a second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ceiling {
    tensor: f64,
    tf32: f64,
    single: f64,
    memory: f64,
}

impl Ceiling {
    /// That of a device of this name; `None` if its data sheet is not known here.
    pub(crate) fn of(name: &str) -> Option<Self> {
        let known = [
            ("A100-SXM4-80GB", Self { tensor: 312e12, tf32: 156e12, single: 19.5e12, memory: 2039e9 }),
            ("A100-PCIE-40GB", Self { tensor: 312e12, tf32: 156e12, single: 19.5e12, memory: 1555e9 }),
            ("A100", Self { tensor: 312e12, tf32: 156e12, single: 19.5e12, memory: 1935e9 }),
            ("H100 PCIe", Self { tensor: 756e12, tf32: 378e12, single: 51e12, memory: 2000e9 }),
            ("H100", Self { tensor: 989e12, tf32: 494e12, single: 67e12, memory: 3350e9 }),
            ("H200", Self { tensor: 989e12, tf32: 494e12, single: 67e12, memory: 4800e9 }),
        ];
        known.into_iter().find(|(part, _)| name.contains(part)).map(|(_, ceiling)| ceiling)
    }
}

/// Inputs and outputs of one kernel on the device.
pub(crate) trait Set {
    /// Brings back what a run overwrites. Not timed.
    fn reset(&mut self, _device: &Device) -> Result<(), Error> {
        Ok(())
    }

    /// Enqueues the kernel.
    fn run(&mut self, device: &Device) -> Result<(), Error>;

    /// Whether the last run's result is right, and if not why.
    fn verify(&mut self, device: &Device) -> Result<(), String>;

    /// Enqueues what a library offers for the same job; `false` if there is none.
    fn run_rival(&mut self, _device: &Device, _rivals: &Rivals) -> Result<bool, Error> {
        Ok(false)
    }

    /// Seconds of one run. `cold` is written before: what a reset or an earlier run left in the caches makes room for it.
    fn time(&mut self, device: &Device, cold: &mut CudaSlice<u8>) -> Result<f64, Error> {
        self.reset(device)?;
        device.stream().memset_zeros(cold)?;
        time(device, || self.run(device).map(|()| true)).map(|time| time.unwrap_or(f64::NAN))
    }

    /// Seconds of one run of the library, likewise.
    fn time_rival(&mut self, device: &Device, cold: &mut CudaSlice<u8>, rivals: &Rivals) -> Result<Option<f64>, Error> {
        self.reset(device)?;
        device.stream().memset_zeros(cold)?;
        time(device, || self.run_rival(device, rivals))
    }
}

fn time(device: &Device, run: impl FnOnce() -> Result<bool, Error>) -> Result<Option<f64>, Error> {
    let stream = device.stream();
    let start = stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?;
    let done = run()?;
    let end = stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?;
    end.synchronize()?;
    Ok(if done { Some(f64::from(start.elapsed_ms(&end)?) / 1e3) } else { None })
}

type Prepare = Box<dyn Fn(&Device, u64) -> Result<Box<dyn Set>, Error>>;

/// A kernel at a shape.
pub(crate) struct Case {
    name: &'static str,
    shape: String,
    rate: Rate,
    operations: f64,
    bytes: f64,
    prepare: Prepare,
}

impl Case {
    /// `operations`: multiplications and additions; `bytes`: what must be read and written once.
    pub(crate) fn new(
        name: &'static str,
        shape: String,
        (rate, operations, bytes): (Rate, f64, f64),
        prepare: impl Fn(&Device, u64) -> Result<Box<dyn Set>, Error> + 'static,
    ) -> Self {
        Self { name, shape, rate, operations, bytes, prepare: Box::new(prepare) }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn shape(&self) -> &str {
        &self.shape
    }

    pub(crate) fn operations(&self) -> f64 {
        self.operations
    }

    pub(crate) fn bytes(&self) -> f64 {
        self.bytes
    }

    /// Inputs drawn from `seed`.
    pub(crate) fn prepare(&self, device: &Device, seed: u64) -> Result<Box<dyn Set>, Error> {
        (self.prepare)(device, seed)
    }

    /// Seconds that a device at its ceiling would take.
    pub(crate) fn seconds_at(&self, ceiling: Ceiling) -> f64 {
        let rate = match self.rate {
            Rate::Tensor => ceiling.tensor,
            Rate::Sparse => 2.0 * ceiling.tensor,
            Rate::Split => ceiling.tf32 / 3.0,
            Rate::Single => ceiling.single,
            Rate::Memory => f64::INFINITY,
        };
        (self.operations / rate).max(self.bytes / ceiling.memory)
    }
}
