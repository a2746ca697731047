//! The loss of tokens, from logits part by part: `kernels/block_loss.cu`.

use crate::device::{Device, arguments, blocks};
use crate::module::{BLOCK_LOSS, BLOCK_THREADS, Entry, FLAT_THREADS};
use crate::{Error, MatrixRef};
use cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut};

const PART: Entry = Entry::new(&BLOCK_LOSS, "block_loss_part", BLOCK_THREADS, 0);
const END: Entry = Entry::new(&BLOCK_LOSS, "block_loss_end", FLAT_THREADS, 0);

/// No token of a vocabulary.
const NO_TARGET: u32 = u32::MAX;

/// Losses of tokens whose logits come part by part.
#[derive(Debug)]
pub struct Losses {
    targets: CudaSlice<u32>,
    largest: CudaSlice<f32>,
    sums: CudaSlice<f64>,
    target_logits: CudaSlice<f32>,
    tokens: usize,
}

impl Losses {
    /// For tokens that are each followed by one of the vocabulary, or by none that is to be predicted.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], or what the driver says.
    pub fn new(device: &Device, targets: &[Option<u32>]) -> Result<Self, Error> {
        let tokens = targets.len();
        let mut encoded: Vec<u32> = targets.iter().map(|target| target.unwrap_or(NO_TARGET)).collect();
        encoded.resize(tokens.max(1), NO_TARGET);
        Ok(Self {
            targets: device.upload(&encoded)?,
            largest: device.upload(&vec![f32::NEG_INFINITY; tokens.max(1)])?,
            sums: device.zeros(tokens.max(1))?,
            target_logits: device.upload(&vec![f32::NAN; tokens.max(1)])?,
            tokens,
        })
    }

    /// Takes the logits [tokens, part] of the vocabulary from `first` on. Every logit must come once.
    ///
    /// # Errors
    /// [`Error::Shape`] if there is not a row for each token; [`Error::OtherDevice`]; or what the driver says.
    pub fn add(&mut self, device: &Device, logits: &MatrixRef<'_, f32>, first: usize) -> Result<(), Error> {
        if logits.rows() != self.tokens {
            return Err(Error::shape("logits", logits.shape(), format!("[{}, …]", self.tokens)));
        }
        if first + logits.columns() > NO_TARGET as usize {
            return Err(Error::shape("the first logit", first, "a token of a vocabulary below 2^32"));
        }
        let (z, _logits) = device.address("logits", &logits.data)?;
        device.check_device("the losses", &self.sums)?;
        let (targets, _targets) = self.targets.device_ptr(device.stream());
        let (largest, _largest) = self.largest.device_ptr_mut(device.stream());
        let (sums, _sums) = self.sums.device_ptr_mut(device.stream());
        let (target_logits, _target_logits) = self.target_logits.device_ptr_mut(device.stream());
        let (stride, columns, first) = (logits.stride() as u64, logits.columns() as u32, first as u32);
        // SAFETY: the arguments of `block_loss_part`; all memory is of this device, borrowed until the launch is enqueued, with
        // an element for each token and the logits that their shape says.
        unsafe {
            let arguments = arguments![z, targets, largest, sums, target_logits, stride, columns, first];
            device.launch(&PART, (blocks(self.tokens as u64, 1)?, 1, 1), arguments)
        }
    }

    /// f64 `[tokens]`, at least one element: −ln p(target), or 0 for tokens without a target; not finite where any logit was
    /// not, or the logit of the target never came.
    ///
    /// # Errors
    /// What the driver says.
    pub fn finish(self, device: &Device) -> Result<CudaSlice<f64>, Error> {
        let mut losses = device.zeros::<f64>(self.tokens.max(1))?;
        {
            device.check_device("the losses", &self.sums)?;
            let (targets, _targets) = self.targets.device_ptr(device.stream());
            let (largest, _largest) = self.largest.device_ptr(device.stream());
            let (sums, _sums) = self.sums.device_ptr(device.stream());
            let (target_logits, _target_logits) = self.target_logits.device_ptr(device.stream());
            let (out, _losses) = losses.device_ptr_mut(device.stream());
            let tokens = self.tokens as u32;
            let grid = (blocks(self.tokens as u64, FLAT_THREADS)?, 1, 1);
            // SAFETY: the arguments of `block_loss_end`, as in `add`.
            unsafe { device.launch(&END, grid, arguments![targets, largest, sums, target_logits, out, tokens]) }?;
        }
        Ok(losses)
    }
}
