//! The registers of one warp, lane by lane side by side, so that an instruction is a loop over 32 numbers that the
//! compiler turns into vector instructions.
//!
//! Registers of 8, 16 and 32 bits are *words* (what lies above their width is zero), those of 64 bits *doubles*,
//! predicates are masks with a bit a lane. Immediate operands and special registers that never change are registers as
//! well, so an operand is always an index.

/// Threads of a warp.
pub const LANES: usize = 32;

/// A register of up to 32 bits, of all lanes.
pub type Word = [u32; LANES];

/// A register of 64 bits, of all lanes.
pub type Double = [u64; LANES];

/// A word register, by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct W(pub u32);

/// A double register, by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct D(pub u32);

/// A predicate register, by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct P(pub u32);

/// The registers of one warp. A program has them as they are at the start, constants in place; every warp begins with
/// a copy.
#[derive(Clone, Debug, Default)]
pub struct Registers {
    words: Vec<Word>,
    doubles: Vec<Double>,
    predicates: Vec<u32>,
    /// What the clock last showed.
    clock: u64,
}

impl Registers {
    /// Adds a word register that holds `value` in all lanes.
    pub fn add_word(&mut self, value: u32) -> W {
        self.words.push([value; LANES]);
        W(self.words.len() as u32 - 1)
    }

    /// Adds a double register that holds `value` in all lanes.
    pub fn add_double(&mut self, value: u64) -> D {
        self.doubles.push([value; LANES]);
        D(self.doubles.len() as u32 - 1)
    }

    /// Adds a predicate register that holds in no lane.
    pub fn add_predicate(&mut self) -> P {
        self.predicates.push(0);
        P(self.predicates.len() as u32 - 1)
    }

    /// Makes these registers a copy of `start`, in the memory that they have.
    pub fn restart(&mut self, start: &Self) {
        self.words.clone_from(&start.words);
        self.doubles.clone_from(&start.doubles);
        self.predicates.clone_from(&start.predicates);
        self.clock = 0;
    }

    /// How many registers there are: words, doubles, predicates.
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.words.len(), self.doubles.len(), self.predicates.len())
    }

    /// The time that the clock shows, later at every look. It counts looks, so that it is the same in every run; in steps
    /// that are large enough for programs that wait so many cycles to get on.
    #[inline(always)]
    pub fn tick(&mut self) -> u64 {
        self.clock += 64;
        self.clock
    }

    /// All lanes of a word.
    #[inline(always)]
    pub fn word(&self, index: W) -> &Word {
        &self.words[index.0 as usize]
    }

    /// All lanes of a double.
    #[inline(always)]
    pub fn double(&self, index: D) -> &Double {
        &self.doubles[index.0 as usize]
    }

    /// The lanes in which a predicate holds.
    #[inline(always)]
    pub fn predicate(&self, index: P) -> u32 {
        self.predicates[index.0 as usize]
    }

    /// Writes the lanes in `mask` of a word.
    #[inline(always)]
    pub fn set_word(&mut self, index: W, mask: u32, values: &Word) {
        let word = &mut self.words[index.0 as usize];
        if mask == u32::MAX {
            *word = *values;
        } else {
            for lane in 0..LANES {
                word[lane] = if mask >> lane & 1 == 1 { values[lane] } else { word[lane] };
            }
        }
    }

    /// Writes the lanes in `mask` of a double.
    #[inline(always)]
    pub fn set_double(&mut self, index: D, mask: u32, values: &Double) {
        let double = &mut self.doubles[index.0 as usize];
        if mask == u32::MAX {
            *double = *values;
        } else {
            for lane in 0..LANES {
                double[lane] = if mask >> lane & 1 == 1 { values[lane] } else { double[lane] };
            }
        }
    }

    /// Writes the lanes in `mask` of a predicate.
    #[inline(always)]
    pub fn set_predicate(&mut self, index: P, mask: u32, values: u32) {
        let predicate = &mut self.predicates[index.0 as usize];
        *predicate = *predicate & !mask | values & mask;
    }
}

/// Loops over lanes. Lanes outside of `mask` are computed as well and not written: `f` must be total.
impl Registers {
    /// word ← f(word).
    #[inline(always)]
    pub fn map1(&mut self, d: W, mask: u32, a: W, f: impl Fn(u32) -> u32) {
        let a = self.word(a);
        let values = std::array::from_fn(|lane| f(a[lane]));
        self.set_word(d, mask, &values);
    }

    /// word ← f(word, word).
    #[inline(always)]
    pub fn map2(&mut self, d: W, mask: u32, a: W, b: W, f: impl Fn(u32, u32) -> u32) {
        let (a, b) = (self.word(a), self.word(b));
        let values = std::array::from_fn(|lane| f(a[lane], b[lane]));
        self.set_word(d, mask, &values);
    }

    /// word ← f(word, word, word).
    #[inline(always)]
    pub fn map3(&mut self, d: W, mask: u32, a: W, b: W, c: W, f: impl Fn(u32, u32, u32) -> u32) {
        let (a, b, c) = (self.word(a), self.word(b), self.word(c));
        let values = std::array::from_fn(|lane| f(a[lane], b[lane], c[lane]));
        self.set_word(d, mask, &values);
    }

    /// double ← f(double).
    #[inline(always)]
    pub fn double_map1(&mut self, d: D, mask: u32, a: D, f: impl Fn(u64) -> u64) {
        let a = self.double(a);
        let values = std::array::from_fn(|lane| f(a[lane]));
        self.set_double(d, mask, &values);
    }

    /// double ← f(double, double).
    #[inline(always)]
    pub fn double_map2(&mut self, d: D, mask: u32, a: D, b: D, f: impl Fn(u64, u64) -> u64) {
        let (a, b) = (self.double(a), self.double(b));
        let values = std::array::from_fn(|lane| f(a[lane], b[lane]));
        self.set_double(d, mask, &values);
    }

    /// double ← f(double, double, double).
    #[inline(always)]
    pub fn double_map3(&mut self, d: D, mask: u32, a: D, b: D, c: D, f: impl Fn(u64, u64, u64) -> u64) {
        let (a, b, c) = (self.double(a), self.double(b), self.double(c));
        let values = std::array::from_fn(|lane| f(a[lane], b[lane], c[lane]));
        self.set_double(d, mask, &values);
    }

    /// The lanes for which f(word, word) holds.
    #[inline(always)]
    pub fn test2(&self, a: W, b: W, f: impl Fn(u32, u32) -> bool) -> u32 {
        let (a, b) = (self.word(a), self.word(b));
        mask_of(|lane| f(a[lane], b[lane]))
    }

    /// The lanes for which f(double, double) holds.
    #[inline(always)]
    pub fn double_test2(&self, a: D, b: D, f: impl Fn(u64, u64) -> bool) -> u32 {
        let (a, b) = (self.double(a), self.double(b));
        mask_of(|lane| f(a[lane], b[lane]))
    }
}

/// The mask of the lanes for which `f` holds.
#[inline(always)]
pub fn mask_of(f: impl Fn(usize) -> bool) -> u32 {
    let mut mask = 0;
    for lane in 0..LANES {
        mask |= u32::from(f(lane)) << lane;
    }
    mask
}

/// The lanes of a mask, from the lowest.
#[inline(always)]
pub fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut rest = mask;
    std::iter::from_fn(move || {
        let lane = rest.trailing_zeros();
        rest &= rest.wrapping_sub(1);
        (lane < 32).then_some(lane as usize)
    })
}
