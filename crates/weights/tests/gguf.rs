//! Files written by the `gguf` package are read exactly; damaged ones are refused with the right error.

use std::fs;
use std::path::{Path, PathBuf};

use kvist_weights::testing::{GgufBuilder, TensorLine, string};
use kvist_weights::{Error, Format, Gguf, MetaArray, MetaValue, Strings};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn open(bytes: Vec<u8>) -> Result<Gguf, Error> {
    Gguf::from_bytes(bytes)
}

fn refused(what: &str, bytes: Vec<u8>) -> Error {
    let error = open(bytes).err().unwrap_or_else(|| panic!("{what}: accepted"));
    assert!(!error.to_string().is_empty() && !error.hint().is_empty(), "{what}");
    error
}

/// Every bit of every element, per type, as the `gguf` package dequantises them.
#[test]
fn blocks_stand_for_what_the_gguf_package_says() {
    let file = Gguf::open(&fixture("blocks.gguf")).unwrap();
    for format in Format::ALL {
        let tensor = file.tensors.tensor(format.name(), &[2, 512]).unwrap();
        assert_eq!(tensor.format(), format);
        let expected = file.tensors.tensor(&format!("{format}.expected"), &[2, 512]).unwrap().to_f32().unwrap();
        let found = tensor.to_f32().unwrap();
        let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&found), bits(&expected), "{format}");
        let (mut scratch, mut row, mut rounded) = (Vec::new(), [0.0; 512], [0; 512]);
        tensor.row_f32(1, &mut scratch, &mut row).unwrap();
        assert_eq!(row, expected[512..]);
        tensor.row_bf16(1, &mut scratch, &mut rounded).unwrap();
        assert_eq!(rounded, row.map(kvist_weights::bf16_from_f32), "{format}");
    }
}

#[test]
fn values_of_every_type() {
    let file = Gguf::open(&fixture("values.gguf")).unwrap();
    let expected = [
        ("v.U8", MetaValue::U8(200)),
        ("v.I8", MetaValue::I8(-100)),
        ("v.U16", MetaValue::U16(60000)),
        ("v.I16", MetaValue::I16(-30000)),
        ("v.U32", MetaValue::U32(4_000_000_000)),
        ("v.I32", MetaValue::I32(-2_000_000_000)),
        ("v.U64", MetaValue::U64(u64::MAX)),
        ("v.I64", MetaValue::I64(i64::MIN)),
        ("v.F32", MetaValue::F32(0.1)),
        ("v.F64", MetaValue::F64(0.1)),
        ("v.Bool", MetaValue::Bool(true)),
        ("v.String", MetaValue::String("kvist \u{1f33f}".into())),
        ("a.U8", MetaValue::Array(MetaArray::U8(vec![200, 0, 1]))),
        ("a.I8", MetaValue::Array(MetaArray::I8(vec![-100, 0, 1]))),
        ("a.U16", MetaValue::Array(MetaArray::U16(vec![60000, 0, 1]))),
        ("a.I16", MetaValue::Array(MetaArray::I16(vec![-30000, 0, 1]))),
        ("a.U32", MetaValue::Array(MetaArray::U32(vec![4_000_000_000, 0, 1]))),
        ("a.I32", MetaValue::Array(MetaArray::I32(vec![-2_000_000_000, 0, 1]))),
        ("a.U64", MetaValue::Array(MetaArray::U64(vec![u64::MAX, 0, 1]))),
        ("a.I64", MetaValue::Array(MetaArray::I64(vec![i64::MIN, 0, 1]))),
        ("a.F32", MetaValue::Array(MetaArray::F32(vec![0.5, -1.5]))),
        ("a.Bool", MetaValue::Array(MetaArray::Bool(vec![true, false, true]))),
        ("a.String", MetaValue::Array(MetaArray::String(Strings::from_iter(["", "å", "twig", "\u{1f33f}"])))),
        ("a.Array", MetaValue::Array(MetaArray::Array(vec![MetaArray::I32(vec![1, 2]), MetaArray::I32(vec![3])]))),
        ("general.alignment", MetaValue::U32(64)),
        ("general.architecture", MetaValue::String("values".into())),
    ];
    assert_eq!(file.metadata.len(), expected.len());
    for (key, value) in expected {
        assert_eq!(file.get(key), Some(&value), "{key}");
    }
    assert_eq!(file.get("v.U64").unwrap().as_u64(), Some(u64::MAX));
    assert_eq!(file.get("v.U64").unwrap().as_i64(), None);
    assert_eq!(file.get("v.I8").unwrap().as_u64(), None);
    assert_eq!(file.get("v.I8").unwrap().as_f64(), Some(-100.0));
    let strings = file.get("a.String").unwrap().as_strings().unwrap();
    assert_eq!(strings.iter().collect::<Vec<_>>(), ["", "å", "twig", "\u{1f33f}"]);
    assert_eq!((strings.get(4), strings.get(usize::MAX)), (None, None));

    assert_eq!(file.tensors.tensor("odd", &[3]).unwrap().to_f32().unwrap(), [0.0, 1.0, 2.0]);
    assert_eq!(file.tensors.shape("cube"), Some(&[2, 3, 4][..]));
    let cube = file.tensors.tensor("cube", &[2, 3, 4]).unwrap();
    assert_eq!((cube.rows(), cube.columns()), (6, 4));
    assert_eq!(cube.to_f32().unwrap(), (0..24).map(|v| v as f32).collect::<Vec<_>>());
}

/// A file with all that the format has, small enough to be damaged in every byte.
fn small() -> GgufBuilder {
    let inner = MetaArray::Array(vec![MetaArray::U8(vec![1, 2]), MetaArray::String(Strings::from_iter(["x"]))]);
    GgufBuilder::default()
        .value("general.alignment", MetaValue::U32(32))
        .value("s", MetaValue::String("text".into()))
        .value("a", MetaValue::Array(MetaArray::String(Strings::from_iter(["one", "two"]))))
        .value("b", MetaValue::Array(MetaArray::Bool(vec![true, false])))
        .value("n", MetaValue::Array(inner))
        .f32("x", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        .tensor("q", &[2, 32], Format::Q8_0, vec![1; 68])
}

#[test]
fn version_two_is_the_same() {
    let two = GgufBuilder { version: 2, ..small() }.build();
    assert_eq!(open(two).unwrap().metadata, open(small().build()).unwrap().metadata);
}

#[test]
fn other_versions_and_byte_orders() {
    for version in [0, 1, 4, 65_536, u32::MAX, 3 << 24, 2 << 24] {
        let error = refused("version", GgufBuilder { version, ..small() }.build());
        assert!(matches!(error, Error::GgufVersion { .. }), "{version}: {error}");
        assert_eq!(
            error.to_string().contains("big-endian"),
            version == 3 << 24 || version == 2 << 24 || version == 65_536
        );
    }
    for magic in ["GGUX", "ggml", "PK\u{3}\u{4}"] {
        let bytes = [magic.as_bytes(), &small().build()[4..]].concat();
        assert!(matches!(refused("magic", bytes), Error::Gguf { .. }));
    }
}

/// Each prefix of a file lacks something; the last tensor ends with the file.
#[test]
fn every_truncation_is_refused() {
    let bytes = small().build();
    assert!(open(bytes.clone()).is_ok());
    for n in 0..bytes.len() {
        let error = refused("truncated", bytes[..n].to_vec());
        assert!(matches!(error, Error::Truncated { .. }), "{n}: {error}");
    }
    let longer = [&bytes[..], &[0; 100]].concat();
    assert!(open(longer).is_ok(), "padding behind the last tensor");
}

/// Bytes flipped anywhere before the data: an error, or a file that can be read to its end.
#[test]
fn flipped_bytes() {
    let bytes = small().build();
    for at in 0..bytes.len() {
        for flip in [1, 0x10, 0x80, 0xff] {
            let mut bytes = bytes.clone();
            bytes[at] ^= flip;
            let Ok(file) = open(bytes) else { continue };
            for name in file.tensors.names() {
                let shape = file.tensors.shape(name).unwrap();
                if let Ok(tensor) = file.tensors.tensor(name, shape) {
                    let _ = tensor.to_f32();
                }
            }
        }
    }
}

#[test]
fn hostile_headers() {
    let line = |name: &str, dimensions: &[u64], kind, offset| TensorLine {
        name: name.into(),
        dimensions: dimensions.into(),
        kind,
        offset: Some(offset),
        data: vec![0; 64],
    };
    let with = |line: TensorLine| small().line(line).build();
    let entry =
        |kind: u32, value: &[u8]| small().raw_entry([&string("k"), &kind.to_le_bytes()[..], value].concat()).build();
    let count = |n: u64| n.to_le_bytes();
    let array = |kind: u32, n: u64| [&kind.to_le_bytes()[..], &n.to_le_bytes()].concat();
    let alignment = |value| GgufBuilder::default().value("general.alignment", value).build();
    let near = 0x7fff_ffff_ffff_ffc0;
    let files = [
        ("-1 tensors", GgufBuilder { tensor_count: Some(u64::MAX), ..small() }.build()),
        ("-1 entries", GgufBuilder { entry_count: Some(u64::MAX), ..small() }.build()),
        ("more tensors than there are", GgufBuilder { tensor_count: Some(4), ..small() }.build()),
        ("key of -1 bytes", small().raw_entry(count(u64::MAX).to_vec()).build()),
        ("key beyond the file", small().raw_entry(count(60_000).to_vec()).build()),
        ("key too long", small().raw_entry([string(&"k".repeat(65_536)), vec![0; 8]].concat()).build()),
        ("key not UTF-8", small().raw_entry([&count(1)[..], &[0xff, 0, 0, 0, 0, 0]].concat()).build()),
        ("key twice", small().value("s", MetaValue::U8(0)).build()),
        ("unknown value type", entry(13, &[0; 8])),
        ("string of -1 bytes", entry(8, &count(u64::MAX))),
        ("string that wraps", entry(8, &count(u64::MAX - 100))),
        ("string not UTF-8", entry(8, &[&count(1)[..], &[0x80]].concat())),
        ("truth value 2", entry(7, &[2])),
        ("array of -1", entry(9, &array(4, u64::MAX))),
        ("array whose bytes wrap", entry(9, &array(12, 1 << 61))),
        ("array of 2^40 strings", entry(9, &array(8, 1 << 40))),
        ("array of unknown type", entry(9, &array(99, 1))),
        ("array of arrays without end", entry(9, &array(9, 1).repeat(100))),
        ("string in an array beyond the file", entry(9, &[array(8, 1), count(1 << 40).to_vec()].concat())),
        ("strings whose halves are not UTF-8", {
            let halves = [&count(1)[..], &[0xc3], &count(1), &[0xa5]].concat();
            entry(9, &[array(8, 2), halves].concat())
        }),
        ("alignment 0", alignment(MetaValue::U32(0))),
        ("alignment 24", alignment(MetaValue::U32(24))),
        ("alignment of another type", alignment(MetaValue::U64(32))),
        ("name too long", with(line(&"n".repeat(65), &[4], 0, 128))),
        ("tensor twice", with(line("x", &[4], 0, 128))),
        ("no dimensions", with(line("t", &[], 0, 128))),
        ("five dimensions", with(line("t", &[1, 1, 1, 1, 1], 0, 128))),
        ("dimensions without end", with(line("t", &[1; 100], 0, 128))),
        ("dimension 0", with(line("t", &[4, 0], 0, 128))),
        ("dimension 2^63", with(line("t", &[1 << 63], 0, 128))),
        ("elements that wrap", with(line("t", &[1 << 32, 1 << 32], 0, 128))),
        ("bytes that wrap", with(line("t", &[1 << 62], 0, 128))),
        ("larger than the file", with(line("t", &[1 << 40], 0, 128))),
        ("rows that are no blocks", with(line("t", &[33], 8, 128))),
        ("offset not aligned", with(line("t", &[4], 0, 130))),
        ("offset beyond the file", with(line("t", &[4], 0, 1 << 40))),
        ("offset that wraps", with(line("t", &[4], 0, u64::MAX - 31))),
        ("overlap", with(line("t", &[4], 0, 0))),
        ("overlap inside", with(line("t", &[16], 0, 32))),
        ("sizes that wrap together", {
            let huge = |name, offset| line(name, &[near], 24, offset);
            small().line(huge("t", 128)).line(huge("u", near)).build()
        }),
    ];
    for (what, bytes) in files {
        let error = refused(what, bytes);
        let typed = matches!(error, Error::Gguf { .. } | Error::Truncated { .. });
        assert!(typed, "{what}: {error}");
    }
}

/// Types that are not read are named, and what is read is listed.
#[test]
fn other_types_are_named() {
    for (kind, name) in [(10, "Q2_K"), (3, "Q4_1"), (23, "IQ4_XS"), (39, "MXFP4"), (4711, "number 4711")] {
        let line = TensorLine { name: "t".into(), dimensions: vec![256], kind, offset: None, data: vec![0; 512] };
        let file = open(small().line(line).build()).unwrap();
        let error = file.tensors.tensor("t", &[256]).err().expect("refused");
        assert!(error.to_string().contains(name) && error.hint().contains("Q6_K"), "{error}");
    }
}

/// Scales that are not numbers are found, wherever the format keeps them.
#[test]
fn scales_that_are_not_numbers() {
    let at = [(Format::Q8_0, 0), (Format::Q4_0, 0), (Format::Q5_0, 0), (Format::Q4K, 0), (Format::Q4K, 2)];
    let more = [(Format::Q5K, 0), (Format::Q5K, 2), (Format::Q6K, 208), (Format::F16, 0)];
    for (format, at) in at.into_iter().chain(more) {
        for scale in [0x7c00u16, 0xfc00, 0x7e01] {
            let mut data = vec![0; 3 * format.block_bytes()];
            let from = format.block_bytes() + at;
            data[from..from + 2].copy_from_slice(&scale.to_le_bytes());
            let shape = [3 * format.block()];
            let file = open(GgufBuilder::default().tensor("t", &shape, format, data).build()).unwrap();
            let error = file.tensors.tensor("t", &shape).unwrap().to_f32().expect_err("refused");
            assert!(matches!(error, Error::NotFinite { index, .. } if index == format.block()), "{format}: {error}");
        }
    }
}

/// Parts of a model in several files.
#[test]
fn splits() {
    let dir = std::env::temp_dir().join(format!("kvist-gguf-split-{}", std::process::id()));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    let part = |no: u16, count: u16, name: &str| {
        GgufBuilder::default()
            .value("split.no", MetaValue::U16(no))
            .value("split.count", MetaValue::U16(count))
            .value("split.tensors.count", MetaValue::I32(2))
            .f32(name, &[2], &[no as f32, 1.0])
            .build()
    };
    let [one, two] = [1, 2].map(|i| dir.join(format!("m-0000{i}-of-00002.gguf")));
    fs::write(&one, part(0, 2, "a")).unwrap();
    assert!(matches!(Gguf::open(&one), Err(Error::Io { .. })), "the second part is missing");
    fs::write(&two, part(1, 2, "b")).unwrap();
    let file = Gguf::open(&one).unwrap();
    assert_eq!(file.tensors.names().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(file.tensors.tensor("b", &[2]).unwrap().to_f32().unwrap(), [1.0, 1.0]);

    let error = Gguf::open(&two).err().expect("not the first");
    assert!(matches!(error, Error::Split { .. }) && error.hint().contains("first part"), "{error}");
    fs::write(&two, part(1, 2, "a")).unwrap();
    assert!(matches!(Gguf::open(&one), Err(Error::Duplicate { .. })));
    for wrong in [part(0, 2, "b"), part(1, 3, "b")] {
        fs::write(&two, wrong).unwrap();
        assert!(matches!(Gguf::open(&one), Err(Error::Split { .. })));
    }
    let renamed = dir.join("m.gguf");
    fs::write(&renamed, part(0, 2, "a")).unwrap();
    assert!(matches!(Gguf::open(&renamed), Err(Error::Split { .. })));
    fs::write(&one, part(0, 60_000, "a")).unwrap();
    assert!(matches!(Gguf::open(&one), Err(Error::Split { .. })));
    let more = GgufBuilder::default().value("split.no", MetaValue::U16(1)).value("split.count", MetaValue::U16(2));
    fs::write(&one, part(0, 2, "a")).unwrap();
    fs::write(&two, more.f32("b", &[1], &[0.0]).f32("c", &[1], &[0.0]).build()).unwrap();
    assert!(matches!(Gguf::open(&one), Err(Error::Split { .. })), "one tensor too many");
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn nothing_there() {
    assert!(matches!(Gguf::open(Path::new("/nowhere.gguf")), Err(Error::Io { .. })));
    assert!(matches!(Gguf::open(&std::env::temp_dir()), Err(Error::Io { .. })));
}
