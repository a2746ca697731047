//! What a rank was sent, until its streams take it.

use crate::clique::{Part, departed};
use crate::codes::{Failure, INVALID_USAGE, LAUNCH_FAILED, REMOTE_ERROR};
use emulator_link::{Clock, Progress};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ops::{Deref, Range};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes that several ranks may have a part of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bytes {
    whole: Arc<Vec<u8>>,
    range: Range<usize>,
}

impl Bytes {
    pub(crate) fn of(whole: &Arc<Vec<u8>>, range: Range<usize>) -> Self {
        Self { whole: whole.clone(), range }
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self { range: 0..bytes.len(), whole: Arc::new(bytes) }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.whole[self.range.clone()]
    }
}

/// What a clique sends to one of its ranks, together with bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Delivery {
    /// The rank may not join.
    Refused { result: u32, reason: String },
    /// All ranks have joined.
    Complete,
    /// The bytes that it takes of a collective, and the clocks of those of its process whose parts are in them.
    Share { number: u64, clocks: Vec<Clock> },
    /// The collective cannot be done.
    Failed { number: u64, result: u32, reason: String },
    /// The bytes of another rank.
    Message { from: usize, clock: Clock },
    /// Another rank will send nothing more.
    Gone { rank: usize },
}

#[derive(Default)]
struct Inner {
    complete: bool,
    refused: Option<Failure>,
    shares: HashMap<u64, Result<(Bytes, Vec<Clock>), Failure>>,
    messages: HashMap<usize, VecDeque<Part>>,
    gone: BTreeSet<usize>,
    /// The process of the clique has ended: nothing more comes.
    lost: bool,
    aborted: bool,
    /// The ncclResult_t of what has failed first.
    error: Option<u32>,
}

/// What a rank was sent.
pub(crate) struct Inbox {
    rank: usize,
    inner: Mutex<Inner>,
    changed: Condvar,
}

const LOST: &str = "the process that made the communicator's id has ended";

impl Inbox {
    pub(crate) fn new(rank: usize) -> Arc<Self> {
        Arc::new(Self { rank, inner: Mutex::default(), changed: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn put(&self, delivery: Delivery, bytes: Bytes) {
        let mut inner = self.lock();
        match delivery {
            Delivery::Refused { result, reason } => inner.refused = Some((result, reason)),
            Delivery::Complete => inner.complete = true,
            Delivery::Share { number, clocks } => _ = inner.shares.insert(number, Ok((bytes, clocks))),
            Delivery::Failed { number, result, reason } => _ = inner.shares.insert(number, Err((result, reason))),
            Delivery::Message { from, clock } => {
                inner.messages.entry(from).or_default().push_back(Part { bytes, clock });
            }
            Delivery::Gone { rank } => _ = inner.gone.insert(rank),
        }
        self.changed.notify_all();
    }

    /// Nothing more comes, since the process of the clique has ended.
    pub(crate) fn lose(&self) {
        self.lock().lost = true;
        self.changed.notify_all();
    }

    /// What waits, waits no longer, and takes nothing.
    pub(crate) fn abort(&self) {
        let mut inner = self.lock();
        *inner = Inner { aborted: true, error: inner.error, ..Inner::default() };
        self.changed.notify_all();
    }

    /// The ncclResult_t of what has failed first.
    pub(crate) fn error(&self) -> Option<u32> {
        self.lock().error
    }

    /// Waits until all ranks have joined. `delayed` is called when that takes long.
    pub(crate) fn wait(&self, delayed: impl FnOnce()) -> Result<(), Failure> {
        let mut delayed = Some(delayed);
        let mut inner = self.lock();
        let mut seconds = 0;
        loop {
            if let Some(refused) = &inner.refused {
                return Err(refused.clone());
            }
            if inner.complete || inner.aborted {
                return Ok(());
            }
            if let Some(rank) = inner.gone.first() {
                return Err((REMOTE_ERROR, format!("rank {rank} has left before all ranks came")));
            }
            if inner.lost {
                return Err((REMOTE_ERROR, format!("{LOST}, or waits for no rank like this")));
            }
            let waited = self.changed.wait_timeout(inner, Duration::from_secs(1));
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
            seconds += 1;
            if seconds >= 10
                && let Some(delayed) = delayed.take()
            {
                // It may ask others, who put something here.
                drop(inner);
                delayed();
                inner = self.lock();
            }
        }
    }

    /// Takes the rank's share of the collective of this number, for which it has handed in. `take` also gets the clocks of
    /// those whose parts are in it.
    pub(crate) fn take(&self, number: u64, take: impl FnOnce(&[u8], &[Clock])) -> Progress {
        let mut inner = self.lock();
        if inner.aborted {
            return Progress::Done;
        }
        match inner.shares.remove(&number) {
            Some(Ok((bytes, clocks))) => {
                drop(inner);
                take(&bytes, &clocks);
                Progress::Done
            }
            Some(Err((result, reason))) => self.fail(inner, result, &format!("collective {number}"), &reason),
            None if inner.lost => self.fail(inner, REMOTE_ERROR, &format!("collective {number}"), LOST),
            None => Progress::Waiting,
        }
    }

    /// Takes a message, if there is one.
    pub(crate) fn receive(&self, from: usize, bytes: usize, take: impl FnOnce(&Part)) -> Progress {
        let mut inner = self.lock();
        if inner.aborted {
            return Progress::Done;
        }
        let what = || format!("message of rank {from}");
        match inner.messages.get_mut(&from).and_then(VecDeque::pop_front) {
            Some(message) if message.bytes.len() == bytes => {
                drop(inner);
                take(&message);
                Progress::Done
            }
            Some(message) => {
                let reason = format!("it has {} bytes, where {bytes} are expected", message.bytes.len());
                self.fail(inner, INVALID_USAGE, &what(), &reason)
            }
            None if inner.gone.contains(&from) => self.fail(inner, REMOTE_ERROR, &what(), &departed(from)),
            None if inner.lost => self.fail(inner, REMOTE_ERROR, &what(), LOST),
            None => Progress::Waiting,
        }
    }

    /// Says why, here and to whoever asks later.
    fn fail(&self, mut inner: MutexGuard<'_, Inner>, result: u32, what: &str, reason: &str) -> Progress {
        inner.error.get_or_insert(result);
        drop(inner);
        eprintln!("emulator: rank {}: {what} fails: {reason}", self.rank);
        Progress::Failed(LAUNCH_FAILED)
    }
}
