//! Shards on GPUs against shards that are threads: the same numbers, the same masks, and an end for all when one fails.
#![cfg(feature = "cuda")]

mod support;

use std::fmt::Debug;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::Mutex;

use cuda::{DeviceMemory, Error, Nccl, Shards};
use emulator::options::Options;
use prune::{Collective, Disconnected, run_shards, share};
use prune_cuda::{Device, Factor, MatrixMut, MatrixRef, Selection, Settings, Shards as _, solve};
use reference::Matrix;
use support::on_machine;
use testkit::generate::{Layer, layer};

const SIZES: [usize; 4] = [1, 2, 3, 8];

/// Runs `test` on a machine of so many devices with every check on: work done as it is enqueued, and as late as may be.
fn on_devices(devices: usize, test: impl Fn()) {
    let checked = Options { devices, memory: 1 << 28, log: false, ..Options::checked(9) };
    for options in [Options { seed: None, ..checked.clone() }, Options { deferred: true, ..checked }] {
        on_machine(&options, &test);
    }
}

/// What `shard` returns on each of so many devices.
fn on_each<T: Send>(size: usize, shard: impl Fn(&Device, &Nccl<'_>) -> Result<T, Error> + Sync) -> Vec<T> {
    let result = run_shards(size, |host| {
        let device = Device::open(host.rank())?;
        let shards = Nccl::connect(&device, host)?;
        let value = shard(&device, &shards)?;
        shards.close()?;
        Ok::<_, Error>(value)
    });
    result.expect("no shard fails")
}

/// Eighths, whose sums are exact in every order, and too large for f32 where `large`.
fn eighths(rank: usize, count: usize, large: bool) -> Vec<f64> {
    let base = if large { (1_u64 << 40) as f64 } else { 0.0 };
    (0..count).map(|at| base + (rank * 17 + at * 5) as f64 / 8.0 - 30.0).collect()
}

fn counts(rank: usize) -> Vec<u64> {
    (0..100).map(|at| (rank as u64 + 1) << (at % 50)).collect()
}

/// Uneven parts with gaps between and around them, some of them empty, and how many bytes there are in all.
fn parts(size: usize) -> (Vec<Range<usize>>, usize) {
    let mut end = 2;
    let parts = [5, 0, 170, 1, 0, 9, 3, 2].into_iter().take(size).enumerate().map(|(rank, length)| {
        let start = end + rank % 2 * 3;
        end = start + length;
        start..end
    });
    let parts = parts.collect();
    (parts, end + 4)
}

/// A shard's numbers after each kind of call.
#[derive(Debug, PartialEq)]
struct Heard {
    singles: Vec<f32>,
    counts: Vec<u64>,
    doubles: Vec<f64>,
    broadcast: Vec<Vec<f32>>,
    exchanged: Vec<u8>,
    messages: Vec<Vec<u8>>,
    before: u64,
}

/// Where a shard's numbers begin: in what belongs to nobody, of rank and position.
fn singles(rank: usize) -> Vec<f32> {
    eighths(rank, 300, false).into_iter().map(|x| x as f32).collect()
}

fn bytes(rank: usize, count: usize) -> Vec<u8> {
    (0..count).map(|at| (rank * 31 + at) as u8).collect()
}

fn message(rank: usize) -> Vec<u8> {
    bytes(rank, [3, 0, 700][rank % 3])
}

fn on_host(host: &dyn Collective) -> Result<Heard, Disconnected> {
    let (rank, size) = (host.rank(), host.size());
    let (mut singles, mut counts, mut doubles) = (singles(rank), counts(rank), eighths(rank, 77, true));
    host.sum_f32(&mut singles[3..])?;
    host.sum_u64(&mut counts[1..])?;
    host.sum_f64(&mut doubles)?;
    let mut broadcast = Vec::new();
    for root in 0..size {
        let mut values = self::singles(rank);
        host.broadcast(root, &mut values[7..200])?;
        broadcast.push(values);
    }
    let (parts, length) = parts(size);
    let mut exchanged = bytes(rank, length);
    host.exchange(&mut exchanged, &parts)?;
    let (messages, before) = (host.gather(&message(rank))?, host.sum_before(rank as u64 * 3 + 1)?);
    Ok(Heard { singles, counts, doubles, broadcast, exchanged, messages, before })
}

/// As [`on_host`]. Nothing is waited for between the calls but messages.
fn on_gpu(device: &Device, shards: &dyn Collective<DeviceMemory>) -> Result<Heard, Error> {
    let (rank, size) = (shards.rank(), shards.size());
    let mut singles = device.upload(&self::singles(rank))?;
    let mut counts = device.upload(&counts(rank))?;
    let mut doubles = device.upload(&eighths(rank, 77, true))?;
    shards.sum_f32(singles.slice_mut(3..))?;
    shards.sum_u64(counts.slice_mut(1..))?;
    shards.sum_f64(doubles.slice_mut(..))?;
    shards.sum_f64(doubles.slice_mut(5..5))?;
    let mut broadcast = Vec::new();
    for root in 0..size {
        let mut values = device.upload(&self::singles(rank))?;
        shards.broadcast(root, values.slice_mut(7..200))?;
        broadcast.push(values);
    }
    let (parts, length) = parts(size);
    let mut exchanged = device.upload(&bytes(rank, length))?;
    shards.exchange(exchanged.slice_mut(..), &parts)?;
    shards.exchange(exchanged.slice_mut(..), &vec![4..4; size])?;
    let (messages, before) = (shards.gather(&message(rank))?, shards.sum_before(rank as u64 * 3 + 1)?);
    Ok(Heard {
        singles: device.download(&singles)?,
        counts: device.download(&counts)?,
        doubles: device.download(&doubles)?,
        broadcast: broadcast.iter().map(|values| device.download(values)).collect::<Result<_, _>>()?,
        exchanged: device.download(&exchanged)?,
        messages,
        before,
    })
}

#[test]
fn devices_hear_what_threads_hear() {
    for size in SIZES {
        let want = run_shards(size, on_host).expect("no thread fails");
        on_devices(size, || assert_eq!(on_each(size, |device, shards| on_gpu(device, shards)), want));
    }
}

#[test]
fn selections_are_told_sums_and_what_lies_before() {
    for size in SIZES {
        let want = run_shards(size, |host| {
            let mut sums = counts(host.rank());
            host.sum_u64(&mut sums)?;
            Ok::<_, Disconnected>((sums, host.sum_before(host.rank() as u64 + 5)?))
        });
        let want = want.expect("no thread fails");
        on_devices(size, || {
            let heard = on_each(size, |device, shards| {
                let mut sums = device.upload(&counts(shards.rank()))?;
                let mut before = device.upload(&[shards.rank() as u64 + 5])?;
                let shards = Shards(shards);
                shards.sum(device, &mut sums.slice_mut(..))?;
                shards.before(device, &mut before.slice_mut(..))?;
                Ok((device.download(&sums)?, device.download(&before)?[0]))
            });
            assert_eq!(heard, want);
        });
    }
}

/// When a shard fails.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fails {
    Unconnected,
    BeforeASum,
    /// By values of another device.
    AtASum,
    BeforeAMessage,
    BeforeTheEnd,
}

/// A shard that fails, if it is the one, with an error of its own.
fn fails(host: &dyn Collective, failing: usize, when: Fails) -> Result<(), Error> {
    let at = |point| match host.rank() == failing && when == point {
        true => Err(Error::from(prune_cuda::Error::NoDevice { ordinal: 99, count: host.size() })),
        false => Ok(()),
    };
    at(Fails::Unconnected)?;
    let device = Device::open(host.rank())?;
    let shards = Nccl::connect(&device, host)?;
    let mut values = device.upload(&singles(host.rank()))?;
    shards.sum_f32(values.slice_mut(..))?;
    at(Fails::BeforeASum)?;
    let result = if host.rank() == failing && when == Fails::AtASum {
        let other = Device::open((failing + 1) % host.size())?;
        let mut values = other.upload(&singles(0))?;
        shards.sum_f32(values.slice_mut(..))
    } else {
        shards.sum_f32(values.slice_mut(..))
    };
    // Whoever goes on after an error hears of it again.
    assert!(result.is_ok() || host.rank() == failing || shards.sum_f32(values.slice_mut(..)).is_err());
    result?;
    at(Fails::BeforeAMessage)?;
    shards.gather(b"all is well")?;
    device.synchronize()?;
    at(Fails::BeforeTheEnd)?;
    shards.close()
}

#[test]
fn a_shard_that_fails_ends_all() {
    let times = [Fails::Unconnected, Fails::BeforeASum, Fails::AtASum, Fails::BeforeAMessage, Fails::BeforeTheEnd];
    for size in [2, 3, 8] {
        on_devices(size, || {
            for (when, failing) in times.into_iter().flat_map(|when| [(when, 0), (when, size - 1)]) {
                let ends = Mutex::new(Vec::new());
                let first = run_shards(size, |host| {
                    fails(host, failing, when).inspect_err(|error| {
                        let disconnected = matches!(error, Error::Disconnected(_));
                        ends.lock().expect("ends").push((host.rank(), disconnected));
                    })
                });
                let own = |error: &Error| match error {
                    Error::Device(prune_cuda::Error::NoDevice { .. }) => when != Fails::AtASum,
                    Error::Device(prune_cuda::Error::OtherDevice { .. }) => when == Fails::AtASum,
                    _ => false,
                };
                let first = first.expect_err("a shard fails");
                assert!(own(&first), "{when:?} at {failing} of {size}: {first:?}");
                let mut ends = ends.into_inner().expect("ends");
                ends.sort_unstable();
                let want: Vec<_> = (0..size).map(|rank| (rank, rank != failing)).collect();
                assert_eq!(ends, want, "{when:?} at {failing} of {size}");
            }
        });
    }
}

#[test]
fn calls_that_differ_end_all() {
    on_devices(3, || {
        let end = std::panic::catch_unwind(AssertUnwindSafe(|| {
            on_each(3, |device, shards| {
                let mut values = device.upload(&singles(0))?;
                shards.sum_f32(values.slice_mut(..100 + shards.rank() / 2))
            })
        }));
        let text = end.expect_err("a panic").downcast::<String>().expect("a text");
        assert!(text.contains("sum of 101 f32"), "{text}");
    });
}

/// A layer in which every row occurs twice, so that scores tie across shards in every panel, and the factor of its stage.
struct Problem {
    rows: usize,
    columns: usize,
    weight: Vec<f32>,
    factor: Vec<f32>,
    inverses: Vec<f32>,
}

const BLOCK: usize = 128;

impl Problem {
    fn new(rows: usize, columns: usize) -> Self {
        let half = rows.div_ceil(2);
        let tokens = columns + 30;
        let Layer { weight, inputs } = layer(5, half, columns, tokens, 0);
        let weight = weight.iter().chain(&weight).copied().take(rows * columns).collect();
        let hessian = reference::hessian(&Matrix::from_f32(tokens, columns, &inputs));
        let exact = reference::factor(&reference::damped(&hessian, 0.01).hessian).expect("a factor");
        let factor: Vec<f32> = exact.values().iter().map(|&value| value as f32).collect();
        let mut inverses = vec![0.0; columns.div_ceil(BLOCK) * BLOCK * BLOCK];
        for first in (0..columns).step_by(BLOCK) {
            let own = (columns - first).min(BLOCK);
            let block: Vec<f32> =
                (first..first + own).flat_map(|row| factor[row * columns + first..][..own].to_vec()).collect();
            let inverse = reference::invert_upper(&Matrix::from_f32(own, own, &block));
            for (at, &value) in inverse.values().iter().enumerate() {
                inverses[(first + at / own) * BLOCK + at % own] = value as f32;
            }
        }
        Self { rows, columns, weight, factor, inverses }
    }

    /// The weights and which of them stay, of this shard's rows. The first shard has the factor, as of a stage that it
    /// factored.
    fn prune(
        &self,
        device: &Device,
        shards: &dyn Collective<DeviceMemory>,
        selection: Selection<'_>,
    ) -> Result<(Vec<f32>, Vec<bool>), Error> {
        let (n, words) = (self.columns, self.columns.div_ceil(32));
        let own = share(self.rows, shards.rank(), shards.size());
        let mut weights = device.upload(&self.weight[own.start * n..own.end * n])?;
        let of_first = |values: &[f32]| match shards.rank() {
            0 => device.upload(values),
            _ => device.zeros(values.len()),
        };
        let (mut factor, mut inverses) = (of_first(&self.factor)?, of_first(&self.inverses)?);
        shards.broadcast(0, factor.slice_mut(..))?;
        shards.broadcast(0, inverses.slice_mut(..))?;
        let dead = device.zeros::<u8>(n)?;
        let factor = Factor {
            factor: MatrixRef::new(factor.slice(..), n, n)?,
            inverses: inverses.slice(..),
            dead: dead.slice(..),
        };
        let outcome = {
            let shards = Shards(shards);
            let settings = Settings { selection, bits: None, shards: Some((&shards, self.rows)) };
            solve(device, &mut MatrixMut::new(weights.slice_mut(..), own.len(), n)?, &factor, &settings)?
        };
        let keep = device.download(&outcome.keep)?;
        let bit = |at: usize| keep[at / n * words + at % n / 32] >> (at % n % 32) & 1 != 0;
        Ok((device.download(&weights)?, (0..own.len() * n).map(bit).collect()))
    }

    /// The whole layer, pruned by so many devices.
    fn pruned(&self, size: usize, selection: Selection<'_>) -> (Vec<u32>, Vec<bool>) {
        let shards = on_each(size, |device, shards| self.prune(device, shards, selection));
        let weights = shards.iter().flat_map(|(weights, _)| weights.iter().map(|weight| weight.to_bits()));
        (weights.collect(), shards.iter().flat_map(|(_, keep)| keep.clone()).collect())
    }
}

#[test]
fn a_divided_layer_is_pruned_as_if_whole() {
    let problem = Problem::new(21, 161);
    // A last panel or group of a single column: half of its 21 weights go, rounded down, or none.
    for (selection, gone) in [
        (Selection::Unstructured { sparsity: 0.5, panel_width: 32 }, 21 * 80 + 10),
        (Selection::Groups { keep: 2, group: 4 }, 21 * 80),
    ] {
        let alone = Mutex::new(None);
        for size in [1, 2, 3] {
            on_devices(size, || {
                let (weights, keep) = problem.pruned(size, selection);
                let what = format!("{selection:?} on {size} devices");
                assert_eq!(keep.iter().filter(|keep| !**keep).count(), gone, "{what}");
                assert_eq!(weights.iter().filter(|weight| **weight == 0).count(), gone, "{what}");
                // Rows do not depend on each other but by exact counts: there are no near-ties to tell apart.
                let mut alone = alone.lock().expect("an answer");
                let alone = alone.get_or_insert_with(|| (weights.clone(), keep.clone()));
                assert!(alone.1 == keep, "{what}: another mask");
                assert!(alone.0 == weights, "{what}: other weights");
            });
        }
    }
}
