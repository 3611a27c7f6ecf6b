//! Drawing a token from a row of logits, reproducibly.

use kvist_base::TokenId;

use crate::request::{Sampling, TokenLogprobs};

/// Draws the token at `position` of `choice` from adjusted logits: by temperature, `min_p`, `top_k` and `top_p`, each
/// on what the one before left. `None` when the logits hold no finite maximum (a broken model, or all is masked).
///
/// Ties are broken by token id, candidates are ordered by (probability, id), and the random number is a hash of
/// (seed, choice, position): the draw is a pure function of its arguments.
pub fn sample(logits: &[f32], sampling: &Sampling, choice: u32, position: usize) -> Option<TokenId> {
    let best = argmax(logits)?;
    if sampling.temperature <= 1e-5 || sampling.top_k == 1 {
        return Some(best);
    }
    let max = logits[best as usize];
    let scale = 1.0 / f64::from(sampling.temperature);
    // Of the most likely token it is 1.
    let weight = |x: f32| {
        let w = if x.is_nan() { 0.0 } else { (f64::from(x - max) * scale).exp() };
        if w < f64::from(sampling.min_p) { 0.0 } else { w }
    };
    let u = uniform(sampling.seed, choice, position);
    if sampling.top_k == 0 && sampling.top_p >= 1.0 {
        let total: f64 = logits.iter().map(|&x| weight(x)).sum();
        return draw(logits.iter().enumerate().map(|(i, &x)| (i as TokenId, weight(x))), u * total).or(Some(best));
    }
    // Tokens below 1e-12 of the best one's weight cannot change a draw that an f32 model can justify; leaving them
    // out keeps the sort short on large vocabularies.
    let mut kept: Vec<(TokenId, f64)> = Vec::new();
    let mut total = 0.0;
    for (i, &x) in logits.iter().enumerate() {
        let w = weight(x);
        total += w;
        if w > 1e-12 {
            kept.push((i as TokenId, w));
        }
    }
    kept.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if sampling.top_k > 0 && (sampling.top_k as usize) < kept.len() {
        kept.truncate(sampling.top_k as usize);
        total = kept.iter().map(|k| k.1).sum();
    }
    if sampling.top_p < 1.0 {
        let mut sum = 0.0;
        let wanted = f64::from(sampling.top_p) * total;
        let n = kept
            .iter()
            .take_while(|k| {
                let open = sum < wanted;
                sum += k.1;
                open
            })
            .count();
        kept.truncate(n.max(1));
    }
    let total: f64 = kept.iter().map(|k| k.1).sum();
    draw(kept.iter().copied(), u * total).or(Some(best))
}

/// Log-probabilities of `token` and of the `top` most likely tokens.
pub fn logprobs(logits: &[f32], token: TokenId, top: usize) -> TokenLogprobs {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    let norm = f64::from(max) + sum.ln();
    let logprob = |x: f32| (f64::from(x) - norm) as f32;
    let own = logits[token as usize];
    let rank = logits.iter().enumerate().filter(|&(i, &x)| x > own || (x == own && (i as TokenId) < token)).count();
    let better = |a: &(TokenId, f32), b: &(TokenId, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let mut all: Vec<(TokenId, f32)> = Vec::new();
    if top > 0 {
        all = logits.iter().enumerate().map(|(i, &x)| (i as TokenId, x)).collect();
        let top = top.min(all.len());
        if top < all.len() {
            all.select_nth_unstable_by(top, better);
            all.truncate(top);
        }
        all.sort_unstable_by(better);
    }
    TokenLogprobs {
        token,
        logprob: logprob(own),
        rank: rank as u32 + 1,
        top: all.into_iter().map(|(t, x)| (t, logprob(x))).collect(),
    }
}

fn argmax(logits: &[f32]) -> Option<TokenId> {
    let mut best: Option<(usize, f32)> = None;
    for (i, &x) in logits.iter().enumerate() {
        if !x.is_nan() && best.is_none_or(|(_, b)| x > b) {
            best = Some((i, x));
        }
    }
    best.filter(|b| b.1.is_finite()).map(|b| b.0 as TokenId)
}

fn draw(weights: impl Iterator<Item = (TokenId, f64)>, target: f64) -> Option<TokenId> {
    let mut sum = 0.0;
    let mut last = None;
    for (token, w) in weights {
        if w > 0.0 {
            sum += w;
            last = Some(token);
            if sum > target {
                break;
            }
        }
    }
    last
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
    }
}
