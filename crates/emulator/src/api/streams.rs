//! Streams and events.

use super::{Out, api, fail, invalid, put};
use crate::driver::error::Code;
use crate::driver::queue::HostFunction;
use std::ffi::c_void;

/// A CUhostFn.
pub type Callback = Option<unsafe extern "C" fn(*mut c_void)>;

api! {
    fn cuStreamCreate(stream: Out<'_, u64>, flags: u32) |driver| {
        let Some(out) = stream else { return Err(invalid("the pointer for the stream is null")) };
        out.write(driver.create_stream(flags, 0)?);
        Ok(())
    }

    fn cuStreamCreateWithPriority(stream: Out<'_, u64>, flags: u32, priority: i32) |driver| {
        let Some(out) = stream else { return Err(invalid("the pointer for the stream is null")) };
        out.write(driver.create_stream(flags, priority)?);
        Ok(())
    }

    fn cuStreamDestroy_v2(stream: u64) |driver| { driver.destroy_stream(stream) }

    fn cuStreamSynchronize(stream: u64) |driver| { driver.synchronize_stream(stream) }

    fn cuStreamQuery(stream: u64) |driver| { driver.query_stream(stream) }

    fn cuStreamWaitEvent(stream: u64, event: u64, flags: u32) |driver| { driver.wait_event(stream, event, flags) }

    fn cuStreamGetCtx(stream: u64, context: Out<'_, u64>) |driver| {
        put(context, driver.stream_properties(stream)?.0)
    }

    fn cuStreamGetFlags(stream: u64, flags: Out<'_, u32>) |driver| { put(flags, driver.stream_properties(stream)?.1) }

    fn cuStreamGetPriority(stream: u64, priority: Out<'_, i32>) |driver| {
        put(priority, driver.stream_properties(stream)?.2)
    }

    fn cuStreamIsCapturing(stream: u64, status: Out<'_, u32>) |driver| {
        driver.stream_properties(stream)?;
        // CU_STREAM_CAPTURE_STATUS_NONE.
        put(status, 0)
    }

    fn cuStreamBeginCapture_v2(_stream: u64, _mode: u32) |_driver| {
        Err(fail(Code::NOT_SUPPORTED, "streams cannot be captured here"))
    }

    fn cuStreamAttachMemAsync(stream: u64, _address: u64, _bytes: usize, _flags: u32) |driver| {
        driver.stream_properties(stream)?;
        Ok(())
    }

    fn cuLaunchHostFunc(stream: u64, function: Callback, data: *mut c_void) |driver| {
        let function = function.ok_or_else(|| invalid("the function is null"))?;
        driver.launch_host(stream, HostFunction { function, data })
    }

    fn cuEventCreate(event: Out<'_, u64>, flags: u32) |driver| {
        let Some(out) = event else { return Err(invalid("the pointer for the event is null")) };
        out.write(driver.create_event(flags)?);
        Ok(())
    }

    fn cuEventDestroy_v2(event: u64) |driver| { driver.destroy_event(event) }

    fn cuEventRecord(event: u64, stream: u64) |driver| { driver.record_event(event, stream) }

    fn cuEventRecordWithFlags(event: u64, stream: u64, _flags: u32) |driver| { driver.record_event(event, stream) }

    fn cuEventSynchronize(event: u64) |driver| { driver.synchronize_event(event) }

    fn cuEventQuery(event: u64) |driver| { driver.query_event(event) }

    fn cuEventElapsedTime(milliseconds: Out<'_, f32>, from: u64, to: u64) |driver| {
        put(milliseconds, driver.elapsed(from, to)?)
    }

    fn cuEventElapsedTime_v2(milliseconds: Out<'_, f32>, from: u64, to: u64) |driver| {
        put(milliseconds, driver.elapsed(from, to)?)
    }
}
