//! What kernels do to memory, counted in the emulated driver: bytes moved against the fewest that tiles of their size could
//! move, sectors against the fewest that could hold those bytes, and bank conflicts.

use emulator::loader::Loaded;
use emulator::options::Options;
use emulator::profile::Profile;
use prune_cuda::{Device, Error, MatrixMut, MatrixRef};

/// One kernel at one shape.
pub(crate) struct Workload {
    /// The kernel that is looked at; others may run as well.
    pub(crate) kernel: &'static str,
    /// The shape, for people.
    pub(crate) shape: &'static str,
    /// The fewest bytes of global memory that a kernel with these tiles can read and write.
    pub(crate) fewest_bytes: u64,
    /// What runs it.
    pub(crate) run: fn(&Device) -> Result<(), Error>,
}

/// What was counted.
pub(crate) struct Counted {
    /// The launch.
    pub(crate) profile: Profile,
    /// Of the workload.
    pub(crate) fewest_bytes: u64,
}

impl Counted {
    /// Bytes of global memory that were moved, in whole sectors of 32.
    pub(crate) fn bytes(&self) -> u64 {
        (self.profile.global_loads.sectors + self.profile.global_stores.sectors) * 32
    }

    /// Sectors beyond those that could hold what each request asked for, as a share.
    pub(crate) fn wasted_sectors(&self) -> f64 {
        let (loads, stores) = (self.profile.global_loads, self.profile.global_stores);
        let ideal = loads.ideal_sectors + stores.ideal_sectors;
        (loads.sectors + stores.sectors) as f64 / ideal.max(1) as f64 - 1.0
    }

    /// Passes over shared memory that bank conflicts cost.
    pub(crate) fn conflicts(&self) -> u64 {
        self.profile.shared_loads.conflicts() + self.profile.shared_stores.conflicts()
    }
}

/// Runs a workload on a fresh emulated device with multiprocessors as an A100 has them.
///
/// # Errors
/// What the driver says, or that the kernel was not launched.
pub(crate) fn count(emulator: &Loaded, workload: &Workload) -> Result<Counted, String> {
    let options = Options { profile: true, ..Options::default() };
    emulator.configure(&options).map_err(|error| error.to_string())?;
    let device = Device::open(0).map_err(|error| error.to_string())?;
    (workload.run)(&device)
        .and_then(|()| device.synchronize())
        .map_err(|error| format!("{}: {error}", workload.kernel))?;
    let mut profiles = emulator.profiles();
    profiles.retain(|profile| profile.geometry.kernel == workload.kernel);
    // Of several launches the largest.
    let largest = profiles.into_iter().max_by_key(|profile| profile.instructions);
    let profile = largest.ok_or_else(|| format!("{} was not launched", workload.kernel))?;
    Ok(Counted { profile, fewest_bytes: workload.fewest_bytes })
}

/// Bytes that an upper triangle of square tiles of 128 reads and writes: for each tile two strips of 128 by `depth` elements
/// of `size` bytes, on the diagonal as many as the kernel takes there, and the f32 result once.
const fn upper_tiles_bytes(columns: u64, depth: u64, size: u64, strips_on_diagonal: u64) -> u64 {
    let across = columns / 128;
    let off_diagonal = across * (across - 1) / 2;
    (off_diagonal * 2 + across * strips_on_diagonal) * 128 * depth * size + (columns * (columns + 1) / 2) * 4
}

fn hessian<T: prune_cuda::Input + Copy>(device: &Device, one: T) -> Result<(), Error> {
    let (tokens, columns) = (512, 512);
    let inputs = device.upload(&vec![one; tokens * columns])?;
    let mut hessian = device.zeros::<f32>(columns * columns)?;
    let inputs = MatrixRef::new(inputs.slice(..), tokens, columns)?;
    prune_cuda::accumulate(device, &inputs, &mut MatrixMut::new(hessian.slice_mut(..), columns, columns)?, 1.0, 0.0)
}

/// All that is looked at, in the order of the data flow.
pub(crate) const WORKLOADS: &[Workload] = &[
    Workload {
        kernel: "hessian_accumulate_f16",
        shape: "512 tokens, 512 columns",
        fewest_bytes: upper_tiles_bytes(512, 512, 2, 1),
        run: |device| hessian(device, half::f16::ONE),
    },
    Workload {
        kernel: "hessian_accumulate_bf16",
        shape: "512 tokens, 512 columns",
        fewest_bytes: upper_tiles_bytes(512, 512, 2, 1),
        run: |device| hessian(device, half::bf16::ONE),
    },
    Workload {
        kernel: "hessian_accumulate_f32",
        shape: "512 tokens, 512 columns",
        fewest_bytes: upper_tiles_bytes(512, 512, 4, 2),
        run: |device| hessian(device, 1.0f32),
    },
];
