//! Chunks that stand in another place than where they were computed.

mod common;

use common::{dir, load};
use kvist_base::{AllResident, ChunkId, Executor, Prepare, Row, Run, RunList, StepPlan};
use kvist_kernels::Isa;
use kvist_model::OracleExecutor;
use kvist_model::testing::{Part, logits, plan, step};

/// One row that sees all of some chunks: (chunk, place, shift).
fn row(position: u32, seen: &[(u32, u32, u32)]) -> StepPlan {
    let mut list = RunList::default();
    for (i, &(chunk, place, shift)) in seen.iter().enumerate() {
        list.chunks.push(ChunkId(chunk));
        list.runs.push(Run { rows: 0..1, place, chunks: i as u32..i as u32 + 1, shift, masks: None });
    }
    let row = Row { token: 7, position, shift: 0, write: None, logits: true };
    StepPlan { rows: vec![row], classes: vec![list], ..StepPlan::default() }
}

/// A moved chunk and a moved row see each other as before.
#[test]
fn a_shift_is_a_rotation() {
    let model = load(&dir("llama3"));
    let ids: Vec<u32> = (0..256).map(|i| i * 7 % 500).collect();
    let mut executors: Vec<Box<dyn Executor>> = vec![Box::new(OracleExecutor::new(&dir("llama3"), 8, None).unwrap())];
    for isa in Isa::available() {
        executors.push(Box::new(model.clone().into_executor(8, None, isa, 2).unwrap()));
    }
    let mut mixed: Vec<Vec<f32>> = Vec::new();
    for executor in &mut executors {
        logits(&mut **executor, &ids, &[], 256);
        let mut run = |plan| step(&mut **executor, &plan, &AllResident).logits;
        let there = run(row(256, &[(2, 2, 0), (3, 3, 0)]));
        assert!(run(row(192, &[(2, 1, 64), (3, 2, 64)])) == there);
        assert!(run(row(128, &[(2, 0, 128), (3, 1, 128)])) == there);
        assert!(run(row(192, &[(2, 1, 0), (3, 2, 0)])) != there);
        mixed.push(run(row(192, &[(0, 0, 0), (2, 1, 64), (1, 2, 0)])));
    }
    for other in &mixed[1..] {
        let error = mixed[0].iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(error < 0.1, "{error}");
    }
}

/// Rows that are born elsewhere than where they stand, and read with that shift, see each other as if both were one.
#[test]
fn rows_are_born_where_their_shift_says() {
    let model = load(&dir("llama3"));
    let ids: Vec<u32> = (0..100).map(|i| i * 7 % 500).collect();
    let mut executors: Vec<Box<dyn Executor>> = vec![Box::new(OracleExecutor::new(&dir("llama3"), 8, None).unwrap())];
    for isa in Isa::available() {
        executors.push(Box::new(model.clone().into_executor(8, None, isa, 2).unwrap()));
    }
    for executor in &mut executors {
        let path = kvist_model::testing::path(0, ids.len());
        let mut run = |birth: u32, read: u32| {
            let part = Part { tokens: &ids, path: &path, rows: 0..ids.len(), write_from: 0, logits_from: 99 };
            let mut plan = plan(&[part], false);
            plan.prepare = path.iter().map(|&chunk| Prepare::Zero(chunk)).collect();
            plan.rows.iter_mut().for_each(|row| row.shift = birth);
            plan.classes[0].runs.iter_mut().for_each(|run| run.shift = read);
            step(&mut **executor, &plan, &AllResident).logits
        };
        let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let there = run(0, 0);
        assert!(distance(&run(128, 128), &there) < 0.1, "{}", distance(&run(128, 128), &there));
        assert!(distance(&run(128, 0), &there) > 0.2, "{}", distance(&run(128, 0), &there));
    }
}

#[test]
fn a_step_without_rows() {
    let plan = StepPlan { prepare: vec![kvist_base::Prepare::Zero(ChunkId(0))], ..StepPlan::default() };
    let with_class = StepPlan { classes: vec![RunList::default()], ..plan.clone() };
    let mut oracle = OracleExecutor::new(&dir("llama3"), 2, None).unwrap();
    let mut cpu = load(&dir("llama3")).into_executor(2, None, Isa::detect(), 2).unwrap();
    for plan in [plan, with_class] {
        for executor in [&mut oracle as &mut dyn Executor, &mut cpu] {
            assert!(step(executor, &plan, &AllResident).logits.is_empty());
        }
    }
}
