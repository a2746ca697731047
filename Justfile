# Daily commands. `just` lists them.

default:
    @just --list

# Prune the demonstration model over eight shards.
demo:
    cargo run --release -p driver -- --shards 8

# All tests.
test:
    cargo xtask nvcc
    cargo test --workspace --features cuda,emulator

# Ranks of MPI on this machine; needs Open MPI or MPICH.
mpi:
    cargo test -p driver --features mpi,cuda,emulator --test mpi

# What CI runs.
ci:
    .ci/run

# The stages of pruning on real layer shapes, as shares of this machine's best product; FILTER selects by name.
bench FILTER="":
    cargo bench -p prune --bench stages -- {{FILTER}}

# The PTX parser of the emulator (TARGET parse), or parser and decoder (decode), on damaged texts for so many seconds.
fuzz SECONDS="600" TARGET="decode":
    mkdir -p crates/emulator/fuzz/corpus/{{TARGET}}
    cd crates/emulator && cargo fuzz run --sanitizer none {{TARGET}} fuzz/corpus/{{TARGET}} tests/corpus/accepted \
        tests/corpus/refused -- -max_total_time={{SECONDS}} -rss_limit_mb=1024 -timeout=60

# The documentation of all crates, in a browser.
doc:
    cargo doc --workspace --no-deps --open

# Format and lint.
tidy:
    cargo fmt --all
    cargo clippy --workspace --all-targets --features cuda -- -D warnings
