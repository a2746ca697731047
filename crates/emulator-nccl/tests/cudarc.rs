//! Collectives through cudarc's NCCL, on two and three emulated devices.

use cudarc::driver::{
    CudaContext, CudaFunction, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, LaunchConfig, PushKernelArg, sys,
};
use cudarc::nccl::{Comm, Id, ReduceOp, group_end, group_start};
use emulator::loader::{self, Loaded};
use emulator::options::Options;
use emulator::report::{Finding, Kind};
use std::sync::{Arc, Barrier, Mutex, MutexGuard, OnceLock, PoisonError};

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
                    // cudarc aborts a communicator that is dropped. What was sent, the other rank receives nonetheless.
                });
            }
        });
        assert_eq!(loaded.findings(), []);
    }
}

/// Adds 1 to each of 32 numbers.
const INCREMENT: &str = ".version 8.0\n.target sm_80\n.address_size 64\n
    .visible .entry increment(.param .u64 at) {
        .reg .u32 %r<3>;
        .reg .u64 %l<3>;
        ld.param.u64 %l0, [at];
        mov.u32 %r0, %tid.x;
        mul.wide.u32 %l1, %r0, 4;
        add.u64 %l0, %l0, %l1;
        ld.global.u32 %r1, [%l0];
        add.u32 %r1, %r1, 1;
        st.global.u32 [%l0], %r1;
        ret;
    }";

fn increment(stream: &Arc<CudaStream>, function: &CudaFunction, address: u64) {
    let mut launch = stream.launch_builder(function);
    launch.arg(&address);
    let one_warp = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (32, 1, 1), shared_mem_bytes: 0 };
    // SAFETY: the kernel changes 32 numbers at the address, which the callers hold.
    unsafe { launch.launch(one_warp) }.unwrap();
}

/// What rank 0 does before rank 1 changes its memory by peer access, behind what its own stream took part in.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Before {
    /// Changes the memory, and then all-reduces something else.
    AllReduce,
    /// Changes the memory, and then sends something else to rank 1.
    Send,
    /// Changes the memory on another stream, and all-reduces without waiting for that.
    OtherStream,
    /// All-reduces, and then changes the memory.
    Behind,
    /// All-reduces into the memory.
    Result,
    /// Changes the memory, and then takes part in a broadcast by rank 1, which need not wait for that.
    Broadcast,
}

/// The findings, if rank `first` calls first.
fn peer(before: Before, first: usize, loaded: &Loaded) -> Vec<Finding> {
    let (id, barrier) = (Id::new().unwrap(), Barrier::new(2));
    let memory = Mutex::new(0);
    std::thread::scope(|scope| {
        for rank in 0..2 {
            let (barrier, memory) = (&barrier, &memory);
            scope.spawn(move || {
                let context = CudaContext::new(rank).unwrap();
                let (stream, other) = (context.new_stream().unwrap(), context.new_stream().unwrap());
                let communicator = Comm::from_rank(stream.clone(), rank, 2, id).unwrap();
                // It lives until the end: a module that is unloaded waits for its context.
                let module = context.load_module(INCREMENT.into()).unwrap();
                let function = module.load_function("increment").unwrap();
                let data = stream.clone_htod(&[1_u32; 32]).unwrap();
                let mut out = stream.alloc_zeros::<u32>(32).unwrap();
                let mut changed = stream.alloc_zeros::<u32>(32).unwrap();
                if rank == 0 {
                    let result = before == Before::Result;
                    *memory.lock().unwrap() = (if result { &mut out } else { &mut changed }).device_ptr_mut(&stream).0;
                } else {
                    let peer = CudaContext::new(0).unwrap();
                    context.bind_to_thread().unwrap();
                    // SAFETY: the handle is of a context that lives.
                    unsafe { sys::cuCtxEnablePeerAccess(peer.cu_ctx(), 0) }.result().unwrap();
                }
                context.synchronize().unwrap();
                barrier.wait();
                let memory = *memory.lock().unwrap();
                if rank != first {
                    barrier.wait();
                }
                if rank == 0 && !matches!(before, Before::Behind | Before::Result) {
                    increment(if before == Before::OtherStream { &other } else { &stream }, &function, memory);
                }
                match before {
                    Before::Send if rank == 0 => communicator.send(&data, 1).unwrap(),
                    Before::Send => _ = communicator.recv(&mut out, 0).unwrap(),
                    Before::Broadcast => {
                        _ = communicator.broadcast((rank == 1).then_some(&data), &mut out, 1).unwrap();
                    }
                    _ => _ = communicator.all_reduce(&data, &mut out, &ReduceOp::Sum).unwrap(),
                }
                if rank == 1 || before == Before::Behind {
                    increment(&stream, &function, memory);
                }
                if rank == first {
                    barrier.wait();
                }
                // The driver takes threads of the host for one: what that has waited for, is no race any more.
                barrier.wait();
                context.synchronize().unwrap();
                // The memory lives until both are done.
                barrier.wait();
                assert_ne!(data.device_ptr(&stream).0, changed.device_ptr(&stream).0);
            });
        }
    });
    loaded.findings()
}

fn each_peer(cases: &[Before], check: impl Fn(Before, Vec<Finding>)) {
    for options in modes(2) {
        let (_turn, loaded) = machine(&Options { races: true, uninitialized: true, ..options });
        for (first, &before) in [0, 1].into_iter().flat_map(|first| cases.iter().map(move |before| (first, before))) {
            check(before, peer(before, first, loaded));
        }
    }
}

#[test]
fn a_collective_orders_what_ranks_do_before_and_behind_it() {
    each_peer(&[Before::AllReduce, Before::Send], |before, findings| assert_eq!(findings, [], "{before:?}"));
}

#[test]
fn what_no_collective_orders_is_a_race() {
    let cases = [Before::OtherStream, Before::Behind, Before::Result, Before::Broadcast];
    each_peer(&cases, |before, findings| {
        assert!(!findings.is_empty(), "{before:?}");
        assert!(findings.iter().all(|finding| finding.kind == Kind::Race), "{before:?}: {findings:?}");
    });
}
