//! Pruned layers on their way into the checkpoint: written at once where they are here already, else by a thread of its own
//! while the next ones are computed.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use checkpoint::{Tensor, Writer};

use crate::backend::{self, Whole, layer_name};
use crate::report::LayerReport;

/// Layers that may wait while one is written: more would be held in memory.
const WAITING: usize = 1;

/// A layer that is not here yet.
struct Coming {
    tensor: String,
    element: usize,
    bytes: backend::Coming,
}

/// How many zeros each layer has, by its name.
type Zeros = HashMap<String, u64>;

/// Where results go.
pub struct Results<'scope> {
    output: &'scope Writer,
    written: Zeros,
    behind: Option<(SyncSender<Coming>, ScopedJoinHandle<'scope, anyhow::Result<Zeros>>)>,
}

impl<'scope> Results<'scope> {
    /// Starts to take results.
    pub fn start<'env>(scope: &'scope Scope<'scope, 'env>, output: &'env Writer) -> Self {
        let (sender, coming) = sync_channel(WAITING);
        let thread = scope.spawn(move || write_all(output, &coming));
        Self { output, written: Zeros::new(), behind: Some((sender, thread)) }
    }

    /// Writes a layer, or leaves it to be written.
    ///
    /// # Errors
    /// If this one cannot be written, or one before could not.
    pub fn write(&mut self, stored: &Tensor<'_>, whole: Whole<'_>) -> anyhow::Result<()> {
        let (tensor, element) = (stored.name.to_owned(), stored.dtype.size());
        match whole {
            Whole::Here(bytes) => {
                self.output.write_tensor(&tensor, bytes)?;
                self.written.insert(layer_name(&tensor).to_owned(), count_zeros(bytes, element));
                Ok(())
            }
            Whole::Coming(bytes) => {
                let sent = self
                    .behind
                    .as_ref()
                    .is_some_and(|(sender, _)| sender.send(Coming { tensor, element, bytes }).is_ok());
                if sent { Ok(()) } else { self.join() }
            }
        }
    }

    /// Waits until all is written, and completes the reports of the layers.
    ///
    /// # Errors
    /// If a layer could not be written.
    pub fn finish(mut self, reports: &mut [LayerReport]) -> anyhow::Result<()> {
        self.join()?;
        for report in reports {
            report.zeros = self.written.get(&report.name).copied().unwrap_or(0);
            report.sparsity = report.zeros as f64 / (report.rows * report.columns).max(1) as f64;
        }
        Ok(())
    }

    fn join(&mut self) -> anyhow::Result<()> {
        let Some((sender, thread)) = self.behind.take() else { return Ok(()) };
        drop(sender);
        let zeros = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        self.written.extend(zeros);
        Ok(())
    }
}

fn write_all(output: &Writer, coming: &Receiver<Coming>) -> anyhow::Result<Zeros> {
    let mut zeros = Zeros::new();
    for Coming { tensor, element, bytes } in coming {
        bytes(&mut |bytes| {
            output.write_tensor(&tensor, bytes)?;
            zeros.insert(layer_name(&tensor).to_owned(), count_zeros(bytes, element));
            Ok(())
        })?;
    }
    Ok(zeros)
}

/// Elements of `element` bytes that are +0.0.
fn count_zeros(bytes: &[u8], element: usize) -> u64 {
    bytes.chunks_exact(element).filter(|value| value.iter().all(|&byte| byte == 0)).count() as u64
}
