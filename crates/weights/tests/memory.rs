//! What a hostile file can make the parser allocate: at most twice its own size and 64 MiB.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use kvist_weights::testing::{GgufBuilder, TensorLine, string};
use kvist_weights::{Gguf, MetaArray, MetaValue, Strings};

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
        let before = LIVE.load(Relaxed);
        PEAK.store(before, Relaxed);
        let outcome = Gguf::from_bytes(bytes).map(|file| file.metadata.len() + file.tensors.names().count());
        let peak = PEAK.load(Relaxed) - before;
        println!("{what}: {} bytes, {peak} allocated, {:?}", bytes.len(), outcome.as_ref().map_err(|e| e.to_string()));
        assert!(peak <= 2 * bytes.len() + (64 << 20), "{what}: {peak} bytes for a file of {}", bytes.len());
        // Far less than the bound for honest contents.
        assert!(outcome.is_err() || peak <= 2 * bytes.len() + (24 << 20), "{what}: {peak}");
    }
}
