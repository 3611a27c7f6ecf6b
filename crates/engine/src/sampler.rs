//! Drawing a token from a row of logits, reproducibly.

use kvist_base::TokenId;

use crate::request::{Sampling, TokenLogprobs};
use crate::softmax;

/// Draws the token at `position` of `choice` from adjusted logits: by temperature, `min_p`, `top_k` and `top_p`, each
/// on what the one before left. `None` when the logits hold no finite maximum (a broken model, or all is masked).
///
/// Ties are broken by token id, and the random number is a hash of (seed, choice, position): the draw is a pure function
/// of its arguments.
pub fn sample(logits: &[f32], sampling: &Sampling, choice: u32, position: usize) -> Option<TokenId> {
    Weights::default().draw(logits, sampling, choice, position)
}

/// What a draw weighs tokens in. Kept from draw to draw: a vocabulary's worth of it is not to be had for nothing.
#[derive(Debug, Default)]
pub struct Weights {
    all: Vec<f32>,
    sums: Vec<f64>,
    likely: Vec<(TokenId, f32)>,
}

impl Weights {
    /// As [`sample`].
    pub fn draw(&mut self, logits: &[f32], sampling: &Sampling, choice: u32, position: usize) -> Option<TokenId> {
        let max = softmax::max(logits);
        if !max.is_finite() {
            return None;
        }
        if sampling.temperature <= 1e-5 || sampling.top_k == 1 {
            return logits.iter().position(|&x| x == max).map(|i| i as TokenId);
        }
        let scale = 1.0 / sampling.temperature;
        let u = uniform(sampling.seed, choice, position);
        let top_p = f64::from(sampling.top_p);
        let Weights { all, sums, likely } = self;
        if sampling.top_k > 0 && (sampling.top_k as usize) < logits.len() {
            softmax::likeliest(logits, sampling.top_k as usize, likely);
            likely.iter_mut().for_each(|k| k.1 = ((k.1 - max) * scale).exp());
            likely.retain(|k| k.1 > 0.0 && k.1 >= sampling.min_p);
            let total = likely.iter().map(|k| f64::from(k.1)).sum();
            return draw_nucleus(likely, total, top_p, u);
        }
        softmax::weights(logits, max, scale, all);
        if sampling.min_p > 0.0 {
            all.iter_mut().for_each(|w| *w = if *w >= sampling.min_p { *w } else { 0.0 });
        }
        softmax::block_sums(all, sums);
        let total: f64 = sums.iter().sum();
        if top_p >= 1.0 {
            return draw(all, sums, u * total);
        }
        // Together, what is below the floor has less than what top_p leaves out: the kept tokens are above it.
        let floor = ((1.0 - top_p) * total / all.len() as f64) as f32;
        likely.clear();
        likely.extend(all.iter().enumerate().filter(|w| *w.1 >= floor && *w.1 > 0.0).map(|(i, &w)| (i as TokenId, w)));
        let better = |a: &(TokenId, f32), b: &(TokenId, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let mut n = NUCLEUS;
        // Most often a few tokens are enough: not all are sorted for them.
        while n < likely.len() {
            likely.select_nth_unstable_by(n - 1, better);
            if likely[..n].iter().map(|k| f64::from(k.1)).sum::<f64>() >= top_p * total {
                likely.truncate(n);
            }
            n *= 8;
        }
        likely.sort_unstable_by(better);
        draw_nucleus(likely, total, top_p, u)
    }
}

/// Tokens that are tried first as those that `top_p` keeps.
const NUCLEUS: usize = 256;

/// Draws from the first tokens of a list, best first, whose weights reach `top_p` of `total`.
fn draw_nucleus(likely: &[(TokenId, f32)], total: f64, top_p: f64, u: f64) -> Option<TokenId> {
    let mut kept = 0.0;
    let wanted = if top_p < 1.0 { top_p * total } else { f64::INFINITY };
    let reached = likely.iter().position(|k| {
        kept += f64::from(k.1);
        kept >= wanted
    });
    let nucleus = &likely[..reached.map_or(likely.len(), |i| i + 1)];
    let mut sum = 0.0;
    let drawn = nucleus.iter().find(|k| {
        sum += f64::from(k.1);
        sum > u * kept
    });
    drawn.or(nucleus.last()).map(|k| k.0)
}

/// The token in whose share of the weights `target` falls. `sums` are those of the blocks.
fn draw(weights: &[f32], sums: &[f64], target: f64) -> Option<TokenId> {
    let mut before = 0.0;
    let last = |weights: &[f32]| weights.iter().rposition(|&w| w > 0.0);
    for (k, (block, &sum)) in weights.chunks(softmax::BLOCK).zip(sums).enumerate() {
        let mut reached = before;
        before += sum;
        if before > target {
            let at = block.iter().position(|&w| {
                reached += f64::from(w);
                reached > target
            });
            // The sum of a block is rounded otherwise than one token after the other.
            return at.or_else(|| last(block)).map(|i| (k * softmax::BLOCK + i) as TokenId);
        }
    }
    last(weights).map(|i| i as TokenId)
}

/// Log-probabilities of `token` and of the `top` most likely tokens.
pub fn logprobs(logits: &[f32], token: TokenId, top: usize) -> TokenLogprobs {
    let norm = softmax::log_sum_exp(logits, softmax::max(logits));
    let logprob = |x: f32| (f64::from(x) - norm) as f32;
    let own = logits[token as usize];
    let above = logits.iter().map(|&x| u32::from(x > own)).sum::<u32>();
    let equal = logits[..token as usize].iter().map(|&x| u32::from(x == own)).sum::<u32>();
    let mut likely = Vec::new();
    softmax::likeliest(logits, top, &mut likely);
    TokenLogprobs {
        token,
        logprob: logprob(own),
        rank: above + equal + 1,
        // By reference: collected from the vector itself, these few would keep the room of all that were looked at.
        top: likely.iter().map(|&(t, x)| (t, logprob(x))).collect(),
    }
}

/// Uniform in [0, 1) from a counter: three rounds of the splitmix64 finaliser.
fn uniform(seed: u64, choice: u32, position: usize) -> f64 {
    let mut h = seed;
    for word in [u64::from(choice), position as u64, 0x6b_7669_7374] {
        h = h.wrapping_add(word.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(0x9e37_79b9_7f4a_7c15);
        h = (h ^ (h >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        h = (h ^ (h >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        h ^= h >> 31;
    }
    (h >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 6] = [0.0, 1.0, 2.0, -1.0, 2.0, 0.5];
    const DRAW: Sampling = Sampling { temperature: 1.0, ..Sampling::GREEDY };

    fn probabilities(temperature: f32) -> Vec<f64> {
        let w: Vec<f64> = LOGITS.iter().map(|&x| (f64::from(x) / f64::from(temperature)).exp()).collect();
        let total: f64 = w.iter().sum();
        w.iter().map(|x| x / total).collect()
    }

    /// Pearson's statistic of 200,000 draws against the computed distribution; bound = far beyond p = 1e-6.
    fn check(sampling: Sampling, expected: &[f64], bound: f64) {
        let draws = 200_000;
        let mut seen = vec![0.0; expected.len()];
        for position in 0..draws {
            seen[sample(&LOGITS, &sampling, 0, position).unwrap() as usize] += 1.0;
        }
        let mut chi = 0.0;
        for (s, e) in seen.iter().zip(expected) {
            let e = e * draws as f64;
            if e == 0.0 {
                assert_eq!(*s, 0.0, "drew a token outside the kept set: {seen:?}");
            } else {
                chi += (s - e) * (s - e) / e;
            }
        }
        assert!(chi < bound, "chi^2 = {chi}: {seen:?}");
    }

    #[test]
    fn draws_follow_the_distribution() {
        check(Sampling { seed: 7, ..DRAW }, &probabilities(1.0), 40.0);
        check(Sampling { temperature: 0.7, seed: 8, ..DRAW }, &probabilities(0.7), 40.0);
    }

    #[test]
    fn top_k_and_top_p_keep_the_likeliest() {
        let p = probabilities(1.0);
        let two = [0.0, 0.0, 0.5, 0.0, 0.5, 0.0];
        check(Sampling { top_k: 2, seed: 1, ..DRAW }, &two, 40.0);
        // 2 and 4 hold about 0.66 of the mass: 0.5 needs both (the first alone has 0.33), 0.2 only the first.
        check(Sampling { top_p: 0.5, seed: 2, ..DRAW }, &two, 40.0);
        assert!(p[2] > 0.2 && p[2] < 0.5);
        check(Sampling { top_p: 0.2, seed: 3, ..DRAW }, &[0.0, 0.0, 1.0, 0.0, 0.0, 0.0], 1.0);
    }

    #[test]
    fn greedy_breaks_ties_by_id_and_refuses_broken_logits() {
        assert_eq!(sample(&LOGITS, &Sampling::GREEDY, 0, 0), Some(2));
        assert_eq!(sample(&[f32::NAN, 1.0], &Sampling::GREEDY, 0, 0), Some(1));
        assert_eq!(sample(&[f32::NAN; 3], &Sampling::GREEDY, 0, 0), None);
        assert_eq!(sample(&[f32::INFINITY, 0.0], &Sampling::GREEDY, 0, 0), None);
    }

    #[test]
    fn choices_and_seeds_draw_apart() {
        let s = Sampling { seed: 5, ..DRAW };
        let run = |s: Sampling, c| (0..50).map(|i| sample(&LOGITS, &s, c, i).unwrap()).collect::<Vec<_>>();
        assert_eq!(run(s, 0), run(s, 0));
        assert_ne!(run(s, 0), run(s, 1));
        assert_ne!(run(s, 0), run(Sampling { seed: 6, ..s }, 0));
    }

    #[test]
    fn logprobs_are_normalised_and_ranked() {
        let l = logprobs(&LOGITS, 1, 3);
        assert_eq!(l.rank, 3);
        assert_eq!(l.top.iter().map(|t| t.0).collect::<Vec<_>>(), [2, 4, 1]);
        let p = probabilities(1.0);
        assert!((f64::from(l.logprob) - p[1].ln()).abs() < 1e-6);
        assert_eq!(logprobs(&LOGITS, 0, 100).top.len(), 6);
        // A prompt's worth of them is kept: no more room than is filled.
        assert!(logprobs(&[0.0; 10_000], 0, 2).top.capacity() < 16);
    }
}
