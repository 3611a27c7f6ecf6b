//! What every executor promises: the bits of a row depend on the tokens of its path alone. Each check compares with a
//! lone run on a fresh executor, bit for bit.

use kvist_base::{AllResident, CHUNK, ChunkId, Executor, Gone, Prepare, Residency, RowOutcome, StepPlan, TokenId};
use kvist_model::testing::{Part, logits, path, plan, step};

pub type Make<'a> = &'a dyn Fn() -> Box<dyn Executor>;

/// Runs all checks. The executors must have at least 64 chunks and a context of 1,024 tokens.
pub fn run(make: Make) {
    steps_do_not_matter(make);
    batches_and_sharing_do_not_matter(make);
    a_row_without_a_slot_sees_the_same(make);
    copies_of_a_part_of_a_chunk(make);
    what_is_computed_in_the_step_can_be_shared_in_it(make);
    lost_chunks_take_their_readers_and_nobody_else(make);
    a_lost_source_takes_its_copy(make);
}

/// A prompt; the same number always gives the same.
fn tokens(seed: u32, n: usize, vocab: usize) -> Vec<TokenId> {
    let mut state = seed.wrapping_mul(0x9e37_79b9).wrapping_add(12345);
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % vocab as u32
        })
        .collect()
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|v| v.to_bits()).collect()
}

fn zeroes(chunks: &[ChunkId]) -> Vec<Prepare> {
    chunks.iter().map(|&c| Prepare::Zero(c)).collect()
}

fn steps_do_not_matter(make: Make) {
    let vocab = make().info().vocab;
    let ids = tokens(1, 600, vocab);
    let whole = {
        let mut executor = make();
        let logits = logits(&mut *executor, &ids, &[], 0);
        (bits(&logits), chunks(&*executor, ids.len()))
    };
    let by_one: Vec<usize> = (1..70).chain(505..520).collect();
    let cuts: [&[usize]; 5] = [&[64, 128, 512], &[1, 63, 65, 127, 129, 511, 513], &[256], &[2, 3, 300, 599], &by_one];
    for cuts in cuts {
        let mut executor = make();
        let logits = logits(&mut *executor, &ids, cuts, 0);
        assert!(bits(&logits) == whole.0, "logits change with cuts at {cuts:?}");
        assert!(chunks(&*executor, ids.len()) == whole.1, "KV changes with cuts at {cuts:?}");
    }
}

/// The KV bytes of the first `tokens` tokens of a lone run.
fn chunks(executor: &dyn Executor, tokens: usize) -> Vec<Vec<u8>> {
    path(0, tokens)
        .into_iter()
        .map(|chunk| {
            let mut bytes = Vec::new();
            executor.read_chunk(chunk, &mut bytes);
            assert_eq!(bytes.len(), executor.info().layout.bytes);
            bytes
        })
        .collect()
}

/// Sequences with a common prefix, prefill and decode in one step.
fn batches_and_sharing_do_not_matter(make: Make) {
    let vocab = make().info().vocab;
    for prefix in [64, 128, 512, 576] {
        let stem = tokens(2, prefix, vocab);
        let stem_path = path(0, prefix);
        // (tokens of its own, of which this many are computed in the shared step)
        let shapes = [(1, 1), (5, 1), (70, 70), (130, 3), (64, 64), (17, 16)];
        let mut executor = make();
        logits(&mut *executor, &stem, &[], prefix);
        let mut next = stem_path.len() as u32;
        let sequences: Vec<(Vec<TokenId>, Vec<ChunkId>, usize)> = shapes
            .iter()
            .enumerate()
            .map(|(i, &(own, last))| {
                let mut ids = stem.clone();
                ids.extend(tokens(10 + i as u32, own, vocab));
                let mut chunks = stem_path.clone();
                chunks.extend(path(next, own));
                next += own.div_ceil(CHUNK) as u32;
                let from = ids.len() - last;
                if from > prefix {
                    let part =
                        Part { tokens: &ids, path: &chunks, rows: prefix..from, write_from: 0, logits_from: from };
                    let mut warm = plan(&[part], false);
                    warm.prepare = zeroes(&chunks[stem_path.len()..]);
                    step(&mut *executor, &warm, &AllResident);
                }
                (ids, chunks, from)
            })
            .collect();
        let part = |(ids, chunks, from): &'static (Vec<TokenId>, Vec<ChunkId>, usize)| Part {
            tokens: ids,
            path: chunks,
            rows: *from..ids.len(),
            write_from: 0,
            logits_from: *from,
        };
        let sequences: &'static [_] = sequences.leak();
        let parts: Vec<Part> = sequences.iter().map(part).collect();
        let mut expected = Vec::new();
        for (ids, _, from) in sequences {
            expected.extend(logits(&mut *make(), ids, &[], *from));
        }
        for (loose, shared) in [(false, true), (true, true), (false, false)] {
            let mut plan = plan(&parts, loose);
            let fresh = sequences.iter().filter(|s| s.2 == prefix);
            plan.prepare = fresh.flat_map(|s| zeroes(&s.1[stem_path.len()..])).collect();
            if !shared {
                plan.classes[0] = plan.classes[0].unshared(plan.rows.len() as u32);
            }
            let out = step(&mut *executor, &plan, &AllResident);
            assert!(bits(&out.logits) == bits(&expected), "prefix {prefix}, loose {loose}, shared {shared}");
            if shared && !loose {
                assert!(out.counters.kv_bytes_read < out.counters.kv_bytes_unshared / 2);
            }
            if !shared {
                assert_eq!(out.counters.kv_bytes_read, out.counters.kv_bytes_unshared);
            }
        }
    }
}

fn a_row_without_a_slot_sees_the_same(make: Make) {
    let vocab = make().info().vocab;
    for n in [1, 63, 64, 65, 128, 513] {
        let ids = tokens(3, n, vocab);
        let mut executor = make();
        let expected = logits(&mut *executor, &ids, &[], n - 1);
        let before = chunks(&*executor, n);
        let chunks_of = path(0, n);
        let part = Part { tokens: &ids, path: &chunks_of, rows: n - 1..n, write_from: n, logits_from: 0 };
        let out = step(&mut *executor, &plan(&[part], false), &AllResident);
        assert!(bits(&out.logits) == bits(&expected), "{n} tokens");
        assert!(chunks(&*executor, n) == before);
    }
}

/// Divergence inside a chunk, with the other sequence's tokens still in the slots behind.
fn copies_of_a_part_of_a_chunk(make: Make) {
    let vocab = make().info().vocab;
    let first = tokens(4, 200, vocab);
    for common in [1, 63, 65, 100, 129, 191] {
        let mut second = first[..common].to_vec();
        second.push((first[common] + 1) % vocab as u32);
        second.extend(tokens(5, 30, vocab));
        let mut executor = make();
        logits(&mut *executor, &first, &[], 200);
        let tip = common / CHUNK;
        let mut chunks = path(0, tip * CHUNK);
        chunks.extend(path(10, second.len() - tip * CHUNK));
        let part = Part { tokens: &second, path: &chunks, rows: common..second.len(), write_from: 0, logits_from: 0 };
        let mut fork = plan(&[part], false);
        fork.prepare = zeroes(&chunks[tip..]);
        fork.prepare.push(Prepare::Copy { from: ChunkId(tip as u32), to: chunks[tip], n: (common % CHUNK) as u8 });
        let out = step(&mut *executor, &fork, &AllResident);
        let expected = logits(&mut *make(), &second, &[], common);
        assert!(bits(&out.logits) == bits(&expected), "{common} tokens in common");

        // The same without a copy: the chunk is shared as it is, its later slots are another sequence's.
        let part =
            Part { tokens: &first, path: &path(0, 200), rows: common - 1..common, write_from: 200, logits_from: 0 };
        let out = step(&mut *executor, &plan(&[part], false), &AllResident);
        assert!(bits(&out.logits) == bits(&logits(&mut *make(), &first[..common], &[], common - 1)));
    }
}

fn what_is_computed_in_the_step_can_be_shared_in_it(make: Make) {
    let vocab = make().info().vocab;
    let first = tokens(6, 150, vocab);
    let mut second = first[..128].to_vec();
    second.extend(tokens(7, 40, vocab));
    let mut third = path(0, 128);
    third.extend(path(20, 40));
    let first_path = path(0, 150);
    let parts = [
        Part { tokens: &first, path: &first_path, rows: 0..150, write_from: 0, logits_from: 0 },
        Part { tokens: &second, path: &third, rows: 128..168, write_from: 0, logits_from: 0 },
    ];
    let mut executor = make();
    let mut both = plan(&parts, false);
    both.prepare = zeroes(&first_path);
    both.prepare.extend(zeroes(&third[2..]));
    let out = step(&mut *executor, &both, &AllResident);
    let mut expected = logits(&mut *make(), &first, &[], 0);
    expected.extend(logits(&mut *make(), &second, &[], 128));
    assert!(bits(&out.logits) == bits(&expected));
}

/// Loses one chunk from one layer on.
struct Loses {
    layer: usize,
    chunk: ChunkId,
}

impl Residency for Loses {
    fn fill(&self, layer: usize, chunk: ChunkId, _: &mut [u8]) -> Result<bool, Gone> {
        if layer >= self.layer && chunk == self.chunk { Err(Gone(chunk)) } else { Ok(false) }
    }
}

/// Of a chunk, in every form that the executor has.
fn slot_is_zero(executor: &dyn Executor, chunk: ChunkId) -> bool {
    let mut bytes = Vec::new();
    executor.read_chunk(chunk, &mut bytes);
    if executor.info().open.is_some() {
        executor.read_chunk(ChunkId(executor.info().chunks + chunk.0), &mut bytes);
    }
    bytes.iter().all(|b| *b == 0)
}

fn lost_chunks_take_their_readers_and_nobody_else(make: Make) {
    let vocab = make().info().vocab;
    let layers = make().info().layout.layers.len();
    // Chunk 0 is common; chunks 1.. are the first sequence's, 10.. the second's.
    let stem = tokens(8, 64, vocab);
    let sequence = |seed, first| {
        let mut ids = stem.clone();
        ids.extend(tokens(seed, 70, vocab));
        let mut chunks = vec![ChunkId(0)];
        chunks.extend(path(first, 70));
        (ids, chunks)
    };
    let (one, two) = (sequence(21, 1), sequence(22, 10));
    // 64 + 6 tokens of each are there; the step computes the last 64 of each.
    let start = || {
        let mut executor = make();
        for (ids, chunks) in [&one, &two] {
            let part = Part { tokens: ids, path: chunks, rows: 0..70, write_from: 0, logits_from: 134 };
            let mut warm = plan(&[part], false);
            warm.prepare = zeroes(chunks);
            step(&mut *executor, &warm, &AllResident);
        }
        executor
    };
    let parts: Vec<Part> = [&one, &two]
        .map(|(ids, chunks)| Part { tokens: ids, path: chunks, rows: 70..134, write_from: 0, logits_from: 70 })
        .into();
    let mut both = plan(&parts, true);
    both.arriving = vec![ChunkId(0), ChunkId(1), ChunkId(10)];
    let expected = logits(&mut *make(), &two.0, &[], 70);
    let intact = step(&mut *start(), &both, &AllResident);
    assert!(bits(&intact.logits[64 * vocab..]) == bits(&expected));

    for layer in 0..layers {
        // One sequence's own chunk.
        let mut executor = start();
        let out = step(&mut *executor, &both, &Loses { layer, chunk: ChunkId(1) });
        assert!(out.outcomes[..64].iter().all(|o| *o == RowOutcome::Lost(ChunkId(1))));
        assert!((0..64).all(|i| out.outcomes[64 + i as usize] == RowOutcome::Logits(i)));
        assert!(bits(&out.logits) == bits(&expected), "lost in layer {layer}: batch mates change");
        assert!(slot_is_zero(&*executor, ChunkId(2)), "KV of lost rows stays");
        // The first six slots of chunk 1 were valid before the step and are not the lost rows'.
        assert!(!slot_is_zero(&*executor, ChunkId(1)));

        // What both share: nobody is left.
        let mut executor = start();
        let out = step(&mut *executor, &both, &Loses { layer, chunk: ChunkId(0) });
        assert!(out.outcomes.iter().all(|o| *o == RowOutcome::Lost(ChunkId(0))) && out.logits.is_empty());
        assert!(slot_is_zero(&*executor, ChunkId(2)) && slot_is_zero(&*executor, ChunkId(11)));
        // The step can be repeated.
        let again = step(&mut *executor, &both, &AllResident);
        assert!(bits(&again.logits) == bits(&intact.logits));
    }

    // A chunk that arrives and is not needed by some row costs that row nothing.
    let mut alone: StepPlan = plan(&parts[1..], false);
    alone.arriving = vec![ChunkId(1)];
    let out = step(&mut *start(), &alone, &Loses { layer: 0, chunk: ChunkId(1) });
    assert!(bits(&out.logits) == bits(&expected));
}

fn a_lost_source_takes_its_copy(make: Make) {
    let vocab = make().info().vocab;
    let ids = tokens(9, 40, vocab);
    let mut executor = make();
    logits(&mut *executor, &ids, &[], 40);
    let mate = tokens(30, 20, vocab);
    let (copy_path, mate_path) = (path(5, 40), path(6, 20));
    let parts = [
        Part { tokens: &ids, path: &copy_path, rows: 30..40, write_from: 0, logits_from: 0 },
        Part { tokens: &mate, path: &mate_path, rows: 0..20, write_from: 0, logits_from: 0 },
    ];
    let mut fork = plan(&parts, false);
    fork.prepare = zeroes(&[ChunkId(5), ChunkId(6)]);
    fork.prepare.push(Prepare::Copy { from: ChunkId(0), to: ChunkId(5), n: 30 });
    fork.arriving = vec![ChunkId(0)];
    let last = executor.info().layout.layers.len() - 1;
    let out = step(&mut *executor, &fork, &Loses { layer: last, chunk: ChunkId(0) });
    assert!(out.outcomes[..10].iter().all(|o| *o == RowOutcome::Lost(ChunkId(0))));
    assert!(slot_is_zero(&*executor, ChunkId(5)));
    assert!(bits(&out.logits) == bits(&logits(&mut *make(), &mate, &[], 0)));
}
