//! Files written by the `safetensors` crate are read exactly; damaged ones are refused with the right error.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use kvist_weights::{Error, MAX_HEADER, Tensor, Tensors, bf16_from_f32, bf16_to_f32};
use safetensors::tensor::{Dtype, TensorView, serialize};

/// A directory of its own for each test, removed at the end.
struct Dir(PathBuf);

impl Dir {
    fn new(test: &str) -> Dir {
        let dir = std::env::temp_dir().join(format!("kvist-weights-{test}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        Dir(dir)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.0.join(name), bytes).unwrap();
    }

    fn open(&self) -> Result<Tensors, Error> {
        Tensors::open(&self.0)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn file(tensors: &[(&str, Dtype, &[usize], &[u8])]) -> Vec<u8> {
    let views: HashMap<&str, TensorView> = tensors
        .iter()
        .map(|&(name, dtype, shape, data)| (name, TensorView::new(dtype, shape.into(), data).unwrap()))
        .collect();
    serialize(views, None).unwrap()
}

/// A file with this header and `data` zero bytes.
fn raw(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// All rows as bf16.
fn all_bf16(tensor: &Tensor) -> Result<Vec<u16>, Error> {
    let mut out = vec![0; tensor.rows() * tensor.columns()];
    let mut rows = out.chunks_exact_mut(tensor.columns()).enumerate();
    rows.try_for_each(|(i, row)| tensor.row_bf16(i, &mut Vec::new(), row))?;
    Ok(out)
}

/// More than one block of a read, with every sign and some exact ties.
fn values() -> Vec<f32> {
    (0..700_000i32).map(|i| (i - 350_000) as f32 * 0.001953125).collect()
}

#[test]
fn f32_f16_and_bf16_come_back() {
    let dir = Dir::new("dtypes");
    let values = values();
    let f32_bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let bf16: Vec<u16> = values.iter().map(|&v| bf16_from_f32(v)).collect();
    let bf16_bytes: Vec<u8> = bf16.iter().flat_map(|v| v.to_le_bytes()).collect();
    // 1.5, -2, the smallest subnormal, 65504
    let f16_bytes: Vec<u8> = [0x3e00u16, 0xc000, 0x0001, 0x7bff].iter().flat_map(|v| v.to_le_bytes()).collect();
    let bytes = file(&[
        ("a", Dtype::F32, &[700, 1000], &f32_bytes),
        ("b", Dtype::BF16, &[700_000], &bf16_bytes),
        ("c", Dtype::F16, &[2, 2], &f16_bytes),
    ]);
    dir.write("model.safetensors", &bytes);
    for tensors in [dir.open().unwrap(), Tensors::from_bytes(bytes).unwrap()] {
        assert_eq!(tensors.names().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(tensors.bytes(), 700_000 * 6 + 8);
        assert_eq!(tensors.tensor("a", &[700, 1000]).unwrap().to_f32().unwrap(), values);
        assert_eq!(all_bf16(&tensors.tensor("a", &[700, 1000]).unwrap()).unwrap(), bf16);
        let b = tensors.tensor("b", &[700_000]).unwrap();
        assert_eq!(all_bf16(&b).unwrap(), bf16);
        assert_eq!(b.to_f32().unwrap(), bf16.iter().map(|&v| bf16_to_f32(v)).collect::<Vec<_>>());
        let c = tensors.tensor("c", &[2, 2]).unwrap();
        assert_eq!(c.to_f32().unwrap(), [1.5, -2.0, 2f32.powi(-24), 65504.0]);
        assert_eq!(all_bf16(&c).unwrap(), [1.5, -2.0, 2f32.powi(-24), 65504.0].map(bf16_from_f32));
    }
}

#[test]
fn shards_are_found_through_the_index() {
    let dir = Dir::new("shards");
    let one = 1f32.to_le_bytes();
    let two = 2f32.to_le_bytes();
    dir.write("m-1.safetensors", &file(&[("a", Dtype::F32, &[1], &one)]));
    dir.write("m-2.safetensors", &file(&[("b", Dtype::F32, &[1], &two)]));
    let index = |map: &str| dir.write("model.safetensors.index.json", format!("{{\"weight_map\":{map}}}").as_bytes());

    index(r#"{"a":"m-1.safetensors","b":"m-2.safetensors"}"#);
    let tensors = dir.open().unwrap();
    assert_eq!(tensors.tensor("a", &[1]).unwrap().to_f32().unwrap(), [1.0]);
    assert_eq!(tensors.tensor("b", &[1]).unwrap().to_f32().unwrap(), [2.0]);

    index(r#"{"a":"m-2.safetensors","b":"m-1.safetensors"}"#);
    assert!(matches!(dir.open(), Err(Error::Index { .. })));
    index(r#"{"a":"m-1.safetensors","c":"m-2.safetensors"}"#);
    assert!(matches!(dir.open(), Err(Error::Missing { .. })));
    for name in ["../m-1.safetensors", "/etc/passwd", "x/y", "..", ""] {
        index(&format!("{{\"a\":{name:?}}}"));
        assert!(matches!(dir.open(), Err(Error::Index { .. })), "{name}");
    }
    index(r#"{"a":"m-3.safetensors"}"#);
    assert!(matches!(dir.open(), Err(Error::Io { .. })));
    index("[]");
    assert!(matches!(dir.open(), Err(Error::Index { .. })));
    dir.write("m-2.safetensors", &file(&[("a", Dtype::F32, &[1], &two)]));
    index(r#"{"a":"m-1.safetensors","b":"m-2.safetensors"}"#);
    assert!(matches!(dir.open(), Err(Error::Duplicate { .. })));
}

#[test]
fn nothing_there() {
    let dir = Dir::new("empty");
    assert!(matches!(dir.open(), Err(Error::NoWeights { .. })));
    fs::create_dir(dir.0.join("model.safetensors")).unwrap();
    assert!(matches!(dir.open(), Err(Error::Io { .. })));
}

#[test]
fn wrong_names_shapes_dtypes_and_values() {
    let nan = [1f32, f32::NAN].map(f32::to_le_bytes).concat();
    let bytes = file(&[("x", Dtype::F32, &[2], &nan), ("i", Dtype::I32, &[1], &[0; 4])]);
    let tensors = Tensors::from_bytes(bytes).unwrap();
    assert!(matches!(tensors.tensor("y", &[2]), Err(Error::Missing { .. })));
    assert!(matches!(tensors.tensor("x", &[1, 2]), Err(Error::Shape { .. })));
    assert!(matches!(tensors.tensor("i", &[1]), Err(Error::Format { .. })));
    let x = tensors.tensor("x", &[2]).unwrap();
    assert!(matches!(x.to_f32(), Err(Error::NotFinite { index: 1, .. })));
    assert!(matches!(all_bf16(&x), Err(Error::NotFinite { index: 1, .. })));
}

#[test]
fn every_truncation_is_refused() {
    let bytes = file(&[("a", Dtype::F32, &[4], &[0; 16]), ("b", Dtype::BF16, &[3], &[0; 6])]);
    let dir = Dir::new("truncated");
    for n in 0..bytes.len() {
        dir.write("model.safetensors", &bytes[..n]);
        assert!(matches!(dir.open(), Err(Error::Truncated { .. })), "{n}");
    }
    let longer = [&bytes[..], &[0]].concat();
    assert!(matches!(Tensors::from_bytes(longer), Err(Error::Trailing { .. })));
}

/// Each damaged header must be refused here, and also by the crate that defines the format.
#[test]
fn hostile_headers() {
    let t = |dtype: &str, shape: &str, from: u64, to: u64| {
        format!("{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[{from},{to}]}}")
    };
    let max = u64::MAX;
    let headers = [
        ("overlap", format!("{{\"a\":{},\"b\":{}}}", t("F32", "[2]", 0, 8), t("F32", "[2]", 4, 12)), 12),
        ("gap", format!("{{\"a\":{},\"b\":{}}}", t("F32", "[1]", 0, 4), t("F32", "[1]", 8, 12)), 12),
        ("not from 0", format!("{{\"a\":{}}}", t("F32", "[1]", 4, 8)), 8),
        ("backwards", format!("{{\"a\":{}}}", t("F32", "[1]", 4, 0)), 4),
        ("size", format!("{{\"a\":{}}}", t("F32", "[3]", 0, 8)), 8),
        ("overflow", format!("{{\"a\":{}}}", t("F32", &format!("[{max},{max},0]"), 0, 0)), 0),
        ("wraps to 8", format!("{{\"a\":{}}}", t("F32", "[4611686018427387906]", 0, 8)), 8),
        ("negative", format!("{{\"a\":{}}}", t("F32", "[-1]", 0, 4)), 4),
        ("beyond the file", format!("{{\"a\":{}}}", t("F32", "[4611686018427387903]", 0, max - 3)), 8),
        ("not an object", "[]".to_string(), 0),
        ("not JSON", "{".to_string(), 0),
        ("missing field", "{\"a\":{\"dtype\":\"F32\",\"shape\":[]}}".to_string(), 0),
    ];
    for (what, header, data) in headers {
        let bytes: &'static [u8] = raw(&header, data).leak();
        assert!(safetensors::SafeTensors::deserialize(bytes).is_err(), "{what}: accepted by the oracle");
        let error = Tensors::from_bytes(bytes).err().unwrap_or_else(|| panic!("{what}: accepted"));
        assert!(matches!(error, Error::Header { .. } | Error::Truncated { .. }), "{what}: {error}");
        assert!(!error.hint().is_empty());
    }
    // Stricter than the crate, which lets the later one win.
    let twice = format!("{{\"a\":{0},\"a\":{0}}}", t("F32", "[1]", 0, 4));
    assert!(matches!(Tensors::from_bytes(raw(&twice, 4)), Err(Error::Header { .. })));
    // A promise of a huge header costs nothing.
    for length in [MAX_HEADER + 1, u64::MAX] {
        let bytes = length.to_le_bytes().to_vec();
        assert!(matches!(Tensors::from_bytes(bytes), Err(Error::Header { .. })));
    }
    let file = raw("{}", 0);
    assert!(safetensors::SafeTensors::deserialize(&file).is_ok());
    assert_eq!(Tensors::from_bytes(file).unwrap().names().count(), 0);
}

/// Flipped bytes anywhere in the header: an error or the same tensors, never a panic; agreement with the crate.
#[test]
fn flipped_bytes() {
    let bytes = file(&[("a", Dtype::F32, &[2, 2], &[0; 16]), ("b", Dtype::BF16, &[3], &[0; 6])]);
    let dir = Dir::new("flips");
    for at in 0..bytes.len() - 22 {
        for flip in [1, 0x10, 0x80] {
            let mut bytes = bytes.clone();
            bytes[at] ^= flip;
            let oracle = safetensors::SafeTensors::deserialize(&bytes).is_ok();
            dir.write("model.safetensors", &bytes);
            let ours = dir.open();
            if oracle {
                assert!(ours.is_ok(), "byte {at} ^ {flip:#x}: {}", ours.err().unwrap());
            }
        }
    }
}
