//! The order of stream operations: which of them are certain to be over when another begins.

use std::sync::Arc;

/// A stream operation's place in the order of operations: a vector clock over streams. The host thread that enqueues
/// counts as one of the streams, for operations that it carries out itself.
#[derive(Clone, Debug)]
pub struct Stamp {
    /// The number of its stream, never used again for another one.
    pub stream: u32,
    /// Its number in the stream, from 1.
    pub sequence: u32,
    /// For each stream the number of the last operation that is over before this one begins.
    pub known: Arc<[u32]>,
    /// What it is, for messages: `kernel scale on stream 2`, `copy to the host on stream 1`.
    pub label: Arc<str>,
}

impl Stamp {
    /// What is over once this operation is, as far as the stamp tells.
    pub(crate) fn clock(&self) -> Vec<u32> {
        let mut clock = self.known.to_vec();
        if clock.len() <= self.stream as usize {
            clock.resize(self.stream as usize + 1, 0);
        }
        clock[self.stream as usize] = self.sequence;
        clock
    }

    /// Whether the operation `sequence` of `stream` is over before this one begins (or is this one).
    pub fn follows(&self, stream: u32, sequence: u32) -> bool {
        stream == self.stream && sequence <= self.sequence
            || self.known.get(stream as usize).is_some_and(|&known| sequence <= known)
    }
}
