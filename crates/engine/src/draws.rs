//! Tokens that are drawn side by side: with a large vocabulary and many sequences, one after the other would take a good
//! part of a step.

use std::sync::{Mutex, MutexGuard, PoisonError};

use kvist_base::TokenId;

use crate::request::Sampling;
use crate::sampler::Weights;

/// Pieces of work at most: each keeps memory for a vocabulary.
const PIECES: usize = 16;

/// Calls a piece of work by each number below the first argument, on several threads perhaps.
pub type Run<'a> = &'a dyn Fn(usize, &(dyn Fn(usize) + Sync));

/// What was drawn for a sequence: nothing yet, or what [`crate::sample`] says.
pub type Drawn = Option<Option<TokenId>>;

/// A draw from a row of logits as it is.
#[derive(Clone, Debug)]
pub struct Draw {
    /// Row of the step's logits.
    pub row: u32,
    pub sampling: Sampling,
    pub choice: u32,
    pub position: usize,
}

#[derive(Debug, Default)]
struct Piece {
    weights: Weights,
    drawn: Vec<Drawn>,
}

/// Draws of one step. Memory is kept from step to step.
#[derive(Debug, Default)]
pub struct Draws {
    /// By sequence; none where something must be done to the logits first, or nothing is to be drawn.
    wanted: Vec<Option<Draw>>,
    /// Piece `p` of n has sequences p, p + n, p + 2n and so on.
    pieces: Vec<Mutex<Piece>>,
    used: usize,
}

/// What a piece holds is of no use after a panic, and filled anew.
fn lock(piece: &Mutex<Piece>) -> MutexGuard<'_, Piece> {
    piece.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Draws {
    /// Draws what is wanted for each sequence, on the threads of `run`. `logits`: rows of `vocab`.
    pub fn fill(&mut self, wanted: impl Iterator<Item = Option<Draw>>, logits: &[f32], vocab: usize, run: Run<'_>) {
        self.wanted.clear();
        self.wanted.extend(wanted);
        self.used = self.wanted.len().min(PIECES);
        if self.pieces.len() < self.used {
            self.pieces.resize_with(self.used, Mutex::default);
        }
        let (wanted, pieces) = (&self.wanted, &self.pieces[..self.used]);
        run(pieces.len(), &|p| {
            let Piece { weights, drawn } = &mut *lock(&pieces[p]);
            drawn.clear();
            drawn.extend(wanted.iter().skip(p).step_by(pieces.len()).map(|draw| {
                let Draw { row, sampling, choice, position } = draw.as_ref()?;
                let row = &logits[*row as usize * vocab..][..vocab];
                Some(weights.draw(row, sampling, *choice, *position))
            }));
        });
    }

    /// What was drawn for sequence `i`.
    pub fn at(&self, i: usize) -> Drawn {
        lock(&self.pieces[i % self.used]).drawn[i / self.used]
    }

    /// As [`crate::sample`].
    pub fn draw(&mut self, logits: &[f32], sampling: &Sampling, choice: u32, position: usize) -> Option<TokenId> {
        if self.pieces.is_empty() {
            self.pieces.push(Mutex::default());
        }
        lock(&self.pieces[0]).weights.draw(logits, sampling, choice, position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sequence_has_its_own() {
        let mut draws = Draws::default();
        let logits: Vec<f32> = (0..40 * 64).map(|i| (i * 37 % 101) as f32 / 20.0).collect();
        let sampling = Sampling { temperature: 1.0, top_p: 0.9, ..Sampling::GREEDY };
        let draw = |i: usize| Draw { row: 39 - i as u32, sampling, choice: 1, position: i };
        // Backwards, as threads may.
        let run = |n: usize, piece: &(dyn Fn(usize) + Sync)| (0..n).rev().for_each(piece);
        for n in [40, 1, 0, 16, 17] {
            draws.fill((0..n).map(|i| (i % 3 > 0).then(|| draw(i))), &logits, 64, &run);
            for i in 0..n {
                let alone = || crate::sample(&logits[(39 - i) * 64..][..64], &sampling, 1, i);
                assert_eq!(draws.at(i), (i % 3 > 0).then(alone), "{i} of {n}");
            }
        }
    }
}
