//! What a plan is asked for: the flags of `driver plan`, checked.

use std::path::PathBuf;

use prune::Method;
use roofline::room::Panels;
use roofline::{Device, PANEL};

use crate::backend::panels;
use crate::cli::{PlanArgs, RoomArgs};
use crate::forecast::Shapes;
use crate::forecast::memory::DEVICE_PROGRAM;
use crate::plan::{Plan, product};
use crate::settings::{LONGEST_DEFAULT, SettingsError, at_least_one, bad_value, sequence_length, workers};

/// The share of its ceilings that a device is taken to reach, and bytes a second of a disk, of what connects devices, and of what
/// connects them to the host, where a prune chooses between ways to run: as `driver plan` has them by default.
const SHARE: f64 = 0.7;
const DISK: f64 = 2e9;
const LINK: f64 = 300e9;
const HOST_LINK: f64 = 25e9;

/// Sequences where none are asked for, as for a prune.
const SEQUENCES: usize = 128;

/// Chunks are no smaller: products no longer fill a device.
const SMALLEST_CHUNK: usize = 256;

/// Sizes, tokens and rates beyond this are slips of the hand.
const LARGEST: f64 = 1e18;

/// Bytes of an activation between stages, where no other type is asked for.
const ACTIVATION: usize = 2;

/// Where activations are kept between stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the memory of the device whose sequences they are.
    Device,
    /// In the host's memory.
    Host,
    /// In a file on the disk that the checkpoint is read from.
    File,
}

impl Place {
    /// As the flag names it.
    pub fn flag(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Host => "host",
            Self::File => "file",
        }
    }

    /// As a sentence names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Device => "on the devices",
            Self::Host => "in host memory",
            Self::File => "in a file",
        }
    }
}

/// How the memory of devices is to be used, as far as that was said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Where activations are kept.
    pub place: Option<Place>,
    /// Tokens of a chunk.
    pub chunk: Option<usize>,
    /// Bytes of each device.
    pub memory: Option<u64>,
}

impl Room {
    /// Checks the flags of a prune.
    ///
    /// # Errors
    /// [`SettingsError::BadValue`], or [`SettingsError::Inconsistent`] where the processor is asked for, which has no use for
    /// them.
    pub fn resolve(args: &RoomArgs, device: &crate::device::Choice) -> Result<Self, SettingsError> {
        let room = Self {
            place: args.activations_in.as_deref().and_then(place),
            chunk: args.chunk.map(chunk).transpose()?,
            memory: args.device_memory.as_ref().map(|text| size("device-memory", text)).transpose()?,
        };
        if *device == crate::device::Choice::Cpu && room.is_given() {
            return Err(SettingsError::Inconsistent(
                "--device cpu: --activations-in, --chunk and --device-memory tell GPUs how to use their memory; leave them out",
            ));
        }
        Ok(room)
    }

    /// Whether anything was said.
    pub fn is_given(&self) -> bool {
        *self != Self::default()
    }
}

/// A place by its flag; `None` is the fastest that fits.
fn place(flag: &str) -> Option<Place> {
    [Place::Device, Place::Host, Place::File].into_iter().find(|place| place.flag() == flag)
}

fn chunk(tokens: i64) -> Result<usize, SettingsError> {
    match at_least_one("chunk", tokens)? {
        tokens if tokens < SMALLEST_CHUNK => {
            Err(bad_value("chunk", tokens, "at least 256 tokens, so that products fill a device"))
        }
        tokens => Ok(tokens),
    }
}

/// A plan's question.
#[derive(Clone, Debug)]
pub struct Request {
    /// The model's `config.json`.
    pub config: PathBuf,
    /// Devices.
    pub shards: usize,
    /// What each can do.
    pub device: Device,
    /// The share of its ceilings that kernels reach.
    pub share: f64,
    /// Bytes of each device.
    pub device_memory: u64,
    /// Bytes of the host.
    pub host_memory: u64,
    /// Bytes a second of the disk.
    pub disk: f64,
    /// Bytes a second from device to device.
    pub link: f64,
    /// Bytes a second between a device and the host.
    pub host_link: f64,
    /// Where activations are to be kept; wherever it is fastest, if absent.
    pub place: Option<Place>,
    /// Tokens of a chunk; as many as fit, if absent.
    pub chunk: Option<usize>,
    /// Calibration sequences.
    pub sequences: usize,
    /// Tokens per sequence, if given.
    pub given_length: Option<usize>,
    /// Bytes that a device's program takes.
    pub program: u64,
    /// Bytes of an activation between stages.
    pub activation: usize,
    /// How weights are chosen.
    pub method: Method,
    /// The columns that are handled together.
    pub panels: Panels,
    /// Whether those that stay are rounded to a grid.
    pub bits: bool,
}

impl Request {
    /// Checks the flags.
    ///
    /// # Errors
    /// [`SettingsError::BadValue`].
    pub fn resolve(args: PlanArgs) -> Result<Self, SettingsError> {
        let config = if args.config.is_dir() { args.config.join("config.json") } else { args.config };
        Ok(Self {
            config,
            shards: args.shards.map_or(Ok(1), |count| workers("shards", count))?,
            device: device(&args.device)?,
            share: match args.share {
                share if share > 0.0 && share <= 1.0 => share,
                share => return Err(bad_value("share", share, "a number above 0 and at most 1")),
            },
            device_memory: size("device-memory", &args.device_memory)?,
            host_memory: size("host-memory", &args.host_memory)?,
            disk: rate("disk", &args.disk)?,
            link: rate("link", &args.link)?,
            host_link: rate("host-link", &args.host_link)?,
            place: place(&args.activations_in),
            chunk: args.chunk.map(chunk).transpose()?,
            sequences: args.sequences.map_or(Ok(SEQUENCES), |count| at_least_one("sequences", count))?,
            given_length: args.sequence_length.map(sequence_length).transpose()?,
            program: DEVICE_PROGRAM,
            activation: ACTIVATION,
            method: Method::Sparsegpt,
            panels: Panels::Of(PANEL as usize),
            bits: false,
        })
    }

    /// What a prune asks of devices that have `memory` bytes for it each, of which its program takes `program`.
    pub fn of_prune(plan: &Plan, name: String, memory: u64, program: u64, host_memory: u64) -> Self {
        let settings = &plan.settings;
        Self {
            config: settings.model.clone(),
            shards: plan.shards(),
            device: Device { name, ..Device::a100() },
            share: SHARE,
            device_memory: memory,
            host_memory,
            disk: DISK,
            link: LINK,
            host_link: HOST_LINK,
            place: settings.room.place,
            chunk: settings.room.chunk,
            sequences: settings.sequences,
            given_length: Some(plan.sequence_length),
            program,
            activation: plan.activations.size(),
            method: if settings.calibrates() && settings.method == Method::Magnitude {
                Method::Wanda
            } else {
                settings.method
            },
            panels: panels(settings.pattern, settings.panel_width),
            bits: settings.bits.is_some(),
        }
    }

    /// Tokens per sequence: as given, or the smaller of 2048 and the model's own.
    pub fn sequence_length(&self, shapes: &Shapes) -> usize {
        self.given_length.unwrap_or(shapes.longest.min(LONGEST_DEFAULT))
    }

    /// Calibration tokens.
    pub fn tokens(&self, shapes: &Shapes) -> usize {
        saturated(&[self.sequences, self.sequence_length(shapes)])
    }

    /// Those of the shard that has most.
    pub fn shard_tokens(&self, shapes: &Shapes) -> usize {
        saturated(&[self.sequences.div_ceil(self.shards), self.sequence_length(shapes)])
    }
}

fn saturated(factors: &[usize]) -> usize {
    usize::try_from(product(factors)).unwrap_or(usize::MAX)
}

/// A device by name, or by its ceilings in TFLOP/s and GB/s.
fn device(text: &str) -> Result<Device, SettingsError> {
    match text {
        "a100" => return Ok(Device::a100()),
        "h100" => return Ok(Device::h100()),
        _ => {}
    }
    let bad = || {
        let why = "a100, h100, or four numbers above 0 with commas: TFLOP/s of 16-bit products, of f32 products made of three \
                   of tf32, of f32 multiply-adds, and GB/s of its memory, as in 312,52,19.5,2039";
        bad_value("device", text, why)
    };
    let numbers: Vec<f64> =
        text.split(',').map(|number| number.trim().parse().map_err(|_| bad())).collect::<Result<_, _>>()?;
    match numbers[..] {
        [tensor, split, single, memory] if numbers.iter().all(|&number| number > 0.0 && number < 1e9) => Ok(Device {
            name: format!("device of {text}"),
            tensor: tensor * 1e12,
            split: split * 1e12,
            single: single * 1e12,
            memory: memory * 1e9,
        }),
        _ => Err(bad()),
    }
}

fn size(flag: &'static str, text: &str) -> Result<u64, SettingsError> {
    let why = "a number above 0 and a unit, as in 80GiB or 512GB";
    quantity(text).map(|bytes| bytes as u64).filter(|&bytes| bytes > 0).ok_or_else(|| bad_value(flag, text, why))
}

fn rate(flag: &'static str, text: &str) -> Result<f64, SettingsError> {
    let why = "a number above 0 and a unit, as in 2GB/s or 800MB/s";
    text.strip_suffix("/s").and_then(quantity).ok_or_else(|| bad_value(flag, text, why))
}

/// Bytes: a number, K, M, G or T, perhaps an i, and B.
fn quantity(text: &str) -> Option<f64> {
    let text = text.trim();
    let at = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(at);
    let prefix = unit.strip_suffix('B')?;
    let (prefix, thousand) = match prefix.strip_suffix('i') {
        Some(prefix) => (prefix, 1024.0_f64),
        None => (prefix, 1000.0),
    };
    let power = ["", "K", "M", "G", "T"].iter().position(|&known| known == prefix)?;
    let bytes = number.trim().parse::<f64>().ok()? * thousand.powi(power as i32);
    (bytes > 0.0 && bytes <= LARGEST).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_rates_are_read_as_they_are_written() {
        for (text, bytes) in [("80GiB", 80 << 30), ("512GB", 512_000_000_000), ("1.5 MiB", 3 << 19), ("7B", 7)] {
            assert_eq!(size("device-memory", text).unwrap(), bytes, "{text}");
        }
        assert_eq!(rate("disk", "2.5GB/s").unwrap(), 2.5e9);
        for text in ["80", "GiB", "-3GB", "0GB", "80gb", "80GiB/s", "1e30TB", "nanGB", "8iB5"] {
            assert!(size("device-memory", text).is_err(), "{text}");
        }
        assert!(rate("disk", "2GB").is_err());
        assert_eq!(device("312,52,19.5,2039").unwrap().memory, 2039e9);
        for text in ["v100", "1,2,3", "1,2,3,0", "1,2,3,nan", "1,2,3,4,5"] {
            assert!(device(text).is_err(), "{text}");
        }
    }
}
