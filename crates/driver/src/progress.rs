//! Progress and logging on stderr: a bar with an estimate on a terminal, a plain line now and then elsewhere.
//!
//! Results go to stdout and are none of this module's business.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::cli::Verbosity;
use crate::summary::duration;

/// Plain lines about tasks that say nothing themselves come no closer together than this.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

/// Where progress is shown.
pub struct Progress {
    bars: MultiProgress,
    quiet: bool,
    terminal: bool,
}

impl Progress {
    /// Progress on stderr, and logging of this program's crates next to it, in a way that does not tear the bar.
    ///
    /// `RUST_LOG`, where set, decides about logging instead of `verbosity`.
    pub fn start(verbosity: Verbosity) -> Self {
        let terminal = io::stderr().is_terminal() && !verbosity.quiet;
        let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let progress = Self { bars: MultiProgress::with_draw_target(target), quiet: verbosity.quiet, terminal };
        let level = match verbosity {
            Verbosity { quiet: true, .. } => "error",
            Verbosity { verbose: 0, .. } => "warn",
            Verbosity { verbose: 1, .. } => "info",
            _ => "debug",
        };
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
        // A second subscriber can only come from a second call in one process, as in tests; the first one stays.
        let _ = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(BesideBars(progress.bars.clone()))
            .with_ansi(terminal)
            .without_time()
            .with_target(false)
            .try_init();
        progress
    }

    /// Begins a task; how much work it is [`Task::reach`] says.
    pub fn task(&self, title: &str) -> Task<'_> {
        let bar = self.bars.add(ProgressBar::new(0));
        // The template is a constant that indicatif accepts; were it not, the default style would do.
        if let Ok(style) = ProgressStyle::with_template("{prefix} {wide_bar} {percent:>3} % · {elapsed} · {eta} left")
        {
            bar.set_style(style);
        }
        bar.set_prefix(title.to_string());
        if self.terminal {
            bar.enable_steady_tick(Duration::from_millis(250));
        }
        let now = Instant::now();
        Task {
            progress: self,
            bar,
            title: title.to_string(),
            start: now,
            pace: Mutex::new(Pace { done: 0, work: 0, said: now }),
        }
    }

    /// One line that stays, above the bar.
    pub fn line(&self, text: &str) {
        if !self.quiet {
            self.bars.suspend(|| eprint_line(text));
        }
    }
}

struct Pace {
    done: u64,
    work: u64,
    said: Instant,
}

/// A task under way; it may be shared among threads. Its bar goes when it is dropped.
pub struct Task<'a> {
    progress: &'a Progress,
    bar: ProgressBar,
    title: String,
    start: Instant,
    pace: Mutex<Pace>,
}

impl Task<'_> {
    /// Units of work that are done since the beginning, and of how many, in any unit that takes about equal time.
    pub fn reach(&self, done: u64, work: u64) {
        let mut pace = self.pace();
        (pace.done, pace.work) = (done, work);
        self.bar.set_length(pace.work);
        self.bar.set_position(pace.done);
        if !self.progress.terminal && pace.said.elapsed() >= PLAIN_INTERVAL {
            pace.said = Instant::now();
            let text = format!("{}: {}", self.title, self.estimate(&pace));
            self.progress.line(&text);
        }
    }

    /// A poisoned lock means that another thread panicked; the counts are still good enough for an estimate.
    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One line that stays, such as a block that is done, with the time taken and the estimate of the time left.
    pub fn milestone(&self, text: &str) {
        let mut pace = self.pace();
        pace.said = Instant::now();
        let text = format!("{}: {text} · {}", self.title, self.estimate(&pace));
        self.progress.line(&text);
    }

    fn estimate(&self, &Pace { done, work, .. }: &Pace) -> String {
        let elapsed = self.start.elapsed();
        let text = format!("{:.0} % · {}", 100.0 * done as f64 / work.max(1) as f64, duration(elapsed.as_secs_f64()));
        if done == 0 || done >= work {
            return text;
        }
        let left = elapsed.as_secs_f64() * (work - done) as f64 / done as f64;
        format!("{text}, about {} left", duration(left))
    }
}

impl Drop for Task<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        self.progress.bars.remove(&self.bar);
    }
}

/// A closed stderr is no reason to stop pruning.
fn eprint_line(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Writes log lines while the bars are out of the way.
#[derive(Clone)]
struct BesideBars(MultiProgress);

impl<'a> MakeWriter<'a> for BesideBars {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Write for BesideBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().write_all(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_needs_work_done_and_work_left() {
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::hidden());
        let progress = Progress { bars, quiet: true, terminal: false };
        let task = progress.task("pruning");
        assert!(!task.estimate(&task.pace()).contains("left"));
        task.reach(50, 200);
        assert!(task.estimate(&task.pace()).starts_with("25 %"));
        assert!(task.estimate(&task.pace()).contains("left"));
        task.reach(200, 200);
        assert!(!task.estimate(&task.pace()).contains("left"));
        task.reach(3, 4);
        assert_eq!((task.bar.position(), task.bar.length()), (3, Some(4)));
    }
}
