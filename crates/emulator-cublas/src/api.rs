//! The functions of `libcublas.so`.

use crate::gemm::{Matrix, Sizes, gemm};
use crate::numbers::{Number, Real};
use emulator_link::{Progress, Region, enqueue};
use std::collections::HashMap;
use std::ffi::{c_char, c_void};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

/// Values of cublasStatus_t.
const SUCCESS: u32 = 0;
const NOT_INITIALIZED: u32 = 1;
const INVALID_VALUE: u32 = 7;
const EXECUTION_FAILED: u32 = 13;
const INTERNAL_ERROR: u32 = 14;
const NOT_SUPPORTED: u32 = 15;

/// What cublasGetVersion says: that of CUDA 13.0.
const VERSION: i32 = 130_000;

/// CUBLAS_POINTER_MODE_DEVICE.
const POINTER_MODE_DEVICE: u32 = 1;

/// Products of one call.
const MOST_PRODUCTS: usize = 1 << 20;

/// A handle's settings.
#[derive(Clone, Copy, Debug, Default)]
struct Settings {
    stream: u64,
    math_mode: u32,
    pointer_mode: u32,
}

type Handles = HashMap<u64, Settings>;

fn handles() -> MutexGuard<'static, (u64, Handles)> {
    static HANDLES: LazyLock<Mutex<(u64, Handles)>> =
        LazyLock::new(|| Mutex::new((0x0cb1_a500_0000_0000, HashMap::new())));
    HANDLES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Carries a call out: no panic leaves, and what fails is said.
fn call(name: &str, body: impl FnOnce() -> Result<(), (u32, String)>) -> u32 {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)) {
        Ok(Ok(())) => SUCCESS,
        Ok(Err((status, reason))) => {
            eprintln!("emulator: {name}: status {status}: {reason}");
            status
        }
        Err(_) => INTERNAL_ERROR,
    }
}

fn with<T>(handle: u64, body: impl FnOnce(&mut Settings) -> T) -> Result<T, (u32, String)> {
    let unknown = || (NOT_INITIALIZED, format!("{handle:#x} is no cuBLAS handle"));
    handles().1.get_mut(&handle).map(body).ok_or_else(unknown)
}

fn write<T>(to: *mut T, value: T) -> Result<(), (u32, String)> {
    if to.is_null() {
        return Err((INVALID_VALUE, "the pointer for the result is null".to_owned()));
    }
    // SAFETY: the functions that get here demand a pointer to room for the result.
    unsafe { to.write(value) };
    Ok(())
}

/// Exports functions: documented by reference, unable to panic.
macro_rules! api {
    ($(fn $name:ident($($argument:ident: $type:ty),* $(,)?) $body:block)*) => {
        $(
            #[doc = concat!("`", stringify!($name), "` of cuBLAS.")]
            ///
            /// # Safety
            /// Pointers and handles are as the documentation of cuBLAS demands.
            #[unsafe(no_mangle)]
            #[allow(non_snake_case, clippy::too_many_arguments)]
            pub unsafe extern "C" fn $name($($argument: $type),*) -> u32 {
                call(stringify!($name), move || $body)
            }
        )*
    };
}

api! {
    fn cublasCreate_v2(handle: *mut u64) {
        if !emulator_link::is_present() {
            return Err((NOT_INITIALIZED, "the emulated libcuda.so is not loaded in this process".to_owned()));
        }
        emulator_link::current_device().map_err(|code| (NOT_INITIALIZED, format!("no context (CUresult {code})")))?;
        let mut all = handles();
        all.0 += 16;
        let new = all.0;
        write(handle, new)?;
        all.1.insert(new, Settings::default());
        Ok(())
    }

    fn cublasDestroy_v2(handle: u64) {
        with(handle, |_| ())?;
        handles().1.remove(&handle);
        Ok(())
    }

    fn cublasSetStream_v2(handle: u64, stream: u64) { with(handle, |settings| settings.stream = stream) }

    fn cublasGetStream_v2(handle: u64, stream: *mut u64) {
        write(stream, with(handle, |settings| settings.stream)?)
    }

    fn cublasSetMathMode(handle: u64, mode: u32) { with(handle, |settings| settings.math_mode = mode) }

    fn cublasGetMathMode(handle: u64, mode: *mut u32) { write(mode, with(handle, |settings| settings.math_mode)?) }

    fn cublasSetPointerMode_v2(handle: u64, mode: u32) {
        if mode > POINTER_MODE_DEVICE {
            return Err((INVALID_VALUE, format!("there is no pointer mode {mode}")));
        }
        with(handle, |settings| settings.pointer_mode = mode)
    }

    fn cublasGetPointerMode_v2(handle: u64, mode: *mut u32) {
        write(mode, with(handle, |settings| settings.pointer_mode)?)
    }

    // No workspace is needed, and products run one at a time whatever the stream.
    fn cublasSetWorkspace_v2(handle: u64, _workspace: *mut c_void, _bytes: usize) { with(handle, |_| ()) }

    fn cublasGetVersion_v2(_handle: u64, version: *mut i32) { write(version, VERSION) }

    fn cublasSgemm_v2(
        handle: u64,
        op_a: u32,
        op_b: u32,
        m: i32,
        n: i32,
        k: i32,
        alpha: *const f32,
        a: u64,
        lda: i32,
        b: u64,
        ldb: i32,
        beta: *const f32,
        c: u64,
        ldc: i32,
    ) {
        let operands = [(a, lda), (b, ldb), (c, ldc)].map(|(at, leading)| operand(at, Number::F32, leading, 0));
        let scalars = Scalars { alpha: alpha.cast(), beta: beta.cast(), number: Number::F32 };
        multiply("cublasSgemm", handle, (op_a, op_b), [m, n, k], operands, scalars, 1)
    }

    fn cublasDgemm_v2(
        handle: u64,
        op_a: u32,
        op_b: u32,
        m: i32,
        n: i32,
        k: i32,
        alpha: *const f64,
        a: u64,
        lda: i32,
        b: u64,
        ldb: i32,
        beta: *const f64,
        c: u64,
        ldc: i32,
    ) {
        let operands = [(a, lda), (b, ldb), (c, ldc)].map(|(at, leading)| operand(at, Number::F64, leading, 0));
        let scalars = Scalars { alpha: alpha.cast(), beta: beta.cast(), number: Number::F64 };
        multiply("cublasDgemm", handle, (op_a, op_b), [m, n, k], operands, scalars, 1)
    }

    fn cublasSgemmStridedBatched(
        handle: u64,
        op_a: u32,
        op_b: u32,
        m: i32,
        n: i32,
        k: i32,
        alpha: *const f32,
        a: u64,
        lda: i32,
        stride_a: i64,
        b: u64,
        ldb: i32,
        stride_b: i64,
        beta: *const f32,
        c: u64,
        ldc: i32,
        stride_c: i64,
        count: i32,
    ) {
        let operands = [
            operand(a, Number::F32, lda, stride_a),
            operand(b, Number::F32, ldb, stride_b),
            operand(c, Number::F32, ldc, stride_c),
        ];
        let scalars = Scalars { alpha: alpha.cast(), beta: beta.cast(), number: Number::F32 };
        multiply("cublasSgemmStridedBatched", handle, (op_a, op_b), [m, n, k], operands, scalars, count)
    }

    fn cublasGemmEx(
        handle: u64,
        op_a: u32,
        op_b: u32,
        m: i32,
        n: i32,
        k: i32,
        alpha: *const c_void,
        a: u64,
        type_a: u32,
        lda: i32,
        b: u64,
        type_b: u32,
        ldb: i32,
        beta: *const c_void,
        c: u64,
        type_c: u32,
        ldc: i32,
        compute: u32,
        _algorithm: i32,
    ) {
        let [of_a, of_b, of_c, number] = numbers([type_a, type_b, type_c], compute)?;
        let operands = [operand(a, of_a, lda, 0), operand(b, of_b, ldb, 0), operand(c, of_c, ldc, 0)];
        multiply("cublasGemmEx", handle, (op_a, op_b), [m, n, k], operands, Scalars { alpha, beta, number }, 1)
    }

    fn cublasGemmStridedBatchedEx(
        handle: u64,
        op_a: u32,
        op_b: u32,
        m: i32,
        n: i32,
        k: i32,
        alpha: *const c_void,
        a: u64,
        type_a: u32,
        lda: i32,
        stride_a: i64,
        b: u64,
        type_b: u32,
        ldb: i32,
        stride_b: i64,
        beta: *const c_void,
        c: u64,
        type_c: u32,
        ldc: i32,
        stride_c: i64,
        count: i32,
        compute: u32,
        _algorithm: i32,
    ) {
        let [of_a, of_b, of_c, number] = numbers([type_a, type_b, type_c], compute)?;
        let operands =
            [operand(a, of_a, lda, stride_a), operand(b, of_b, ldb, stride_b), operand(c, of_c, ldc, stride_c)];
        let scalars = Scalars { alpha, beta, number };
        multiply("cublasGemmStridedBatchedEx", handle, (op_a, op_b), [m, n, k], operands, scalars, count)
    }
}

/// `cublasGetStatusString` of cuBLAS.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub extern "C" fn cublasGetStatusString(status: u32) -> *const c_char {
    match status {
        SUCCESS => c"the operation completed successfully",
        NOT_INITIALIZED => c"the library was not initialized",
        INVALID_VALUE => c"an unsupported value or parameter was passed to the function",
        EXECUTION_FAILED => c"the program failed to execute",
        INTERNAL_ERROR => c"an internal operation failed",
        NOT_SUPPORTED => c"the functionality requested is not supported",
        _ => c"unknown status",
    }
    .as_ptr()
}

/// A matrix, or a batch of them.
#[derive(Clone, Copy)]
struct Operand {
    address: u64,
    number: Number,
    leading: i32,
    /// Elements from one to the next.
    stride: i64,
}

impl Operand {
    /// The address of one matrix of the batch. Where a stride leads out of all memory, the driver finds nothing there.
    fn at(&self, index: i64) -> u64 {
        self.address.wrapping_add_signed(index.wrapping_mul(self.stride).wrapping_mul(self.number.size() as i64))
    }
}

fn operand(address: u64, number: Number, leading: i32, stride: i64) -> Operand {
    Operand { address, number, leading, stride }
}

/// α and β, in host or device memory.
struct Scalars {
    alpha: *const c_void,
    beta: *const c_void,
    number: Number,
}

/// The number types of A, B, C and of the scalars, if such a product is supported.
fn numbers([a, b, c]: [u32; 3], compute: u32) -> Result<[Number; 4], (u32, String)> {
    let unsupported = || (NOT_SUPPORTED, format!("types {a}, {b}, {c} with compute type {compute} are not supported"));
    let parse = |number| Number::parse(number).ok_or_else(unsupported);
    let (a, b, c) = (parse(a)?, parse(b)?, parse(c)?);
    // CUBLAS_COMPUTE_32F and its variants which permit faster inputs (none of which is rounded any further here),
    // COMPUTE_64F, COMPUTE_16F; a cudaDataType in older programs.
    let scalar = match compute {
        68 | 69 | 74 | 75 | 77 | 0 => Number::F32,
        70 | 71 | 1 => Number::F64,
        64 | 65 | 2 => Number::F16,
        _ => return Err(unsupported()),
    };
    let fits = match scalar {
        Number::F64 => (a, b, c) == (Number::F64, Number::F64, Number::F64),
        Number::F16 => (a, b, c) == (Number::F16, Number::F16, Number::F16),
        _ => a == b && a != Number::F64 && (c == a || c == Number::F32),
    };
    if fits { Ok([a, b, c, scalar]) } else { Err(unsupported()) }
}

/// Checks a product and puts it into the stream of the handle.
fn multiply(
    name: &str,
    handle: u64,
    (op_a, op_b): (u32, u32),
    sizes: [i32; 3],
    [a, b, c]: [Operand; 3],
    scalars: Scalars,
    count: i32,
) -> Result<(), (u32, String)> {
    let settings = with(handle, |settings| *settings)?;
    let invalid = |reason: String| (INVALID_VALUE, reason);
    let size =
        |value: i32| usize::try_from(value).map_err(|_| invalid(format!("a size is negative: {sizes:?}, {count}")));
    let [m, n, k] = sizes;
    let (sizes, count) = (Sizes { m: size(m)?, n: size(n)?, k: size(k)? }, size(count)?);
    if op_a > 2 || op_b > 2 {
        return Err(invalid(format!("there are no operations {op_a}, {op_b}")));
    }
    // Real numbers have no conjugate: both transpositions are one.
    let (transposed_a, transposed_b) = (op_a != 0, op_b != 0);
    let shapes = [
        (a, if transposed_a { (sizes.k, sizes.m) } else { (sizes.m, sizes.k) }, 'a'),
        (b, if transposed_b { (sizes.n, sizes.k) } else { (sizes.k, sizes.n) }, 'b'),
        (c, (sizes.m, sizes.n), 'c'),
    ];
    for (matrix, (rows, _), which) in shapes {
        if usize::try_from(matrix.leading).map_or(true, |leading| leading < rows.max(1)) {
            return Err(invalid(format!("ld{which} is {}, below the {rows} rows", matrix.leading)));
        }
    }
    if scalars.alpha.is_null() || scalars.beta.is_null() {
        return Err(invalid("alpha or beta is null".to_owned()));
    }
    if sizes.m == 0 || sizes.n == 0 || count == 0 {
        return Ok(());
    }
    // Each product has regions of its own, which must fit into the memory of the host.
    if count > MOST_PRODUCTS {
        return Err((NOT_SUPPORTED, format!("{count} products are more than the {MOST_PRODUCTS} of one call here")));
    }
    let on_device = settings.pointer_mode == POINTER_MODE_DEVICE;
    let (at_alpha, at_beta, number) = (scalars.alpha as u64, scalars.beta as u64, scalars.number);
    // SAFETY: in host mode the scalars are in host memory and read before the call returns.
    let host = (!on_device).then(|| unsafe { (number.read(at_alpha), number.read(at_beta)) });
    let mut regions = Vec::new();
    if on_device {
        regions.extend([at_alpha, at_beta].map(|address| Region::read(address, number.size())));
    }
    for (matrix, (rows, columns), which) in shapes {
        // What is not read need not be there: A and B with α = 0, C with β = 0.
        let read = match which {
            'c' => host.is_none_or(|(_, beta)| beta != 0.0),
            _ => host.is_none_or(|(alpha, _)| alpha != 0.0),
        };
        for index in 0..count as i64 {
            let element = matrix.number.size();
            let address = matrix.at(index);
            let (width, pitch) = (rows as u64 * element, matrix.leading as u64 * element);
            let region = Region { address, width, pitch, height: columns as u64, write: 0 };
            regions.extend(read.then_some(region));
            regions.extend((which == 'c').then_some(Region { write: 1, ..region }));
        }
    }
    let matrix = |operand: Operand, transposed, index: i64| Matrix {
        address: operand.at(index),
        number: operand.number,
        leading: operand.leading as u64,
        transposed,
    };
    let is_double = number == Number::F64;
    let work = move || {
        // SAFETY: in device mode the driver has checked that the scalars are there.
        let (alpha, beta) = host.unwrap_or_else(|| unsafe { (number.read(at_alpha), number.read(at_beta)) });
        for index in 0..count as i64 {
            let (a, b, c) = (matrix(a, transposed_a, index), matrix(b, transposed_b, index), matrix(c, false, index));
            // SAFETY: the driver has checked that all three are there.
            unsafe {
                match is_double {
                    true => gemm::<f64>(sizes, f64::of(alpha), a, b, f64::of(beta), c),
                    false => gemm::<f32>(sizes, f32::of(alpha), a, b, f32::of(beta), c),
                }
            }
        }
        Progress::Done
    };
    let label = format!("{name} {m}x{n}x{k}");
    enqueue(settings.stream, &label, &regions, work).map_err(|code| (EXECUTION_FAILED, format!("CUresult {code}")))
}
