//! What shards work on: the processor, or a GPU where the program is built with the feature `cuda`.

#[cfg(not(feature = "cuda"))]
mod disabled;
#[cfg(feature = "cuda")]
mod enabled;

#[cfg(not(feature = "cuda"))]
pub use disabled::Device;
#[cfg(feature = "cuda")]
pub use enabled::Device;

use crate::settings::{SettingsError, bad_value};

/// What is said where there is no emulated GPU.
#[cfg(not(feature = "emulator"))]
const NOT_EMULATED: &str =
    "--device emulated: this program is built without the emulated GPU; build it with --features emulator";

/// What `--device` asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// A GPU where there is one and it can do the job, else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
    /// The emulated GPU.
    Emulated,
}

impl Choice {
    /// The flag's value.
    ///
    /// # Errors
    /// [`SettingsError::BadValue`].
    pub fn parse(text: &str) -> Result<Self, SettingsError> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "emulated" => Ok(Self::Emulated),
            _ => {
                let number = text.strip_prefix("cuda:").and_then(|number| number.parse().ok());
                number
                    .map(Self::Cuda)
                    .ok_or_else(|| bad_value("device", text, "auto, cpu, cuda, cuda:NUMBER or emulated"))
            }
        }
    }
}

/// Why a GPU cannot do a job that the processor could.
#[cfg(feature = "cuda")]
fn unsuited(settings: &crate::settings::Settings, ranks: usize) -> Option<SettingsError> {
    let (shards, width) = (settings.shards.saturating_mul(ranks), settings.panel_width);
    if shards > 1 {
        return Some(bad_value("shards", shards, "a GPU works alone: 1, or --device cpu"));
    }
    let unstructured = matches!(settings.pattern, prune::Pattern::Unstructured { .. });
    (unstructured && ![32, 64, 128].contains(&width))
        .then(|| bad_value("panel-width", width, "32, 64 or 128 on a GPU; any on --device cpu"))
}
