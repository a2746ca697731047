//! A rank's place in its clique, which is in this process or in another one of the machine.
//!
//! The process that makes an id is host of the clique. Ranks of other processes find it by a socket without a file, whose
//! name is in the id, and which is there until all ranks have come. Each then has a connection of its own: requests one way,
//! deliveries the other. A thread on each side reads them, and does nothing else that could have to wait, so that whoever
//! writes gets on. A connection that ends is a rank that leaves, whatever the reason.

use crate::clique::{Address, Clique, Collective, Part};
use crate::codes::{Failure, INVALID_ARGUMENT, INVALID_USAGE, REMOTE_ERROR, SYSTEM_ERROR};
use crate::inbox::{Delivery, Inbox};
use crate::{UniqueId, wire};
use emulator_link::{Clock, Progress};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::net::Shutdown;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Builder;

/// What an id says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Key {
    /// The name of the socket.
    name: u64,
    /// What only those know who have the id: everybody on the machine sees the name.
    secret: [u64; 2],
}

/// The beginning of an id.
const MAGIC: [u8; 8] = *b"emulated";

impl Key {
    fn id(self) -> UniqueId {
        let mut internal = [0; 128];
        let [first, second] = self.secret;
        let words = [MAGIC, self.name.to_le_bytes(), first.to_le_bytes(), second.to_le_bytes()];
        internal[..32].copy_from_slice(words.as_flattened());
        UniqueId { internal }
    }

    fn of(id: &UniqueId) -> Option<Self> {
        match id.internal.as_chunks::<8>().0 {
            [MAGIC, words @ ..] => {
                let word = |at: usize| u64::from_le_bytes(words[at]);
                Some(Self { name: word(0), secret: [word(1), word(2)] })
            }
            _ => None,
        }
    }

    /// A socket without a file: it is gone when nobody has it.
    fn address(self) -> io::Result<SocketAddr> {
        SocketAddr::from_abstract_name(format!("emulator-nccl-{:016x}", self.name))
    }
}

/// Numbers that nobody guesses.
fn random<const COUNT: usize>() -> io::Result<[u64; COUNT]> {
    let mut numbers = [[0; 8]; COUNT];
    File::open("/dev/urandom")?.read_exact(numbers.as_flattened_mut())?;
    Ok(numbers.map(u64::from_le_bytes))
}

/// A number of this process.
fn process() -> u64 {
    static PROCESS: LazyLock<u64> = LazyLock::new(|| random().map_or(u64::from(std::process::id()), |[number]| number));
    *PROCESS
}

/// What a rank of another process asks of its clique, together with bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Request {
    Join { key: Key, rank: usize, ranks: usize, process: u64 },
    HandIn { number: u64, collective: Collective, clock: Clock },
    Send { to: usize, clock: Clock },
}

/// The cliques of the ids made here for which ranks have yet to come. How many, the first one says.
fn hosted() -> MutexGuard<'static, HashMap<Key, Option<Arc<Clique>>>> {
    static HOSTED: LazyLock<Mutex<HashMap<Key, Option<Arc<Clique>>>>> = LazyLock::new(Mutex::default);
    HOSTED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn system(error: io::Error) -> Failure {
    (SYSTEM_ERROR, error.to_string())
}

/// Makes an id, and this process host of its clique.
pub(crate) fn host() -> Result<UniqueId, Failure> {
    let [name, first, second] = random().map_err(system)?;
    let key = Key { name, secret: [first, second] };
    let listener = key.address().and_then(|address| UnixListener::bind_addr(&address)).map_err(system)?;
    hosted().insert(key, None);
    let listen = move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            if !hosted().contains_key(&key) {
                return;
            }
            // Without a thread for it, the rank hears that its connection has ended.
            let _ = Builder::new().spawn(move || serve(&stream, key));
        }
    };
    Builder::new().spawn(listen).map_err(system)?;
    Ok(key.id())
}

/// Joins a clique that is in this process.
fn enter(key: Key, rank: usize, ranks: usize, process: u64, address: Address) -> Result<Arc<Clique>, Failure> {
    let mut hosted = hosted();
    let clique = match hosted.get_mut(&key) {
        Some(clique) => clique.get_or_insert_with(|| Clique::new(ranks)).clone(),
        None => return Err((INVALID_USAGE, "all ranks of this id have come already".to_owned())),
    };
    // The last one takes the id away before anybody knows that all have come.
    if clique.join(rank, ranks, process, address)? {
        hosted.remove(&key);
        drop(hosted);
        // Whoever listens looks again.
        let _ = key.address().and_then(|address| UnixStream::connect_addr(&address));
    }
    Ok(clique)
}

/// Does what a rank of another process asks for, until it is gone.
fn serve(stream: &UnixStream, expected: Key) {
    let joined = match wire::read(stream) {
        Ok(Some((Request::Join { key, rank, ranks, process }, _))) if key == expected => {
            let address = stream.try_clone().map(Address::There).map_err(system);
            address.and_then(|address| enter(key, rank, ranks, process, address)).map(|clique| (clique, rank))
        }
        _ => return,
    };
    let (clique, rank) = match joined {
        Ok(joined) => joined,
        Err((result, reason)) => {
            let _ = wire::write(stream, &Delivery::Refused { result, reason }, &[]);
            return;
        }
    };
    wake();
    while let Ok(Some((request, bytes))) = wire::read(stream) {
        if obey(&clique, rank, request, bytes).is_err() {
            break;
        }
        wake();
    }
    clique.leave(rank);
    let _ = stream.shutdown(Shutdown::Both);
    wake();
}

fn obey(clique: &Clique, rank: usize, request: Request, bytes: Vec<u8>) -> io::Result<()> {
    match request {
        Request::HandIn { number, collective, clock } if collective.fits(rank, clique.ranks, bytes.len()) => {
            clique.hand_in(rank, number, collective, Part { bytes: bytes.into(), clock });
        }
        Request::Send { to, clock } if to < clique.ranks => {
            clique.send(rank, to, Part { bytes: bytes.into(), clock });
        }
        _ => return Err(ErrorKind::InvalidData.into()),
    }
    Ok(())
}

/// Lets the driver go on, since something has come for its streams, or since others wait for what is in them. That is a
/// thread's own work: who reads what others write, must not wait for kernels and for host functions.
fn wake() {
    static BELL: OnceLock<Option<SyncSender<()>>> = OnceLock::new();
    let bell = BELL.get_or_init(|| {
        let (bell, rings) = sync_channel(1);
        Builder::new().spawn(move || rings.iter().for_each(|()| emulator_link::resume())).ok().map(|_| bell)
    });
    if let Some(bell) = bell {
        // One that rings already, is enough.
        let _ = bell.try_send(());
    }
}

enum Table {
    Here(Arc<Clique>),
    /// Whoever has the lock writes.
    There(UnixStream, Mutex<()>),
}

/// A rank's place in its clique. It leaves when this is dropped: when its communicator is gone, and all that it put into
/// streams is done.
pub(crate) struct Seat {
    pub(crate) rank: usize,
    pub(crate) ranks: usize,
    inbox: Arc<Inbox>,
    table: Table,
}

impl Seat {
    /// Joins the clique of an id, without waiting for others.
    pub(crate) fn join(id: &UniqueId, rank: usize, ranks: usize) -> Result<Self, Failure> {
        let foreign = || (INVALID_ARGUMENT, "the id is none that the emulated NCCL has made".to_owned());
        let key = Key::of(id).ok_or_else(foreign)?;
        let inbox = Inbox::new(rank);
        let is_host = hosted().contains_key(&key);
        let table = if is_host {
            Table::Here(enter(key, rank, ranks, process(), Address::Here(inbox.clone()))?)
        } else {
            Table::There(connect(key, rank, ranks, inbox.clone())?, Mutex::default())
        };
        Ok(Self { rank, ranks, inbox, table })
    }

    /// All places of a clique without an id.
    pub(crate) fn all(ranks: usize) -> Result<Vec<Self>, Failure> {
        let clique = Clique::new(ranks);
        let seat = |rank| {
            let inbox = Inbox::new(rank);
            clique.join(rank, ranks, process(), Address::Here(inbox.clone()))?;
            Ok(Self { rank, ranks, inbox, table: Table::Here(clique.clone()) })
        };
        (0..ranks).map(seat).collect()
    }

    /// Waits until all ranks have come.
    pub(crate) fn wait(&self) -> Result<(), Failure> {
        self.inbox.wait(|| match &self.table {
            Table::Here(clique) => eprintln!("emulator: a communicator waits for ranks {:?}", clique.missing()),
            Table::There(..) => eprintln!("emulator: rank {} waits for others of its communicator", self.rank),
        })
    }

    /// Hands in a part of the collective of this number. This waits for no other rank.
    pub(crate) fn hand_in(&self, number: u64, collective: Collective, part: Part) {
        match &self.table {
            Table::Here(clique) => clique.hand_in(self.rank, number, collective, part),
            Table::There(stream, turn) => {
                request(stream, turn, &Request::HandIn { number, collective, clock: part.clock }, &part.bytes);
            }
        }
    }

    /// [`Inbox::take`].
    pub(crate) fn take(&self, number: u64, take: impl FnOnce(&[u8], &[Clock])) -> Progress {
        self.inbox.take(number, take)
    }

    /// Leaves a message for another rank.
    pub(crate) fn send(&self, to: usize, message: Part) {
        match &self.table {
            Table::Here(clique) => clique.send(self.rank, to, message),
            Table::There(stream, turn) => {
                request(stream, turn, &Request::Send { to, clock: message.clock }, &message.bytes);
            }
        }
    }

    /// [`Inbox::receive`].
    pub(crate) fn receive(&self, from: usize, bytes: usize, take: impl FnOnce(&Part)) -> Progress {
        self.inbox.receive(from, bytes, take)
    }

    /// What was put into streams for others, is not to wait until somebody here asks for it: they may be of a process that
    /// this one waits for.
    pub(crate) fn hurry(&self) {
        let shared = match &self.table {
            Table::Here(clique) => clique.is_shared(),
            Table::There(..) => true,
        };
        if shared {
            wake();
        }
    }

    /// The ncclResult_t of what has failed first.
    pub(crate) fn error(&self) -> Option<u32> {
        self.inbox.error()
    }

    /// Leaves at once, with what is in streams undone.
    pub(crate) fn abort(&self) {
        self.inbox.abort();
        self.leave();
    }

    fn leave(&self) {
        match &self.table {
            Table::Here(clique) => clique.leave(self.rank),
            Table::There(stream, _) => drop(stream.shutdown(Shutdown::Both)),
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Joins a clique that is in another process.
fn connect(key: Key, rank: usize, ranks: usize, inbox: Arc<Inbox>) -> Result<UnixStream, Failure> {
    let nobody = |error| {
        let reason = "no process of this machine waits for ranks with this id: the one that made it has ended, or is on \
                      another machine, or all ranks have come";
        (REMOTE_ERROR, format!("{reason} ({error})"))
    };
    let stream = key.address().and_then(|address| UnixStream::connect_addr(&address)).map_err(nobody)?;
    wire::write(&stream, &Request::Join { key, rank, ranks, process: process() }, &[]).map_err(nobody)?;
    let deliveries = stream.try_clone().map_err(system)?;
    let read = move || {
        while let Ok(Some((delivery, bytes))) = wire::read(&deliveries) {
            inbox.put(delivery, bytes.into());
            wake();
        }
        inbox.lose();
        wake();
    };
    Builder::new().spawn(read).map_err(system)?;
    Ok(stream)
}

/// Asks a clique in another process. If that has ended, whoever reads its deliveries hears of it.
fn request(stream: &UnixStream, turn: &Mutex<()>, request: &Request, bytes: &[u8]) {
    let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = wire::write(stream, request, bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clique::Kind;
    use crate::reduce::{Number, Reduction};
    use std::time::{Duration, Instant};

    #[test]
    fn an_id_says_where_its_clique_is() {
        let key = Key { name: 1, secret: [2, u64::MAX] };
        assert_eq!(Key::of(&key.id()), Some(key));
        assert_eq!(Key::of(&UniqueId { internal: [1; 128] }), None);
    }

    #[test]
    fn only_whoever_knows_the_secret_is_let_in() {
        let id = host().unwrap();
        let key = Key::of(&id).unwrap();
        let come = |key, rank| {
            let inbox = Inbox::new(rank);
            (connect(key, rank, 2, inbox.clone()), inbox)
        };
        let answer = |inbox: &Inbox| inbox.wait(|| panic!("nothing comes")).map_err(|(result, _)| result);
        let (_stream, inbox) = come(Key { secret: [0; 2], ..key }, 1);
        assert_eq!(answer(&inbox), Err(REMOTE_ERROR));
        let mut noise = key.address().and_then(|address| UnixStream::connect_addr(&address)).unwrap();
        io::Write::write_all(&mut noise, &[255; 64]).unwrap();

        let own = Seat::join(&id, 0, 2).unwrap();
        let (_stream, inbox) = come(key, 2);
        assert_eq!(answer(&inbox), Err(INVALID_ARGUMENT));
        let (stream, inbox) = come(key, 1);
        let other = Seat { rank: 1, ranks: 2, inbox, table: Table::There(stream.unwrap(), Mutex::default()) };
        for seat in [&own, &other] {
            seat.wait().unwrap();
        }
        // Nobody listens any more, or will in a moment.
        let (stream, inbox) = come(key, 1);
        assert!(stream.is_err() || answer(&inbox) == Err(REMOTE_ERROR));

        // What makes no sense ends the connection.
        let root = Collective { kind: Kind::Reduce(Reduction::Sum, 2), number: Number::U8, count: 1 };
        own.hand_in(1, Collective { kind: Kind::AllGather, ..root }, Part { bytes: vec![1].into(), ..Part::default() });
        other.hand_in(1, root, Part { bytes: vec![1].into(), ..Part::default() });
        for (seat, from) in [(&own, 1), (&other, 0)] {
            let begin = Instant::now();
            while seat.receive(from, 1, |_| panic!("nobody sends")) == Progress::Waiting {
                // A hang is an error: longer than this can take.
                assert!(begin.elapsed() < Duration::from_secs(600));
                std::thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(seat.error(), Some(REMOTE_ERROR));
        }
    }
}
