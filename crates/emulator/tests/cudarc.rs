//! A program that uses CUDA through cudarc, unchanged, on the emulated driver, or on the machine's own with
//! `EMULATOR_TEST_DRIVER=real`.

mod support;

use cudarc::driver::{CudaContext, CudaFunction, LaunchConfig, PushKernelArg, result, sys};
use cudarc::nvrtc::Ptx;
use emulator::loader::Loaded;
use emulator::options::Options;
use emulator::report::{Finding, Kind};
use std::sync::Arc;
use support::Driver;

/// What was found since the last call; nothing where the emulator does not run.
fn findings(driver: &Driver) -> Vec<Finding> {
    driver.emulator.map(Loaded::findings).unwrap_or_default()
}

/// What contexts have not given back, likewise.
fn leaks(driver: &Driver) -> Vec<Finding> {
    driver.emulator.map(Loaded::leaks).unwrap_or_default()
}

/// c[i] = a[i] + b[i] for i < n.
const ADD: &str = "
.version 8.0
.target sm_80
.address_size 64

.visible .entry add(.param .u64 c, .param .u64 a, .param .u64 b, .param .u32 n)
{
    .reg .pred %p<2>;
    .reg .b32 %r<6>;
    .reg .f32 %f<4>;
    .reg .b64 %rd<11>;

    ld.param.u64 %rd1, [c];
    ld.param.u64 %rd2, [a];
    ld.param.u64 %rd3, [b];
    ld.param.u32 %r1, [n];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.u32 %p1, %r5, %r1;
    @%p1 bra $done;
    cvta.to.global.u64 %rd4, %rd1;
    cvta.to.global.u64 %rd5, %rd2;
    cvta.to.global.u64 %rd6, %rd3;
    mul.wide.u32 %rd7, %r5, 4;
    add.s64 %rd8, %rd5, %rd7;
    add.s64 %rd9, %rd6, %rd7;
    add.s64 %rd10, %rd4, %rd7;
    ld.global.f32 %f1, [%rd8];
    ld.global.f32 %f2, [%rd9];
    add.f32 %f3, %f1, %f2;
    st.global.f32 [%rd10], %f3;
$done:
    ret;
}
";

fn add(context: &Arc<CudaContext>) -> CudaFunction {
    context.load_module(Ptx::from_src(ADD)).unwrap().load_function("add").unwrap()
}

#[test]
fn the_library_is_found_by_its_name_and_describes_its_devices() {
    let Some((_driver, loaded)) = Driver::emulated(&Options { devices: 2, memory: 1 << 30, ..Options::default() })
    else {
        return;
    };
    assert!(loaded.path().ends_with("libemulator.so"));
    // SAFETY: looks for the library.
    assert!(unsafe { sys::is_culib_present() });
    assert_eq!(CudaContext::device_count().unwrap(), 2);
    let context = CudaContext::new(1).unwrap();
    assert_eq!(context.name().unwrap(), "Emulated sm_80");
    assert_eq!(context.compute_capability().unwrap(), (8, 0));
    assert_eq!(context.total_mem().unwrap(), 1 << 30);
    assert!(CudaContext::new(2).is_err());
}

#[test]
fn streams_events_and_pinned_memory() {
    for options in [Options::default(), Options { deferred: true, seed: Some(4), ..Options::default() }] {
        let Some(driver) = Driver::start(&options) else { continue };
        {
            let context = CudaContext::new(0).unwrap();
            let (first, second) = (context.new_stream().unwrap(), context.new_stream().unwrap());
            // SAFETY: written before it is read.
            let mut pinned = unsafe { context.alloc_pinned::<f32>(1000) }.unwrap();
            for (index, value) in pinned.as_mut_slice().unwrap().iter_mut().enumerate() {
                *value = index as f32;
            }
            let a = first.clone_htod(&pinned).unwrap();
            let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
            let begin = first.record_event(flags).unwrap();
            second.wait(&begin).unwrap();
            let b = second.clone_dtod(&a).unwrap();
            let end = second.record_event(flags).unwrap();
            end.synchronize().unwrap();
            assert!(begin.elapsed_ms(&end).unwrap() >= 0.0);
            assert!(end.is_complete());
            assert_eq!(second.clone_dtoh(&b).unwrap(), pinned.as_slice().unwrap());
            let zeros = first.alloc_zeros::<u8>(77).unwrap();
            assert_eq!(first.clone_dtoh(&zeros).unwrap(), [0; 77]);
            context.synchronize().unwrap();
            context.check_err().unwrap();
            assert!(driver.emulator.is_none() || !leaks(&driver).is_empty());
        }
        // Everything was given back with the context.
        assert_eq!(findings(&driver), []);
        assert_eq!(leaks(&driver), []);
    }
}

#[test]
fn two_devices_copy_to_each_other() {
    let options = Options { devices: 2, memory: 1 << 20, ..Options::default() };
    let Some(driver) = Driver::start(&options) else { return };
    {
        let (first, second) = (CudaContext::new(0).unwrap(), CudaContext::new(1).unwrap());
        let (here, there) = (first.new_stream().unwrap(), second.new_stream().unwrap());
        let numbers: Vec<i32> = (0..500).collect();
        let a = here.clone_htod(&numbers).unwrap();
        let mut b = there.alloc_zeros::<i32>(500).unwrap();
        here.synchronize().unwrap();
        there.memcpy_dtod(&a, &mut b).unwrap();
        assert_eq!(there.clone_dtoh(&b).unwrap(), numbers);
        // Memory of a device ends.
        if driver.emulator.is_some() {
            assert!(here.alloc_zeros::<u8>(1 << 20).is_err());
            assert!(there.alloc_zeros::<u8>(1 << 18).is_ok());
        }
    }
    assert_eq!(findings(&driver), []);
}

#[test]
fn a_kernel_adds_vectors() {
    for options in [Options::checked(1), Options { deferred: true, ..Options::checked(2) }] {
        let Some(driver) = Driver::start(&options) else { continue };
        {
            let context = CudaContext::new(0).unwrap();
            let stream = context.new_stream().unwrap();
            let function = add(&context);
            assert_eq!(function.max_threads_per_block().unwrap(), 1024);
            assert_eq!(function.ptx_version().unwrap(), 80);
            let n = 1000_u32;
            let numbers: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let (a, b) = (stream.clone_htod(&numbers).unwrap(), stream.clone_htod(&numbers).unwrap());
            let mut c = stream.alloc_zeros::<f32>(n as usize).unwrap();
            let mut launch = stream.launch_builder(&function);
            launch.arg(&mut c).arg(&a).arg(&b).arg(&n);
            // SAFETY: the arguments are those of the kernel.
            unsafe { launch.launch(LaunchConfig::for_num_elems(n)) }.unwrap();
            let doubled: Vec<f32> = numbers.iter().map(|value| 2.0 * value).collect();
            assert_eq!(stream.clone_dtoh(&c).unwrap(), doubled);
        }
        assert_eq!(findings(&driver), []);
    }
}

#[test]
fn a_launch_that_cannot_be_is_refused_and_reported() {
    let Some((_driver, loaded)) = Driver::emulated(&Options { log: false, ..Options::default() }) else { return };
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    let function = add(&context);
    let launch = |grid_dim, block_dim, shared_mem_bytes| {
        let n = 0_u32;
        let nowhere = 0_u64;
        let mut launch = stream.launch_builder(&function);
        launch.arg(&nowhere).arg(&nowhere).arg(&nowhere).arg(&n);
        // SAFETY: with n = 0 nothing is accessed.
        let error = unsafe { launch.launch(LaunchConfig { grid_dim, block_dim, shared_mem_bytes }) }.err();
        (error.map(|error| error.0), loaded.findings().first().map(|finding| finding.kind))
    };
    let refused = (Some(sys::CUresult::CUDA_ERROR_INVALID_VALUE), Some(Kind::InvalidLaunch));
    assert_eq!(launch((1, 1, 1), (1025, 1, 1), 0), refused);
    assert_eq!(launch((1, 1, 1), (0, 1, 1), 0), refused);
    assert_eq!(launch((1, 1, 1), (1, 1, 65), 0), refused);
    assert_eq!(launch((1, 65536, 1), (1, 1, 1), 0), refused);
    assert_eq!(launch((1, 1, 1), (32, 1, 1), 49153), refused);
    assert_eq!(launch((1, 1, 1), (32, 1, 1), 49152), (None, None));
    let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    function.set_attribute(attribute, 166_912).unwrap();
    assert!(function.set_attribute(attribute, 166_913).is_err());
    assert_eq!(launch((1, 1, 1), (32, 1, 1), 166_912), (None, None));
}

#[test]
fn parameters_are_counted_and_measured() {
    let Some((_driver, loaded)) = Driver::emulated(&Options { log: false, ..Options::default() }) else { return };
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    let function = add(&context);
    let function = function.cu_function();
    let buffer = [0_u64; 4];
    let launch = |mut bytes: usize| {
        let mut extra = [
            // CU_LAUNCH_PARAM_BUFFER_POINTER, which is 1, and …_SIZE.
            std::ptr::dangling_mut(),
            buffer.as_ptr().cast_mut().cast(),
            2 as *mut std::ffi::c_void,
            (&raw mut bytes).cast(),
            std::ptr::null_mut(),
        ];
        let none = std::ptr::null_mut();
        // SAFETY: the list ends with null; with n = 0 nothing is accessed.
        let code =
            unsafe { sys::cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, stream.cu_stream(), none, extra.as_mut_ptr()) };
        (code as u32, loaded.findings().first().map(|finding| finding.kind))
    };
    assert_eq!(launch(28), (0, None));
    assert_eq!(launch(24), (1, Some(Kind::InvalidLaunch)));
    assert_eq!(launch(36), (1, Some(Kind::InvalidLaunch)));
    // One by one: nothing at all, and a null pointer.
    // SAFETY: the driver checks what it is given here.
    let code = unsafe { result::launch_kernel(function, (1, 1, 1), (1, 1, 1), 0, stream.cu_stream(), &mut []) };
    assert!(code.is_err());
    let mut nulls = [std::ptr::null_mut(); 4];
    // SAFETY: likewise.
    let code = unsafe { result::launch_kernel(function, (1, 1, 1), (1, 1, 1), 0, stream.cu_stream(), &mut nulls) };
    assert!(code.is_err());
    assert_eq!(loaded.findings().len(), 2);
}

/// A machine whose streams run as late and as much out of order as they may, with all that is looked for.
fn late(seed: u64) -> Options {
    Options { deferred: true, log: false, ..Options::checked(seed) }
}

/// What a copy stream brings from pinned memory is added to itself in a compute stream, again and again, in two buffers by
/// turns, while cudarc orders nothing; with events or without. Whether all results are right, and what is found.
fn upload_beside_work(options: &Options, events: bool) -> Option<(bool, Vec<Finding>)> {
    let driver = Driver::start(options)?;
    let context = CudaContext::new(0).unwrap();
    // SAFETY: the order of the streams is what is tested: it is here, or it is missing and found.
    unsafe { context.disable_event_tracking() };
    let (copies, compute) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let (function, n) = (add(&context), 1000_u32);
    let mut right = true;
    {
        // SAFETY: both are written before they are read.
        let mut pinned = [(); 2].map(|()| unsafe { context.alloc_pinned::<f32>(n as usize) }.unwrap());
        let mut weights = [(); 2].map(|()| copies.alloc_zeros::<f32>(n as usize).unwrap());
        let mut sums = [(); 2].map(|()| compute.alloc_zeros::<f32>(n as usize).unwrap());
        compute.join(&copies).unwrap();
        copies.join(&compute).unwrap();
        for round in 0..4 {
            let at = round % 2;
            // Waits for the copy of two rounds ago, which read this memory.
            pinned[at].as_mut_slice().unwrap().fill(round as f32);
            copies.memcpy_htod(&pinned[at], &mut weights[at]).unwrap();
            if events {
                compute.wait(&copies.record_event(None).unwrap()).unwrap();
            }
            let mut launch = compute.launch_builder(&function);
            launch.arg(&mut sums[at]).arg(&weights[at]).arg(&weights[at]).arg(&n);
            // SAFETY: the arguments are those of the kernel.
            unsafe { launch.launch(LaunchConfig::for_num_elems(n)) }.unwrap();
            if events {
                // The next upload into this buffer comes behind what reads it.
                copies.join(&compute).unwrap();
            }
            if round % 2 == 1 {
                for (earlier, sums) in sums.iter().enumerate() {
                    let expected = 2.0 * (round + earlier - 1) as f32;
                    right &= compute.clone_dtoh(sums).unwrap().iter().all(|&sum| sum == expected);
                }
            }
        }
        context.synchronize().unwrap();
    }
    context.synchronize().unwrap();
    Some((right, findings(&driver)))
}

#[test]
fn a_copy_stream_uploads_from_pinned_memory_beside_work() {
    for seed in 0..6 {
        for options in [late(seed), Options { log: false, ..Options::checked(seed) }] {
            let Some((right, found)) = upload_beside_work(&options, true) else { return };
            assert!(right && found.is_empty(), "{found:?}");
        }
    }
}

#[test]
fn an_upload_without_an_event_is_a_race_under_every_seed() {
    if Driver::emulated(&Options::default()).is_none() {
        return;
    }
    let found = |options| {
        let (right, found) = upload_beside_work(&options, false).unwrap();
        assert!(found.iter().any(|one| one.kind == Kind::Race), "{found:?}");
        right
    };
    let results: Vec<bool> = (0..6).map(|seed| found(late(seed))).collect();
    // Out of order, results are wrong as well; in the order of the calls they are right by luck.
    assert!(results.contains(&false), "{results:?}");
    assert!((0..6).all(|seed| found(Options { log: false, ..Options::checked(seed) })));
}

#[test]
fn pinned_memory_that_changes_before_its_copy_shows_where_streams_run_late() {
    let copied = |options: &Options| {
        let (_driver, _) = Driver::emulated(options)?;
        let context = CudaContext::new(0).unwrap();
        let stream = context.new_stream().unwrap();
        // SAFETY: written before it is read.
        let mut pinned = unsafe { context.alloc_pinned::<u8>(100) }.unwrap();
        let pointer = pinned.as_mut_ptr().unwrap();
        // SAFETY: so many bytes are there; that the copy may still read them at the second time is what is tested.
        unsafe { pointer.write_bytes(1, 100) };
        let copy = stream.clone_htod(&pinned).unwrap();
        // SAFETY: as before.
        unsafe { pointer.write_bytes(2, 100) };
        let early = stream.clone_dtoh(&copy).unwrap()[0];
        let copy = stream.clone_htod(&pinned).unwrap();
        // cudarc's own access waits for the copy.
        pinned.as_mut_slice().unwrap().fill(3);
        Some((early, stream.clone_dtoh(&copy).unwrap()[0]))
    };
    let Some(at_once) = copied(&Options::checked(1)) else { return };
    assert_eq!(at_once, (1, 2));
    assert_eq!(copied(&late(1)), Some((2, 2)));
}

#[test]
fn cudarc_orders_streams_but_for_all_readers_save_the_last() {
    // Written in one stream and read in two others, then freed: cudarc remembers one reader.
    let read_in = |options: &Options, readers: usize| {
        let driver = Driver::start(options)?;
        {
            let context = CudaContext::new(0).unwrap();
            let [own, first, second] = [(); 3].map(|()| context.new_stream().unwrap());
            let data = own.clone_htod(&[1.0_f32; 1000]).unwrap();
            let copies: Vec<_> = [first, second].iter().take(readers).map(|stream| stream.clone_dtod(&data)).collect();
            drop(data);
            let _ = context.synchronize();
            drop(copies);
        }
        Some(findings(&driver))
    };
    for seed in 0..6 {
        for options in [late(seed), Options { log: false, ..Options::checked(seed) }] {
            let Some(found) = read_in(&options, 1) else { return };
            assert_eq!(found, []);
            if Driver::emulated(&options).is_some() {
                let found = read_in(&options, 2).unwrap();
                let expected = |one: &Finding| matches!(one.kind, Kind::Race | Kind::UseAfterFree);
                assert!(!found.is_empty() && found.iter().all(expected), "{found:?}");
            }
        }
    }
}

#[test]
fn memory_is_used_in_another_stream_only_behind_its_allocation() {
    let Some((driver, loaded)) = Driver::emulated(&late(1)) else { return };
    let context = CudaContext::new(0).unwrap();
    let (own, other) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    // SAFETY: written before it is read.
    let mut data = unsafe { own.alloc::<f32>(1000) }.unwrap();
    // cudarc records no event of an allocation.
    other.memset_zeros(&mut data).unwrap();
    context.synchronize().unwrap();
    assert_eq!(loaded.findings().first().map(|finding| finding.kind), Some(Kind::Race));
    // SAFETY: likewise.
    let mut data = unsafe { own.alloc::<f32>(1000) }.unwrap();
    other.join(&own).unwrap();
    other.memset_zeros(&mut data).unwrap();
    context.synchronize().unwrap();
    assert_eq!(findings(&driver), []);
}

#[test]
fn a_pool_counts_what_cudarc_allocates() {
    let Some(_driver) = Driver::start(&Options { memory: 1 << 20, deferred: true, ..Options::default() }) else {
        return;
    };
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    // SAFETY: the device is that of the context.
    let pool = unsafe { result::device::get_default_mem_pool(context.cu_device()) }.unwrap();
    let get = |attribute| {
        let mut value = 0_u64;
        // SAFETY: these attributes are of 64 bits.
        unsafe { result::mem_pool::get_attribute(pool, attribute, (&raw mut value).cast()) }.unwrap();
        value
    };
    let reset = || {
        let mut zero = 0_u64;
        let high = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
        // SAFETY: likewise.
        unsafe { result::mem_pool::set_attribute(pool, high, (&raw mut zero).cast()) }.unwrap();
    };
    let counts = || {
        use sys::CUmemPool_attribute::{CU_MEMPOOL_ATTR_USED_MEM_CURRENT, CU_MEMPOOL_ATTR_USED_MEM_HIGH};
        [CU_MEMPOOL_ATTR_USED_MEM_CURRENT, CU_MEMPOOL_ATTR_USED_MEM_HIGH].map(get)
    };
    reset();
    let [before, high] = counts();
    assert_eq!(before, high);
    for _ in 0..8 {
        drop(stream.alloc_zeros::<u8>(600 << 10).unwrap());
    }
    let kept = stream.alloc_zeros::<u8>(100 << 10).unwrap();
    assert_eq!(counts().map(|bytes| (bytes - before) >> 10), [100, 600]);
    drop(kept);
    reset();
    stream.synchronize().unwrap();
    assert_eq!(counts(), [before; 2]);
}
