//! The engine and its executor in one thread, for everything that is not a server.

use std::sync::Arc;

use kvist_base::{AllResident, Clock, Executor, Micros, Prepare, Residency, RowOutcome, StepOutput, StepPlan};
use kvist_engine::{Effect, Engine, EngineConfig, Refusal, Request, RequestId};
use kvist_server::Keeper;
use kvist_store::StoreTier;

pub struct Driver {
    pub engine: Engine,
    pub executor: Box<dyn Executor>,
    /// Between the engine and the store, if there is one.
    pub keeper: Option<Keeper>,
    config: EngineConfig,
    clock: Arc<dyn Clock>,
    output: StepOutput,
    next: u64,
}

/// One step that was run.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub rows: usize,
    /// Rows whose logits were wanted.
    pub logits: usize,
    /// Time in the executor.
    pub took: Micros,
}

impl Driver {
    pub fn new(config: EngineConfig, executor: Box<dyn Executor>, clock: Arc<dyn Clock>) -> Self {
        let engine = Engine::new(config.clone(), executor.info().clone());
        Driver { engine, executor, keeper: None, config, clock, output: StepOutput::default(), next: 0 }
    }

    /// The same over a store, with a new engine.
    pub fn over(mut self, tier: StoreTier) -> Self {
        self.restart(Some(tier));
        self
    }

    /// A new engine with an empty tree, as after a restart.
    pub fn restart(&mut self, tier: Option<StoreTier>) {
        let config = EngineConfig { saves: tier.is_some(), ..self.config.clone() };
        let engine = Engine::new(config, self.executor.info().clone());
        self.engine = match &tier {
            Some(tier) => engine.with_tier(Box::new(tier.clone())),
            None => engine,
        };
        self.keeper = tier.map(Keeper::new);
    }

    /// Submits a request under an id of its own.
    pub fn submit(&mut self, mut request: Request) -> Result<RequestId, Refusal> {
        request.id = RequestId(self.next);
        self.next += 1;
        let id = request.id;
        self.engine.submit(self.clock.now(), request)?;
        Ok(id)
    }

    pub fn now(&self) -> Micros {
        self.clock.now()
    }

    /// Runs one step, if there is one.
    pub fn step(&mut self) -> Option<Step> {
        let plan = self.engine.plan(self.clock.now())?;
        let (rows, logits) = (plan.rows.len(), plan.rows.iter().filter(|row| row.logits).count());
        let start = self.clock.now();
        let residency: &dyn Residency = self.keeper.as_ref().map_or(&AllResident, |keeper| keeper.tier());
        self.executor.step(plan, residency, &mut self.output);
        let end = self.clock.now();
        let executor = &self.executor;
        self.engine.complete_with(end, &self.output, &|n, piece| executor.run(n, piece));
        if let Some(keeper) = &mut self.keeper {
            keeper.save(&mut self.engine, &*self.executor, end);
        }
        Some(Step { rows, logits, took: end - start })
    }

    /// Runs one step, if there is one, without computing it: chunks are made zero, all rows count as done, all logits are
    /// zero. For measurements of what comes after a long prompt, whose time does not depend on what the KV says.
    pub fn skim(&mut self) -> bool {
        let Some(plan) = self.engine.plan(self.clock.now()) else { return false };
        let mut prepare = plan.prepare.clone();
        prepare.extend(plan.seals.iter().map(|seal| Prepare::Zero(seal.to)));
        let mut wanted = 0;
        let outcome = |logits: bool| {
            wanted += u32::from(logits);
            if logits { RowOutcome::Logits(wanted - 1) } else { RowOutcome::Done }
        };
        let outcomes: Vec<RowOutcome> = plan.rows.iter().map(|row| row.logits).map(outcome).collect();
        let rowless = StepPlan { prepare, ..StepPlan::default() };
        self.executor.step(&rowless, &AllResident, &mut self.output);
        self.output.outcomes = outcomes;
        self.output.logits.clear();
        self.output.logits.resize(wanted as usize * self.executor.info().vocab, 0.0);
        self.engine.complete(self.clock.now(), &self.output);
        true
    }

    /// The same with other bounds.
    pub fn restart_with(&mut self, config: EngineConfig) {
        self.config = config;
        self.restart(None);
    }

    pub fn take_effects(&mut self) -> Vec<Effect> {
        self.engine.take_effects()
    }

    /// Ends a request.
    pub fn cancel(&mut self, id: RequestId) {
        self.engine.cancel(self.clock.now(), id);
    }
}
