//! A stand-in for NCCL over the emulated CUDA driver: communicators between the devices of one process, collectives and
//! point-to-point messages in the order of streams.
//!
//! Every rank hands its data in when its stream reaches the call, and takes the result when all ranks have done so;
//! until then its stream waits, as on real devices. Numbers of 16 bits are reduced in float32 and rounded once, in
//! the order of ranks, where real devices round at every step.

mod api;
mod clique;
mod reduce;

pub use api::*;
