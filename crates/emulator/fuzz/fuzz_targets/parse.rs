//! Any text either parses or is refused: no panic, no overflow of the stack, no memory out of proportion.
//!
//! From `crates/emulator`, on a stable toolchain (without a sanitizer, which the parser, having no unsafe code, does not
//! need) and for a minute, beginning with the texts that the tests keep:
//!
//! ```sh
//! cargo install cargo-fuzz
//! mkdir -p fuzz/corpus/parse
//! cargo fuzz run --sanitizer none parse fuzz/corpus/parse tests/corpus/accepted tests/corpus/refused -- \
//!     -max_total_time=60 -rss_limit_mb=1024 -timeout=5
//! ```
//!
//! What it finds belongs into `tests/corpus`, where the tests try it ever after.

#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    let _ = emulator::ptx::parse(text);
});
