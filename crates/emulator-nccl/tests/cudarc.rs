//! Collectives through cudarc's NCCL, on two and three emulated devices.

use cudarc::driver::{CudaContext, CudaSlice, CudaStream};
use cudarc::nccl::{Comm, Id, ReduceOp, group_end, group_start};
use emulator::loader::{self, Loaded};
use emulator::options::Options;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// One driver a process: tests take turns.
fn machine(options: &Options) -> (MutexGuard<'static, ()>, &'static Loaded) {
    static TURN: Mutex<()> = Mutex::new(());
    static LOADED: OnceLock<Loaded> = OnceLock::new();
    // The crate is named so that its library is built.
    std::hint::black_box(emulator_nccl::ncclGetErrorString(0));
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let loaded = LOADED.get_or_init(|| {
        let loaded = loader::load(options).unwrap();
        loader::load_nccl().unwrap();
        loaded
    });
    loaded.configure(options).unwrap();
    (turn, loaded)
}

fn modes(devices: usize) -> [Options; 2] {
    let options = Options { devices, memory: 1 << 24, ..Options::default() };
    [options.clone(), Options { deferred: true, seed: Some(9), ..options }]
}

fn streams(devices: usize) -> Vec<Arc<CudaStream>> {
    (0..devices).map(|device| CudaContext::new(device).unwrap().new_stream().unwrap()).collect()
}

/// Rank r holds r + 1, r + 2, …
fn own(rank: usize, count: usize) -> Vec<f32> {
    (0..count).map(|index| (rank + index + 1) as f32).collect()
}

#[test]
fn one_thread_reduces_over_all_devices() {
    for options in modes(3) {
        let (_turn, loaded) = machine(&options);
        {
            let streams = streams(3);
            let communicators = Comm::from_devices(streams.clone()).unwrap();
            for (operation, expected) in [
                (ReduceOp::Sum, [6.0, 9.0, 12.0, 15.0]),
                (ReduceOp::Max, [3.0, 4.0, 5.0, 6.0]),
                (ReduceOp::Min, [1.0, 2.0, 3.0, 4.0]),
                (ReduceOp::Prod, [6.0, 24.0, 60.0, 120.0]),
                (ReduceOp::Avg, [2.0, 3.0, 4.0, 5.0]),
            ] {
                let mut data: Vec<_> = streams
                    .iter()
                    .enumerate()
                    .map(|(rank, stream)| stream.clone_htod(&own(rank, 4)).unwrap())
                    .collect();
                group_start().unwrap();
                for (communicator, data) in communicators.iter().zip(&mut data) {
                    communicator.all_reduce_in_place(data, &operation).unwrap();
                }
                group_end().unwrap();
                for (stream, data) in streams.iter().zip(&data) {
                    assert_eq!(stream.clone_dtoh(data).unwrap(), expected);
                }
            }
        }
        assert_eq!(loaded.findings(), []);
    }
}

#[test]
fn a_thread_for_each_rank() {
    for options in modes(2) {
        let (_turn, loaded) = machine(&options);
        let id = Id::new().unwrap();
        std::thread::scope(|scope| {
            for rank in 0..2 {
                scope.spawn(move || {
                    let stream = CudaContext::new(rank).unwrap().new_stream().unwrap();
                    let communicator = Comm::from_rank(stream.clone(), rank, 2, id).unwrap();
                    assert_eq!((communicator.rank(), communicator.world_size()), (rank, 2));
                    let data = stream.clone_htod(&own(rank, 4)).unwrap();
                    let download = |data: &CudaSlice<f32>| stream.clone_dtoh(data).unwrap();

                    let mut out = stream.alloc_zeros::<f32>(4).unwrap();
                    communicator.all_reduce(&data, &mut out, &ReduceOp::Sum).unwrap();
                    assert_eq!(download(&out), [3.0, 5.0, 7.0, 9.0]);

                    let mut gathered = stream.alloc_zeros::<f32>(8).unwrap();
                    communicator.all_gather(&data, &mut gathered).unwrap();
                    assert_eq!(download(&gathered), [1.0, 2.0, 3.0, 4.0, 2.0, 3.0, 4.0, 5.0]);

                    let mut half = stream.alloc_zeros::<f32>(2).unwrap();
                    communicator.reduce_scatter(&data, &mut half, &ReduceOp::Sum).unwrap();
                    assert_eq!(download(&half), [[3.0, 5.0], [7.0, 9.0]][rank]);

                    communicator.broadcast((rank == 1).then_some(&data), &mut out, 1).unwrap();
                    assert_eq!(download(&out), own(1, 4));

                    // Both send before they receive.
                    group_start().unwrap();
                    communicator.send(&data, 1 - rank as i32).unwrap();
                    communicator.recv(&mut out, 1 - rank as i32).unwrap();
                    group_end().unwrap();
                    assert_eq!(download(&out), own(1 - rank, 4));
                });
            }
        });
        assert_eq!(loaded.findings(), []);
    }
}
