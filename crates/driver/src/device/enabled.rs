//! GPUs, by way of the crates `cuda` and `prune-cuda`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::bail;
use checkpoint::{Checkpoint, Dtype};
use cuda::{Element, Gpu, Nccl, Place};
use half::{bf16, f16};
use model::{Cpu, Evaluation, Model};
use prune::{Collective, run_shards, share};

use crate::backend::CpuShard;
use crate::backend::gpu::{CHUNK, GpuShard};
use crate::blocks::{Job, prune_blocks};
use crate::device::{Choice, PROCESSOR, unsuited, warn_of_room};
use crate::forecast::memory::LOADED_LATER;
use crate::forecast::request::{self, Request};
use crate::forecast::{Forecast, Shapes};
use crate::plan::Plan;
use crate::ranks::Ranks;
use crate::report::{Clock, DeviceMemory, LayerReport};
use crate::summary::size;

/// See [`crate::device`].
#[derive(Clone, Debug)]
pub enum Device {
    /// The processor.
    Processor,
    /// GPUs, one for each shard of this rank.
    Gpus(Gpus),
}

/// The GPUs of a rank.
#[derive(Clone, Debug)]
pub struct Gpus {
    devices: Vec<prune_cuda::Device>,
    /// How a prune uses them.
    forecast: Option<Arc<Forecast>>,
    /// Where it keeps activations if in a file: beside its output.
    folder: PathBuf,
    /// The most bytes that any of them held during one.
    most: Arc<AtomicU64>,
}

/// Does the same with the numbers that the linear layers of a model are best held in.
macro_rules! with_element {
    ($model:expr, $element:ident => $work:expr) => {
        match element($model) {
            Dtype::F16 => {
                type $element = f16;
                $work
            }
            Dtype::BF16 => {
                type $element = bf16;
                $work
            }
            _ => {
                type $element = f32;
                $work
            }
        }
    };
}

impl Device {
    /// Opens what was asked for: a GPU for each shard of this rank, for the prune that is planned or an evaluation. All ranks work on
    /// GPUs, or all on processors.
    ///
    /// # Errors
    /// If there are no such devices, a library is missing, they cannot do the job, or ranks would share one.
    pub fn open(choice: &Choice, prune: Option<(&Plan, &Checkpoint)>, ranks: &Ranks) -> anyhow::Result<Self> {
        let found = match choice {
            Choice::Cpu => Err(String::new()),
            Choice::Auto => Gpus::open(choice, prune, ranks).map_err(|error| {
                // A machine without GPUs is not worth a word.
                match error.downcast_ref() {
                    Some(Missing::Driver(_)) => tracing::debug!("working on the processor: {error:#}"),
                    _ => tracing::warn!("working on the processor: {error:#}"),
                }
                format!("{error:#}")
            }),
            _ => Ok(Gpus::open(choice, prune, ranks)?),
        };
        match agree(choice, found, ranks)? {
            Some(gpus) => Ok(Self::Gpus(gpus)),
            None => {
                warn_of_room(prune);
                Ok(Self::Processor)
            }
        }
    }

    /// Whether it is the processor.
    pub fn is_processor(&self) -> bool {
        matches!(self, Self::Processor)
    }

    /// What it is called.
    ///
    /// # Errors
    /// What the driver says.
    pub fn name(&self) -> anyhow::Result<String> {
        Ok(match self {
            Self::Processor => PROCESSOR.to_owned(),
            Self::Gpus(Gpus { devices, .. }) => {
                let name = devices.first().map_or(Ok(String::new()), prune_cuda::Device::name)?;
                format!("{} × {name}", devices.len())
            }
        })
    }

    /// How GPUs will be used, in a line.
    pub fn plan(&self) -> Option<String> {
        match self {
            Self::Processor => None,
            Self::Gpus(gpus) => gpus.forecast.as_ref().map(|forecast| forecast.line()),
        }
    }

    /// What a GPU of this rank held at most while it pruned, and what was planned.
    pub fn memory(&self) -> Option<DeviceMemory> {
        let Self::Gpus(Gpus { forecast: Some(forecast), most, .. }) = self else { return None };
        let peak = Some(most.load(Ordering::Relaxed)).filter(|&most| most > 0);
        // What the program takes is not in the pools.
        let planned = forecast.device.peak().saturating_sub(forecast.request.program);
        Some(DeviceMemory { peak, planned })
    }

    /// [`prune_blocks`] on this device.
    ///
    /// # Errors
    /// As there, and if cuBLAS is missing.
    pub fn prune_blocks(
        &self,
        job: &Job<'_>,
        collective: &dyn Collective,
        clock: &Mutex<Clock>,
    ) -> anyhow::Result<Vec<LayerReport>> {
        match self {
            Self::Processor => prune_blocks(job, CpuShard::new(collective, job.activations), collective, clock),
            Self::Gpus(gpus) => with_element!(job.model, T => {
                let device = gpus.devices[collective.rank() % gpus.devices.len()].clone();
                let (place, chunk) = gpus.choice();
                device.reset_peak()?;
                let shard = GpuShard::<T>::new(device.clone(), collective, place, chunk)?;
                let reports = prune_blocks(job, shard, collective, clock)?;
                gpus.most.fetch_max(device.peak()?.unwrap_or(0), Ordering::Relaxed);
                Ok(reports)
            }),
        }
    }

    /// [`model::evaluate`] on this device, or on several, of which each takes its share of the windows.
    ///
    /// # Errors
    /// As there, and if cuBLAS is missing.
    pub fn evaluate(
        &self,
        model: &Model<'_>,
        tokens: &[u32],
        length: usize,
        progress: impl FnMut(usize, usize) + Send,
    ) -> anyhow::Result<Evaluation> {
        match self {
            Self::Processor => Ok(model::evaluate(&Cpu::default(), model, tokens, length, progress)?),
            Self::Gpus(gpus) => {
                with_element!(model, T => evaluate::<T>(&gpus.devices, model, tokens, length, progress))
            }
        }
    }
}

impl Gpus {
    fn open(choice: &Choice, prune: Option<(&Plan, &Checkpoint)>, ranks: &Ranks) -> anyhow::Result<Self> {
        let plan = prune.map(|(plan, _)| plan);
        let shards = plan.map_or(choice.count().unwrap_or(1), Plan::local_shards);
        let ordinals = match choice {
            Choice::Cpu => Vec::new(),
            Choice::Auto | Choice::Cuda => own(shards, ranks)?,
            Choice::Numbers(numbers) => numbers[..shards.min(numbers.len())].to_vec(),
            &Choice::Emulated(count) => {
                emulate(shards.max(count.unwrap_or(1)), plan.and_then(|plan| plan.settings.room.memory))?;
                (0..shards).collect()
            }
        };
        if let Some(unsuited) = plan.and_then(|plan| unsuited(&plan.settings)) {
            return Err(unsuited.into());
        }
        let devices = ordinals.into_iter().map(prune_cuda::Device::open).collect::<Result<Vec<_>, _>>()?;
        // To evaluate they need not speak.
        Nccl::require(plan.map_or(1, Plan::shards))?;
        let mut gpus = Self::new(devices);
        if let Some((plan, checkpoint)) = prune {
            let forecast = forecast(choice, &gpus.devices, plan, checkpoint, ranks)?;
            tracing::info!("{}", forecast.line());
            gpus.forecast = Some(Arc::new(forecast));
            if let Some(folder) = plan.settings.output.parent().filter(|folder| *folder != Path::new("")) {
                gpus.folder = folder.to_owned();
            }
        }
        Ok(gpus)
    }

    /// These, with nothing planned.
    pub fn new(devices: Vec<prune_cuda::Device>) -> Self {
        Self { devices, forecast: None, folder: ".".into(), most: Arc::default() }
    }

    /// Where a prune keeps activations, and how many tokens it takes together.
    fn choice(&self) -> (Place, usize) {
        let Some(Forecast { choice, .. }) = self.forecast.as_deref() else { return (Place::Device, CHUNK) };
        let place = match choice.place {
            request::Place::Device => Place::Device,
            request::Place::Host => Place::Host,
            request::Place::File => Place::File(self.folder.clone()),
        };
        (place, choice.chunk)
    }
}

/// What all ranks work on: this one's GPUs, or the processor where `found` says why it has none and the `choice` allows it.
fn agree(choice: &Choice, found: Result<Gpus, String>, ranks: &Ranks) -> anyhow::Result<Option<Gpus>> {
    let collective = ranks.collective();
    if collective.size() == 1 {
        return Ok(found.ok());
    }
    // Whether there are any, and which, or why not.
    let own = match &found {
        // Emulated devices are of their process.
        Ok(_) if matches!(choice, Choice::Emulated(_)) => vec![1],
        Ok(gpus) => {
            let identities: Result<Vec<_>, _> = gpus.devices.iter().map(prune_cuda::Device::identity).collect();
            [&[1], identities?.as_flattened()].concat()
        }
        Err(reason) => [&[0], reason.as_bytes()].concat(),
    };
    let said = collective.gather(&own)?;
    let missing = said.iter().position(|said| said[0] == 0).map(|rank| {
        let reason = String::from_utf8_lossy(&said[rank][1..]).into_owned();
        if reason.is_empty() { format!("rank {rank} does so") } else { format!("rank {rank}: {reason}") }
    });
    let mut seen: HashMap<&[u8; 16], usize> = HashMap::new();
    let shared = said.iter().enumerate().find_map(|(rank, said)| {
        let (identities, _) = if said[0] == 1 { said[1..].as_chunks::<16>() } else { Default::default() };
        identities.iter().find_map(|identity| seen.insert(identity, rank)).map(|other| {
            format!(
                "ranks {other} and {rank} would share a GPU: start fewer of them on a machine, or have the launcher give each GPUs \
                 of its own (srun --gpus-per-task)"
            )
        })
    });
    let Some(reason) = missing.or(shared) else { return Ok(found.ok()) };
    match found {
        Err(_) => Ok(None),
        Ok(_) if *choice == Choice::Auto => {
            tracing::warn!("working on the processor, as all ranks or none must: {reason}");
            Ok(None)
        }
        Ok(_) => bail!("not all ranks have GPUs to work on: {reason}"),
    }
}

/// How a prune uses devices: as the flags say, and otherwise as is fastest of what fits.
fn forecast(
    choice: &Choice,
    devices: &[prune_cuda::Device],
    plan: &Plan,
    checkpoint: &Checkpoint,
    ranks: &Ranks,
) -> anyhow::Result<Forecast> {
    let emulated = matches!(choice, Choice::Emulated(_));
    let free =
        devices.iter().map(|device| Ok(device.memory()?.0 as u64)).collect::<Result<Vec<_>, prune_cuda::Error>>()?;
    let free = free.into_iter().min().unwrap_or(0);
    let memory = plan.settings.room.memory.unwrap_or(free);
    if memory > free {
        tracing::warn!("--device-memory asks for {}, and {} are free on a GPU", size(memory), size(free));
    }
    let memory = memory.min(free);
    // An emulated device holds what is allocated and nothing else, in memory of the host that nobody plans.
    let program = if emulated { 0 } else { LOADED_LATER };
    let host = crate::memory::available().filter(|_| !emulated);
    // Of all devices of this machine, whose part the plan takes for all.
    let host = host.map_or(u64::MAX, |bytes| bytes / ranks.on_this_machine() as u64 * plan.ranks as u64);
    let name = devices.first().map_or(Ok(String::new()), prune_cuda::Device::name)?;
    let model = Model::open(checkpoint)?;
    let shapes = Shapes::of_plan(plan, model.description(), element(&model));
    Forecast::of_prune(Request::of_prune(plan, name, memory, program, host), shapes)
}

fn evaluate<T: Element>(
    devices: &[prune_cuda::Device],
    model: &Model<'_>,
    tokens: &[u32],
    length: usize,
    progress: impl FnMut(usize, usize) + Send,
) -> anyhow::Result<Evaluation> {
    let windows = tokens.len() / length.max(1);
    let used = devices.len().min(windows).max(1);
    // All have as much to do, up to a window: the first speaks for them.
    let progress = Mutex::new(progress);
    let parts = run_shards(used, |shards| {
        let rank = shards.rank();
        let own = share(windows, rank, used);
        let tokens = if used == 1 { tokens } else { &tokens[own.start * length..own.end * length] };
        let tell = |done, all| {
            if rank == 0 {
                (progress.lock().unwrap_or_else(PoisonError::into_inner))(done, all);
            }
        };
        let gpu = Gpu::<T>::new(devices[rank].clone())?;
        Ok::<_, anyhow::Error>(model::evaluate(&gpu, model, tokens, length, tell)?)
    })?;
    Ok(Evaluation::of_all(&parts))
}

/// Why GPUs are not there.
#[derive(Debug, thiserror::Error)]
enum Missing {
    #[error(transparent)]
    Driver(#[from] prune_cuda::Error),
    #[error("{shards} shards need as many GPUs, and this machine has {count}{sharing}")]
    Gpus { shards: usize, count: usize, sharing: String },
}

/// The GPUs of this rank: of the machine's, in the order of its ranks; all there are, where the launcher shows each rank its own.
fn own(shards: usize, ranks: &Ranks) -> Result<Vec<usize>, Missing> {
    let (place, sharing) = (ranks.place_on_this_machine(), ranks.on_this_machine());
    match prune_cuda::Device::count()? {
        0 => Err(prune_cuda::Error::NoDevice { ordinal: 0, count: 0 }.into()),
        count if count >= shards * sharing => Ok((place * shards..(place + 1) * shards).collect()),
        count if count >= shards => Ok((0..shards).collect()),
        count => Err(Missing::Gpus {
            shards,
            count,
            sharing: if sharing > 1 { format!(" for {sharing} ranks") } else { String::new() },
        }),
    }
}

/// What all linear layers of the blocks are stored in; f32 where they differ, which holds all of them exactly.
fn element(model: &Model<'_>) -> Dtype {
    let layers = (0..model.blocks()).flat_map(|block| model.stages(block)).flat_map(|stage| stage.layers);
    let mut dtypes = layers.filter_map(|layer| model.checkpoint().get(&layer.name).map(|tensor| tensor.dtype));
    let first = dtypes.next().unwrap_or(Dtype::F32);
    if dtypes.all(|dtype| dtype == first) { first } else { Dtype::F32 }
}

/// Has an emulated driver with so many devices, of so much memory each, its cuBLAS and its NCCL take the place of those of the machine.
#[cfg(feature = "emulator")]
fn emulate(devices: usize, memory: Option<u64>) -> anyhow::Result<()> {
    // Named, so that the libraries are built.
    std::hint::black_box((emulator_cublas::cublasGetStatusString(0), emulator_nccl::ncclGetErrorString(0)));
    let options = emulator::options::Options::default();
    let memory = memory.unwrap_or(options.memory);
    emulator::loader::load(&emulator::options::Options { devices, memory, ..options })?;
    emulator::loader::load_cublas()?;
    emulator::loader::load_nccl()?;
    Ok(())
}

#[cfg(not(feature = "emulator"))]
fn emulate(_: usize, _: Option<u64>) -> Result<(), crate::settings::SettingsError> {
    Err(crate::settings::SettingsError::Inconsistent(crate::device::NOT_EMULATED))
}
