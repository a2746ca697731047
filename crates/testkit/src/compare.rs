//! Comparisons that say what is wrong: where, by how much, out of how many.

/// Asserts |got − want| ≤ `tolerance(position)` for every position. A NaN is close to nothing.
///
/// # Panics
/// If the lengths differ, or an entry is off: with `what`, the entry furthest outside its tolerance, and how many are.
pub fn assert_close<A, B>(what: &str, got: &[A], want: &[B], tolerance: impl Fn(usize) -> f64)
where
    A: Copy + Into<f64>,
    B: Copy + Into<f64>,
{
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    let excess = |position: usize| {
        let difference = (got[position].into() - want[position].into()).abs();
        let allowed = tolerance(position);
        let within = difference <= allowed;
        (!within).then(|| if difference.is_nan() { f64::INFINITY } else { difference / allowed })
    };
    let outside: Vec<(usize, f64)> =
        (0..got.len()).filter_map(|position| Some((position, excess(position)?))).collect();
    if let Some(&(position, times)) = outside.iter().max_by(|a, b| a.1.total_cmp(&b.1)) {
        panic!(
            "{what}: {} of {} entries are outside their tolerance; the worst, {position}: got {:e}, want {:e}, which is \
             {times:.3} times the tolerance {:e}",
            outside.len(),
            got.len(),
            got[position].into(),
            want[position].into(),
            tolerance(position)
        );
    }
}

/// Asserts that two masks (true = kept) choose the same weights, except where the score lies within `tolerance` of
/// `threshold`, and that they keep equally many. `scores` are those of the one choice that both masks made: a panel, a
/// group, a row.
///
/// # Panics
/// If the lengths or the counts differ, or the masks do where the score leaves no doubt.
pub fn assert_same_mask(what: &str, got: &[bool], want: &[bool], scores: &[f64], threshold: f64, tolerance: f64) {
    assert_eq!((got.len(), want.len()), (scores.len(), scores.len()), "{what}: lengths");
    let kept = |mask: &[bool]| mask.iter().filter(|&&keep| keep).count();
    assert_eq!(kept(got), kept(want), "{what}: weights kept, of {}", got.len());
    for position in (0..got.len()).filter(|&position| got[position] != want[position]) {
        let distance = (scores[position] - threshold).abs();
        let in_doubt = distance <= tolerance;
        assert!(
            in_doubt,
            "{what}: weight {position} is {}, its score {:e} lies {distance:e} from the threshold {threshold:e}; only \
             {tolerance:e} would leave a doubt",
            if got[position] { "kept and should go" } else { "gone and should be kept" },
            scores[position]
        );
    }
}

/// Asserts that a choice (true = kept) of the `gone` smallest scores may be right where each score may be off by its `doubts`:
/// what goes may lie no higher than the largest score that goes, what is kept no lower than the smallest that is kept, for some
/// scores within their doubts. Returns how many could be chosen either way.
///
/// # Panics
/// If the lengths differ, other than `gone` weights go, or one of them where its score leaves no doubt.
pub fn assert_possible_choice(what: &str, keep: &[bool], scores: &[f64], doubts: &[f64], gone: usize) -> usize {
    assert_eq!((keep.len(), doubts.len()), (scores.len(), scores.len()), "{what}: lengths");
    assert_eq!(keep.iter().filter(|&&keep| !keep).count(), gone, "{what}: weights gone, of {}", keep.len());
    let shifted =
        |sign: f64| -> Vec<f64> { scores.iter().zip(doubts).map(|(score, doubt)| score + sign * doubt).collect() };
    let (low, high) = (shifted(-1.0), shifted(1.0));
    let ordered = |scores: &[f64], number: usize| {
        let mut scores = scores.to_vec();
        (number < scores.len()).then(|| *scores.select_nth_unstable_by(number, f64::total_cmp).1)
    };
    // The largest score that goes lies between the `gone`-th of all when they are low and when they are high; likewise the next.
    let most = gone.checked_sub(1).and_then(|last| ordered(&high, last)).unwrap_or(f64::NEG_INFINITY);
    let least = ordered(&low, gone).unwrap_or(f64::INFINITY);
    let mut either = 0;
    for position in 0..keep.len() {
        let (may_go, may_stay) = (low[position] <= most, high[position] >= least);
        either += usize::from(may_go && may_stay);
        assert!(
            if keep[position] { may_stay } else { may_go },
            "{what}: weight {position} is {}, its score {:e} is in doubt by {:e}; what goes ends below {most:e}, what is kept \
             begins above {least:e}",
            if keep[position] { "kept and should go" } else { "gone and should be kept" },
            scores[position],
            doubts[position]
        );
    }
    either
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "1 of 3 entries")]
    fn a_nan_is_not_close() {
        assert_close("x", &[1.0, f32::NAN, 2.0], &[1.0, 1.0, 2.0], |_| f64::INFINITY);
    }

    #[test]
    fn a_mask_may_differ_only_next_to_the_threshold() {
        let scores = [1.0, 2.0, 2.001, 3.0];
        let want = [false, false, true, true];
        assert_same_mask("swapped", &[false, true, false, true], &want, &scores, 2.0, 0.01);
        let wrong = [true, false, false, true];
        assert!(std::panic::catch_unwind(|| assert_same_mask("", &wrong, &want, &scores, 2.0, 0.01)).is_err());
        let too_many = [false, true, true, true];
        assert!(std::panic::catch_unwind(|| assert_same_mask("", &too_many, &want, &scores, 2.0, 0.01)).is_err());
    }

    #[test]
    fn a_choice_is_possible_only_within_doubts() {
        let scores = [1.0, 2.0, 2.001, 3.0];
        let judge = |keep: [bool; 4], doubts: [f64; 4]| {
            std::panic::catch_unwind(|| assert_possible_choice("", &keep, &scores, &doubts, 2)).ok()
        };
        let (right, swapped) = ([false, false, true, true], [false, true, false, true]);
        assert_eq!(judge(right, [0.0; 4]), Some(0));
        assert_eq!(judge(swapped, [0.0; 4]), None);
        assert_eq!(judge(swapped, [0.001; 4]), Some(2));
        // One score in doubt is enough for two places to change.
        assert_eq!(judge(swapped, [0.0, 0.001, 0.0, 0.0]), Some(2));
        assert_eq!(judge([true, false, false, true], [0.001; 4]), None);
        assert_eq!(judge([true, false, false, true], [0.6, 0.0, 0.6, 0.0]), None);
        assert_eq!(judge([false, true, true, true], [9.0; 4]), None, "too many");
    }
}
