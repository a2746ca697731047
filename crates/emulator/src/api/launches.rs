//! Launches, and how many thread blocks fit.

use super::{Out, api, fail, invalid, put};
use crate::driver::error::{Answer, Code};
use crate::driver::launch::Request;
use std::ffi::c_void;

/// CUlaunchConfig.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // named as in cuda.h
pub struct Configuration {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: u32,
    pub stream: u64,
    pub attributes: *const Attribute,
    pub count: u32,
}

/// CUlaunchAttribute: a key, and 64 bytes whose meaning depends on it.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Attribute {
    pub id: u32,
    pub padding: u32,
    pub value: [u32; 16],
}

/// A function from threads of a block to bytes of its dynamic shared memory.
pub type SharedOfBlock = Option<unsafe extern "C" fn(i32) -> usize>;

fn request(configuration: &Configuration, function: u64) -> Answer<Request> {
    let &Configuration { grid, block, shared, stream, attributes, count } = configuration;
    let mut request = Request { function, grid, block, shared, stream, cooperative: false };
    for index in 0..if attributes.is_null() { 0 } else { count as usize } {
        // SAFETY: the caller gives `count` attributes.
        let Attribute { id, value, .. } = unsafe { *attributes.add(index) };
        match id {
            // CU_LAUNCH_ATTRIBUTE_COOPERATIVE.
            2 => request.cooperative = value[0] != 0,
            // CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION.
            4 if value[..3].iter().any(|&along| along > 1) => {
                let clusters = &value[..3];
                return Err(fail(Code::INVALID_CLUSTER_SIZE, format!("clusters of {clusters:?} are not supported")));
            }
            // Hints: cache windows, policies, priorities, programmatic dependence (operations of a stream do not
            // overlap).
            _ => {}
        }
    }
    Ok(request)
}

/// The pair of results of cuOccupancyMaxPotentialBlockSize.
fn potential(
    driver: &crate::driver::Driver,
    blocks: Out<'_, i32>,
    threads: Out<'_, i32>,
    function: u64,
    dynamic: SharedOfBlock,
    bytes: usize,
    most: i32,
) -> Answer {
    let shared = |threads| match dynamic {
        // SAFETY: the caller gives a function for any number of threads.
        Some(dynamic) => unsafe { dynamic(threads) },
        None => bytes,
    };
    let found = driver.potential_block(function, shared, most)?;
    put(blocks, found.0)?;
    put(threads, found.1)
}

api! {
    fn cuLaunchKernel(
        function: u64,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        shared: u32,
        stream: u64,
        parameters: *const *const c_void,
        extra: *const *const c_void,
    ) |driver| {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let request = Request { function, grid, block, shared, stream, cooperative: false };
        // SAFETY: the arguments are those of this function.
        unsafe { driver.launch(&request, parameters, extra) }
    }

    fn cuLaunchKernelEx(
        configuration: *const Configuration,
        function: u64,
        parameters: *const *const c_void,
        extra: *const *const c_void,
    ) |driver| {
        // SAFETY: the caller gives a configuration or null.
        let configuration = unsafe { configuration.as_ref() }.ok_or_else(|| invalid("no configuration"))?;
        let request = request(configuration, function)?;
        // SAFETY: the arguments are those of this function.
        unsafe { driver.launch(&request, parameters, extra) }
    }

    fn cuLaunchCooperativeKernel(
        function: u64,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        shared: u32,
        stream: u64,
        parameters: *const *const c_void,
    ) |driver| {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let request = Request { function, grid, block, shared, stream, cooperative: true };
        // SAFETY: the arguments are those of this function.
        unsafe { driver.launch(&request, parameters, std::ptr::null()) }
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: Out<'_, i32>,
        function: u64,
        threads: i32,
        dynamic: usize,
    ) |driver| { put(blocks, driver.occupancy(function, threads, dynamic)?) }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        blocks: Out<'_, i32>,
        function: u64,
        threads: i32,
        dynamic: usize,
        _flags: u32,
    ) |driver| { put(blocks, driver.occupancy(function, threads, dynamic)?) }

    fn cuOccupancyAvailableDynamicSMemPerBlock(
        bytes: Out<'_, usize>,
        function: u64,
        blocks: i32,
        threads: i32,
    ) |driver| { put(bytes, driver.available_shared(function, blocks, threads)?) }

    fn cuOccupancyMaxPotentialBlockSize(
        blocks: Out<'_, i32>,
        threads: Out<'_, i32>,
        function: u64,
        dynamic: SharedOfBlock,
        bytes: usize,
        most: i32,
    ) |driver| { potential(driver, blocks, threads, function, dynamic, bytes, most) }

    fn cuOccupancyMaxPotentialBlockSizeWithFlags(
        blocks: Out<'_, i32>,
        threads: Out<'_, i32>,
        function: u64,
        dynamic: SharedOfBlock,
        bytes: usize,
        most: i32,
        _flags: u32,
    ) |driver| { potential(driver, blocks, threads, function, dynamic, bytes, most) }

    fn cuOccupancyMaxActiveClusters(
        clusters: Out<'_, i32>,
        function: u64,
        configuration: *const Configuration,
    ) |driver| {
        // SAFETY: the caller gives a configuration or null.
        let configuration = unsafe { configuration.as_ref() }.ok_or_else(|| invalid("no configuration"))?;
        let Request { block, shared, .. } = request(configuration, function)?;
        let threads = block.iter().fold(1, |threads: u32, &along| threads.saturating_mul(along));
        let blocks = driver.occupancy(function, i32::try_from(threads).unwrap_or(i32::MAX), shared as usize)?;
        put(clusters, blocks.saturating_mul(driver.options.multiprocessors as i32))
    }

    fn cuOccupancyMaxPotentialClusterSize(
        size: Out<'_, i32>,
        function: u64,
        _configuration: *const Configuration,
    ) |driver| {
        driver.function(function)?;
        put(size, 1)
    }
}
