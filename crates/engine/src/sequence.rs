use std::sync::Arc;

use kvist_base::{CHUNK, ChunkId, Constraint, DomainId, Micros, TokenId};
use kvist_cache::Path;
use kvist_cache::policy::Visit;

use crate::adjust::Seen;
use crate::carry::Carry;
use crate::request::{Request, RequestId, Timings, TokenLogprobs, Usage};

/// One choice of a request, or, before the first token, the prompt that all its choices share.
pub struct Sequence {
    pub id: RequestId,
    pub choice: u32,
    /// Whose work it is.
    pub owner: DomainId,
    /// Where its KV is: the owner's, or the namespace of a carried path.
    pub domain: DomainId,
    pub carry: Option<Arc<Carry>>,
    /// Prompt and everything drawn so far. The last token drawn has no KV yet.
    pub tokens: Vec<TokenId>,
    /// What the penalties look at, made of `tokens` when the next one is drawn; none while waiting.
    pub seen: Option<Seen>,
    /// The part of `tokens` whose KV the tree holds, pinned. Empty while waiting.
    pub path: Path,
    /// Next token whose row is to run.
    pub pos: usize,
    /// Order of first admission; the youngest is preempted first.
    pub seniority: Option<u64>,
    pub arrival: Micros,
    /// Order of arrival, unique.
    pub number: u64,
    /// What the tree would save, at the last look.
    pub cached_guess: usize,
    /// When it will be served next to others, in units of 16 ms, which last for two years; 0 for who was preempted.
    pub rank: u32,
    /// Times that a lost chunk threw it back since it last got further than ever.
    pub setbacks: u32,
    pub furthest: usize,
    /// It was part of a step that broke; runs by itself until a step succeeds.
    pub suspect: bool,
    /// While it waits: what the tier has for it is on its way.
    pub read_ahead: bool,
    /// The tier was told that it wants what is there for it.
    pub wants: bool,
    /// What it loaded came too slowly: it computes the rest itself.
    pub computes: bool,
    /// Stands after the last token drawn, whatever rows are still to run: setbacks and preemption do not move it.
    pub constraint: Option<Box<dyn Constraint>>,
    pub step: StepRows,
}

/// Rows of a sequence in the step that is being planned or run.
#[derive(Default)]
pub struct StepRows {
    /// Rows for tokens `[pos, pos + n)`.
    pub n: usize,
    pub claims: Vec<ClaimedRows>,
    /// Index in the plan of the first row.
    pub first_row: usize,
}

impl StepRows {
    /// No rows; what lists them is kept.
    pub fn clear(&mut self) {
        (self.first_row, self.n) = (0, 0);
        self.claims.clear();
    }
}

/// Rows whose KV is written, to consecutive slots of one chunk.
pub struct ClaimedRows {
    /// Position of the first.
    pub pos: usize,
    pub chunk: ChunkId,
    pub slot: usize,
    pub n: usize,
}

impl Sequence {
    /// What stands for a sequence while it is elsewhere.
    pub fn vacant() -> Sequence {
        Sequence {
            id: RequestId(u64::MAX),
            choice: 0,
            owner: DomainId::PUBLIC,
            domain: DomainId::PUBLIC,
            carry: None,
            tokens: Vec::new(),
            seen: None,
            path: Path::default(),
            pos: 0,
            seniority: None,
            arrival: 0,
            number: u64::MAX,
            cached_guess: 0,
            rank: 0,
            setbacks: 0,
            furthest: 0,
            suspect: false,
            read_ahead: false,
            wants: false,
            computes: false,
            constraint: None,
            step: StepRows::default(),
        }
    }

    /// Rows that are still to run before a token can be drawn.
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.pos
    }

    /// Tokens that must be left for some of them to be brought: for the last chunk of an exact path nothing is loaded. That
    /// of a carried path is, since its KV does not follow from its tokens: computed, it would be another.
    pub fn least_brought(&self) -> usize {
        CHUNK + usize::from(self.carry.is_none())
    }

    /// Name of a waiting sequence's claim to protection from eviction.
    pub fn ticket(&self) -> u64 {
        self.number << 16 | u64::from(self.choice)
    }

    /// Unique among sequences.
    pub fn key(&self) -> (RequestId, u32) {
        (self.id, self.choice)
    }
}

/// What the choices of a request share.
pub struct RequestState {
    /// The request; its prompt has moved into the sequences.
    pub request: Request,
    pub prompt: usize,
    /// What the tree saw when it came.
    pub visit: Visit,
    pub submitted: Micros,
    pub admitted: Option<Micros>,
    pub first_token: Option<Micros>,
    /// Choices not finished yet.
    pub open: u32,
    /// Whether the choices have parted.
    pub forked: bool,
    /// Prompt positions below this were computed or found: a resumed prompt is not counted twice.
    pub counted: usize,
    pub computed: u32,
    /// Prompt tokens not yet counted that loads were begun for, for this request.
    pub loaded: u32,
    pub generated: u32,
    pub preemptions: u32,
    pub scores: Vec<Option<TokenLogprobs>>,
}

impl RequestState {
    /// Whether every prompt token needs logits, cached or not.
    pub fn scoring(&self) -> bool {
        self.request.prompt_logprobs.is_some() && !self.forked
    }

    pub fn usage(&self, now: Micros) -> Usage {
        let admitted = self.admitted.unwrap_or(now);
        let first = self.first_token.unwrap_or(now);
        let cached = self.counted as u32 - self.computed;
        Usage {
            prompt: self.prompt as u32,
            cached,
            loaded: self.loaded.min(cached),
            generated: self.generated,
            preemptions: self.preemptions,
            timings: Timings {
                queued: admitted.saturating_sub(self.submitted),
                prefill: first.saturating_sub(admitted),
                decode: now.saturating_sub(first),
            },
        }
    }
}
