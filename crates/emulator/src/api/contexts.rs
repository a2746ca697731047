//! Contexts.

use super::{Out, api, invalid, offer, put};
use crate::driver::stream::GREATEST_PRIORITY;
use std::ffi::c_void;

/// What cuCtxGetApiVersion says.
const API_VERSION: u32 = 3020;

api! {
    fn cuDevicePrimaryCtxRetain(context: Out<'_, u64>, device: i32) |driver| {
        let Some(out) = context else { return Err(invalid("the pointer for the context is null")) };
        out.write(driver.retain(device)?);
        Ok(())
    }

    fn cuDevicePrimaryCtxRelease_v2(device: i32) |driver| { driver.release(device) }

    fn cuDevicePrimaryCtxReset_v2(device: i32) |driver| { driver.reset(device) }

    fn cuDevicePrimaryCtxSetFlags_v2(device: i32, flags: u32) |driver| { driver.set_primary_flags(device, flags) }

    fn cuDevicePrimaryCtxGetState(device: i32, flags: Out<'_, u32>, active: Out<'_, i32>) |driver| {
        let (own, is_active) = driver.primary_state(device)?;
        put(flags, own)?;
        put(active, i32::from(is_active))
    }

    fn cuCtxCreate_v2(context: Out<'_, u64>, flags: u32, device: i32) |driver| {
        let Some(out) = context else { return Err(invalid("the pointer for the context is null")) };
        out.write(driver.create_context(flags, device)?);
        Ok(())
    }

    fn cuCtxCreate_v3(context: Out<'_, u64>, _affinity: *const c_void, count: i32, flags: u32, device: i32) |driver| {
        let Some(out) = context else { return Err(invalid("the pointer for the context is null")) };
        if count != 0 {
            return Err(super::fail(crate::driver::Code::UNSUPPORTED_EXEC_AFFINITY, "there are no affinities"));
        }
        out.write(driver.create_context(flags, device)?);
        Ok(())
    }

    fn cuCtxCreate_v4(context: Out<'_, u64>, _parameters: *const c_void, flags: u32, device: i32) |driver| {
        let Some(out) = context else { return Err(invalid("the pointer for the context is null")) };
        out.write(driver.create_context(flags, device)?);
        Ok(())
    }

    fn cuCtxDestroy_v2(context: u64) |driver| { driver.destroy_context(context) }

    fn cuCtxGetCurrent(context: Out<'_, u64>) |driver| { put(context, driver.get_current()?) }

    fn cuCtxSetCurrent(context: u64) |driver| { driver.set_current(context) }

    fn cuCtxPushCurrent_v2(context: u64) |driver| { driver.push_context(context) }

    fn cuCtxPopCurrent_v2(context: Out<'_, u64>) |driver| {
        offer(context, driver.pop_context()?);
        Ok(())
    }

    fn cuCtxGetDevice(device: Out<'_, i32>) |driver| {
        driver.initialized()?;
        put(device, driver.lock().current_device()? as i32)
    }

    fn cuCtxGetFlags(flags: Out<'_, u32>) |driver| {
        let state = driver.lock();
        put(flags, state.context(state.current()?)?.flags)
    }

    fn cuCtxSetFlags(flags: u32) |driver| { driver.change_context(|context| context.flags = flags) }

    fn cuCtxGetId(context: u64, id: Out<'_, u64>) |driver| {
        let state = driver.lock();
        let handle = if context == 0 { state.current()? } else { context };
        state.context(handle)?;
        put(id, handle)
    }

    fn cuCtxGetApiVersion(context: u64, version: Out<'_, u32>) |driver| {
        let state = driver.lock();
        state.context(if context == 0 { state.current()? } else { context })?;
        put(version, API_VERSION)
    }

    fn cuCtxSynchronize() |driver| { driver.synchronize_context() }

    fn cuCtxGetLimit(value: Out<'_, usize>, limit: u32) |driver| { put(value, driver.limit(limit)?) }

    fn cuCtxSetLimit(limit: u32, value: usize) |driver| { driver.set_limit(limit, value) }

    fn cuCtxGetCacheConfig(configuration: Out<'_, u32>) |driver| {
        let state = driver.lock();
        put(configuration, state.context(state.current()?)?.cache)
    }

    fn cuCtxSetCacheConfig(configuration: u32) |driver| {
        driver.change_context(|context| context.cache = configuration)
    }

    fn cuCtxGetSharedMemConfig(configuration: Out<'_, u32>) |driver| {
        driver.lock().current()?;
        // CU_SHARED_MEM_CONFIG_FOUR_BYTE_BANK_SIZE, the only one of these devices.
        put(configuration, 1)
    }

    fn cuCtxSetSharedMemConfig(_configuration: u32) |driver| {
        driver.lock().current()?;
        Ok(())
    }

    fn cuCtxGetStreamPriorityRange(least: Out<'_, i32>, greatest: Out<'_, i32>) |driver| {
        driver.lock().current()?;
        offer(least, 0);
        offer(greatest, GREATEST_PRIORITY);
        Ok(())
    }

    fn cuCtxResetPersistingL2Cache() |driver| {
        driver.lock().current()?;
        Ok(())
    }

    fn cuCtxEnablePeerAccess(peer: u64, flags: u32) |driver| { driver.enable_peer(peer, flags) }

    fn cuCtxDisablePeerAccess(peer: u64) |driver| { driver.disable_peer(peer) }
}
