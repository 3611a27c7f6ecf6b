//! The engine thread. It owns the engine, the executor and nothing else that blocks: requests come in over a bounded
//! channel, effects go out over bounded channels with `try_send`, so no reader can hold up a step.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use kvist_base::{AllResident, Clock, DomainId, Executor, Micros, Residency, StepOutput, TokenId};
use kvist_engine::{Carry, Effect, Engine, EngineStats, Finish, Prospect, Refusal, Request, RequestId};
use tokio::sync::{mpsc, oneshot};

use crate::keep::Keeper;
use crate::log::Log;
use crate::masks::{self, beside};
use crate::metrics::{Book, Ended};

/// Submissions that wait for the current step to end. The engine has a queue of its own behind it.
const INTAKE: usize = 1024;
/// How long the thread sleeps while the engine has requests but nothing to run.
const PAUSE: Duration = Duration::from_millis(5);
/// The same while something is on its way from the store.
const LOADING_PAUSE: Duration = Duration::from_micros(300);
/// How often an idle thread offers the store what it could not take.
const SAVE_AGAIN: Duration = Duration::from_millis(100);

/// What a request's reader is told. `prompt` is the place of the request in its [`Submission`].
#[derive(Debug)]
pub enum Event {
    /// All requests are queued.
    Accepted,
    /// None is; nothing else follows.
    Refused(Refusal),
    Effect {
        prompt: usize,
        effect: Effect,
    },
}

/// Requests that are taken or refused together and report to one reader.
struct Submission {
    requests: Vec<Request>,
    arrival: Micros,
    events: mpsc::Sender<Event>,
    control: Arc<Control>,
}

enum Command {
    Submit(Submission),
    /// What these tokens would find in the domain.
    Prospect(DomainId, Vec<TokenId>, Option<Arc<Carry>>, oneshot::Sender<Prospect>),
    /// Ends every request with `Finish::Cancelled`.
    CancelAll,
    Stop,
}

/// What a reader tells the engine thread besides going away. Unlike a message it cannot be lost to a full channel.
#[derive(Default)]
pub struct Control {
    /// Choices to end: (prompt, choice).
    cancels: Mutex<Vec<(usize, u32)>>,
    pending: AtomicBool,
    /// The reader fell so far behind that its requests were cancelled.
    overrun: AtomicBool,
}

impl Control {
    pub fn cancel_choice(&self, prompt: usize, choice: u32) {
        lock(&self.cancels).push((prompt, choice));
        self.pending.store(true, Ordering::Release);
    }

    pub fn overrun(&self) -> bool {
        self.overrun.load(Ordering::Acquire)
    }
}

/// The reader's end of a submission. Dropping it cancels what is not finished.
pub struct Ticket {
    pub events: mpsc::Receiver<Event>,
    pub control: Arc<Control>,
}

/// Why a submission did not reach the engine.
#[derive(Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// The intake is full.
    Busy,
    /// The engine thread has ended.
    Gone,
}

/// State that the engine thread publishes before it tells of it.
#[derive(Default)]
pub struct Shared {
    stats: Mutex<EngineStats>,
    book: Mutex<Book>,
    gone: AtomicBool,
}

impl Shared {
    pub fn stats(&self) -> EngineStats {
        lock(&self.stats).clone()
    }

    pub fn book(&self) -> Book {
        lock(&self.book).clone()
    }

    /// Whether the engine thread has ended, by request or by a fault.
    pub fn gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }
}

/// A started engine thread.
pub struct Runner {
    commands: SyncSender<Command>,
    pub shared: Arc<Shared>,
    buffer: usize,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Runner {
    /// Starts the thread. With a keeper the engine is one over its tier. `buffer` is the number of events that may wait
    /// for a reader, for each choice of its requests.
    pub fn start(
        engine: Engine,
        executor: Box<dyn Executor>,
        keeper: Option<Keeper>,
        clock: Arc<dyn Clock>,
        buffer: usize,
        log: Log,
    ) -> std::io::Result<Runner> {
        let (commands, intake) = sync_channel(INTAKE);
        let shared = Arc::new(Shared::default());
        *lock(&shared.stats) = engine.stats();
        let state = Loop {
            engine,
            executor,
            keeper,
            clock,
            shared: shared.clone(),
            log,
            output: StepOutput::default(),
            groups: BTreeMap::new(),
            owners: BTreeMap::new(),
            next_id: 0,
            next_group: 0,
        };
        let thread = std::thread::Builder::new()
            .name("kvist-engine".into())
            .stack_size(masks::STACK)
            .spawn(move || state.run(intake))?;
        Ok(Runner { commands, shared, buffer, thread: Mutex::new(Some(thread)) })
    }

    /// Hands over requests; their ids are given by the engine thread. The first event says whether they were taken.
    /// With `streamed` the reader waits for a client, so what may wait for it is bounded; otherwise everything may.
    pub fn submit(&self, requests: Vec<Request>, arrival: Micros, streamed: bool) -> Result<Ticket, Unavailable> {
        let all = |r: &Request| r.n as usize * (r.max_tokens as usize + 1) + 2;
        let some = |r: &Request| r.n as usize * self.buffer;
        let room: usize = requests.iter().map(|r| if streamed { all(r).min(some(r)) } else { all(r) }).sum();
        let (sender, events) = mpsc::channel(room + 1);
        let control = Arc::new(Control::default());
        let submission = Submission { requests, arrival, events: sender, control: control.clone() };
        self.command(Command::Submit(submission))?;
        Ok(Ticket { events, control })
    }

    /// What these tokens would find in the domain, or as a carried path, after the step in flight.
    pub fn prospect(
        &self,
        domain: DomainId,
        tokens: Vec<TokenId>,
        carry: Option<Arc<Carry>>,
    ) -> Result<oneshot::Receiver<Prospect>, Unavailable> {
        let (sender, answer) = oneshot::channel();
        self.command(Command::Prospect(domain, tokens, carry, sender))?;
        Ok(answer)
    }

    fn command(&self, command: Command) -> Result<(), Unavailable> {
        self.commands.try_send(command).map_err(|e| match e {
            TrySendError::Full(_) => Unavailable::Busy,
            TrySendError::Disconnected(_) => Unavailable::Gone,
        })
    }

    /// Ends every request; their readers are told.
    pub fn cancel_all(&self) {
        // Blocks only while the intake is full, which the next step empties.
        let _ = self.commands.send(Command::CancelAll);
    }

    /// Ends the thread after the step in flight and waits for it.
    pub fn stop(&self) {
        let _ = self.commands.send(Command::Stop);
        if let Some(thread) = lock(&self.thread).take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The requests of one submission that are not done.
struct Group {
    events: mpsc::Sender<Event>,
    control: Arc<Control>,
    arrival: Micros,
    members: Vec<RequestId>,
    open: usize,
}

/// Where a request's effects go, and when its choices last drew a token.
struct Owner {
    group: u64,
    prompt: usize,
    last_token: Vec<Option<Micros>>,
    /// Choices ended by their reader: a stop string was met.
    stopped: Vec<bool>,
    /// A choice came to its end.
    answered: bool,
}

struct Loop {
    engine: Engine,
    executor: Box<dyn Executor>,
    keeper: Option<Keeper>,
    clock: Arc<dyn Clock>,
    shared: Arc<Shared>,
    log: Log,
    output: StepOutput,
    groups: BTreeMap<u64, Group>,
    owners: BTreeMap<RequestId, Owner>,
    next_id: u64,
    next_group: u64,
}

impl Loop {
    fn run(mut self, intake: Receiver<Command>) {
        let ended = catch_unwind(AssertUnwindSafe(|| while self.turn(&intake) {}));
        self.shared.gone.store(true, Ordering::Release);
        if ended.is_err() {
            (self.log)("error: the engine thread panicked; the server can only be restarted");
        }
    }

    /// One round: take in, step, give out. False ends the thread.
    fn turn(&mut self, intake: &Receiver<Command>) -> bool {
        if self.engine.is_idle() {
            let waits = self.keeper.as_ref().is_some_and(|keeper| keeper.waits(&self.engine));
            let command = if waits { intake.recv_timeout(SAVE_AGAIN) } else { intake.recv().map_err(Into::into) };
            match command {
                Ok(command) => {
                    if !self.take(command) {
                        return false;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return false,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        while let Ok(command) = intake.try_recv() {
            if !self.take(command) {
                return false;
            }
        }
        self.reap();
        if !self.step() && !self.engine.is_idle() {
            std::thread::sleep(if self.engine.is_loading() { LOADING_PAUSE } else { PAUSE });
        }
        if let Some(keeper) = &mut self.keeper {
            keeper.save(&mut self.engine, &*self.executor, self.clock.now());
        }
        self.deliver();
        true
    }

    fn publish(&self) {
        *lock(&self.shared.stats) = self.engine.stats();
    }

    fn take(&mut self, command: Command) -> bool {
        match command {
            Command::Submit(submission) => self.submit(submission),
            Command::Prospect(domain, tokens, carry, answer) => {
                // Who asked may have left.
                let _ = answer.send(self.engine.prospect(domain, &tokens, carry.as_deref()));
            }
            Command::CancelAll => {
                let now = self.clock.now();
                let ids: Vec<RequestId> = self.owners.keys().copied().collect();
                ids.into_iter().for_each(|id| self.engine.cancel(now, id));
            }
            Command::Stop => return false,
        }
        true
    }

    fn submit(&mut self, submission: Submission) {
        let Submission { requests, arrival, events, control } = submission;
        let now = self.clock.now();
        let group = self.next_group;
        self.next_group += 1;
        let mut members = Vec::new();
        for (prompt, mut request) in requests.into_iter().enumerate() {
            let id = RequestId(self.next_id);
            self.next_id += 1;
            request.id = id;
            let choices = request.n as usize;
            if let Err(refusal) = self.engine.submit(now, request) {
                *lock(&self.shared.book).refused.entry(reason(&refusal)).or_default() += 1;
                for id in members {
                    self.owners.remove(&id);
                    self.engine.cancel(now, id);
                }
                let _ = events.try_send(Event::Refused(refusal));
                return;
            }
            members.push(id);
            let (last_token, stopped) = (vec![None; choices], vec![false; choices]);
            let owner = Owner { group, prompt, last_token, stopped, answered: false };
            self.owners.insert(id, owner);
        }
        self.publish();
        let _ = events.try_send(Event::Accepted);
        let open = members.len();
        self.groups.insert(group, Group { events, control, arrival, members, open });
    }

    /// Cancels what nobody reads any more, and choices whose readers want no more of them.
    fn reap(&mut self) {
        let now = self.clock.now();
        for group in self.groups.values() {
            if group.events.is_closed() {
                group.members.iter().for_each(|&id| self.engine.cancel(now, id));
            } else if group.control.pending.swap(false, Ordering::Acquire) {
                for (prompt, choice) in std::mem::take(&mut *lock(&group.control.cancels)) {
                    let id = group.members[prompt];
                    if let Some(owner) = self.owners.get_mut(&id) {
                        owner.stopped[choice as usize] = true;
                        self.engine.cancel_choice(now, id, choice);
                    }
                }
            }
        }
    }

    /// Runs one step if there is one. A panic in the executor costs the step, not the server.
    fn step(&mut self) -> bool {
        if self.engine.plan(self.clock.now()).is_none() {
            return false;
        }
        let (plan, constraints) = self.engine.in_step();
        lock(&self.shared.book).iteration.observe(plan.rows.len() as f64);
        let residency: &dyn Residency = self.keeper.as_ref().map_or(&AllResident, |keeper| keeper.tier());
        let run = || beside(constraints, || self.executor.step(plan, residency, &mut self.output));
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(()) => {
                let executor = &self.executor;
                self.engine.complete_with(self.clock.now(), &self.output, &|n, piece| executor.run(n, piece));
            }
            Err(_) => {
                (self.log)("error: a step panicked; its requests are run again one by one");
                lock(&self.shared.book).step_panics += 1;
                self.output = StepOutput::default();
                self.engine.abort_step(self.clock.now());
            }
        }
        true
    }

    /// Gives out all effects, those of cancels made here included: when the engine is idle nothing is left over.
    fn deliver(&mut self) {
        loop {
            let effects = self.engine.take_effects();
            // First, so that whoever reads an effect finds it counted.
            self.publish();
            if effects.is_empty() {
                return;
            }
            self.give_out(effects);
        }
    }

    fn give_out(&mut self, effects: Vec<Effect>) {
        let now = self.clock.now();
        let shared = self.shared.clone();
        let mut book = lock(&shared.book);
        for effect in effects {
            let id = id_of(&effect);
            let Some(owner) = self.owners.get_mut(&id) else { continue };
            let Some(group) = self.groups.get_mut(&owner.group) else { continue };
            record(&mut book, owner, group.arrival, now, &effect);
            let (key, prompt) = (owner.group, owner.prompt);
            let done = matches!(effect, Effect::Done { .. });
            // After a gap nothing more is sent: the reader finds the channel closed, and why in `control`.
            if !group.control.overrun()
                && let Err(mpsc::error::TrySendError::Full(_)) = group.events.try_send(Event::Effect { prompt, effect })
            {
                group.control.overrun.store(true, Ordering::Release);
                book.slow_readers += 1;
                group.members.iter().for_each(|&id| self.engine.cancel(now, id));
            }
            if done {
                self.owners.remove(&id);
                group.open -= 1;
                if group.open == 0 {
                    self.groups.remove(&key);
                }
            }
        }
    }
}

fn record(book: &mut Book, owner: &mut Owner, arrival: Micros, now: Micros, effect: &Effect) {
    match effect {
        Effect::Token { choice, .. } => {
            let first = owner.last_token.iter().all(Option::is_none);
            match owner.last_token[*choice as usize].replace(now) {
                Some(before) => book.itl.observe_micros(now.saturating_sub(before)),
                None if first => book.ttft.observe_micros(now.saturating_sub(arrival)),
                None => {}
            }
        }
        Effect::Finished { choice, reason, .. } => {
            let ended = match reason {
                Finish::Stop(_) | Finish::Complete => Ended::Stop,
                Finish::Length => Ended::Length,
                Finish::Cancelled if owner.stopped[*choice as usize] => Ended::Stop,
                Finish::Cancelled => Ended::Abort,
                Finish::Constraint(_) | Finish::Error(_) => Ended::Error,
            };
            book.ended[ended as usize] += 1;
            owner.answered |= matches!(ended, Ended::Stop | Ended::Length);
        }
        // A request that was dropped or failed says nothing about how long answers take or what its prompt cost.
        Effect::Done { usage, .. } if owner.answered => {
            book.done(usage, now.saturating_sub(arrival), owner.last_token.len() as u32);
        }
        Effect::Done { .. } | Effect::PromptLogprobs { .. } => {}
    }
}

fn id_of(effect: &Effect) -> RequestId {
    match effect {
        Effect::Token { id, .. }
        | Effect::PromptLogprobs { id, .. }
        | Effect::Finished { id, .. }
        | Effect::Done { id, .. } => *id,
    }
}

fn reason(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::TooLong { .. } => "too_long",
        Refusal::NeverFits { .. } => "never_fits",
        Refusal::QueueFull { .. } => "queue_full",
        Refusal::Invalid { .. } => "invalid",
    }
}

/// A panic while a lock was held leaves at worst a number that is one step old.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
