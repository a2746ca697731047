//! Ranks of MPI: the bytes of one process with as many shards, one clear error whichever rank fails, and nothing left
//! behind by a rank that is killed.
//!
//! `MPIRUN` names another launcher than `mpirun`. The launcher has its own to say about ranks that end with an error;
//! what is looked at is what the program says.

mod common;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{Place, Run, demo_text};
use driver::ranks::Ranks;
use half::f16;
use prune::{Collective, Disconnected};
use safetensors::SafeTensors;
use serde_json::{Value, json};

/// A hang is an error: longer than any of these runs can take, and short enough to be told of it today.
const SECONDS: &str = "1800";

/// Between two looks at something that is waited for.
const MOMENT: Duration = Duration::from_millis(20);

fn launcher() -> String {
    std::env::var("MPIRUN").unwrap_or("mpirun".to_owned())
}

/// Whether the launcher is Open MPI's. MPICH's kills all ranks where one was killed, without warning.
fn is_open_mpi() -> bool {
    let launcher = launcher();
    let version = Command::new(&launcher).arg("--version").output();
    let version = version.unwrap_or_else(|error| panic!("cannot start {launcher}: {error}; install Open MPI or MPICH"));
    String::from_utf8_lossy(&version.stdout).contains("Open MPI")
}

/// The launcher, about to start `count` ranks.
fn mpirun(count: usize) -> Command {
    let mut command = Command::new("timeout");
    command.args([SECONDS, &launcher(), "-n", &count.to_string()]);
    if is_open_mpi() {
        // More ranks than cores, on one machine without ssh, whose only user may be root.
        command.args(["--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "--mca", "plm", "isolated"]);
    }
    command
}

/// Runs the program in `place` as `count` ranks, each from a shell that has run `preparation` with its number in `$rank`.
fn ranks(place: &Place, count: usize, preparation: &str, flags: &[&str]) -> Command {
    let mut command = mpirun(count);
    let script = format!("rank=${{OMPI_COMM_WORLD_RANK:-$PMI_RANK}}; {preparation}; exec \"$@\"");
    command.args(["sh", "-c", &script, "sh", env!("CARGO_BIN_EXE_driver")]).args(flags);
    command.current_dir(place.path("")).env_remove("RUST_LOG").env("RUST_BACKTRACE", "1");
    command
}

fn finish(command: &mut Command) -> Run {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Run { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// The job must end in one clear error of the program, and leave nothing behind.
fn refuses(place: &Place, count: usize, code: i32, parts: &[&str], preparation: &str, flags: &[&str]) {
    let before = place.list();
    finish(&mut ranks(place, count, preparation, flags)).assert_error(code, parts);
    assert_eq!(place.list(), before, "{flags:?} left something behind");
}

/// Flags of a prune of `model` on `sequences` that takes a moment.
fn small<'a>(text: &'a str, sequences: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let flags =
        ["prune", "model", "--calibration", text, "--sequences", sequences, "--sequence-length", "32", "--quiet"];
    [&flags, more].concat()
}

/// Prunes with `count` ranks of `local` shards, and with as many shards in one process, and compares all weights.
fn assert_same(place: &Place, count: usize, local: usize, flags: &[&str]) -> [Value; 2] {
    let (all, local) = ((count * local).to_string(), local.to_string());
    let (one, many) = (format!("one-{count}-{local}"), format!("many-{count}-{local}"));
    place.run(&[flags, &["--shards", &all, "--output", &one]].concat()).assert_success();
    let run = finish(&mut ranks(place, count, ":", &[flags, &["--shards", &local, "--output", &many]].concat()));
    run.assert_success();
    assert_eq!(run.stdout.matches("Sparsity").count(), 1, "one summary: {}", run.stdout);
    let names = |folder: &str| {
        let entries = std::fs::read_dir(place.path(folder)).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&one), names(&many));
    for name in names(&one).iter().filter(|name| !name.starts_with("pruning.") && place.path(&one).join(name).is_file())
    {
        let read = |folder: &str| place.read(&format!("{folder}/{name}"));
        assert!(read(&one) == read(&many), "{name} of {many} is not that of {one}");
    }
    [one, many].map(|folder| serde_json::from_slice(&place.read(&format!("{folder}/pruning.json"))).unwrap())
}

/// Cuts the model's weights into three files with an index.
fn cut_into_files(place: &Place) {
    let bytes = place.read("model/model.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut names = tensors.names();
    names.sort();
    let mut map = serde_json::Map::new();
    for (number, names) in names.chunks(names.len().div_ceil(3)).enumerate() {
        let file = format!("model-0000{}-of-00003.safetensors", number + 1);
        let part: Vec<_> = names.iter().map(|&name| (name, tensors.tensor(name).unwrap())).collect();
        place.write(&format!("model/{file}"), safetensors::serialize(part, None).unwrap());
        map.extend(names.iter().map(|&name| (name.to_owned(), json!(file))));
    }
    place.write("model/model.safetensors.index.json", json!({ "weight_map": map }).to_string());
    std::fs::remove_file(place.path("model/model.safetensors")).unwrap();
}

#[test]
fn ranks_make_the_bytes_of_one_process() {
    let (place, text) = (Place::with_demo(), demo_text("calibration.txt"));
    for (count, local) in [(2, 1), (4, 1), (2, 3)] {
        let [one, many] = assert_same(&place, count, local, &small(&text, "6", &["--blocks", "..2"]));
        assert_eq!((&many["shards"], &many["ranks"]), (&one["shards"], &json!(count)));
        let layers = |report: &Value| -> Vec<Value> {
            let keys = ["name", "zeros", "dead_columns", "damping", "obs_loss"];
            report["layers"].as_array().unwrap().iter().map(|layer| keys.map(|key| layer[key].clone()).into()).collect()
        };
        assert_eq!(layers(&one), layers(&many));
    }
}

/// NCCL, set up through MPI, adds in the order of ranks where it is emulated.
#[cfg(feature = "emulator")]
#[test]
fn ranks_with_gpus_make_the_bytes_of_one_process_with_as_many() {
    let (place, text) = (Place::with_demo(), demo_text("calibration.txt"));
    let flags = small(&text, "4", &["--blocks", "..1", "--device", "emulated"]);
    for (count, local) in [(2, 1), (2, 2)] {
        assert_same(&place, count, local, &flags);
    }
    // A rank that is killed while the other waits for it in NCCL or MPI: as soon as the result's temporary folder is there.
    let kill =
        "[ \"$rank\" = 1 ] && (until ls -d .killed.partial* > /dev/null 2>&1; do sleep 0.05; done; kill -9 $$) &";
    let before = place.list();
    let run = finish(&mut ranks(&place, 2, kill, &[&flags[..], &["--output", "killed"]].concat()));
    assert_ne!(run.code, 0, "{}", run.stderr);
    assert_eq!(place.list(), before, "something is left behind");
}

#[cfg(feature = "emulator")]
#[test]
fn all_ranks_have_gpus_or_none() {
    let (place, text) = (Place::with_demo(), demo_text("calibration.txt"));
    let mixed = "[ \"$rank\" = 1 ] && set -- \"$@\" --device cpu || set -- \"$@\" --device emulated";
    refuses(&place, 2, 1, &["not all ranks have GPUs", "rank 1"], mixed, &small(&text, "2", &["--blocks", "..1"]));
}

/// With the emulated libraries in the place of the machine's own, each rank finds the same GPU.
#[cfg(feature = "emulator")]
#[test]
fn ranks_share_no_gpu() {
    let (place, text) = (Place::with_demo(), demo_text("calibration.txt"));
    std::fs::create_dir(place.path("cuda")).unwrap();
    let built = Path::new(env!("CARGO_BIN_EXE_driver")).parent().unwrap().join("deps");
    for (library, name) in [("emulator", "cuda"), ("emulator_cublas", "cublas"), ("emulator_nccl", "nccl")] {
        let link = place.path(&format!("cuda/lib{name}.so"));
        std::os::unix::fs::symlink(built.join(format!("lib{library}.so")), link).unwrap();
    }
    let libraries = "export LD_LIBRARY_PATH=\"$PWD/cuda\"";
    for device in ["cuda", "cuda:0"] {
        let flags = small(&text, "2", &["--blocks", "..1", "--device", device]);
        refuses(&place, 2, 1, &["ranks 0 and 1 would share a GPU"], libraries, &flags);
    }
    let flags = small(&text, "2", &["--blocks", "..1", "--output", "out", "--report", "report.json"]);
    finish(&mut ranks(&place, 2, libraries, &flags)).assert_success();
    let report: Value = serde_json::from_slice(&place.read("report.json")).unwrap();
    assert_eq!(report["device"], "the processor", "`auto` has another way");
}

#[test]
fn ranks_with_nothing_to_do_do_no_harm() {
    let (place, text) = (Place::with_demo(), demo_text("calibration.txt"));
    assert_same(&place, 4, 1, &small(&text, "1", &["--blocks", "..1", "--pattern", "2:4", "--bits", "4"]));
}

#[test]
fn each_rank_writes_its_own_files_and_measures_its_own_windows() {
    let (place, text) = (Place::with_demo(), demo_text("calibration.txt"));
    cut_into_files(&place);
    let evaluation = std::fs::read(demo_text("evaluation.txt")).unwrap();
    place.write("short.txt", &evaluation[..4_000]);
    let reports = assert_same(&place, 2, 1, &small(&text, "6", &["--evaluate", "short.txt", "--baselines"]));
    let [one, many] = reports.map(|report| report["perplexities"].as_array().unwrap().clone());
    assert_eq!((one.len(), many.len()), (4, 4));
    for (one, many) in one.iter().zip(&many) {
        assert_eq!((&one["method"], &one["windows"]), (&many["method"], &many["windows"]));
        let [one, many] = [one, many].map(|entry| entry["perplexity"].as_f64().unwrap());
        // The same losses in double precision, added in another order.
        assert!((one / many - 1.0).abs() < 1e-12, "{one} and {many}");
    }
    let flags = ["evaluate", "one-2-1", "short.txt", "--sequence-length", "32", "--quiet"];
    let run = finish(&mut ranks(&place, 2, ":", &flags));
    assert_eq!(run.assert_success().stdout, place.run(&flags).stdout);
}

#[test]
fn one_rank_speaks_for_all() {
    let (place, text) = (Place::with_demo(), demo_text("calibration.txt"));
    for flags in [&["--version"][..], &["inspect", "model"]] {
        let run = finish(&mut ranks(&place, 3, ":", flags));
        assert_eq!(run.assert_success().stdout, place.run(flags).stdout, "{flags:?}");
    }
    let run = finish(&mut ranks(&place, 2, ":", &small(&text, "6", &["--dry-run", "--shards", "2"])));
    assert_eq!(run.assert_success().stdout.matches("4 shards, 2 in each of 2 ranks").count(), 1, "{}", run.stdout);
}

#[test]
fn what_is_at_fault_is_told_once() {
    let (place, text) = (Place::with_demo(), demo_text("calibration.txt"));
    let small = |output, more: &[&'static str]| [&small(&text, "6", &["--output", output])[..], more].concat();
    refuses(&place, 3, 2, &["--sparsity 2"], ":", &small("out", &["--sparsity", "2"]));
    refuses(&place, 3, 2, &["--no-such-flag"], ":", &small("out", &["--no-such-flag"]));
    refuses(&place, 3, 1, &["./gone does not exist"], ":", &["prune", "./gone", "--calibration", &text]);
    refuses(&place, 3, 1, &["rank 0 of 3", "gone.txt"], ":", &["prune", "model", "--calibration", "gone.txt"]);
    // Only rank 0 knows that something stands where the result goes, once it has looked.
    place.write("taken", "");
    refuses(&place, 2, 1, &["taken", "not a folder"], ":", &small("taken", &[]));
}

#[test]
fn a_rank_that_cannot_write_its_file_ends_the_job() {
    let (place, text) = (Place::with_demo(), demo_text("calibration.txt"));
    cut_into_files(&place);
    if !is_open_mpi() {
        eprintln!("skipped: the memory that MPICH's ranks share is a file, which the limit would forbid");
        return;
    }
    // The second file is rank 1's.
    let limit = "trap '' XFSZ; if [ $rank = 1 ]; then ulimit -f 1000; fi";
    let parts = ["rank 1 of 3", "cannot write", "model-00002-of-00003.safetensors"];
    refuses(&place, 3, 1, &parts, limit, &small(&text, "6", &["--output", "out"]));
}

#[test]
fn a_rank_that_fails_while_others_wait_for_it_ends_the_job() {
    let place = Place::with_demo();
    // Of two sequences, the second alone has a word whose activations overflow f16.
    let tokenizer: Value = serde_json::from_slice(&place.read("model/tokenizer.json")).unwrap();
    let token = tokenizer["model"]["vocab"]["Ġwar"].as_u64().unwrap() as usize;
    place.edit_weights(|header, data| {
        for (tensor, row, value) in
            [("tokens", token, 65000.0)].into_iter().chain((0..258).map(|row| ("positions", row, 1000.0)))
        {
            let name = format!("model.decoder.embed_{tensor}.weight");
            let columns = header[&name]["shape"][1].as_u64().unwrap() as usize;
            let at = common::extent(header, &name).start + 2 * row * columns;
            data[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
        }
    });
    // Also among the shards of a rank, of which the first talks to the other rank.
    for (shards, sequences, words) in [("1", "2", 40), ("2", "4", 100)] {
        place.write("text.txt", format!("{}{}", " peace".repeat(words), " war".repeat(60)));
        let flags = ["--activations", "f16", "--output", "out", "--shards", shards];
        refuses(&place, 2, 1, &["rank 1 of 2", "overflows f16"], ":", &small("text.txt", sequences, &flags));
    }
}

#[test]
fn a_rank_without_memory_ends_the_job() {
    let (place, text) = (Place::with_demo(), demo_text("calibration.txt"));
    let before = place.list();
    // Enough to start, too little for the activations of a million tokens, half a gibibyte and as much again.
    let limit = "if [ $rank = 1 ]; then ulimit -v 800000; fi";
    let flags = ["prune", "model", "--calibration", &text, "--method", "wanda", "--threads", "1", "--output", "out"];
    let many = ["--sequences", "8000", "--sampling", "random"];
    let mut command = ranks(&place, 2, limit, &[&flags[..], &many].concat());
    let run = finish(command.env("OMPI_MCA_odls_base_sigkill_timeout", "10"));
    assert_ne!(run.code, 0);
    assert!(run.stderr.contains("memory allocation of") && !run.stderr.contains("error: "), "{}", run.stderr);
    let mut left = place.list();
    left.retain(|name| is_open_mpi() || !name.starts_with(".out.partial"));
    assert_eq!(left, before, "{}", run.stderr);
}

/// A job that takes far longer than it takes to kill it, under way.
fn long_job(place: &Place, count: usize) -> Child {
    let text = demo_text("calibration.txt");
    let flags = ["prune", "model", "--calibration", &text, "--sampling", "random", "--sequences", "4000"];
    let flags = [&flags[..], &["--threads", "1", "--output", "deep/out"]].concat();
    let mut command = ranks(place, count, "echo $$ > pid.$rank; mv pid.$rank ready.$rank", &flags);
    // Seconds to clean up, if the machine has much else to do; Open MPI waits for all of them.
    command.env("OMPI_MCA_odls_base_sigkill_timeout", "10");
    let job = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = || {
        let entries = std::fs::read_dir(place.path("deep")).into_iter().flatten();
        entries.flatten().any(|entry| entry.path().join("model-00002-of-00003.safetensors").exists())
    };
    while !begun() {
        std::thread::sleep(MOMENT);
    }
    job
}

fn process(place: &Place, rank: usize) -> String {
    String::from_utf8(place.read(&format!("ready.{rank}"))).unwrap().trim().to_owned()
}

/// Whether a process has not ended yet; one that has, and that nobody has asked about since, is a zombie.
fn runs(process: &str) -> bool {
    let status = std::fs::read_to_string(Path::new("/proc").join(process).join("stat")).unwrap_or_default();
    status.rsplit(") ").next().is_some_and(|state| !state.is_empty() && !state.starts_with('Z'))
}

/// Kills one of three ranks.
fn assert_nothing_left_without(victim: usize) {
    let place = Place::with_demo();
    cut_into_files(&place);
    let job = long_job(&place, 3);
    let killed = Command::new("kill").args(["-KILL", &process(&place, victim)]).status().unwrap();
    assert!(killed.success());
    let ended = job.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success(), "{stderr}");
    assert!(!stderr.contains("error: ") && !stderr.contains("panicked"), "{stderr}");
    // Those that the launcher ended may outlive it for a moment.
    for rank in 0..3 {
        while runs(&process(&place, rank)) {
            std::thread::sleep(MOMENT);
        }
    }
    assert!(!place.path("deep/out").exists());
    if is_open_mpi() {
        // Nor the parent that was made for the result.
        assert_eq!(place.list(), ["model", "ready.0", "ready.1", "ready.2"], "{stderr}");
    }
    // Where the launcher gave nobody time to clean up, the next run does.
    place.run(&small(&demo_text("calibration.txt"), "1", &["--output", "deep/out"])).assert_success();
    let left: Vec<_> = std::fs::read_dir(place.path("deep")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["out"]);
}

#[test]
fn nothing_is_left_when_rank_0_is_killed() {
    assert_nothing_left_without(0);
}

#[test]
fn nothing_is_left_when_another_rank_is_killed() {
    assert_nothing_left_without(2);
}

/// Runs a test of this file, which is ignored otherwise, as `count` ranks.
fn as_ranks(count: usize, name: &str) -> Run {
    let mut command = mpirun(count);
    command.arg(std::env::current_exe().unwrap()).args([
        "--exact",
        name,
        "--ignored",
        "--nocapture",
        "--test-threads=1",
    ]);
    finish(&mut command)
}

#[test]
fn ranks_say_what_threads_say() {
    for count in [1, 2, 3] {
        as_ranks(count, "in_ranks::every_operation").assert_success();
    }
}

#[test]
fn ranks_that_make_different_calls_end_with_a_panic() {
    let run = as_ranks(3, "in_ranks::different_calls");
    assert_ne!(run.code, 0, "{}", run.stdout);
    assert!(run.stderr.contains("ranks that do not make the same call"), "{}", run.stderr);
}

/// What a test does as one of several ranks.
mod in_ranks {
    use super::*;

    /// Numbers whose sum depends on the order.
    fn number(rank: usize, at: usize) -> f32 {
        ((rank * 7919 + at * 104_729) % 1000) as f32 * 1.1f32.powi((rank * 5 + at) as i32 % 40)
    }

    /// Every operation, with buffers of a few bytes and of several parts.
    fn talk(collective: &dyn Collective) -> Result<Vec<u64>, Disconnected> {
        let (rank, size) = (collective.rank(), collective.size());
        let mut heard = vec![size as u64];
        for length in [0, 1, 1000, 700_000] {
            let mut floats: Vec<f32> = (0..length).map(|at| number(rank, at)).collect();
            let mut doubles: Vec<f64> = floats.iter().map(|&value| f64::from(value) / 3.0).collect();
            let mut counts: Vec<u64> = (0..length).map(|at| (rank * at) as u64).collect();
            collective.sum_f32(&mut floats)?;
            collective.sum_f64(&mut doubles)?;
            collective.sum_u64(&mut counts)?;
            heard.extend(floats.iter().map(|&value| u64::from(value.to_bits())));
            heard.extend(doubles.iter().map(|value| value.to_bits()));
            heard.extend(counts);
            for root in 0..size {
                let mut values: Vec<f32> = (0..length).map(|at| number(rank, at)).collect();
                collective.broadcast(root, &mut values)?;
                heard.extend(values.iter().map(|value| u64::from(value.to_bits())));
            }
            // Parts of all lengths, none among them, and a byte behind each that stays.
            let mut end = 0;
            let part = |rank| {
                let start = end;
                end += length * (rank + 2) % 1_000_003 + 1;
                start..end - 1
            };
            let parts: Vec<_> = (0..size).map(part).collect();
            let mut bytes = vec![u8::MAX; parts[size - 1].end + 1];
            bytes[parts[rank].clone()].fill(rank as u8);
            collective.exchange(&mut bytes, &parts)?;
            heard.extend(bytes.iter().map(|&byte| u64::from(byte)));
            heard.push(collective.sum_before(rank as u64 + 3)? - (rank * (rank + 5) / 2) as u64);
            for part in collective.gather(&vec![rank as u8; length * rank % 1_000_003])? {
                heard.push(part.len() as u64);
                heard.extend(part.iter().map(|&byte| u64::from(byte)));
            }
        }
        Ok(heard)
    }

    #[test]
    #[ignore = "run as several ranks by another test"]
    fn every_operation() {
        let ranks = Ranks::start().unwrap();
        let size = ranks.collective().size();
        for local in [1, 2] {
            let expected = prune::run_shards(local * size, talk).unwrap();
            for heard in ranks.run_shards(local, talk).unwrap() {
                assert!(heard == expected[0], "{local} shards in each of {size} ranks");
            }
        }
    }

    #[test]
    #[ignore = "run as several ranks by another test"]
    fn different_calls() {
        let ranks = Ranks::start().unwrap();
        let collective = ranks.collective();
        let _ = if collective.rank() == 1 { collective.sum_u64(&mut [1]) } else { collective.sum_f64(&mut [1.0]) };
    }
}
