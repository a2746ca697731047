//! A Hessian with given entries: the sum over shards of which the others contribute the rest.

use std::ops::Range;
use std::sync::Mutex;

use prune::{Collective, Disconnected, Hessian};

/// H [n, n] with these values, row-major.
pub(crate) fn given_hessian(n: usize, values: &[f32]) -> Hessian {
    let mut hessian = Hessian::new(n);
    let others = Others(Mutex::new(values.to_vec()));
    assert_eq!(hessian.sum(&others), Ok(()));
    hessian
}

/// All other shards at once, who between them hold everything.
struct Others(Mutex<Vec<f32>>);

impl Collective for Others {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        2
    }

    fn sum_f32(&self, values: &mut [f32]) -> Result<(), Disconnected> {
        let theirs = self.0.lock().map_err(|_| Disconnected)?;
        values.iter_mut().zip(theirs.iter()).for_each(|(value, theirs)| *value += theirs);
        Ok(())
    }

    fn sum_f64(&self, _: &mut [f64]) -> Result<(), Disconnected> {
        Err(Disconnected)
    }

    fn sum_u64(&self, _: &mut [u64]) -> Result<(), Disconnected> {
        Err(Disconnected)
    }

    fn broadcast(&self, _: usize, _: &mut [f32]) -> Result<(), Disconnected> {
        Err(Disconnected)
    }

    fn exchange(&self, _: &mut [u8], _: &[Range<usize>]) -> Result<(), Disconnected> {
        Err(Disconnected)
    }

    fn gather(&self, _: &[u8]) -> Result<Vec<Vec<u8>>, Disconnected> {
        Err(Disconnected)
    }
}
