//! Flags, settings files and defaults: what they come to, and what they must not be.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use driver::cli::{Activations, Cli, Command, PruneArgs};
use driver::settings::{Settings, SettingsError};
use model::calibration::Sampling;
use prune::{Method, Pattern};

fn args(flags: &[&str]) -> PruneArgs {
    let cli = Cli::try_parse_from(["driver"].iter().chain(flags)).unwrap_or_else(|error| panic!("{flags:?}: {error}"));
    match cli.command {
        None => cli.prune,
        Some(Command::Prune(args)) => *args,
        Some(other) => panic!("{other:?}"),
    }
}

fn resolve(flags: &[&str]) -> Result<Settings, SettingsError> {
    Settings::resolve(&args(flags))
}

fn settings(flags: &[&str]) -> Settings {
    resolve(flags).unwrap_or_else(|error| panic!("{flags:?}: {error}"))
}

/// What is compared of settings: all of them, with the absolute paths that are stored.
fn stored(settings: &Settings) -> String {
    settings.to_toml(512).unwrap()
}

#[test]
fn the_defaults_are_those_of_the_paper() {
    let settings = settings(&["prune", "some/opt-125m", "--calibration", "c4.json.gz"]);
    assert_eq!(settings.method, Method::Sparsegpt);
    assert_eq!(settings.pattern, Pattern::Unstructured { sparsity: 0.5 });
    assert_eq!((settings.sequences, settings.panel_width, settings.damping), (128, 128, 0.01));
    assert_eq!((settings.shards, settings.threads, settings.bits), (1, None, None));
    assert_eq!((settings.sampling, settings.seed, settings.activations), (Sampling::Contiguous, 0, Activations::Auto));
    assert!(!settings.baselines && !settings.overwrite);
    assert_eq!(settings.output, Path::new("pruned/opt-125m-sparsegpt-50"));
    assert_eq!([256, 4096].map(|longest| settings.sequence_length(longest)), [256, 2048]);
}

#[test]
fn without_a_model_the_demonstration_is_pruned_and_compared() {
    for flags in [&["--shards", "8"][..], &["prune", "--shards", "8"]] {
        let settings = settings(flags);
        assert!(settings.model.join("config.json").is_file());
        assert!(settings.calibration[0].ends_with("calibration.txt"));
        assert!(settings.evaluate[0].ends_with("evaluation.txt"));
        assert_eq!(settings.output, Path::new("pruned/demo"));
        assert_eq!(settings.shards, 8);
        assert!(settings.baselines && settings.overwrite);
    }
    let settings = settings(&["--output", "mine", "--baselines=false"]);
    assert!(!settings.overwrite, "a folder that the user named is not replaced");
    assert!(!settings.baselines);
}

#[test]
fn results_have_telling_names() {
    let output = |flags: &[&str]| {
        let output = settings(&[&["prune", "m", "--calibration", "c.txt"], flags].concat()).output;
        output.file_name().unwrap().to_str().unwrap().to_owned()
    };
    assert_eq!(output(&["--sparsity", "0.625"]), "m-sparsegpt-62.5");
    assert_eq!(output(&["--pattern", "2:4", "--bits", "4"]), "m-sparsegpt-2of4-4bit");
    assert_eq!(output(&["--method", "wanda", "--sparsity", "0.7"]), "m-wanda-70");
    // A folder of the Hub's cache is named by a hash.
    let folder = tempfile::tempdir().unwrap();
    let snapshot = folder.path().join("models--facebook--opt-125m/snapshots/27dcfa74d334bc871f3234de431e71c6eeba5dd6");
    fs::create_dir_all(&snapshot).unwrap();
    let settings = settings(&["prune", snapshot.to_str().unwrap(), "--calibration", "c.txt"]);
    assert_eq!(settings.output, Path::new("pruned/opt-125m-sparsegpt-50"));
}

#[test]
fn settings_read_back_as_they_were_stored() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pruning.toml");
    let all: &[&[&str]] = &[
        &["prune", "m", "--calibration", "a.txt", "b.json", "--sparsity", "0.625", "--damping", "0.1", "--seed", "9"],
        &["prune", "m", "--calibration", "a.txt", "--pattern", "4:8", "--bits", "3", "--panel-width", "64"],
        &["prune", "m", "--method", "magnitude", "--blocks", "2..", "--only", r"fc\d$", "--skip", "'\"\\."],
        &["prune", "m", "--calibration", "a.txt", "--blocks", "..3", "--sampling", "random", "--activations", "bf16"],
        &["prune", "m", "--calibration", "a", "--evaluate", "b", "c", "--baselines", "--shards", "3", "--threads", "2"],
        &["--sequences", "7"],
    ];
    for flags in all {
        let used = stored(&settings(flags));
        fs::write(&file, &used).unwrap();
        let again = settings(&["prune", "--config", file.to_str().unwrap()]);
        assert_eq!(stored(&again), used, "{flags:?}");
        assert_eq!(again.given_length, Some(512), "the length that was used, not the default");
    }
}

#[test]
fn flags_win_over_the_file_and_paths_start_at_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.toml");
    fs::write(&file, "model = \"m\"\ncalibration = [\"c.txt\"]\npattern = \"2:4\"\nsequences = 64\nseed = 3\n")
        .unwrap();
    let file = file.to_str().unwrap();
    let from_file = settings(&["--config", file]);
    assert_eq!(from_file.pattern, Pattern::NOfM { keep: 2, group: 4 });
    assert_eq!((from_file.sequences, from_file.seed), (64, 3));
    assert_eq!(from_file.model, folder.path().join("m"));
    assert_eq!(from_file.calibration, [folder.path().join("c.txt")]);
    let flags = ["--config", file, "--sparsity", "0.25", "--sequences", "8", "--calibration", "d.txt"];
    let over = settings(&flags);
    assert_eq!(over.pattern, Pattern::Unstructured { sparsity: 0.25 }, "a flag for either replaces both");
    assert_eq!((over.sequences, over.seed), (8, 3));
    assert_eq!(over.calibration, [PathBuf::from("d.txt")]);
}

#[test]
fn a_bad_settings_file_is_refused_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.toml");
    let refuse = |text: &str| {
        fs::write(&file, text).unwrap();
        let error = resolve(&["--config", file.to_str().unwrap()]).expect_err(text);
        assert_eq!(error.exit_code(), 2, "{text}");
        error.to_string()
    };
    assert!(refuse("seed = 1\nsparsety = 0.5\n").contains("line 2: unknown field `sparsety`"));
    assert!(refuse("seed = 1\n\nsequences = \"many\"\n").contains("line 3"));
    assert!(refuse("seed = = 1\n").contains("line 1"));
    assert!(refuse("method = \"best\"\n").contains("line 1: unknown variant `best`"));
    assert!(refuse("sparsity = 1.5\n").contains("--sparsity 1.5"));
    assert!(refuse("sparsity = nan\n").contains("--sparsity NaN"));
    assert!(refuse("sparsity = 0.5\npattern = \"2:4\"\n").contains("both"));
    let missing = resolve(&["--config", folder.path().join("missing.toml").to_str().unwrap()]).unwrap_err();
    assert_eq!(missing.exit_code(), 1);
}

#[test]
fn layers_are_selected_by_block_and_name() {
    let selects = |flags: &[&str], block: usize, name: &str| {
        settings(&[&["prune", "m", "--calibration", "c.txt"], flags].concat()).selects(block, name)
    };
    assert!(selects(&[], 7, "model.layers.7.mlp.up_proj"));
    assert!(selects(&["--only", "mlp"], 7, "model.layers.7.mlp.up_proj"));
    assert!(!selects(&["--only", "mlp", "--skip", "up"], 7, "model.layers.7.mlp.up_proj"));
    assert!(!selects(&["--only", "attn"], 7, "model.layers.7.mlp.up_proj"));
    for (range, first, last) in [("2..5", 2, 4), ("..5", 0, 4), ("5..", 5, 1000)] {
        assert!(selects(&["--blocks", range], first, "x") && selects(&["--blocks", range], last, "x"), "{range}");
    }
    assert!(!selects(&["--blocks", "2..5"], 5, "x") && !selects(&["--blocks", "2..5"], 1, "x"));
}

#[test]
fn a_folder_among_the_texts_is_taken_for_a_misplaced_model() {
    let folder = tempfile::tempdir().unwrap();
    let error = resolve(&["prune", "--calibration", "c.txt", folder.path().to_str().unwrap()]).unwrap_err();
    assert!(error.to_string().contains("MODEL"), "{error}");
    assert_eq!(error.exit_code(), 2);
}
