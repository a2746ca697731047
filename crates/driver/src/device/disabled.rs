//! Without CUDA there is the processor.

use std::sync::Mutex;

use checkpoint::Checkpoint;
use model::{Cpu, Evaluation, Model};
use prune::Collective;

use crate::backend::CpuShard;
use crate::blocks::{Job, prune_blocks};
use crate::device::{Choice, NOT_EMULATED, PROCESSOR, warn_of_room};
use crate::plan::Plan;
use crate::ranks::Ranks;
use crate::report::{Clock, DeviceMemory, LayerReport};
use crate::settings::SettingsError;

/// See [`crate::device`].
#[derive(Clone, Debug)]
pub struct Device;

impl Device {
    /// Opens what was asked for.
    ///
    /// # Errors
    /// If that is a GPU.
    pub fn open(choice: &Choice, prune: Option<(&Plan, &Checkpoint)>, _ranks: &Ranks) -> anyhow::Result<Self> {
        match choice {
            Choice::Auto | Choice::Cpu => {
                warn_of_room(prune);
                Ok(Self)
            }
            Choice::Cuda | Choice::Numbers(_) => Err(SettingsError::Inconsistent(
                "--device cuda: this program is built without GPUs; build it with --features cuda",
            )
            .into()),
            Choice::Emulated(_) => Err(SettingsError::Inconsistent(NOT_EMULATED).into()),
        }
    }

    /// Whether it is the processor.
    pub fn is_processor(&self) -> bool {
        true
    }

    /// How GPUs will be used, in a line.
    pub fn plan(&self) -> Option<String> {
        None
    }

    /// What a GPU held at most, and what was planned.
    pub fn memory(&self) -> Option<DeviceMemory> {
        None
    }

    /// What it is called.
    ///
    /// # Errors
    /// Never.
    pub fn name(&self) -> anyhow::Result<String> {
        Ok(PROCESSOR.to_owned())
    }

    /// [`prune_blocks`] on this device.
    ///
    /// # Errors
    /// As there.
    pub fn prune_blocks(
        &self,
        job: &Job<'_>,
        collective: &dyn Collective,
        clock: &Mutex<Clock>,
    ) -> anyhow::Result<Vec<LayerReport>> {
        prune_blocks(job, CpuShard::new(collective, job.activations), collective, clock)
    }

    /// [`model::evaluate`] on this device.
    ///
    /// # Errors
    /// As there.
    pub fn evaluate(
        &self,
        model: &Model<'_>,
        tokens: &[u32],
        length: usize,
        progress: impl FnMut(usize, usize) + Send,
    ) -> anyhow::Result<Evaluation> {
        Ok(model::evaluate(&Cpu::default(), model, tokens, length, progress)?)
    }
}
