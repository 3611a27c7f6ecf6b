use kvist_base::Micros;
use kvist_cache::policy::Order;

/// Every bound of the scheduler; the operator sees and sets them.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Sequences that run at once (rows of a decode step).
    pub max_batch: usize,
    /// Requests that wait at most.
    pub max_queue: usize,
    /// Choices of one request at most.
    pub max_n: u32,
    /// Rows of one step at most.
    pub max_step_rows: usize,
    /// Prompt tokens at most that one step scores (`prompt_logprobs`). A step has at most `max_batch` rows of logits
    /// besides, and each row takes vocabulary x 4 bytes.
    pub max_logit_rows: usize,
    /// Inter-token latency that mixed steps aim at: prefill shrinks to meet it while anyone decodes.
    pub itl_target: Micros,
    /// Prefill rows of a mixed step at least, so that prompts always advance, or fewer where these would take more than
    /// a quarter of `itl_target`; at most half of `max_step_rows`. `max_batch` is cut to what these leave of a step.
    pub min_prefill_rows: usize,
    /// Who waited this long goes first, in order of arrival, whatever its priority.
    pub overdue: Micros,
    /// Lists every stored chunk that a step reads as arriving, so that the [`kvist_base::Residency`] is asked for
    /// it. For executors whose slices load while layers compute, and for fault tests.
    pub ask_residency: bool,
    /// Keeps whole chunks in mind until they are saved: see [`crate::Engine::unsaved`].
    pub saves: bool,
    /// What the tree evicts first of what no waiting request wants.
    pub order: Order,
    /// Whether what waiting requests want is kept, and read ahead from a tier.
    pub look_ahead: bool,
}

impl Default for EngineConfig {
    fn default() -> Self {
        EngineConfig {
            max_batch: 64,
            max_queue: 512,
            max_n: 16,
            max_step_rows: 512,
            max_logit_rows: 64,
            itl_target: 100_000,
            min_prefill_rows: 16,
            overdue: 20_000_000,
            ask_residency: false,
            saves: false,
            order: Order::default(),
            look_ahead: true,
        }
    }
}
