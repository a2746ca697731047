//! GPUs, by way of the crates `cuda` and `prune-cuda`.

use std::sync::Mutex;

use checkpoint::Dtype;
use cuda::{Element, Gpu, Place};
use half::{bf16, f16};
use model::{Cpu, Evaluation, Model};
use prune::Collective;

use crate::backend::CpuShard;
use crate::backend::gpu::{CHUNK, GpuShard};
use crate::blocks::{Job, prune_blocks};
use crate::device::{Choice, unsuited};
use crate::report::{Clock, LayerReport};
use crate::settings::Settings;

/// See [`crate::device`].
#[derive(Clone, Debug)]
pub enum Device {
    /// The processor.
    Processor,
    /// A GPU.
    Gpu(prune_cuda::Device),
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
    /// Opens what was asked for; `job` is the prune that it is to do, with the number of ranks.
    ///
    /// # Errors
    /// If there is no such device, or it cannot do the job.
    pub fn open(choice: Choice, job: Option<(&Settings, usize)>) -> anyhow::Result<Self> {
        let unsuited = job.and_then(|(settings, ranks)| unsuited(settings, ranks));
        let ordinal = match (choice, unsuited) {
            (Choice::Cpu, _) | (Choice::Auto, Some(_)) => return Ok(Self::Processor),
            (_, Some(unsuited)) => return Err(unsuited.into()),
            (Choice::Auto, None) => {
                return Ok(match prune_cuda::Device::open(0) {
                    Ok(device) => Self::Gpu(device),
                    Err(missing) => {
                        tracing::debug!("working on the processor: {missing}");
                        Self::Processor
                    }
                });
            }
            (Choice::Cuda(ordinal), None) => ordinal,
            (Choice::Emulated, None) => {
                emulate()?;
                0
            }
        };
        Ok(Self::Gpu(prune_cuda::Device::open(ordinal)?))
    }

    /// Whether it is the processor.
    pub fn is_processor(&self) -> bool {
        matches!(self, Self::Processor)
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
            Self::Gpu(device) => with_element!(job.model, T => {
                prune_blocks(job, GpuShard::<T>::new(device.clone(), Place::Device, CHUNK)?, collective, clock)
            }),
        }
    }

    /// [`model::evaluate`] on this device.
    ///
    /// # Errors
    /// As there, and if cuBLAS is missing.
    pub fn evaluate(
        &self,
        model: &Model<'_>,
        tokens: &[u32],
        length: usize,
        progress: impl FnMut(usize, usize),
    ) -> anyhow::Result<Evaluation> {
        match self {
            Self::Processor => Ok(model::evaluate(&Cpu::default(), model, tokens, length, progress)?),
            Self::Gpu(device) => with_element!(model, T => evaluate::<T>(device, model, tokens, length, progress)),
        }
    }
}

fn evaluate<T: Element>(
    device: &prune_cuda::Device,
    model: &Model<'_>,
    tokens: &[u32],
    length: usize,
    progress: impl FnMut(usize, usize),
) -> anyhow::Result<Evaluation> {
    Ok(model::evaluate(&Gpu::<T>::new(device.clone())?, model, tokens, length, progress)?)
}

/// What all linear layers of the blocks are stored in; f32 where they differ, which holds all of them exactly.
fn element(model: &Model<'_>) -> Dtype {
    let layers = (0..model.blocks()).flat_map(|block| model.stages(block)).flat_map(|stage| stage.layers);
    let mut dtypes = layers.filter_map(|layer| model.checkpoint().get(&layer.name).map(|tensor| tensor.dtype));
    let first = dtypes.next().unwrap_or(Dtype::F32);
    if dtypes.all(|dtype| dtype == first) { first } else { Dtype::F32 }
}

/// Has the emulated driver and its cuBLAS take the place of those of the machine.
#[cfg(feature = "emulator")]
fn emulate() -> anyhow::Result<()> {
    // Named, so that the library is built.
    std::hint::black_box(emulator_cublas::cublasGetStatusString(0));
    emulator::loader::load(&emulator::options::Options::default())?;
    emulator::loader::load_cublas()?;
    Ok(())
}

#[cfg(not(feature = "emulator"))]
fn emulate() -> Result<(), crate::settings::SettingsError> {
    Err(crate::settings::SettingsError::Inconsistent(crate::device::NOT_EMULATED))
}
