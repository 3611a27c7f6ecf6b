//! One parameter of a model, wherever it comes from, in the order of Hugging Face checkpoints. Rows are read on demand
//! and from any thread, so that nobody holds a matrix twice.

use kvist_weights::{Format, Tensor, bf16_from_f32, bf16_to_f32};

use crate::error::Result;

/// Names, formats and rows; nothing is read yet.
pub(crate) struct Parameter<'a> {
    /// By Hugging Face's convention.
    name: String,
    rows: usize,
    columns: usize,
    origin: Origin<'a>,
}

enum Origin<'a> {
    Stored {
        tensor: Tensor<'a>,
        /// Elements of a head, where the rows of each head (of a vector: its elements) are interleaved: the second half
        /// of the head lies between the rows of the first.
        interleaved: Option<usize>,
        /// Added to each element of a vector.
        shift: f32,
    },
    /// Uniform in `-scale..scale`, a function of the place of the element.
    Random { seed: u64, scale: f32 },
    /// A norm that changes nothing.
    Constant(f32),
}

impl<'a> Parameter<'a> {
    pub fn stored(name: &str, tensor: Tensor<'a>) -> Parameter<'a> {
        Parameter::reordered(name, tensor, None, 0.0)
    }

    /// A tensor whose heads of `interleaved` rows are interleaved, or to whose elements `shift` is to be added.
    pub fn reordered(name: &str, tensor: Tensor<'a>, interleaved: Option<usize>, shift: f32) -> Parameter<'a> {
        let (rows, columns) = (tensor.rows(), tensor.columns());
        Parameter { name: name.into(), rows, columns, origin: Origin::Stored { tensor, interleaved, shift } }
    }

    /// `one`: the weight of a norm that changes nothing.
    pub fn random(name: &str, shape: &[usize], seed: u64, one: f32) -> Parameter<'a> {
        let columns = shape.last().copied().unwrap_or(1);
        let origin = if name.ends_with("norm.weight") {
            Origin::Constant(one)
        } else {
            // The variance that keeps a unit input at unit size through a matrix.
            Origin::Random { seed: scramble(seed ^ hash(name)), scale: (3.0 / columns as f32).sqrt() }
        };
        let rows = shape.iter().rev().skip(1).product();
        Parameter { name: name.into(), rows, columns, origin }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name in its file.
    pub fn stored_name(&self) -> &str {
        match &self.origin {
            Origin::Stored { tensor, .. } => tensor.name(),
            _ => &self.name,
        }
    }

    /// Outputs of a matrix.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs of a matrix.
    pub fn columns(&self) -> usize {
        self.columns
    }

    pub fn format(&self) -> Format {
        match &self.origin {
            Origin::Stored { tensor, .. } => tensor.format(),
            _ => Format::Bf16,
        }
    }

    /// Bytes where it is stored.
    pub fn bytes(&self) -> u64 {
        match &self.origin {
            Origin::Stored { tensor, .. } => tensor.bytes(),
            _ => 2 * (self.rows * self.columns) as u64,
        }
    }

    /// Row `i` of a stored matrix as it is in the file.
    pub fn row_bytes(&self, i: usize, out: &mut [u8]) -> Result<()> {
        match &self.origin {
            Origin::Stored { tensor, interleaved, .. } => Ok(tensor.read_row(place(i, *interleaved), out)?),
            _ => unreachable!("only files have blocks"),
        }
    }

    /// Row `i` of a matrix as bf16 bits, rounded to the nearest even.
    pub fn row_bf16(&self, i: usize, out: &mut [u16]) -> Result<()> {
        match &self.origin {
            Origin::Stored { tensor, interleaved, .. } => {
                Ok(tensor.row_bf16(place(i, *interleaved), &mut Vec::new(), out)?)
            }
            Origin::Random { seed, scale } => {
                uniform(*seed, i * self.columns, out.iter_mut().map(|o| move |v| *o = bf16_from_f32(v * scale)));
                Ok(())
            }
            Origin::Constant(value) => {
                out.fill(bf16_from_f32(*value));
                Ok(())
            }
        }
    }

    /// Row `i` of a matrix as f32, exactly.
    pub fn row_f32(&self, i: usize, out: &mut [f32]) -> Result<()> {
        match &self.origin {
            Origin::Stored { tensor, interleaved, .. } => {
                Ok(tensor.row_f32(place(i, *interleaved), &mut Vec::new(), out)?)
            }
            _ => {
                let mut bits = vec![0; out.len()];
                self.row_bf16(i, &mut bits)?;
                out.iter_mut().zip(bits).for_each(|(o, bits)| *o = bf16_to_f32(bits));
                Ok(())
            }
        }
    }

    /// All elements of a vector.
    pub fn vector(&self) -> Result<Vec<f32>> {
        let mut out = vec![0.0; self.columns];
        match &self.origin {
            Origin::Stored { tensor, interleaved, shift } => {
                let stored = tensor.to_f32()?;
                out.iter_mut().enumerate().for_each(|(i, o)| *o = stored[place(i, *interleaved)] + shift);
            }
            _ => self.row_f32(0, &mut out)?,
        }
        Ok(out)
    }
}

/// Where the file has row `i`: in an interleaved head of d rows, rows i and i + d/2 are neighbours.
fn place(i: usize, interleaved: Option<usize>) -> usize {
    let Some(d) = interleaved else { return i };
    let (head, row) = (i / d, i % d);
    head * d + 2 * (row % (d / 2)) + row / (d / 2)
}

/// Hands values in -1..1 to each `out`; four come from one word, so element `first` may begin inside one.
fn uniform(seed: u64, first: usize, out: impl Iterator<Item = impl FnOnce(f32)>) {
    let word = |element: usize| scramble(seed.wrapping_add(element as u64 / 4 + 1));
    let mut bits = word(first);
    for (element, out) in (first..).zip(out) {
        if element % 4 == 0 {
            bits = word(element);
        }
        out((bits >> (16 * (element % 4))) as u16 as i16 as f32 / 32768.0);
    }
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
fn scramble(word: u64) -> u64 {
    let z = word.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// FNV-1a.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ b as u64).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_rows_are_pieces_of_one_sequence() {
        let long = Parameter::random("a.weight", &[1, 30_000], 7, 1.0);
        let mut whole = vec![0; 30_000];
        long.row_bf16(0, &mut whole).unwrap();
        let values: Vec<f32> = whole.iter().map(|&b| bf16_to_f32(b)).collect();
        let scale = (3.0 / 30_000f32).sqrt();
        let mean = values.iter().sum::<f32>() / scale / 30_000.0;
        let variance = values.iter().map(|v| v * v).sum::<f32>() / (scale * scale) / 30_000.0;
        assert!(mean.abs() < 0.02 && (variance - 1.0 / 3.0).abs() < 0.01, "{mean} {variance}");
        assert!(values.iter().all(|v| v.abs() <= scale * 1.004));

        let mut rows = vec![0f32; 30_000];
        let scaled = Parameter { columns: 50, rows: 600, ..long };
        rows.chunks_exact_mut(50).enumerate().for_each(|(i, row)| scaled.row_f32(i, row).unwrap());
        assert_eq!(rows, values);
    }

    #[test]
    fn interleaved_rows_are_put_back() {
        // Heads of four rows, stored as 0 2 1 3: the halves (0, 1) and (2, 3) alternate.
        let stored = [0, 2, 1, 3, 4, 6, 5, 7];
        let found: Vec<usize> = (0..8).map(|i| stored[place(i, Some(4))]).collect();
        assert_eq!(found, (0..8).collect::<Vec<_>>());
        assert!((0..100).all(|i| place(i, None) == i));
    }
}
