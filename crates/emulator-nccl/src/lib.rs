//! A stand-in for NCCL over the emulated CUDA driver: communicators between the devices of one machine, collectives and
//! point-to-point messages in the order of streams.
//!
//! Every rank hands its data in when its stream reaches the call, and takes the result when all ranks have done so;
//! until then its stream waits, as on real devices. Numbers of 16 bits are reduced in float32 and rounded once, in
//! the order of ranks, where real devices round at every step.
//!
//! **Ranks of several processes**, each with a driver of its own, are connected by the process that made the id: all data go
//! through it, and without it the others cannot go on. Ranks of that process need no connection. What a process has put
//! into streams before a collective or a message, runs from then on without being waited for, as it does on a device,
//! whatever the driver's option `deferred` says: another process may wait for it that this one waits for.
//!
//! **A rank leaves** when its communicator is aborted, when it is destroyed and the streams have done what it put into them,
//! and when its process ends, however it does. What it handed in and sent before that, still counts. Whoever needs more of
//! it gets an error in the stream, and ncclRemoteError of `ncclCommGetAsyncError`; real devices might wait for ever.
//!
//! **Checks for races** follow what a rank takes back to the work of those ranks of its own process whose data are in it.
//! Memory belongs to one process, so nothing is missing as long as order does not pass through another one: if a rank sends
//! to another process, and that sends to a second rank here, the driver knows of no order between the two, and reports a
//! race where both use the same memory.

mod api;
mod clique;
mod codes;
mod inbox;
mod reduce;
mod seat;
mod wire;

pub use api::*;
