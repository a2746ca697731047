//! A plan as text.

use std::fmt;

use crate::forecast::Forecast;
use crate::forecast::request::Place;
use crate::summary::{duration, grouped, size};

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { request, shapes, choice, .. } = self;
        let weights = shapes.block_weights() * shapes.blocks as u64 + shapes.outer;
        writeln!(
            f,
            "Plan {}: {}, {} blocks, {} weights in {}",
            request.config.display(),
            shapes.architecture,
            shapes.blocks,
            grouped(weights),
            shapes.dtype
        )?;
        let length = request.sequence_length(shapes);
        writeln!(f, "  on        {} × {}", request.shards, request.device.name)?;
        writeln!(
            f,
            "  over      {} sequences of {length} tokens, {} of them on a device",
            request.sequences,
            request.sequences.div_ceil(request.shards)
        )?;
        writeln!(f, "  keeping   activations {}, {} tokens in a chunk\n", choice.place.name(), choice.chunk)?;
        self.write_device(f)?;
        self.write_host(f)?;
        self.write_times(f)
    }
}

impl Forecast {
    fn write_device(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Each device, at the worst moment of each stage")?;
        writeln!(
            f,
            "  {:<14}{:<9}{:>11}{:>13}{:>11}{:>11}{:>11}{:>11}{:>11}",
            "stage", "moment", "weights", "activations", "Hessian", "chunk", "layer", "program", "all"
        )?;
        for moment in self.device.stages() {
            write!(f, "  {:<14}{:<9}{:>11}", moment.stage, moment.moment, size(moment.weights))?;
            write!(f, "{:>13}", size(moment.activations))?;
            for bytes in [moment.hessian, moment.chunk, moment.layer, moment.program, moment.total()] {
                let text = if bytes == 0 { "-".to_owned() } else { size(bytes) };
                write!(f, "{text:>11}")?;
            }
            writeln!(f)?;
        }
        let (peak, memory) = (self.device.peak(), self.request.device_memory);
        writeln!(f, "  peak {} of {}\n", size(peak), size(memory))
    }

    fn write_host(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = &self.host;
        writeln!(f, "The host")?;
        let activations = match self.choice.place {
            Place::Device => "activations, none",
            Place::Host => "activations of all tokens, residual stream and kept inputs",
            Place::File => "activations, chunks on their way to and from the file",
        };
        for (bytes, what) in [
            (host.pages, "pages of the block that is read; the system may drop them"),
            (host.staging, "pinned, for weights on their way to the devices"),
            (host.results, "pruned layers on their way to the disk"),
            (host.activations, activations),
            (host.program, "program and calibration tokens"),
        ] {
            writeln!(f, "  {:>11}  {what}", size(bytes))?;
        }
        writeln!(f, "  peak {} of {}\n", size(host.peak()), size(self.request.host_memory))
    }

    fn write_times(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let times = &self.times;
        writeln!(f, "Time, modelled; kernels at {:.0} % of their ceilings", 100.0 * self.request.share)?;
        writeln!(f, "  {:<30}{:>12}{:>14}", "phase", "a block", "all blocks")?;
        let mut line = |name: &str, seconds: f64| {
            writeln!(f, "  {name:<30}{:>12}{:>14}", fine(seconds), duration(seconds * times.blocks))
        };
        line("forward", times.forward)?;
        line("Hessian", times.hessian)?;
        line("factor, on one device", times.factor)?;
        line("selection, sweep, updates", times.solve)?;
        line("collectives", times.collectives)?;
        line("activations, in and out", times.crossing)?;
        line("= on the devices", times.compute())?;
        line("reading", times.read)?;
        line("writing", times.write)?;
        line("activations, file", times.spill)?;
        line("= on the disk", times.disk())?;
        line("= on the host links", times.host_link)?;
        line("the slowest of the three", times.block())?;
        writeln!(f, "  {:<30}{:>26}", "checking for NaN, before", duration(times.check))?;
        writeln!(f, "  {:<30}{:>26}", "embedding and head, copied", duration(times.outer))?;
        writeln!(f, "  {:<30}{:>26}", "first block in, last one out", duration(times.read + times.write))?;
        writeln!(f, "  {:<30}{:>26}, waiting for {}", "together", duration(times.total()), times.bound())
    }
}

/// Seconds with three digits, for what may take milliseconds.
fn fine(seconds: f64) -> String {
    match seconds {
        0.0 => "-".to_owned(),
        _ => format!("{seconds:.3} s"),
    }
}
