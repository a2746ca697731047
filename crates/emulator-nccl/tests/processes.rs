//! Communicators between processes, each with an emulated driver of its own: what a test does as one of them is a test
//! itself, ignored unless another one starts it.

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DriverError};
use cudarc::nccl::result::{self, NcclError};
use cudarc::nccl::sys::{self, ncclDataType_t::ncclFloat32, ncclRedOp_t::ncclSum};
use std::io::{BufRead, BufReader, Read, Write};
use std::ops::Range;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;

/// A hang is an error: longer than any of this can take.
const SECONDS: u64 = 600;

/// A process that does a test's part.
struct Process {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Process {
    fn start(name: &str, number: usize, count: usize, case: &str, id: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", &format!("in_process::{name}"), "--ignored", "--nocapture", "--test-threads=1"]);
        command.env("NUMBER", number.to_string()).env("COUNT", count.to_string()).env("CASE", case).env("ID", id);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// What a process says next, behind this word.
    fn hear(&mut self, word: &str) -> String {
        let word = format!("@{word} ");
        let said =
            self.lines.by_ref().lines().map(Result::unwrap).find_map(|line| Some(line.strip_prefix(&word)?.to_owned()));
        said.unwrap_or_else(|| panic!("a process ended without {word}: {}", self.errors()))
    }

    /// Lets it go on.
    fn go(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    }

    fn errors(&mut self) -> String {
        let mut text = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }

    /// Waits until it ends, as it should, and returns what it has to complain of.
    fn finish(mut self) -> String {
        std::io::copy(&mut self.lines, &mut std::io::sink()).unwrap();
        let errors = self.errors();
        assert!(self.child.wait().unwrap().success(), "{errors}");
        errors
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// So many processes, of which the first makes the id.
fn start(name: &str, count: usize, case: &str) -> (Vec<Process>, String) {
    let mut first = Process::start(name, 0, count, case, "");
    let id = first.hear("id");
    assert!(is_open(&id));
    let others = (1..count).map(|number| Process::start(name, number, count, case, &id));
    (std::iter::once(first).chain(others).collect(), id)
}

/// Lets processes end once all have failed, and returns what they say: without the first one, others would fail by that.
fn failed(mut processes: Vec<Process>) -> Vec<String> {
    processes.iter_mut().for_each(|process| drop(process.hear("failed")));
    processes.iter_mut().for_each(Process::go);
    processes.into_iter().map(Process::finish).collect()
}

/// Whether there is still a socket for an id.
fn is_open(id: &str) -> bool {
    let name: Vec<&str> = (8..16).rev().map(|byte| &id[2 * byte..][..2]).collect();
    std::fs::read_to_string("/proc/net/unix").unwrap().contains(&format!("emulator-nccl-{}", name.concat()))
}

#[test]
fn processes_exchange_what_threads_do() {
    for (count, case) in [(2, "at once"), (2, "deferred"), (3, "at once"), (3, "deferred")] {
        let (processes, id) = start("every_call", count, case);
        for process in processes {
            assert_eq!(process.finish(), "");
        }
        assert!(!is_open(&id));
    }
}

#[test]
fn nobody_has_to_ask_for_what_others_wait_for() {
    for case in ["at once 0", "at once 1", "deferred 0", "deferred 1"] {
        let (mut processes, _) = start("two_sums", 2, case);
        let idle = usize::from(case.ends_with('1'));
        processes[1 - idle].hear("done");
        processes[idle].go();
        processes.into_iter().for_each(|process| assert_eq!(process.finish(), ""));
    }
}

#[test]
fn ranks_of_one_process_follow_each_other() {
    for case in ["at once", "deferred"] {
        let (processes, _) = start("two_devices", 2, case);
        processes.into_iter().for_each(|process| drop(process.finish()));
    }
}

#[test]
fn processes_that_disagree_all_fail() {
    for case in ["at once", "deferred"] {
        let (processes, _) = start("different_counts", 3, case);
        for errors in failed(processes) {
            assert!(errors.contains("ranks disagree"), "{errors}");
        }
    }
}

/// Ends the rank of a process while others wait for it, and returns what they say.
fn without(victim: usize, case: &str, end: impl Fn(&mut Process)) -> Vec<String> {
    let (mut processes, id) = start("without_one", 3, &format!("{case} {victim}"));
    processes.iter_mut().for_each(|process| drop(process.hear("waits")));
    let mut ended = processes.remove(victim);
    end(&mut ended);
    let errors = failed(processes);
    drop(ended);
    assert!(!is_open(&id));
    errors
}

#[test]
fn a_process_that_is_killed_ends_all_others() {
    for victim in [0, 2] {
        for case in ["at once sum", "deferred sum", "at once receive", "deferred receive"] {
            for errors in without(victim, case, |process| process.child.kill().unwrap()) {
                // All that is known of the host is that its connection has ended.
                let gone = format!("rank {victim} is gone");
                let reason = if victim == 0 { "the process that made the communicator's id has ended" } else { &gone };
                assert!(errors.contains(reason), "{victim}, {case}: {errors}");
            }
        }
    }
}

#[test]
fn a_rank_that_aborts_ends_all_others_and_not_itself() {
    for victim in [0, 1] {
        for case in ["at once sum", "deferred receive"] {
            let abort = |process: &mut Process| {
                process.go();
                process.hear("aborted");
            };
            for errors in without(victim, case, abort) {
                assert!(errors.contains(&format!("rank {victim} is gone")), "{victim}, {case}: {errors}");
            }
        }
    }
}

#[test]
fn an_id_that_leads_nowhere_is_refused() {
    let refused = |id: &str| Process::start("refused", 1, 2, "at once", id).hear("answer");
    let (mut processes, id) = start("stays", 2, "at once");
    processes.iter_mut().for_each(|process| drop(process.hear("joined")));
    assert_eq!(refused(&id), "ncclRemoteError", "all have come");
    for mut process in processes {
        process.go();
        process.finish();
    }
    assert_eq!(refused(&id), "ncclRemoteError", "its process has ended");
    assert_eq!(refused(&"0".repeat(256)), "ncclInvalidArgument", "nobody made it");
}

/// What a test does as one of several processes.
mod in_process {
    use super::*;
    use cudarc::nccl::sys::ncclResult_t;
    use emulator::loader::{self, Loaded};
    use emulator::options::Options;
    use emulator::report::Kind;

    fn say(word: &str, text: &str) {
        // The test harness may have begun a line.
        println!("\n@{word} {text}");
    }

    /// Waits until the test says so.
    fn wait_for_go() {
        std::io::stdin().lines().next().unwrap().unwrap();
    }

    fn variable(name: &str) -> String {
        std::env::var(name).unwrap()
    }

    /// One of the processes.
    struct Place {
        number: usize,
        count: usize,
        case: String,
        id: sys::ncclUniqueId,
        loaded: Loaded,
    }

    impl Place {
        fn new(devices: usize) -> Self {
            std::thread::spawn(|| {
                std::thread::sleep(std::time::Duration::from_secs(SECONDS));
                eprintln!("a hang");
                std::process::exit(1);
            });
            // The crate is named so that its library is built.
            std::hint::black_box(emulator_nccl::ncclGetErrorString(0));
            let [number, count] = ["NUMBER", "COUNT"].map(|name| variable(name).parse().unwrap());
            let (case, id) = (variable("CASE"), variable("ID"));
            let deferred = case.starts_with("deferred");
            let options = Options { devices, memory: 1 << 26, deferred, log: false, ..Options::checked(5) };
            let loaded = loader::load(&options).unwrap();
            loader::load_nccl().unwrap();
            let id = if id.is_empty() {
                let id = result::get_uniqueid().unwrap();
                say("id", &id.internal.map(|byte| format!("{byte:02x}")).concat());
                id
            } else {
                let byte = |at: usize| u8::from_str_radix(&id[2 * at..][..2], 16).unwrap() as std::ffi::c_char;
                sys::ncclUniqueId { internal: std::array::from_fn(byte) }
            };
            Self { number, count, case, id, loaded }
        }

        /// The rank of a process with one device.
        fn rank(&self) -> Rank {
            Rank::join(self.id, 0, self.number, self.count).unwrap()
        }

        /// The process that a case names.
        fn named(&self) -> usize {
            self.case.rsplit(' ').next().unwrap().parse().unwrap()
        }
    }

    struct Rank {
        handle: sys::ncclComm_t,
        stream: Arc<CudaStream>,
        rank: usize,
        ranks: usize,
    }

    impl Rank {
        fn join(id: sys::ncclUniqueId, device: usize, rank: usize, ranks: usize) -> Result<Self, NcclError> {
            let stream = CudaContext::new(device).unwrap().new_stream().unwrap();
            let mut handle = std::ptr::null_mut();
            // SAFETY: there is room for a communicator, and the context of the device is current.
            unsafe { result::comm_init_rank(&raw mut handle, ranks as i32, id, rank as i32) }?;
            Ok(Self { handle, stream, rank, ranks })
        }

        /// r + 1, r + 2, … of rank r.
        fn own(rank: usize, count: usize) -> Vec<f32> {
            (0..count).map(|index| (rank + index + 1) as f32).collect()
        }

        fn upload(&self, values: &[f32]) -> CudaSlice<f32> {
            self.stream.clone_htod(values).unwrap()
        }

        fn download(&self, values: &CudaSlice<f32>) -> Vec<f32> {
            self.stream.clone_dtoh(values).unwrap()
        }

        fn sum(&self, values: &mut CudaSlice<f32>) -> Result<(), NcclError> {
            let count = values.len();
            let (address, _written) = values.device_ptr_mut(&self.stream);
            let (at, stream) = (address as *mut std::ffi::c_void, self.stream.cu_stream().cast());
            // SAFETY: so many numbers lie there.
            unsafe { result::all_reduce(at, at, count, ncclFloat32, ncclSum, self.handle, stream) }.map(drop)
        }

        fn broadcast(&self, values: &mut CudaSlice<f32>, part: Range<usize>, root: usize) {
            let mut view = values.slice_mut(part.clone());
            let (address, _written) = view.device_ptr_mut(&self.stream);
            let (at, stream) = (address as *mut std::ffi::c_void, self.stream.cu_stream().cast());
            // SAFETY: so many numbers lie there.
            unsafe { result::broadcast(at, at, part.len(), ncclFloat32, root as i32, self.handle, stream) }.unwrap();
        }

        fn send(&self, values: &CudaSlice<f32>, to: usize) {
            let (address, _read) = values.device_ptr(&self.stream);
            let (at, stream) = (address as *const std::ffi::c_void, self.stream.cu_stream().cast());
            // SAFETY: so many numbers lie there.
            unsafe { result::send(at, values.len(), ncclFloat32, to as i32, self.handle, stream) }.unwrap();
        }

        fn receive(&self, values: &mut CudaSlice<f32>, from: usize) {
            let count = values.len();
            let (address, _written) = values.device_ptr_mut(&self.stream);
            let (at, stream) = (address as *mut std::ffi::c_void, self.stream.cu_stream().cast());
            // SAFETY: so many numbers lie there.
            unsafe { result::recv(at, count, ncclFloat32, from as i32, self.handle, stream) }.unwrap();
        }

        fn error(&self) -> ncclResult_t {
            let mut error = ncclResult_t::ncclSuccess;
            // SAFETY: the communicator exists, and there is room for the answer.
            unsafe { sys::ncclCommGetAsyncError(self.handle, &raw mut error) }.result().unwrap();
            error
        }

        /// The stream ends with an error, and nothing is enqueued any more.
        fn assert_failed(&self, expected: ncclResult_t) {
            let code = self.stream.synchronize().map_err(|DriverError(code)| code as u32);
            assert_eq!((code, self.error()), (Err(719), expected));
            assert_eq!(self.stream.synchronize().map_err(|DriverError(code)| code as u32), Err(719));
        }

        /// Ends a process that has failed.
        fn end(self) {
            say("failed", "");
            wait_for_go();
            self.destroy();
        }

        fn destroy(self) {
            // SAFETY: it exists, and is not used again.
            unsafe { result::comm_destroy(self.handle) }.unwrap();
        }
    }

    #[test]
    #[ignore = "run as several processes by another test"]
    fn every_call() {
        let place = Place::new(1);
        {
            let own = place.rank();
            let (rank, ranks) = (own.rank, own.ranks);
            // More than a connection holds, too.
            for count in [1, 1000, 300_000] {
                let values = Rank::own(rank, count);
                let data = own.upload(&values);
                let mut sums = own.upload(&values);
                own.sum(&mut sums).unwrap();
                let roots = (0..ranks).map(|root| {
                    let mut values = own.upload(&values);
                    own.broadcast(&mut values, 0..count, root);
                    values
                });
                let roots: Vec<_> = roots.collect();
                // Parts of one buffer, of which each rank has its own; one is empty.
                let parts = [0..count, count..count, count..count + 5];
                let mut parted = own.upload(&Rank::own(10 * rank, count + 6));
                result::group_start().unwrap();
                for (root, part) in parts.iter().take(ranks).enumerate().filter(|(_, part)| !part.is_empty()) {
                    own.broadcast(&mut parted, part.clone(), root);
                }
                result::group_end().unwrap();
                // All send before they receive.
                let mut received = own.upload(&vec![0.0; count]);
                result::group_start().unwrap();
                own.send(&data, (rank + 1) % ranks);
                own.send(&sums, rank);
                own.receive(&mut received, (rank + ranks - 1) % ranks);
                result::group_end().unwrap();
                let mut returned = own.upload(&vec![0.0; count]);
                own.receive(&mut returned, rank);

                let all: Vec<_> = (0..ranks).map(|rank| Rank::own(rank, count)).collect();
                let sum: Vec<f32> = (0..count).map(|at| all.iter().map(|values| values[at]).sum()).collect();
                assert_eq!(own.download(&sums), sum);
                for (root, values) in roots.iter().enumerate() {
                    assert_eq!(own.download(values), all[root]);
                }
                let mut expected = Rank::own(10 * rank, count + 6);
                for (root, part) in parts.into_iter().take(ranks).enumerate() {
                    expected[part.clone()].copy_from_slice(&Rank::own(10 * root, count + 6)[part]);
                }
                assert_eq!(own.download(&parted), expected);
                assert_eq!(own.download(&received), all[(rank + ranks - 1) % ranks]);
                assert_eq!(own.download(&returned), sum);
            }
            // Nobody ends before all are done: messages go through the first process.
            let mut last = own.upload(&[1.0]);
            own.sum(&mut last).unwrap();
            assert_eq!(own.download(&last), [ranks as f32]);
            assert_eq!(own.error(), ncclResult_t::ncclSuccess);
            own.destroy();
        }
        assert_eq!(place.loaded.findings(), []);
    }

    #[test]
    #[ignore = "run as several processes by another test"]
    fn two_sums() {
        let place = Place::new(1);
        let own = place.rank();
        let mut values = own.upload(&Rank::own(own.rank, 10));
        own.sum(&mut values).unwrap();
        own.sum(&mut values).unwrap();
        // Whoever is named, asks its device for nothing until the others have their result.
        if place.named() == place.number {
            wait_for_go();
        }
        assert_eq!(own.download(&values)[..2], [6.0, 10.0]);
        say("done", "");
        own.destroy();
    }

    #[test]
    #[ignore = "run as several processes by another test"]
    fn two_devices() {
        let place = Place::new(2);
        result::group_start().unwrap();
        let join = |device| Rank::join(place.id, device, 2 * place.number + device, 2 * place.count).unwrap();
        let own = [0, 1].map(join);
        result::group_end().unwrap();
        let [first, second] = &own;
        for is_sum in [true, false] {
            let mut values = [0, 1].map(|device| own[device].upload(&Rank::own(own[device].rank, 8)));
            let (changed, copy) = (first.upload(&[0.0; 4]), second.upload(&[0.0; 4]));
            let ((changed, _), (copy, _)) = (changed.device_ptr(&first.stream), copy.device_ptr(&second.stream));
            // The first device changes memory, and takes part in a collective; the second one takes part, and reads that.
            use cudarc::driver::sys as driver;
            // SAFETY: 16 bytes lie there.
            unsafe { driver::cuMemsetD8Async(changed, 1, 16, first.stream.cu_stream()) }.result().unwrap();
            result::group_start().unwrap();
            for (own, values) in own.iter().zip(&mut values) {
                if is_sum {
                    own.sum(values).unwrap();
                } else {
                    own.broadcast(values, 0..8, 0);
                }
            }
            result::group_end().unwrap();
            // SAFETY: likewise, and at both.
            unsafe { driver::cuMemcpyDtoDAsync_v2(copy, changed, 16, second.stream.cu_stream()) }.result().unwrap();
            let [sum, other] = [0, 1].map(|device| own[device].download(&values[device]));
            assert_eq!(sum, other);
            assert_eq!(sum[..2], if is_sum { [10.0, 14.0] } else { [1.0, 2.0] });
            // A broadcast by rank 0 orders what follows behind that, and nothing in the other process.
            let kinds: Vec<_> = place.loaded.findings().iter().map(|finding| finding.kind).collect();
            let unordered = !is_sum && place.number == 1;
            assert_eq!(kinds, if unordered { vec![Kind::Race] } else { vec![] });
        }
        own.into_iter().for_each(Rank::destroy);
    }

    #[test]
    #[ignore = "run as several processes by another test"]
    fn different_counts() {
        let place = Place::new(1);
        let own = place.rank();
        let mut values = own.upload(&vec![1.0; 10 + own.rank / 2]);
        own.sum(&mut values).unwrap();
        own.assert_failed(ncclResult_t::ncclInvalidUsage);
        assert!(own.sum(&mut values).is_err());
        own.end();
    }

    #[test]
    #[ignore = "run as several processes by another test"]
    fn without_one() {
        let place = Place::new(1);
        let own = place.rank();
        let mut values = own.upload(&Rank::own(own.rank, 10));
        own.sum(&mut values).unwrap();
        assert_eq!(own.download(&values)[0], 6.0);
        let victim = place.named();
        if own.rank == victim {
            // It waits for others when it aborts.
            own.receive(&mut values, (own.rank + 1) % own.ranks);
            say("waits", "");
            wait_for_go();
            // SAFETY: it exists, and is not used again.
            unsafe { result::comm_abort(own.handle) }.unwrap();
            own.stream.synchronize().unwrap();
            say("aborted", "");
            // The others are to hear of the abort, not of the end of the process.
            wait_for_go();
            return;
        }
        match place.case.contains("receive") {
            true => own.receive(&mut values, victim),
            false => own.sum(&mut values).unwrap(),
        }
        say("waits", "");
        own.assert_failed(ncclResult_t::ncclRemoteError);
        own.end();
    }

    #[test]
    #[ignore = "run as several processes by another test"]
    fn stays() {
        let place = Place::new(1);
        let own = place.rank();
        say("joined", "");
        wait_for_go();
        own.destroy();
    }

    #[test]
    #[ignore = "run as several processes by another test"]
    fn refused() {
        let place = Place::new(1);
        let answer = Rank::join(place.id, 0, place.number, place.count).map(drop);
        say("answer", &format!("{:?}", answer.unwrap_err().0));
    }
}
