//! Any kernel of a text that parses either decodes or is refused: no panic, no endless loop, no memory out of proportion.
//! Run as `parse` is, with the same texts.

#![no_main]

use emulator::program::{Addresses, decode};
use emulator::ptx::ast::Space;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let Ok(module) = emulator::ptx::parse(text) else { return };
    let lasting = module.variables.iter().filter(|variable| matches!(variable.space, Space::Global | Space::Constant));
    let addresses: Addresses = lasting.map(|variable| (variable.name.clone(), (variable.space, 1 << 40))).collect();
    for entry in module.functions.iter().filter(|function| function.is_entry && function.body.is_some()) {
        let _ = decode(&module, entry, &addresses);
    }
});
