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
