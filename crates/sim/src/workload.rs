//! Random requests that share prefixes at every depth, with lengths where bugs live.

use std::sync::Arc;

use kvist_base::{CHUNK, DomainId, Micros, TokenId};
use kvist_engine::{Carry, CarrySource, Edits, Request, RequestId, Sampling};

use crate::constraint::SimConstraint;
use crate::random::Random;

/// A request and when it comes.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub at: Micros,
    pub request: Request,
}

/// Bounds of a random workload.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    pub requests: usize,
    pub domains: u32,
    pub vocab: usize,
    /// Prompt and generated tokens together stay below this.
    pub context: usize,
    pub max_n: u32,
    /// Mean time between arrivals.
    pub gap: Micros,
    /// Constraints carry a deliberate bug.
    pub broken_constraints: bool,
    /// Percent of the requests that go on with a conversation behind a cut.
    pub carried: usize,
}

/// A whole conversation, and a cut that was made of it.
struct Cut {
    owner: DomainId,
    start: usize,
    end: usize,
    ids: Vec<TokenId>,
    space: DomainId,
}

/// Lengths around every border that the tree and the kernels have.
const LENGTHS: [usize; 12] = [1, 2, 63, 64, 65, 127, 128, 129, 20, 200, 511, 513];

impl Workload {
    pub fn generate(&self, random: &mut Random) -> Vec<Arrival> {
        let mut at = 0;
        let mut prompts: Vec<Vec<TokenId>> = Vec::new();
        let (mut wholes, mut cuts) = (Vec::new(), Vec::new());
        (0..self.requests)
            .map(|id| {
                at += random.below(2 * self.gap as usize + 1) as Micros;
                if random.chance(self.carried)
                    && let Some(request) = self.carried(random, &mut wholes, &mut cuts)
                {
                    // What is left may come as an exact path, too.
                    prompts.push(request.prompt.clone());
                    return Arrival { at, request: Request { id: RequestId(id as u64), ..request } };
                }
                let prompt = self.prompt(random, &prompts);
                prompts.push(prompt.clone());
                let most = self.context - prompt.len();
                let max_tokens = random.pick(&[0, 1, 2, 5, 40, 70, 130]).min(most) as u32;
                let request = Request {
                    carry: None,
                    id: RequestId(id as u64),
                    domain: DomainId(2 + random.below(self.domains as usize) as u32),
                    prompt,
                    n: if random.chance(80) { 1 } else { 1 + random.below(self.max_n as usize) as u32 },
                    max_tokens,
                    sampling: Sampling {
                        temperature: random.pick(&[0.0, 0.0, 0.8]),
                        top_k: random.pick(&[0, 5]),
                        top_p: random.pick(&[1.0, 0.9]),
                        min_p: random.pick(&[0.0, 0.0, 0.1]),
                        repetition_penalty: random.pick(&[1.0, 1.0, 1.0, 1.3]),
                        presence_penalty: random.pick(&[0.0, 0.0, 0.0, 0.5]),
                        frequency_penalty: random.pick(&[0.0, 0.0, 0.0, -0.2]),
                        seed: random.word(),
                    },
                    edits: edits(random),
                    stop_tokens: if random.chance(40) { vec![] } else { vec![0] },
                    constraint: random
                        .chance(30)
                        .then(|| Box::new(SimConstraint::new(random.word(), self.broken_constraints)) as _),
                    logprobs: random.pick(&[None, Some(2)]),
                    prompt_logprobs: if random.chance(10) { Some(1) } else { None },
                    priority: if random.chance(20) { random.below(3) as i32 - 1 } else { 0 },
                    ttft_slo: if random.chance(10) { Some(200_000) } else { None },
                };
                wholes.push((request.domain, request.prompt.clone()));
                Arrival { at, request }
            })
            .collect()
    }

    /// What is left behind a cut of an earlier conversation, which goes on. `None`: no cut of it leaves what fits.
    fn carried(
        &self,
        random: &mut Random,
        wholes: &mut Vec<(DomainId, Vec<TokenId>)>,
        cuts: &mut Vec<Cut>,
    ) -> Option<Request> {
        let pick = random.below(wholes.len().max(1));
        let (owner, mut ids) = wholes.get(pick)?.clone();
        let more = random.pick(&[0, 1, 64, 100, 200]);
        ids.extend((0..more).map(|_| random.below(self.vocab) as TokenId));
        // Mostly where the last one began, so that it moves.
        let same = cuts.iter().rev().find(|cut| cut.owner == owner && ids.starts_with(&cut.ids));
        let start = same.filter(|_| random.chance(80)).map_or_else(|| random.pick(&[0, 4, 64, 100]), |cut| cut.start);
        let end = start + random.pick(&[64, 100, 128, 200, 400]);
        if end >= ids.len() {
            return None;
        }
        let until = ids[..end / CHUNK * CHUNK].to_vec();
        let known = |cut: &&Cut| (cut.owner, cut.start, cut.end) == (owner, start, end) && cut.ids == until;
        let space = match cuts.iter().find(known) {
            Some(cut) => cut.space,
            None => DomainId::carried(cuts.len() as u32),
        };
        let (mut carry, prompt) = Carry::new(&ids, start, end, space)?;
        if prompt.len() > self.context * 3 / 4 {
            return None;
        }
        for cut in cuts.iter().filter(|cut| (cut.owner, cut.start) == (owner, start) && cut.end < end) {
            if let Some((earlier, tokens)) =
                Carry::new(&ids, start, cut.end, cut.space).filter(|_| ids.starts_with(&cut.ids))
            {
                let shift = carry.shift - earlier.shift;
                carry.sources.push(CarrySource { space: cut.space, tokens: tokens.into(), shift });
            }
        }
        carry.sources.reverse();
        carry.sources.push(CarrySource { space: owner, tokens: ids.as_slice().into(), shift: carry.shift });
        if !cuts.iter().any(|cut| cut.space == space) {
            cuts.push(Cut { owner, start, end, ids: until, space });
        }
        wholes.push((owner, ids));
        let most = random.pick(&[1, 5, 40, 130]).min(self.context - prompt.len()) as u32;
        let n = if random.chance(80) { 1 } else { 1 + random.below(self.max_n as usize) as u32 };
        let request = Request::greedy(RequestId(0), owner, prompt, most);
        Some(Request { carry: Some(Arc::new(carry)), n, ..request })
    }

    fn prompt(&self, random: &mut Random, earlier: &[Vec<TokenId>]) -> Vec<TokenId> {
        let mut prompt = Vec::new();
        if !earlier.is_empty() && random.chance(75) {
            let base = &earlier[random.below(earlier.len())];
            let keep = if random.chance(30) { base.len() } else { random.pick(&LENGTHS).min(base.len()) };
            prompt.extend_from_slice(&base[..keep]);
        }
        let more = if random.chance(20) { 0 } else { random.pick(&LENGTHS) };
        prompt.extend((0..more).map(|_| random.below(self.vocab) as TokenId));
        prompt.truncate(self.context * 3 / 4);
        if prompt.is_empty() {
            prompt.push(random.below(self.vocab) as TokenId);
        }
        prompt
    }
}

/// Mostly none. Whatever is masked, tokens 2 to 4 can be drawn.
fn edits(random: &mut Random) -> Arc<Edits> {
    let some = |random: &mut Random| random.chance(15);
    Arc::new(Edits {
        bias: if some(random) { vec![(0, 3.0), (1, -100.0), (2, 0.5)] } else { vec![] },
        allowed: some(random).then(|| vec![5, 4, 3, 2, 1, 0]),
        bad_words: if some(random) { vec![vec![1], vec![2, 5], vec![5, 5, 5]] } else { vec![] },
        min_tokens: if some(random) { random.pick(&[1, 3, 50]) } else { 0 },
    })
}
