//! The command line: prunes, evaluates and inspects Hugging Face checkpoints.
//!
//! Results go to stdout, progress, warnings and errors to stderr. The exit code is 0 if all went well, 2 if a flag or
//! a setting is at fault, 1 otherwise.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use checkpoint::Checkpoint;
use clap::Parser;
use driver::cli::{Cli, Command, EvaluateArgs, InspectArgs, PlanArgs, PruneArgs, Verbosity};
use driver::device::{Choice, Device};
use driver::forecast::Forecast;
use driver::forecast::request::Request;
use driver::inspect::Inspection;
use driver::plan::Plan;
use driver::progress::Progress;
use driver::ranks::Ranks;
use driver::settings::{self, Evaluation, Settings, SettingsError};
use driver::{evaluate, interrupt, pipeline, report, summary};
use prune::Collective;

fn main() -> ExitCode {
    let ranks = match Ranks::start() {
        Ok(ranks) => ranks,
        Err(error) => {
            say(&error, None);
            return ExitCode::FAILURE;
        }
    };
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and versions are such errors, too.
        Err(told) => return ranks.conclude(u8::try_from(told.exit_code()).unwrap_or(1), |_| drop(told.print())),
    };
    let done = match cli.command {
        None => prune(&cli.prune, &ranks),
        Some(Command::Prune(args)) => prune(&args, &ranks),
        Some(Command::Evaluate(args)) => evaluate_texts(args, &ranks),
        Some(Command::Inspect(args)) => inspect(&args, &ranks),
        Some(Command::Plan(args)) => plan(args, &ranks),
    };
    match done {
        Ok(()) => ranks.conclude(0, |_| ()),
        Err(error) => {
            let code = error.downcast_ref::<SettingsError>().map_or(1, SettingsError::exit_code);
            ranks.conclude(code, |rank| say(&error, rank))
        }
    }
}

fn prune(args: &PruneArgs, ranks: &Ranks) -> anyhow::Result<()> {
    let settings = Settings::resolve(args)?;
    let first = ranks.collective().rank() == 0;
    let progress = start(args.verbosity, settings.threads, ranks)?;
    let checkpoint = Checkpoint::open(&settings.model)?;
    let plan = Plan::new(settings, &checkpoint, ranks.collective().size())?;
    if args.dry_run {
        let device = Device::open(&plan.settings.device, Some((&plan, &checkpoint)), ranks)?;
        let of_gpus = device.plan().map_or(String::new(), |line| format!("On GPUs, {line}\n"));
        return if first { print(&format!("{plan}{of_gpus}")) } else { Ok(()) };
    }
    if let Some(path) = plan.settings.report.as_ref().filter(|_| first) {
        report::check_path(path, &plan.settings, args.config.as_deref())?;
    }
    let device = Device::open(&plan.settings.device, Some((&plan, &checkpoint)), ranks)?;
    interrupt::listen()?;
    let Some(report) = pipeline::prune(&plan, &checkpoint, &device, &progress, ranks)? else { return Ok(()) };
    if let Some(path) = &plan.settings.report {
        interrupt::undivided(|| report.write(path))?;
    }
    print(&summary::summary(&report))
}

fn evaluate_texts(args: EvaluateArgs, ranks: &Ranks) -> anyhow::Result<()> {
    let (verbosity, choice) = (args.verbosity, Choice::parse(&args.device)?);
    let evaluation = Evaluation::resolve(args)?;
    let progress = start(verbosity, evaluation.threads, ranks)?;
    let checkpoint = Checkpoint::open(&evaluation.model)?;
    let collective = ranks.collective();
    let perplexity =
        evaluate::evaluate(&evaluation, &checkpoint, &Device::open(&choice, None, ranks)?, &progress, &collective)?;
    if collective.rank() > 0 {
        return Ok(());
    }
    print(&summary::perplexity(&evaluation, &perplexity))
}

/// One rank's work, whoever waits for it.
fn inspect(args: &InspectArgs, ranks: &Ranks) -> anyhow::Result<()> {
    let threads = settings::threads(args.threads)?;
    if ranks.collective().rank() > 0 {
        return Ok(());
    }
    let _progress = start(args.verbosity, threads, ranks)?;
    let inspection = Inspection::of(&Checkpoint::open(&args.model)?);
    print(&if args.json { inspection.to_json()? } else { inspection.to_text() })
}

/// Rank 0 tells all of it.
fn plan(args: PlanArgs, ranks: &Ranks) -> anyhow::Result<()> {
    let forecast = Forecast::new(Request::resolve(args)?)?;
    if ranks.collective().rank() == 0 { print(&forecast.to_string()) } else { Ok(()) }
}

/// Starts the threads, and on rank 0 progress: the others work in silence.
fn start(verbosity: Verbosity, threads: Option<usize>, ranks: &Ranks) -> anyhow::Result<Progress> {
    let first = ranks.collective().rank() == 0;
    let progress = Progress::start(if first { verbosity } else { Verbosity { quiet: true, verbose: 0 } });
    start_threads(threads)?;
    Ok(progress)
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

/// Says what went wrong, and on which rank: the error, then what caused it, a line each.
fn say(error: &anyhow::Error, rank: Option<String>) {
    let mut lines: Vec<String> = Vec::from_iter(rank);
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
}
