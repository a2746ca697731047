//! `kernels/factor_cholesky.cu`, `kernels/factor_invert.cu`.

use super::{compare, numbers};
use crate::case::{Case, Rate, Set};
use crate::rivals::Rivals;
use cudarc::driver::CudaSlice;
use prune_cuda::{Device, Error, Factored, MatrixMut, MatrixRef, accumulate, factor, failures, invert, prepare};
use testkit::generate::Random;

/// H → V, and V → U.
pub(crate) fn cases(small: bool) -> Vec<Case> {
    let sizes = if small { vec![200] } else { vec![768, 4096, 12288] };
    let case = |n: usize, inverse: bool| {
        let operations = (n as f64).powi(3) / 3.0;
        let name = if inverse { "factor_invert" } else { "factor_cholesky" };
        Case::new(name, format!("[{n}, {n}]"), (Rate::Split, operations, 4.0 * (n * n) as f64), move |device, seed| {
            // H of twice as many inputs as columns, damped: what a layer gives.
            let inputs = device.upload(&numbers(seed, 2 * n * n))?;
            let mut hessian = device.zeros::<f32>(n * n)?;
            let mut target = MatrixMut::new(hessian.slice_mut(..), n, n)?;
            accumulate(device, &MatrixRef::new(inputs.slice(..), 2 * n, n)?, &mut target, 1.0, 0.0)?;
            let prepared = prepare(device, &mut target, 1, 0.01)?;
            let mut set = Triangle {
                work: device.zeros(n * n)?,
                original: hessian,
                failed: prepared.failed,
                factored: None,
                n,
                inverse,
            };
            if inverse {
                // The inverse starts from V.
                let mut v = MatrixMut::new(set.original.slice_mut(..), n, n)?;
                set.factored = Some(factor(device, &mut v, 1, &mut set.failed)?);
            }
            Ok(Box::new(set))
        })
    };
    sizes.iter().map(|&n| case(n, false)).chain(sizes.iter().map(|&n| case(n, true))).collect()
}

struct Triangle {
    /// H, or V for the inverse.
    original: CudaSlice<f32>,
    work: CudaSlice<f32>,
    failed: CudaSlice<i32>,
    factored: Option<Factored>,
    n: usize,
    inverse: bool,
}

impl Triangle {
    /// Row `i` of an upper triangle, from column `from` on.
    fn row(device: &Device, matrix: &CudaSlice<f32>, n: usize, i: usize, from: usize) -> Result<Vec<f64>, String> {
        let row = matrix.slice(i * n + from..(i + 1) * n);
        let row = device.download(&row).map_err(|error| error.to_string())?;
        Ok(row.into_iter().map(f64::from).collect())
    }
}

impl Set for Triangle {
    fn reset(&mut self, device: &Device) -> Result<(), Error> {
        Ok(device.stream().memcpy_dtod(&self.original, &mut self.work)?)
    }

    fn run(&mut self, device: &Device) -> Result<(), Error> {
        let mut matrix = MatrixMut::new(self.work.slice_mut(..), self.n, self.n)?;
        match &self.factored {
            Some(factored) if self.inverse => invert(device, &mut matrix, &factored.inverses, 1, &self.failed),
            _ => {
                self.factored = Some(factor(device, &mut matrix, 1, &mut self.failed)?);
                Ok(())
            }
        }
    }

    fn verify(&mut self, device: &Device) -> Result<(), String> {
        let n = self.n;
        if let Some(factored) = &self.factored
            && let Some(failure) = failures(device, &self.failed, factored).map_err(|error| error.to_string())?.first()
        {
            return Err(failure.to_string());
        }
        let mut random = Random::new(1);
        for _ in 0..16 {
            let (i, j) = (random.below(n), random.below(n));
            let (i, j) = (i.min(j), i.max(j));
            if self.inverse {
                // (U·V)_ij = Σ_{i ≤ k ≤ j} U_ik·V_kj is one on the diagonal and zero elsewhere.
                let u = Self::row(device, &self.work, n, i, i)?;
                let (mut sum, mut scale) = (0.0, 0.0);
                for k in i..=j {
                    let v = self.original.slice(k * n + j..k * n + j + 1);
                    let v = f64::from(device.download(&v).map_err(|error| error.to_string())?[0]);
                    sum += u[k - i] * v;
                    scale += (u[k - i] * v).abs();
                }
                // Higham, section 14.2.2: the error of an inverse is bounded by that of a product, times the condition, which
                // for these matrices is at most a hundred for a mean of one.
                let allowed = 100.0 * testkit::tolerance::split_gemm_tolerance(n, scale.max(1.0));
                compare(|| format!("(U·V)[{i}, {j}]"), sum, f64::from(u8::from(i == j)), allowed)?;
            } else {
                // (V·Vᵀ)_ij = Σ_{k ≥ j} V_ik·V_jk.
                let (a, b) = (Self::row(device, &self.work, n, i, j)?, Self::row(device, &self.work, n, j, j)?);
                let got: f64 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
                let want = Self::row(device, &self.original, n, i, j)?[0];
                let diagonal = |k: usize| Ok::<_, String>(Self::row(device, &self.original, n, k, k)?[0]);
                let allowed = testkit::tolerance::split_gemm_tolerance(n, (diagonal(i)? * diagonal(j)?).sqrt());
                compare(|| format!("(V·Vᵀ)[{i}, {j}]"), got, want, allowed)?;
            }
        }
        Ok(())
    }

    fn run_rival(&mut self, device: &Device, rivals: &Rivals) -> Result<bool, Error> {
        if self.inverse {
            return Ok(false);
        }
        rivals.cholesky(device, &mut self.work, self.n)
    }
}
