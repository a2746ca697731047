//! The command line: prunes, evaluates and inspects Hugging Face checkpoints.
//!
//! Results go to stdout, progress, warnings and errors to stderr. The exit code is 0 if all went well, 2 if a flag or
//! a setting is at fault, 1 otherwise.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use checkpoint::Checkpoint;
use clap::Parser;
use driver::cli::{Cli, Command, EvaluateArgs, InspectArgs, PlanArgs, PruneArgs};
use driver::forecast::Forecast;
use driver::forecast::request::Request;
use driver::inspect::Inspection;
use driver::plan::Plan;
use driver::progress::Progress;
use driver::settings::{self, Evaluation, Settings, SettingsError};
use driver::{evaluate, interrupt, pipeline, report, summary};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        None => prune(&cli.prune),
        Some(Command::Prune(args)) => prune(&args),
        Some(Command::Evaluate(args)) => evaluate_texts(args),
        Some(Command::Inspect(args)) => inspect(&args),
        Some(Command::Plan(args)) => plan(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn prune(args: &PruneArgs) -> anyhow::Result<()> {
    let settings = Settings::resolve(args)?;
    let progress = Progress::start(args.verbosity);
    start_threads(settings.threads)?;
    let checkpoint = Checkpoint::open(&settings.model)?;
    let plan = Plan::new(settings, &checkpoint)?;
    if args.dry_run {
        return print(&plan.to_string());
    }
    if let Some(path) = &plan.settings.report {
        report::check_path(path, &plan.settings, args.config.as_deref())?;
    }
    interrupt::listen()?;
    let report = pipeline::prune(&plan, &checkpoint, &progress)?;
    if let Some(path) = &plan.settings.report {
        interrupt::undivided(|| report.write(path))?;
    }
    print(&summary::summary(&report))
}

fn evaluate_texts(args: EvaluateArgs) -> anyhow::Result<()> {
    let verbosity = args.verbosity;
    let evaluation = Evaluation::resolve(args)?;
    let progress = Progress::start(verbosity);
    start_threads(evaluation.threads)?;
    let checkpoint = Checkpoint::open(&evaluation.model)?;
    let perplexity = evaluate::evaluate(&evaluation, &checkpoint, &progress)?;
    print(&summary::perplexity(&evaluation, &perplexity))
}

fn inspect(args: &InspectArgs) -> anyhow::Result<()> {
    let threads = settings::threads(args.threads)?;
    let _progress = Progress::start(args.verbosity);
    start_threads(threads)?;
    let inspection = Inspection::of(&Checkpoint::open(&args.model)?);
    print(&if args.json { inspection.to_json()? } else { inspection.to_text() })
}

fn plan(args: PlanArgs) -> anyhow::Result<()> {
    print(&Forecast::new(Request::resolve(args)?)?.to_string())
}

/// Sets how many threads all parallel work of this process shares: no more than the machine runs at a time, since others
/// would take turns with those and only cost time.
fn start_threads(threads: Option<usize>) -> anyhow::Result<()> {
    let most = std::thread::available_parallelism().map_or(usize::MAX, usize::from);
    if let Some(asked) = threads.filter(|&asked| asked > most) {
        tracing::warn!("{asked} threads are more than the {most} that this machine runs at a time, which are used");
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.map_or(0, |asked| asked.min(most)));
    pool.build_global().context("cannot start the threads")
}

/// Prints a result. A reader that has seen enough, such as `head`, is no error.
fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write the result to stdout"),
    }
}

/// Says what went wrong: the error, then what caused it, a line each.
fn fail(error: &anyhow::Error) -> ExitCode {
    let mut lines: Vec<String> = Vec::new();
    for cause in error.chain().map(|cause| cause.to_string().replace('\n', " ")) {
        // Some errors already say in their own words what caused them.
        if !lines.iter().any(|line| line.contains(&cause)) {
            lines.push(cause);
        }
    }
    if error.chain().any(|cause| matches!(cause.downcast_ref(), Some(checkpoint::Error::OutputExists { .. }))) {
        lines.push("--overwrite replaces it, --output FOLDER chooses another".to_owned());
    }
    // With stderr closed the exit code has to do.
    let _ = writeln!(io::stderr(), "error: {}", lines.join("\n  "));
    match error.downcast_ref::<SettingsError>() {
        Some(error) => ExitCode::from(error.exit_code()),
        None => ExitCode::FAILURE,
    }
}
