//! What a well-formed checkpoint reads as, the ones of this repository included.

mod common;

use std::path::Path;

use checkpoint::{Checkpoint, Dtype, Error, Tensor, Values};
use half::{bf16, f16};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// Checkpoints are shared between threads.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<Checkpoint>();
    shared::<checkpoint::Output>();
};

#[test]
fn a_single_file_reads_as_its_tensors() {
    let folder = common::folder(&[
        ("config.json", br#"{"model_type":"opt","hidden_size":3}"#),
        ("model.safetensors", &common::valid_file()),
    ]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.folder(), folder.path());
    assert_eq!(checkpoint.config()["hidden_size"], 3);

    let described: Vec<_> = checkpoint.tensors().map(|tensor| (tensor.name, tensor.dtype, tensor.shape)).collect();
    let int = Dtype::Other(safetensors::Dtype::I64);
    let expected: [(&str, Dtype, &[usize]); 3] =
        [("a", Dtype::F32, &[2, 3]), ("b", Dtype::F16, &[4]), ("c", int, &[1])];
    assert_eq!(described, expected);

    let data: Vec<u8> = (0..40).map(|byte| byte * 3 + 1).collect();
    for (name, range) in [("a", 0..24), ("b", 24..32), ("c", 32..40)] {
        assert_eq!(checkpoint.tensor(name).unwrap().bytes, &data[range], "{name}");
    }
    let Values::F16(values) = checkpoint.tensor("b").unwrap().values().unwrap() else { panic!("b is stored as F16") };
    assert_eq!(values[1], f16::from_le_bytes([data[26], data[27]]));

    assert!(checkpoint.get("d").is_none());
    let error = checkpoint.tensor("d").unwrap_err();
    assert!(matches!(&error, Error::NoTensor { folder: found, tensor } if found == folder.path() && tensor == "d"));
    assert!(error.to_string().contains("no tensor `d`"));
}

#[test]
fn values_widen_exactly_and_only_floats() {
    let tensor = |dtype, bytes| Tensor { name: "t", dtype, shape: &[3], bytes };
    let single = [1.5_f32, -0.0, 3.0e-40];
    assert_eq!(tensor(Dtype::F32, bytemuck::cast_slice(&single)).to_f32().unwrap(), single);
    let half = [f16::from_f32(0.1), f16::MAX, f16::MIN_POSITIVE_SUBNORMAL];
    assert_eq!(tensor(Dtype::F16, bytemuck::cast_slice(&half)).to_f32().unwrap(), half.map(f16::to_f32));
    let brain = [bf16::from_f32(0.1), bf16::MAX, bf16::MIN_POSITIVE_SUBNORMAL];
    assert_eq!(tensor(Dtype::BF16, bytemuck::cast_slice(&brain)).to_f32().unwrap(), brain.map(bf16::to_f32));

    let whole = tensor(Dtype::Other(safetensors::Dtype::I32), bytemuck::cast_slice(&single));
    assert!(whole.to_f32().unwrap_err().to_string().contains("`t` is stored as I32; expected F32, F16 or BF16"));
    assert!(matches!(tensor(Dtype::F32, &[0; 7]).values(), Err(Error::TensorBytes { length: 7, .. })));
}

#[test]
fn an_index_chooses_the_tensors() {
    let folder = common::indexed();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.tensors().map(|tensor| tensor.name).collect::<Vec<_>>(), ["x", "y", "z"]);
    assert_eq!(checkpoint.tensor("x").unwrap().to_f32().unwrap(), [1.0, 2.0]);
    assert_eq!(checkpoint.tensor("z").unwrap().to_f32().unwrap(), [4.0, 5.0, 6.0]);
}

#[test]
fn a_single_file_goes_before_an_index() {
    let folder = common::indexed();
    std::fs::write(folder.path().join("model.safetensors"), common::vectors(&[("only", &[1.0])])).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.tensors().map(|tensor| tensor.name).collect::<Vec<_>>(), ["only"]);
}

#[test]
fn empty_tensors_and_files_without_tensors_are_read() {
    let empty = Checkpoint::open(common::single(&common::safetensors("{}", &[])).path()).unwrap();
    assert_eq!(empty.tensors().count(), 0);
    let header = r#"{"none":{"dtype":"F32","shape":[0,5],"data_offsets":[0,0]},"s":{"dtype":"U8","shape":[],"data_offsets":[0,1]}} "#;
    let folder = common::single(&common::safetensors(&format!("{header:<128}"), &[9]));
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert!(checkpoint.tensor("none").unwrap().to_f32().unwrap().is_empty());
    assert_eq!(checkpoint.tensor("s").unwrap().bytes, [9]);
    checkpoint.release("none");
}

/// 64 tensors of 64 KiB, read and released one after the other.
#[test]
#[cfg(target_os = "linux")]
fn released_tensors_leave_memory_and_come_back() {
    const LENGTH: usize = 16 << 10;
    let names: Vec<_> = (0..64).map(|index| format!("t{index:02}")).collect();
    let values: Vec<f32> = (0..LENGTH).map(|value| value as f32).collect();
    let tensors: Vec<_> = names.iter().map(|name| (name.as_str(), values.as_slice())).collect();
    let folder = common::single(&common::vectors(&tensors));
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let path = folder.path().join("model.safetensors");

    for tensor in checkpoint.tensors() {
        assert_eq!(tensor.to_f32().unwrap(), values);
    }
    let held = resident(&path);
    assert!(held >= 64 * LENGTH * 4, "read tensors are resident: {held} bytes");
    for name in &names {
        checkpoint.release(name);
    }
    checkpoint.release("unknown");
    let left = resident(&path);
    assert!(left <= 4096 * 16, "all but the header's page is released (pages of up to 64 KiB): {left} bytes");
    assert_eq!(checkpoint.tensor("t63").unwrap().to_f32().unwrap(), values);
}

/// The bytes of a mapped file that are in this process's memory, from /proc/self/smaps.
#[cfg(target_os = "linux")]
fn resident(path: &Path) -> usize {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let name = path.to_str().unwrap();
    let mut lines = maps.lines().skip_while(|line| !line.ends_with(name));
    let line = lines.find(|line| line.starts_with("Rss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

#[test]
fn the_bundled_checkpoints_open() {
    let mut folders = vec![Path::new(ROOT).join("assets/demo")];
    for item in std::fs::read_dir(Path::new(ROOT).join("golden/models")).unwrap() {
        folders.push(item.unwrap().path());
    }
    assert!(folders.len() > 8, "the demonstration model and the golden ones: {folders:?}");
    for folder in folders {
        let checkpoint = Checkpoint::open(&folder).unwrap();
        assert!(checkpoint.config()["model_type"].is_string(), "{}", folder.display());
        assert!(checkpoint.tensors().count() > 0);
        // The crate's own reader, which copies nothing either, sees the same.
        let file = std::fs::read(folder.join("model.safetensors")).unwrap();
        let theirs = safetensors::SafeTensors::deserialize(&file).unwrap();
        assert_eq!(checkpoint.tensors().count(), theirs.len());
        for tensor in checkpoint.tensors() {
            let view = theirs.tensor(tensor.name).unwrap();
            assert_eq!((tensor.dtype, tensor.shape), (Dtype::from(view.dtype()), view.shape()), "{}", tensor.name);
            assert!(tensor.bytes == view.data(), "{}", tensor.name);
            assert!(tensor.to_f32().unwrap().iter().all(|value| value.is_finite()), "{}", tensor.name);
        }
    }
}
