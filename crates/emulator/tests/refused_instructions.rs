//! What the README says is refused, is refused when it is decoded, with the line, never guessed.

use emulator::program::{Addresses, decode};
use emulator::ptx::parse;

/// Forms that do not run here, by section of the PTX ISA 9.0.
const REFUSED: &[&str] = &[
    // 9.7.4, 9.7.5
    "fma.rn.oob.f16 h0, h1, h2, h3;",
    "add.f32.f16 f0, h0, f1;",
    "fma.rn.f32.bf16 f0, h0, h1, f1;",
    // 9.7.9
    "shfl.idx.b32 r0, r1, r2, 31;",
    "st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [r0], r1, [r2];",
    "st.bulk.shared::cta [r0], d0, 0;",
    "multimem.ld_reduce.global.add.u32 r0, [d0];",
    "isspacep.const p, d0;",
    "istypep.texref p, d0;",
    "cvt.rs.relu.f16x2.f32 r0, f0, f1, r1;",
    "cvt.rn.satfinite.e2m1x2.f32 b0, f0, f1;",
    "cvt.rp.satfinite.ue8m0x2.f32 h0, f0, f1;",
    "red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.add.u32 [r0], r1, [r2];",
    "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u32 [d0], [r0], r1;",
    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [r0], [d0], r1, [r2], h0;",
    "tensormap.replace.tile.global_address.global.b1024.b64 [d0], d1;",
    // 9.7.10, 9.7.11
    "tex.2d.v4.f32.f32 {f0, f1, f2, f3}, [d0, {f0, f1}];",
    "suld.b.1d.b32.trap {r0}, [d0, {r1}];",
    // 9.7.13
    "barrier.cluster.arrive;",
    "barrier.cluster.wait;",
    "redux.sync.min.f32 f0, f1, r0;",
    "clusterlaunchcontrol.query_cancel.is_canceled.pred.b128 p, d0;",
    // 9.7.14 to 9.7.16
    "wmma.load.a.sync.aligned.row.m8n8k32.s4 {r0}, [d0], 32;",
    "wmma.mma.sync.aligned.row.col.m8n8k4.f64.f64.f64.f64.rz {d0, d1}, {d2}, {d2}, {d0, d1};",
    "ldmatrix.sync.aligned.m16n16.x1.trans.shared.b8 {r0, r1}, [r2];",
    "wgmma.fence.sync.aligned;",
    "tcgen05.wait::ld.sync.aligned;",
    // 9.7.17, 9.7.18
    "stacksave.u64 d0;",
    "alloca.u64 d0, 16;",
    "vadd.s32.s32.s32 r0, r1, r2;",
    "vset4.u32.u32.eq r0, r1, r2, r3;",
    "vadd4.u32.u32.u32 r0.b0, r1, r2, r3;",
];

#[test]
fn what_is_not_covered_is_refused_by_line() {
    for instruction in REFUSED {
        let text = format!(
            ".version 9.0\n.target sm_100a\n.address_size 64\n.entry k()\n{{\n.reg .pred p; .reg .b8 b<4>; .reg .b16 h<4>; \
             .reg .b32 r<4>; .reg .f32 f<4>; .reg .b64 d<4>;\n{instruction}\nret;\n}}\n"
        );
        let line = match parse(&text) {
            Err(error) => error.line(),
            Ok(module) => match decode(&module, &module.functions[0], &Addresses::new()) {
                Err(error) => error.line,
                Ok(_) => panic!("accepted: {instruction}"),
            },
        };
        assert_eq!(line, 7, "{instruction}");
    }
}
