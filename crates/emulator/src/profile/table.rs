//! The profile as a table: what is worth knowing first, and then the instructions that cost something.

use super::{Banks, Limit, Occupancy, Profile, Traffic};
use std::fmt;

/// A number short enough for a column: `950`, `12.3k`, `4.56M`.
fn short(number: u64) -> String {
    let mut scaled = number as f64;
    for unit in ["", "k", "M", "G", "T", "P"] {
        if scaled < 999.5 || unit == "P" {
            let digits = if unit.is_empty() || scaled >= 99.95 { 0 } else { 1 + usize::from(scaled < 9.995) };
            return format!("{scaled:.digits$}{unit}");
        }
        scaled /= 1000.0;
    }
    number.to_string()
}

/// `a` as a share of `b`, in percent; of nothing, everything.
fn percent(a: u64, b: u64) -> f64 {
    if b == 0 { 100.0 } else { 100.0 * a as f64 / b as f64 }
}

fn triple([x, y, z]: [u32; 3]) -> String {
    match (y, z) {
        (1, 1) => x.to_string(),
        (_, 1) => format!("{x}×{y}"),
        _ => format!("{x}×{y}×{z}"),
    }
}

fn global(f: &mut fmt::Formatter<'_>, name: &str, traffic: &Traffic) -> fmt::Result {
    if traffic.requests == 0 {
        return Ok(());
    }
    writeln!(
        f,
        "  {name:<14} {:>7}B in {:>6} requests: {:>6} sectors, fewest {:>6} ({:.0}% of them needed)",
        short(traffic.bytes),
        short(traffic.requests),
        short(traffic.sectors),
        short(traffic.ideal_sectors),
        percent(traffic.ideal_sectors, traffic.sectors)
    )
}

fn shared(f: &mut fmt::Formatter<'_>, name: &str, banks: &Banks) -> fmt::Result {
    if banks.requests == 0 {
        return Ok(());
    }
    writeln!(
        f,
        "  {name:<14} {:>7}B in {:>6} requests: {:>6} wavefronts, fewest {:>4} ({} bank conflicts)",
        short(banks.bytes),
        short(banks.requests),
        short(banks.wavefronts),
        short(banks.ideal_wavefronts),
        short(banks.conflicts())
    )
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let geometry = &self.geometry;
        write!(f, "{} <{} blocks of {} threads", geometry.kernel, triple(geometry.grid), triple(geometry.block))?;
        write!(f, ", {} B shared", geometry.shared)?;
        match geometry.registers {
            Some(registers) => writeln!(f, ", {registers} registers>")?,
            None => writeln!(f, ">")?,
        }
        let classes: Vec<String> = by_count(&self.classes);
        writeln!(
            f,
            "  {:<14} {} of warps, {:.1} lanes active: {}",
            "instructions",
            short(self.instructions),
            self.mean_active_lanes,
            classes.join(", ")
        )?;
        let flops = [("single", self.flops_single), ("double", self.flops_double), ("half", self.flops_half)];
        let flops: Vec<String> = flops
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| format!("{} {name}", short(*count)))
            .collect();
        if !flops.is_empty() {
            writeln!(f, "  {:<14} {}", "flops", flops.join(", "))?;
        }
        for (shape, matrix) in &self.matrix {
            writeln!(f, "  {:<14} {} × {shape}: {} flops", "mma", short(matrix.executions), short(matrix.flops))?;
        }
        global(f, "global loads", &self.global_loads)?;
        global(f, "global stores", &self.global_stores)?;
        shared(f, "shared loads", &self.shared_loads)?;
        shared(f, "shared stores", &self.shared_stores)?;
        if self.local_bytes != [0; 2] {
            let [loaded, stored] = self.local_bytes;
            writeln!(f, "  {:<14} {}B loaded, {}B stored", "local memory", short(loaded), short(stored))?;
        }
        if self.asynchronous_bytes > 0 {
            writeln!(f, "  {:<14} {}B", "async copies", short(self.asynchronous_bytes))?;
        }
        writeln!(
            f,
            "  {:<14} {} branches, {} divergent; {} arrivals at barriers",
            "control",
            short(self.branches),
            short(self.divergent_branches),
            short(self.barriers)
        )?;
        let places = occupancy(&self.occupancy);
        let bound = if geometry.registers.is_some() { "" } else { " (at most: registers unknown)" };
        writeln!(f, "  {:<14} {}{bound}", "occupancy", places.join(", "))?;
        self.instructions_table(f)
    }
}

fn by_count(classes: &std::collections::BTreeMap<crate::machine::Class, u64>) -> Vec<String> {
    let mut classes: Vec<_> = classes.iter().filter(|(_, count)| **count > 0).collect();
    classes.sort_by_key(|(class, count)| (std::cmp::Reverse(**count), **class));
    // The names are those of the JSON.
    let name = |class| serde_json::to_value(class).ok().and_then(|name| name.as_str().map(str::to_owned));
    classes.iter().map(|(class, count)| format!("{} {}", short(**count), name(class).unwrap_or_default())).collect()
}

/// Occupancies, those that are equal under all their names: `sm_80/90 48 of 64 warps (registers)`.
fn occupancy(all: &[Occupancy]) -> Vec<String> {
    let mut names: Vec<(&Occupancy, String)> = Vec::new();
    for of in all {
        let alike = |(other, _): &&mut (&Occupancy, String)| {
            (of.warps, of.most_warps, of.limit) == (other.warps, other.most_warps, other.limit)
        };
        match names.iter_mut().find(alike) {
            Some((_, name)) => *name += &of.target.replace("sm_", "/"),
            None => names.push((of, of.target.clone())),
        }
    }
    let limit = |limit| match limit {
        Limit::Threads => "threads",
        Limit::Blocks => "blocks",
        Limit::Shared => "shared memory",
        Limit::Registers => "registers",
    };
    let one = |(of, name): &(&Occupancy, String)| {
        format!("{name} {} of {} warps ({})", of.warps, of.most_warps, limit(of.limit))
    };
    names.iter().map(one).collect()
}

/// At most so many characters of a text, the last one a mark if there is more.
fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_owned(),
        Some(_) => text.chars().take(most - 1).chain(['…']).collect(),
    }
}

impl Profile {
    /// Memory instructions, and those under divergence; the others say nothing that the totals do not.
    fn instructions_table(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let worth = |line: &&super::ProfileLine| {
            let counts = &line.counts;
            counts.divergent_branches > 0
                || counts.asynchronous_bytes > 0
                || counts.local_bytes != [0; 2]
                || counts.global.iter().any(|traffic| traffic.requests > 0)
                || counts.shared.iter().any(|banks| banks.requests > 0)
        };
        let lines: Vec<_> = self.lines.iter().filter(worth).collect();
        if lines.is_empty() {
            return Ok(());
        }
        writeln!(
            f,
            "  {:>6}  {:<36} {:>7} {:>5}  {:>15}  {:>9}  source",
            "PTX", "instruction", "times", "lanes", "sectors/fewest", "conflicts"
        )?;
        for line in lines {
            let counts = &line.counts;
            let [loads, stores] = &counts.global;
            let (touched, ideal) = (loads.sectors + stores.sectors, loads.ideal_sectors + stores.ideal_sectors);
            let sectors = match touched {
                0 => String::new(),
                _ => format!("{}/{}", short(touched), short(ideal)),
            };
            let conflicts = match counts.shared.iter().map(|banks| banks.requests).sum::<u64>() {
                0 => String::new(),
                _ => short(counts.shared.iter().map(Banks::conflicts).sum()),
            };
            let source = line
                .place
                .source
                .as_ref()
                .map(|(file, line)| format!("{}:{line}", file.rsplit(['/', '\\']).next().unwrap_or(file)));
            let divergent = match counts.divergent_branches {
                0 => String::new(),
                count => format!("  {} divergent", short(count)),
            };
            writeln!(
                f,
                "  {:>6}  {:<36} {:>7} {:>5.1}  {sectors:>15}  {conflicts:>9}  {}{divergent}",
                line.place.ptx_line,
                cut(&line.place.instruction, 36),
                short(counts.executions),
                counts.lanes as f64 / counts.executions as f64,
                source.unwrap_or_default(),
            )?;
        }
        Ok(())
    }
}
