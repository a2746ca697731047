//! The block after the present one, loaded by a thread of its own.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::Scope;

use model::{Block, Forward, Model};

/// Blocks in their order. One at a time waits to be taken.
pub struct Ahead<'a, F: Forward> {
    blocks: Option<Receiver<Block<'a, F>>>,
}

impl<'a, F: Forward + Send + 'a> Ahead<'a, F>
where
    Block<'a, F>: Send,
{
    /// Loads nothing.
    pub fn idle() -> Self {
        Self { blocks: None }
    }

    /// Starts to load the first `count` blocks, if there is anything to load them with.
    pub fn start<'scope>(
        scope: &'scope Scope<'scope, 'a>,
        model: &'a Model<'a>,
        count: usize,
        loader: Option<F>,
    ) -> Self {
        let Some(loader) = loader else { return Self::idle() };
        let (sender, blocks) = sync_channel(0);
        scope.spawn(move || {
            for index in 0..count {
                // What went wrong is found by whoever loads the block instead.
                let Ok(block) = model.block(&loader, index) else { return };
                model.release(index);
                if sender.send(block).is_err() {
                    return;
                }
            }
        });
        Self { blocks: Some(blocks) }
    }

    /// The next block. From the first one on that could not be loaded there are none.
    pub fn take(&mut self) -> Option<Block<'a, F>> {
        self.blocks.as_ref()?.recv().inspect_err(|_| self.blocks = None).ok()
    }

    /// Gives up what was loaded, and loads no more.
    pub fn stop(&mut self) {
        self.blocks = None;
    }
}
