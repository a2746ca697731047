//! Figures worked out by hand.

use super::*;

fn global(mask: u32, size: usize, address: impl Fn(u64) -> u64) -> Traffic {
    let mut counters = Counters::new(1);
    let addresses = std::array::from_fn(|lane| address(lane as u64));
    counters.global(0, mask, &addresses, size, false);
    counters.lines()[0].global[0]
}

fn sectors(mask: u32, size: usize, address: impl Fn(u64) -> u64) -> (u64, u64) {
    let traffic = global(mask, size, address);
    (traffic.sectors, traffic.ideal_sectors)
}

#[test]
fn sectors_of_global_memory() {
    let all = u32::MAX;
    assert_eq!(sectors(all, 4, |lane| 4096 + 4 * lane), (4, 4), "coalesced");
    assert_eq!(sectors(all, 4, |lane| 4096 + 4 * (31 - lane)), (4, 4), "in whatever order");
    assert_eq!(sectors(all, 4, |lane| 4100 + 4 * lane), (5, 4), "misaligned");
    assert_eq!(sectors(all, 4, |lane| 8 * lane), (8, 4), "every other word");
    assert_eq!(sectors(all, 4, |lane| 4096 * lane), (32, 4), "a column of a matrix");
    assert_eq!(sectors(all, 4, |_| 4096), (1, 1), "the same word for all");
    assert_eq!(sectors(all, 16, |lane| 16 * lane), (16, 16), "16 bytes each");
    assert_eq!(sectors(all, 32, |lane| 32 * lane), (32, 32), "a sector each");
    assert_eq!(sectors(all, 32, |lane| 16 + 32 * lane), (33, 32), "a sector each, from the middle of one");
    assert_eq!(sectors(all, 1, |lane| lane), (1, 1), "bytes");
    assert_eq!(sectors(all, 2, |lane| 64 * (lane % 2)), (2, 1), "two halves in two sectors");
    assert_eq!(sectors(0b1001, 4, |lane| 4 * lane), (1, 1), "only lanes that take part");
    assert_eq!(sectors(0, 4, |lane| 4 * lane), (0, 0));
    assert_eq!(sectors(1, 4, |_| u64::MAX - 1).1, 1, "no overflow");
    let traffic = global(0xffff, 8, |lane| 8 * (lane / 2));
    assert_eq!((traffic.requests, traffic.bytes, traffic.sectors, traffic.ideal_sectors), (1, 128, 2, 2));
}

fn wavefronts(mask: u32, size: usize, offset: impl Fn(u64) -> u64) -> (u64, u64) {
    let mut counters = Counters::new(1);
    let offsets = std::array::from_fn(|lane| offset(lane as u64));
    counters.shared(0, mask, &offsets, size, true);
    let banks = counters.lines()[0].shared[1];
    (banks.wavefronts, banks.conflicts())
}

#[test]
fn wavefronts_of_shared_memory() {
    let all = u32::MAX;
    assert_eq!(wavefronts(all, 4, |lane| 4 * lane), (1, 0), "a row");
    assert_eq!(wavefronts(all, 4, |_| 12), (1, 0), "a broadcast");
    assert_eq!(wavefronts(all, 4, |lane| 8 * lane), (2, 1), "two lanes a bank");
    assert_eq!(wavefronts(all, 4, |lane| 128 * lane), (32, 31), "a column");
    assert_eq!(wavefronts(all, 4, |lane| 132 * lane), (1, 0), "a column of padded rows");
    assert_eq!(wavefronts(all, 1, |lane| lane), (1, 0), "bytes of the same words");
    assert_eq!(wavefronts(all, 2, |lane| 64 * lane), (16, 15), "half words");
    assert_eq!(wavefronts(all, 8, |lane| 8 * lane), (2, 0), "half a warp at once");
    assert_eq!(wavefronts(all, 8, |lane| 16 * lane), (4, 2), "words of 8 bytes, every other one");
    assert_eq!(wavefronts(all, 16, |lane| 16 * lane), (4, 0), "a quarter of a warp at once");
    assert_eq!(wavefronts(all, 16, |lane| 32 * lane), (8, 4));
    assert_eq!(wavefronts(0xff, 16, |lane| 128 * lane), (8, 7), "rows of a matrix without a swizzle");
    assert_eq!(wavefronts(0xff, 16, |lane| 128 * lane + 16 * lane), (1, 0), "and with one");
    assert_eq!(wavefronts(0xff00_0000, 16, |lane| 16 * lane), (1, 0), "phases without lanes cost nothing");
    assert_eq!(wavefronts(0, 4, |lane| 4 * lane), (0, 0));
    // Lanes 0 and 16 meet in a bank, but not at the same time.
    assert_eq!(wavefronts(all, 8, |lane| 8 * (lane % 16) + 128 * (lane / 16)), (2, 0));
}

fn geometry(threads: u32, shared: usize, registers: Option<u32>) -> Geometry {
    Geometry { kernel: "k".to_owned(), grid: [4, 1, 1], block: [threads, 1, 1], shared, registers }
}

#[test]
fn occupancy_by_each_limit() {
    let of = |threads, shared, registers| -> Vec<(u32, u32, Limit)> {
        let all = geometry(threads, shared, registers).occupancy();
        assert_eq!(
            all.iter().map(|of| of.target.as_str()).collect::<Vec<_>>(),
            ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"]
        );
        all.iter().map(|of| (of.blocks, of.warps, of.limit)).collect()
    };
    use Limit::{Blocks, Registers, Shared, Threads};
    let (large, small) = ((8, 64, Threads), (6, 48, Threads));
    assert_eq!(of(256, 0, None), [large, small, small, large, large, small]);
    assert_eq!(of(32, 0, None)[..3], [(32, 32, Blocks), (16, 16, Blocks), (24, 24, Blocks)]);
    // 48 KiB and one that the system takes: 3 of them in 164 KiB, 2 in 100, 4 in 228.
    assert_eq!(of(256, 48 << 10, None)[..4], [(3, 24, Shared), (2, 16, Shared), (2, 16, Shared), (4, 32, Shared)]);
    // 128 registers are 4096 a warp: 4 warps in each of the four parts, 2 blocks of 8.
    assert_eq!(of(256, 0, Some(128))[0], (2, 16, Registers));
    // 33 registers are 1056 a warp, rounded to 1280: 12 in each part, 48 warps, 6 blocks.
    assert_eq!(of(256, 0, Some(33))[0], (6, 48, Registers));
    assert_eq!(of(1024, 0, Some(255))[0], (0, 0, Registers), "which cannot be launched");
    assert_eq!(of(1024, 228 << 10, None)[1].0, 0);
}

#[test]
fn flops_and_shapes_by_instruction() {
    assert_eq!([flops("fma.rn.f32"), flops("add.f32"), flops("max.f32"), flops("mul.lo.s32")], [2, 1, 0, 1]);
    assert!(precision("mul.lo.s32").is_none() && precision("cvt.rn.f16.s32").is_some());
    assert_eq!([flops("fma.rn.f16x2"), flops("add.rn.bf16x2"), flops("fma.rn.f32x2")], [4, 2, 4]);
    let dense = matrix("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32");
    assert_eq!(dense, Some(("m16n8k16.f32.bf16.bf16.f32".to_owned(), 4096)));
    let sparse = matrix("mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32");
    assert_eq!(sparse, Some(("sp.m16n8k32.f32.f16.f16.f32".to_owned(), 8192)));
    let group = matrix("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16");
    assert_eq!(group, Some(("m64n128k16.f32.bf16.bf16".to_owned(), 2 * 64 * 128 * 16 / 4)));
    assert_eq!(matrix("ldmatrix.sync.aligned.m8n8.x4.shared.b16"), None);
    assert_eq!(matrix("wmma.load.a.sync.aligned.m16n16k16.row.f16"), None);
}

fn example() -> Profile {
    let mut counters = Counters::new(6);
    let mut half = Counters::default();
    let row = std::array::from_fn(|lane| 4 * lane as u64);
    let column = std::array::from_fn(|lane| 128 * lane as u64);
    for counters in [&mut counters, &mut half] {
        counters.execute(0, u32::MAX);
        counters.global(0, u32::MAX, &row, 4, false);
        counters.execute(1, 0xffff);
        counters.execute(2, u32::MAX);
        counters.branch(2, true);
        counters.execute(3, u32::MAX);
        counters.barrier(3);
        counters.execute(4, u32::MAX);
        counters.shared(4, u32::MAX, &column, 4, true);
        counters.execute(5, u32::MAX);
    }
    half.asynchronous(5, 512);
    half.local(5, 0xff, 8, true);
    counters.merge(&half);
    let program = [
        ("ld.global.f32", Class::LoadGlobal),
        ("fma.rn.f32", Class::Float32),
        ("bra", Class::Branch),
        ("bar.sync", Class::Barrier),
        ("st.shared.f32", Class::StoreShared),
        ("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", Class::Matrix),
    ];
    Profile::new(geometry(64, 2048, Some(40)), &counters, |pc| {
        let (instruction, class) = program[pc as usize];
        let source = Some(("/src/k.cu".to_owned(), 10 + pc));
        (Place { ptx_line: 100 + pc, instruction: instruction.to_owned(), source, inlined_at: None }, class)
    })
}

#[test]
fn a_profile_adds_up() {
    let profile = example();
    assert_eq!((profile.instructions, profile.thread_instructions), (12, 2 * (5 * 32 + 16)));
    assert!((profile.mean_active_lanes - 176.0 / 6.0).abs() < 1e-12);
    assert_eq!((profile.flops_single, profile.flops_double, profile.flops_half), (64, 0, 0));
    assert_eq!(profile.matrix["m16n8k16.f32.bf16.bf16.f32"], Matrix { executions: 2, flops: 8192 });
    assert_eq!(profile.global_loads, Traffic { requests: 2, bytes: 256, sectors: 8, ideal_sectors: 8 });
    assert_eq!(profile.shared_stores, Banks { requests: 2, bytes: 256, wavefronts: 64, ideal_wavefronts: 2 });
    assert_eq!((profile.branches, profile.divergent_branches, profile.barriers), (2, 2, 2));
    assert_eq!((profile.local_bytes, profile.asynchronous_bytes), ([0, 64], 512));
    assert_eq!(profile.classes[&Class::Matrix], 2);
    assert_eq!(profile.lines.iter().map(|line| line.pc).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn json_and_table() {
    let profile = example();
    let json = profile.to_json().unwrap();
    assert_eq!(serde_json::from_str::<Profile>(&json).unwrap(), profile);
    assert!(json.contains("\"load-global\": 2"));
    let table = profile.to_string();
    for part in [
        "k <4 blocks of 64 threads, 2048 B shared, 40 registers>",
        "12 of warps, 29.3 lanes active: 2 float32",
        "64 single",
        "2 × m16n8k16.f32.bf16.bf16.f32: 8.19k flops",
        "256B in      2 requests:      8 sectors, fewest      8 (100% of them needed)",
        "62 bank conflicts",
        "2 divergent",
        "sm_80/90/100 48 of 64 warps (registers), sm_86 32 of 48 warps (blocks), sm_89/120 48 of 48 warps (threads)",
        "mma.sync.aligned.m16n8k16.row.col.f…",
        "k.cu:14",
    ] {
        assert!(table.contains(part), "{part} is missing:\n{table}");
    }
    assert!(table.lines().all(|line| line.chars().count() <= 140), "{table}");
}
