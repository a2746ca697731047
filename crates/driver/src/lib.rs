//! What the command line is made of: flags ([`cli`]) and a settings file come to [`settings`], those and the model's
//! shapes ([`architecture`]) to a [`plan`], or for GPUs to a [`forecast`]; only then is anything done
//! ([`pipeline`], [`evaluate`]). [`report`] and [`summary`] are
//! the ending; [`inspect`] looks at what there is.

pub mod cli;
pub mod settings;

pub mod architecture;
pub mod forecast;
pub mod inputs;
pub mod inspect;
pub mod plan;

pub mod activations;
pub mod backend;
pub mod blocks;
pub mod device;
pub mod evaluate;
pub mod interrupt;
pub mod pipeline;
pub mod progress;
pub mod ranks;
pub mod results;
pub mod staging;

pub mod memory;
pub mod report;
pub mod summary;
