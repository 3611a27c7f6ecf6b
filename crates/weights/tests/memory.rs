//! What a hostile file or index can make the parser allocate: at most twice its own size and 64 MiB.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use kvist_weights::testing::{GgufBuilder, TensorLine, string};
use kvist_weights::{Error, Gguf, MetaArray, MetaValue, Strings, Tensors};

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator, with counters beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(live, Relaxed);
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One test, so that nothing else allocates meanwhile.
#[test]
fn allocations_are_bounded_by_the_file() {
    let count = |n: u64| n.to_le_bytes().to_vec();
    let array = |kind: u32, n: u64| [&kind.to_le_bytes()[..], &n.to_le_bytes()].concat();
    let entry = |body: Vec<u8>| {
        GgufBuilder::default().raw_entry([string("k"), 9u32.to_le_bytes().to_vec(), body].concat()).build()
    };
    let n = 3_000_000;
    let many = |builder: GgufBuilder, i: u64| builder.raw_entry([string(&format!("{i}")), vec![0; 5]].concat());
    let lines = |builder: GgufBuilder, i: u64| {
        let (name, dimensions) = (format!("{i}"), vec![8, 1, 1, 1]);
        builder.line(TensorLine { name, dimensions, kind: 0, offset: Some(32 * i), data: vec![0; 32] })
    };
    let files = [
        ("empty strings", entry([array(8, n), count(0).repeat(n as usize)].concat())),
        ("empty arrays", entry([array(9, 65_000), array(0, 0).repeat(65_000)].concat())),
        ("too many empty arrays", entry([array(9, n), array(0, 0).repeat(n as usize)].concat())),
        ("a long text", GgufBuilder::default().value("k", MetaValue::String("x".repeat(30_000_000))).build()),
        ("numbers", GgufBuilder::default().value("k", MetaValue::Array(MetaArray::F64(vec![0.5; 4_000_000]))).build()),
        ("an alignment of many numbers", {
            let many = MetaValue::Array(MetaArray::U8(vec![200; 40_000_000]));
            GgufBuilder::default().value("general.alignment", many).build()
        }),
        ("long strings", {
            let strings = Strings::from_iter((0..30).map(|_| "y".repeat(1_000_000)));
            GgufBuilder::default().value("k", MetaValue::Array(MetaArray::String(strings))).build()
        }),
        ("many entries", (0..60_000).fold(GgufBuilder::default(), many).build()),
        ("many tensors", (0..60_000).fold(GgufBuilder::default(), lines).build()),
        ("promises", GgufBuilder { tensor_count: Some(1 << 60), ..GgufBuilder::default() }.build()),
        ("promised strings", entry(array(8, 1 << 50))),
        ("promised text", entry([array(8, 1), count(1 << 50)].concat())),
    ];
    for (what, bytes) in files {
        let bytes: &'static [u8] = bytes.leak();
        check(what, bytes.len(), || {
            Gguf::from_bytes(bytes).map(|file| file.metadata.len() + file.tensors.names().count())
        });
    }

    // Headers and indices of up to 16 MiB were read: these took seven to ten times their size.
    let zeros = |n: usize| format!(r#"{{"t":{{"dtype":"F32","shape":[{}0],"data_offsets":[0,0]}}}}"#, "0,".repeat(n));
    let tensor = |i: u64| format!(r#""{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#);
    let tensors = format!("{{{}}}", (0..70_000).map(tensor).collect::<Vec<_>>().join(","));
    for (what, json) in
        [("a long shape", zeros(8_000_000)), ("a shape", zeros(2_000_000)), ("tensors without elements", tensors)]
    {
        let bytes: &'static [u8] = [count(json.len() as u64), json.into_bytes()].concat().leak();
        check(what, bytes.len(), || Tensors::from_bytes(bytes).map(|tensors| tensors.names().count()));
    }
    let dir = std::env::temp_dir().join(format!("kvist-weights-memory-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    for (what, n) in [("a long index", 1_300_000), ("an index", 340_000)] {
        let entries: String = (0..n).map(|i| format!(r#""{i:05x}":"a","#)).collect();
        let json = format!(r#"{{"weight_map":{{{entries}"":"a"}}}}"#);
        std::fs::write(dir.join("model.safetensors.index.json"), &json).unwrap();
        check(what, json.len(), || Tensors::open(&dir).map(|tensors| tensors.names().count()));
    }
    std::fs::remove_dir_all(&dir).unwrap();
}

fn check(what: &str, bytes: usize, open: impl FnOnce() -> Result<usize, Error>) {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let outcome = open();
    let peak = PEAK.load(Relaxed) - before;
    println!("{what}: {bytes} bytes, {peak} allocated, {:?}", outcome.as_ref().map_err(|e| e.to_string()));
    assert!(peak <= 2 * bytes + (64 << 20), "{what}: {peak} bytes for a file of {bytes}");
    // Far less than the bound for honest contents.
    assert!(outcome.is_err() || peak <= 2 * bytes + (24 << 20), "{what}: {peak}");
}
