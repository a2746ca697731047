//! The ending: what was reached, what it cost, where it lies, and what to do next.

use std::fmt::Write as _;

use crate::report::{DeviceMemory, Perplexity, Report};
use crate::settings::Evaluation;

/// The summary of a prune, in lines that fit a terminal.
pub fn summary(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_perplexities(&mut text, report);
    let _ = write_sparsity(&mut text, report);
    let _ = write_costs(&mut text, report);
    for warning in &report.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    let _ = writeln!(text, "The pruned checkpoint is in {}", report.output.display());
    let _ = writeln!(text, "  look at it    driver inspect {}", quoted(&report.output.to_string_lossy()));
    let _ = writeln!(
        text,
        "  load it       transformers.AutoModelForCausalLM.from_pretrained(\"{}\")",
        report.output.display()
    );
    text
}

/// The result of an evaluation, in one line.
pub fn perplexity(evaluation: &Evaluation, result: &Perplexity) -> String {
    format!(
        "perplexity {:.6} of {} on {} windows of {} tokens\n",
        result.perplexity,
        evaluation.model.display(),
        grouped(result.windows as u64),
        result.window_length
    )
}

fn write_perplexities(text: &mut String, report: &Report) -> std::fmt::Result {
    let Some(first) = report.perplexities.first() else {
        return Ok(());
    };
    writeln!(text, "Perplexity, {} windows of {} tokens", grouped(first.windows as u64), first.window_length)?;
    let dense = report.perplexities.iter().find(|entry| entry.method.is_none()).map(|entry| entry.perplexity);
    for entry in &report.perplexities {
        let name = entry.method.map_or("dense".to_owned(), |method| method.to_string());
        let digits = if entry.perplexity < 1000.0 { 3 } else { 0 };
        write!(text, "  {name:<12}{:>11.digits$}", entry.perplexity)?;
        match dense {
            Some(dense) if entry.method.is_some() => {
                writeln!(text, "  {:>+7.1} %", 100.0 * (entry.perplexity / dense - 1.0))?;
            }
            _ => writeln!(text)?,
        }
    }
    writeln!(text)
}

fn write_sparsity(text: &mut String, report: &Report) -> std::fmt::Result {
    let (zeros, weights) = (report.zeros(), report.weights());
    let share = 100.0 * zeros as f64 / weights.max(1) as f64;
    let bits = report.bits.map_or(String::new(), |bits| format!(", {bits} bits"));
    writeln!(
        text,
        "Sparsity {share:.2} % ({}{bits} by {}): {} of {} weights in {} layers are zero",
        report.pattern,
        report.method,
        grouped(zeros),
        grouped(weights),
        report.layers.len()
    )?;
    writeln!(text)
}

fn write_costs(text: &mut String, report: &Report) -> std::fmt::Result {
    let memory = |bytes: Option<u64>| bytes.map_or("unknown".to_owned(), size);
    writeln!(text, "  {:<12}{:>11}  {:>12}", "", "time", "peak memory")?;
    for phase in &report.phases {
        writeln!(
            text,
            "  {:<12}{:>11}  {:>12}",
            phase.phase.name(),
            duration(phase.seconds),
            memory(phase.peak_memory)
        )?;
    }
    writeln!(text, "  {:<12}{:>11}  {:>12}", "all", duration(report.seconds), memory(report.peak_memory))?;
    if let Some(DeviceMemory { peak, planned }) = report.device_memory {
        writeln!(text, "  {:<23}  {:>12}, planned {}", "of a GPU, pruning", memory(peak), size(planned))?;
    }
    writeln!(text)
}

/// A time as people say it: `3.1 s`, `4 min 05 s`, `2 h 07 min`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round().max(0.0) as u64;
    match whole {
        0..60 => format!("{:.1} s", seconds.max(0.0)),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// Bytes in the largest unit that leaves a number above 1.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64 / 1024.0;
    let mut unit = UNITS[0];
    for larger in &UNITS[1..] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    match bytes {
        0..1024 => format!("{bytes} B"),
        _ if value < 99.95 => format!("{value:.1} {unit}"),
        _ => format!("{value:.0} {unit}"),
    }
}

/// A number of operations in the largest unit that leaves a number above 1.
pub fn operations(count: f64) -> String {
    const UNITS: [&str; 7] = ["", "K", "M", "G", "T", "P", "E"];
    let mut value = count;
    let mut units = UNITS.iter();
    let mut unit = units.next().copied().unwrap_or_default();
    while value >= 999.5
        && let Some(larger) = units.next()
    {
        value /= 1000.0;
        unit = larger;
    }
    match count {
        0.0 => "-".to_owned(),
        _ => format!("{value:.prec$} {unit}FLOP", prec = if value < 9.95 { 1 } else { 0 }),
    }
}

/// A count with a space between groups of three digits.
pub fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// A path as a shell takes it.
fn quoted(path: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:@%".contains(c);
    if !path.is_empty() && path.chars().all(plain) {
        path.to_owned()
    } else {
        format!("'{}'", path.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        let durations =
            [(0.0, "0.0 s"), (3.13, "3.1 s"), (59.6, "1 min 00 s"), (245.0, "4 min 05 s"), (7620.0, "2 h 07 min")];
        for (seconds, text) in durations {
            assert_eq!(duration(seconds), text);
        }
        for (bytes, text) in
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (300 << 20, "300 MiB"), (5 << 30, "5.0 GiB")]
        {
            assert_eq!(size(bytes), text);
        }
        for (count, text) in [(0.0, "-"), (999.0, "999 FLOP"), (1.4e11, "140 GFLOP"), (6.9e15, "6.9 PFLOP")] {
            assert_eq!(operations(count), text);
        }
        for (count, text) in [(0, "0"), (999, "999"), (1000, "1 000"), (1_234_567, "1 234 567")] {
            assert_eq!(grouped(count), text);
        }
        assert_eq!(quoted("pruned/demo"), "pruned/demo");
        assert_eq!(quoted("it's here"), r"'it'\''s here'");
    }
}
