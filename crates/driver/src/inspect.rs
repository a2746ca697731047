//! `inspect`: what a checkpoint holds, whether or not its architecture is known.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Context;
use checkpoint::{Checkpoint, Tensor, Values};
use rayon::prelude::*;
use serde::Serialize;

use crate::architecture::Layout;
use crate::summary::{grouped, size};

/// The patterns that hardware and formats know, as (kept, group).
const PATTERNS: [(usize, usize); 5] = [(1, 4), (2, 4), (4, 8), (8, 16), (16, 32)];

/// Elements that one thread scans at a time, rounded up to whole rows.
const SCAN_ELEMENTS: usize = 1 << 18;

/// All that is known of a checkpoint.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// The folder.
    pub folder: PathBuf,
    /// Its shapes; absent where it is no model that is known.
    #[serde(flatten)]
    pub layout: Option<Layout>,
    /// Why it is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Elements of all tensors.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Elements and bytes by dtype.
    pub dtypes: BTreeMap<String, Size>,
    /// Each tensor, in the order of names, block 2 before block 10.
    pub tensors: Vec<TensorFacts>,
}

/// Elements and bytes.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Size {
    /// Elements.
    pub parameters: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What one tensor is and holds.
#[derive(Clone, Debug, Serialize)]
pub struct TensorFacts {
    /// Its name.
    pub name: String,
    /// How its elements are stored.
    pub dtype: String,
    /// Its extents.
    pub shape: Vec<usize>,
    /// Elements and bytes.
    #[serde(flatten)]
    pub size: Size,
    /// What its elements are; absent where the dtype is not one that is computed with.
    #[serde(flatten)]
    pub values: Option<Counts>,
    /// For a linear layer, or any matrix of an unknown architecture: n:m to the share of its groups with at most n
    /// nonzeros, for each pattern whose groups divide the columns.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub conformity: BTreeMap<String, f64>,
}

/// How many elements are what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Zeros of either sign.
    pub zeros: u64,
    /// Zeros with a minus sign, which a pruned weight must not be.
    pub negative_zeros: u64,
    /// Not a number.
    pub nan: u64,
    /// Infinities of either sign.
    pub infinite: u64,
    /// Groups of each of [`PATTERNS`] with few enough nonzeros.
    #[serde(skip)]
    groups: [u64; PATTERNS.len()],
}

impl Counts {
    fn plus(self, other: Self) -> Self {
        Self {
            zeros: self.zeros + other.zeros,
            negative_zeros: self.negative_zeros + other.negative_zeros,
            nan: self.nan + other.nan,
            infinite: self.infinite + other.infinite,
            groups: std::array::from_fn(|index| self.groups[index] + other.groups[index]),
        }
    }

    /// Of rows of a matrix, given as bits without their sign and as a predicate for -0.0; `infinity` is infinity's bits.
    fn of<T: Copy + Sync>(elements: &[T], columns: usize, infinity: u32, bits: fn(T) -> (u32, bool)) -> Self {
        let rows_at_once = SCAN_ELEMENTS.div_ceil(columns.max(1));
        let scan = |rows: &[T]| {
            let mut counts = Self::default();
            for row in rows.chunks(columns.max(1)) {
                for &element in row {
                    let (magnitude, negative) = bits(element);
                    counts.zeros += u64::from(magnitude == 0);
                    counts.negative_zeros += u64::from(magnitude == 0 && negative);
                    counts.nan += u64::from(magnitude > infinity);
                    counts.infinite += u64::from(magnitude == infinity);
                }
                for (count, (kept, group)) in counts.groups.iter_mut().zip(PATTERNS) {
                    let conforms = |group: &&[T]| group.iter().filter(|&&element| bits(element).0 != 0).count() <= kept;
                    *count += row.chunks_exact(group).filter(conforms).count() as u64;
                }
            }
            counts
        };
        elements.par_chunks(rows_at_once * columns.max(1)).map(scan).reduce(Self::default, Self::plus)
    }

    fn of_tensor(tensor: &Tensor<'_>) -> Option<Self> {
        let columns = tensor.shape.last().copied().unwrap_or(1);
        let half = |bits: u16| (u32::from(bits & 0x7fff), bits >> 15 == 1);
        Some(match tensor.values().ok()? {
            Values::F32(values) => {
                let bits = |value: f32| (value.to_bits() & 0x7fff_ffff, value.is_sign_negative());
                Self::of(values, columns, f32::INFINITY.to_bits(), bits)
            }
            Values::F16(values) => {
                Self::of(bytemuck::cast_slice(values), columns, half::f16::INFINITY.to_bits().into(), half)
            }
            Values::Bf16(values) => {
                Self::of(bytemuck::cast_slice(values), columns, half::bf16::INFINITY.to_bits().into(), half)
            }
        })
    }
}

impl Inspection {
    /// Reads every tensor of a checkpoint once.
    pub fn of(checkpoint: &Checkpoint) -> Self {
        let (layout, problem) = match Layout::of_checkpoint(checkpoint) {
            Ok(layout) => (Some(layout), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let mut tensors: Vec<_> = checkpoint.tensors().collect();
        tensors.sort_by(|a, b| in_order(a.name).cmp(in_order(b.name)));
        let tensors: Vec<_> = tensors
            .par_iter()
            .map(|tensor| {
                let is_layer = layout.as_ref().is_none_or(|layout| layout.has_layer(tensor.name));
                let facts = TensorFacts::of(tensor, is_layer && tensor.shape.len() == 2);
                checkpoint.release(tensor.name);
                facts
            })
            .collect();
        let mut dtypes = BTreeMap::<String, Size>::new();
        let mut all = Size::default();
        for tensor in &tensors {
            for size in [&mut all, dtypes.entry(tensor.dtype.clone()).or_default()] {
                size.parameters += tensor.size.parameters;
                size.bytes += tensor.size.bytes;
            }
        }
        let folder = checkpoint.folder().to_owned();
        Self { folder, layout, problem, parameters: all.parameters, bytes: all.bytes, dtypes, tensors }
    }

    /// The inspection as JSON.
    ///
    /// # Errors
    /// If the folder's path is not UTF-8.
    pub fn to_json(&self) -> anyhow::Result<String> {
        serde_json::to_string_pretty(self).map(|text| text + "\n").context("cannot be written as JSON")
    }

    /// The inspection to read.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        match (&self.layout, &self.problem) {
            (Some(layout), _) => {
                writeln!(text, "{}: {}, {} blocks", self.folder.display(), layout.architecture, layout.blocks)?;
            }
            (None, Some(why)) => writeln!(text, "{}: {why}", self.folder.display())?,
            (None, None) => writeln!(text, "{}", self.folder.display())?,
        }
        let dtypes: Vec<_> =
            self.dtypes.iter().map(|(dtype, total)| format!("{dtype} {}", size(total.bytes))).collect();
        let (count, parameters) = (self.tensors.len(), grouped(self.parameters));
        writeln!(text, "{count} tensors, {parameters} parameters, {} ({})", size(self.bytes), dtypes.join(", "))?;
        if let Some(layout) = &self.layout {
            writeln!(text, "\nStages of a block")?;
            for stage in layout.stages.iter().filter(|stage| stage.block == 0) {
                let layers: Vec<_> = stage
                    .layers
                    .iter()
                    .map(|layer| format!("{} {} x {}", layer.short, layer.rows, layer.columns))
                    .collect();
                writeln!(text, "  {:<15}{}", stage.name, layers.join(", "))?;
            }
        }
        let (layers, others): (Vec<_>, Vec<_>) = self.tensors.iter().partition(|tensor| !tensor.conformity.is_empty());
        let width = self.tensors.iter().map(|tensor| tensor.name.len()).max().unwrap_or(0);
        let name_width = width + 2;
        if !layers.is_empty() {
            let title = if self.layout.is_some() { "Layers" } else { "Matrices" };
            write!(text, "\n{title:<name_width$}  {:<5}{:>15}{:>11}", "dtype", "shape", "zeros")?;
            for (kept, group) in PATTERNS {
                write!(text, "{:>9}", format!("{kept}:{group}"))?;
            }
            writeln!(text)?;
            for tensor in layers {
                tensor.write(text, width)?;
                for (kept, group) in PATTERNS {
                    let cell = match tensor.conformity.get(&format!("{kept}:{group}")) {
                        Some(1.0) => "yes".to_owned(),
                        // Never shown as all of them by rounding.
                        Some(share) => format!("{:.1} %", (1000.0 * share).floor() / 10.0),
                        None => "-".to_owned(),
                    };
                    write!(text, "{cell:>9}")?;
                }
                writeln!(text)?;
            }
            writeln!(text, "n:m is the share of groups of m with at most n nonzeros; \"yes\" is all of them.")?;
        }
        if !others.is_empty() {
            writeln!(text, "\n{:<name_width$}  {:<5}{:>15}{:>11}", "Other tensors", "dtype", "shape", "zeros")?;
            for tensor in others {
                tensor.write(text, width)?;
                writeln!(text)?;
            }
        }
        self.write_oddities(text)
    }

    fn write_oddities(&self, text: &mut String) -> std::fmt::Result {
        writeln!(text)?;
        for kind in ["NaN", "infinity", "-0.0"] {
            let mut none = true;
            for tensor in &self.tensors {
                let count = tensor.values.map_or(0, |counts| match kind {
                    "NaN" => counts.nan,
                    "infinity" => counts.infinite,
                    _ => counts.negative_zeros,
                });
                if count > 0 {
                    writeln!(text, "{} of {kind} in {}", grouped(count), tensor.name)?;
                    none = false;
                }
            }
            if none {
                writeln!(text, "No {kind}.")?;
            }
        }
        Ok(())
    }
}

impl TensorFacts {
    fn of(tensor: &Tensor<'_>, is_matrix: bool) -> Self {
        let parameters = tensor.shape.iter().map(|&extent| extent as u64).product();
        let columns = tensor.shape.last().copied().unwrap_or(1);
        let values = Counts::of_tensor(tensor);
        let mut conformity = BTreeMap::new();
        if let Some(counts) = values.filter(|_| is_matrix && parameters > 0) {
            for (count, (kept, group)) in counts.groups.iter().zip(PATTERNS) {
                if columns.is_multiple_of(group) {
                    conformity.insert(format!("{kept}:{group}"), *count as f64 / (parameters / group as u64) as f64);
                }
            }
        }
        Self {
            name: tensor.name.to_owned(),
            dtype: tensor.dtype.to_string(),
            shape: tensor.shape.to_vec(),
            size: Size { parameters, bytes: tensor.bytes.len() as u64 },
            values,
            conformity,
        }
    }

    /// Name, dtype, shape and share of zeros.
    fn write(&self, text: &mut String, width: usize) -> std::fmt::Result {
        let shape: Vec<_> = self.shape.iter().map(usize::to_string).collect();
        let zeros = match self.values {
            Some(counts) => format!("{:.2} %", 100.0 * counts.zeros as f64 / self.size.parameters.max(1) as f64),
            None => "-".to_owned(),
        };
        write!(text, "  {:<width$}  {:<5}{:>15}{zeros:>11}", self.name, self.dtype, shape.join(" x "))
    }
}

/// A name as what it sorts by: numbers as such, before words.
fn in_order(name: &str) -> impl Iterator<Item = (u64, &str)> {
    name.split('.').map(|part| part.parse().map_or((u64::MAX, part), |number| (number, "")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    fn counts(rows: &[[f32; 8]]) -> TensorFacts {
        let values: Vec<f16> = rows.as_flattened().iter().map(|&value| f16::from_f32(value)).collect();
        let shape = [rows.len(), 8];
        let bytes = bytemuck::cast_slice(&values);
        TensorFacts::of(&Tensor { name: "weight", dtype: checkpoint::Dtype::F16, shape: &shape, bytes }, true)
    }

    #[test]
    fn oddities_are_counted_and_told_apart() {
        let facts = counts(&[
            [0.0, -0.0, 1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN, 6e-8],
            [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -0.0],
        ]);
        let counts = facts.values.unwrap();
        assert_eq!((counts.zeros, counts.negative_zeros, counts.nan, counts.infinite), (3, 2, 2, 2));
    }

    #[test]
    fn names_are_in_the_order_of_blocks() {
        let mut names = ["layers.10.q", "layers.2.q", "layers.2.k", "embed"];
        names.sort_by(|a, b| in_order(a).cmp(in_order(b)));
        assert_eq!(names, ["embed", "layers.2.k", "layers.2.q", "layers.10.q"]);
    }

    #[test]
    fn a_group_conforms_with_at_most_n_nonzeros() {
        // Three of four groups of four hold 2:4, one holds 1:4; only the second row holds 4:8.
        let facts = counts(&[[1.0, 2.0, 3.0, 0.0, 0.0, 1.0, 0.0, 2.0], [0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0]]);
        assert_eq!(facts.conformity["2:4"], 0.75);
        assert_eq!(facts.conformity["1:4"], 0.25);
        assert_eq!(facts.conformity["4:8"], 0.5);
        assert!(!facts.conformity.contains_key("8:16"), "eight columns hold no group of sixteen");
    }
}
