//! A steady decoding step takes no memory from the system: neither planning it, nor running it, nor taking it in.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use kvist_base::{AllResident, CHUNK, DomainId, Executor, StepOutput};
use kvist_campaign::subjects;
use kvist_engine::{Engine, EngineConfig, Request, RequestId, Sampling};
use kvist_kernels::Isa;

struct Counting;

static COUNTS: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicUsize = AtomicUsize::new(0);

impl Counting {
    fn count() {
        if COUNTS.load(SeqCst) {
            COUNT.fetch_add(1, SeqCst);
            // Where it came from, when somebody looks for it.
            if std::option_env!("ALLOCATION_TRACES").is_some() {
                COUNTS.store(false, SeqCst);
                eprintln!("{}", std::backtrace::Backtrace::force_capture());
                COUNTS.store(true, SeqCst);
            }
        }
    }
}

// SAFETY: the system's allocator, with a counter beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Counting::count();
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Counting::count();
        // SAFETY: passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SEQUENCES: u64 = 24;

/// One test, so that nothing else allocates meanwhile.
#[test]
fn a_steady_step_allocates_nothing() {
    let executor = subjects::embedded().into_executor(200, None, Isa::detect(), 2);
    let mut executor = executor.expect("room for the pool");
    let mut engine = Engine::new(EngineConfig::default(), executor.info().clone());
    for id in 0..SEQUENCES {
        // A common root; every third draws in a way of its own.
        let prompt = (0..200).map(|i| 3 + i % 90 + if i < 150 { 0 } else { id as u32 }).collect();
        let mut request = Request::greedy(RequestId(id), DomainId(2), prompt, 400);
        request.sampling = match id % 3 {
            0 => Sampling::GREEDY,
            1 => Sampling { temperature: 0.8, top_p: 0.9, seed: id, ..Sampling::GREEDY },
            _ => Sampling { temperature: 0.8, top_k: 40, seed: id, ..Sampling::GREEDY },
        };
        engine.submit(0, request).expect("a request that fits");
    }
    let (mut output, mut effects) = (StepOutput::default(), Vec::new());
    let mut steady = 0;
    for now in 0..6 * CHUNK as u64 {
        let rows = |plan: &kvist_base::StepPlan| (plan.rows.len() as u64, plan.prepare.is_empty());
        let before = COUNT.load(SeqCst);
        COUNTS.store(now > 2 * CHUNK as u64, SeqCst);
        let plan = engine.plan(now).expect("all decode");
        let (rows, no_new_chunk) = rows(plan);
        executor.step(plan, &AllResident, &mut output);
        engine.complete_with(now + 1, &output, &|n, piece| executor.run(n, piece));
        engine.drain_effects(&mut effects);
        COUNTS.store(false, SeqCst);
        let taken = COUNT.load(SeqCst) - before;
        assert!(now < 2 * CHUNK as u64 || rows == SEQUENCES, "{rows} rows in step {now}");
        assert!(effects.len() as u64 == SEQUENCES || now < CHUNK as u64);
        if now > 2 * CHUNK as u64 && no_new_chunk {
            steady += 1;
            assert_eq!(taken, 0, "allocations in step {now}");
        }
        // A chunk of its own for each sequence: what the tree and the sequences note of it.
        assert!(taken <= 8 * SEQUENCES as usize, "{taken} allocations in step {now}");
    }
    assert!(steady > 3 * CHUNK, "{steady} steady steps");
}
