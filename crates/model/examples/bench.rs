//! x
use std::time::Instant;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let ck = checkpoint::Checkpoint::open(a[1].as_ref()).unwrap();
    let t = Instant::now();
    let m = model::Model::open(&ck).unwrap();
    println!("open {:?}", t.elapsed());
    let (n, len): (usize, usize) = (a[2].parse().unwrap(), a[3].parse().unwrap());
    let tokens: Vec<u32> = if a.len() > 4 {
        let b = std::fs::read(&a[4]).unwrap();
        b.as_chunks::<4>().0.iter().map(|&b| u32::from_le_bytes(b)).collect()
    } else {
        (0..(n * len) as u32).map(|i| i.wrapping_mul(2654435761) % m.description().vocabulary as u32).collect()
    };
    let t = Instant::now();
    let mut last = Instant::now();
    let e = model::evaluate(&m, &tokens, len, |d, o| {
        println!("{d}/{o} {:?}", last.elapsed());
        last = Instant::now();
    })
    .unwrap();
    println!("{e:?} {:?}", t.elapsed());
    let mut x = m.embed(&tokens[..2048 / len * len], len).unwrap();
    let b = m.block(0).unwrap();
    for _ in 0..2 {
        for s in 0..4 {
            let t = Instant::now();
            let i = b.stage_inputs(s, &x, len).unwrap();
            let t1 = t.elapsed();
            let t = Instant::now();
            if b.absorbs(s) {
                b.absorb(s, &mut x, &i).unwrap();
            }
            println!("stage {s}: inputs {t1:?} absorb {:?}", t.elapsed());
        }
    }
}
