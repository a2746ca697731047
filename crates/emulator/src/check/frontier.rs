//! What is known of the threads of one thread block: for each of them, up to which clock its accesses are over.

/// For each thread of a thread block the clock up to which its accesses are ordered before something.
///
/// Threads that synchronize together are known up to the same clock, so the frontier is kept as runs of threads: one
/// run after a barrier of the whole block, three after a `__syncwarp`. The last run reaches to infinity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frontier {
    /// First thread and clock of each run, the first of them at thread 0.
    runs: Vec<(u32, u32)>,
}

impl Frontier {
    /// Every thread known up to `clock`; nothing is known with 0.
    pub(super) fn constant(clock: u32) -> Self {
        Self { runs: vec![(0, clock)] }
    }

    /// Up to which clock `thread` is known.
    pub(super) fn clock(&self, thread: u32) -> u32 {
        let after = if self.runs.len() <= 8 {
            self.runs.iter().take_while(|run| run.0 <= thread).count()
        } else {
            self.runs.partition_point(|run| run.0 <= thread)
        };
        self.runs[after - 1].1
    }

    /// Up to which clock every thread before `end` is known.
    pub(super) fn floor(&self, end: u32) -> u32 {
        self.runs.iter().filter(|run| run.0 < end).map(|run| run.1).min().unwrap_or(0)
    }

    /// Makes the threads from `start` to before `end` known at least up to `clock`.
    pub(super) fn raise(&mut self, start: u32, end: u32, clock: u32) {
        let raised = Self { runs: [(0, 0), (start, clock), (end, 0)][usize::from(start == 0)..].to_vec() };
        *self = self.join(&raised);
    }

    /// What is known to one or the other.
    pub(super) fn join(&self, other: &Self) -> Self {
        let mut runs: Vec<(u32, u32)> = Vec::with_capacity(self.runs.len() + other.runs.len());
        let (mut a, mut b) = (0, 0);
        let mut start = 0;
        loop {
            let clock = self.runs[a].1.max(other.runs[b].1);
            if runs.last().is_none_or(|last| last.1 != clock) {
                runs.push((start, clock));
            }
            let next = |runs: &[(u32, u32)], at: usize| runs.get(at + 1).map_or(u32::MAX, |run| run.0);
            let (next_a, next_b) = (next(&self.runs, a), next(&other.runs, b));
            start = next_a.min(next_b);
            if start == u32::MAX {
                return Self { runs };
            }
            a += usize::from(next_a == start);
            b += usize::from(next_b == start);
        }
    }

    /// Whether everything known here is known to `other`.
    pub(super) fn within(&self, other: &Self) -> bool {
        self.runs.iter().chain(&other.runs).all(|run| self.clock(run.0) <= other.clock(run.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_raised_and_joined_thread_by_thread() {
        let mut a = Frontier::constant(3);
        a.raise(32, 64, 7);
        a.raise(0, 1, 9);
        let mut b = Frontier::constant(5);
        b.raise(40, 1024, 8);
        let joined = a.join(&b);
        for thread in 0..1100 {
            let in_a = if thread == 0 { 9 } else { [3, 7][usize::from((32..64).contains(&thread))] };
            let in_b = if (40..1024).contains(&thread) { 8 } else { 5 };
            assert_eq!(a.clock(thread), in_a);
            assert_eq!(joined.clock(thread), in_a.max(in_b), "{thread}");
        }
        assert_eq!((a.floor(1024), b.floor(1024), joined.floor(1024), joined.floor(1)), (3, 5, 5, 9));
        assert!(a.within(&joined) && b.within(&joined) && !a.within(&b) && !b.within(&a));
    }

    #[test]
    fn raising_everything_leaves_one_run_and_raising_less_than_known_changes_nothing() {
        let mut a = Frontier::constant(3);
        a.raise(5, 9, 4);
        let before = a.clone();
        a.raise(0, 100, 2);
        assert_eq!(a, before);
        a.raise(0, 100, 6);
        assert_eq!(a.runs, [(0, 6), (100, 3)]);
    }
}
