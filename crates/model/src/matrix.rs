//! Matrices as the CPU executor multiplies by them.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Mutex;

use kvist_kernels::{
    self as kernels, Activation, Isa, PackedBf16, PackedQuant, Pool, QuantError, QuantKind, QuantRows, TURN,
};
use kvist_weights::Format;

use crate::error::{Error, Result};
use crate::input::Input;
use crate::model::WeightForm;
use crate::parameter::Parameter;

pub(crate) enum Matrix {
    Bf16(PackedBf16),
    Quant(PackedQuant),
    /// Gates and what they multiply, 32 outputs of each in turns: a group of what the next matrix reads.
    Gated(PackedQuant),
    /// Matrices of different kinds, one below the other.
    Parts(Vec<Matrix>),
}

/// What a parameter becomes in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    Bf16,
    /// Blocks of the file.
    Stored(QuantKind),
    /// Blocks made of floats.
    Made(QuantKind),
}

impl Packing {
    pub fn of(parameter: &Parameter, form: WeightForm) -> Packing {
        let stored = match parameter.format() {
            Format::F32 | Format::F16 | Format::Bf16 => None,
            Format::Q8_0 => Some(QuantKind::Q8_0),
            Format::Q4_0 => Some(QuantKind::Q4_0),
            Format::Q5_0 => Some(QuantKind::Q5_0),
            Format::Q4K => Some(QuantKind::Q4K),
            Format::Q5K => Some(QuantKind::Q5K),
            Format::Q6K => Some(QuantKind::Q6K),
        };
        match (stored, form) {
            (_, WeightForm::Bf16) | (None, WeightForm::AsFile) => Packing::Bf16,
            (Some(kind), _) => Packing::Stored(kind),
            (None, WeightForm::Q8) => Packing::Made(QuantKind::Q8_0),
            (None, WeightForm::Q4) => {
                // What tokens come in and go out through is worth more bits than it has weights.
                let ends = ["model.embed_tokens.weight", "lm_head.weight"].contains(&parameter.name());
                let four = QuantKind::best_q4(parameter.columns()).unwrap_or(QuantKind::Q4_0);
                Packing::Made(if ends { QuantKind::Q8_0 } else { four })
            }
        }
    }

    /// Bytes of a matrix in memory.
    pub fn bytes(self, rows: usize, columns: usize) -> u64 {
        // Rows come in panels of 16.
        let rows = rows.next_multiple_of(16) as u64;
        match self {
            Packing::Bf16 => rows * columns.next_multiple_of(2) as u64 * 2,
            Packing::Stored(kind) | Packing::Made(kind) => {
                rows * (columns.div_ceil(kind.block_len()) * kind.block_bytes()) as u64
            }
        }
    }
}

thread_local! {
    /// Inputs of the running product as quantised matrices read them, where others read them as well; kept, so that a steady
    /// step allocates nothing.
    static INPUT: RefCell<QuantRows> = RefCell::default();
    /// Outputs of a part that cannot be written into a longer row.
    static OUTPUT: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl Matrix {
    /// Reads and packs parameters that lie one below the other, row by row. `gated`: the first half of the rows are gates of the
    /// second.
    pub fn pack(parameters: &[Parameter], gated: bool, form: WeightForm, pool: &Pool) -> Result<Matrix> {
        let alike = |a: &Parameter, b: &Parameter| Packing::of(a, form) == Packing::of(b, form);
        let packing = Packing::of(&parameters[0], form);
        let half = parameters.iter().map(Parameter::rows).sum::<usize>() / 2;
        let in_turns = gated && half.is_multiple_of(TURN) && packing != Packing::Bf16;
        if in_turns && parameters.iter().all(|parameter| alike(&parameters[0], parameter)) {
            let Matrix::Quant(matrix) = pack(parameters, packing, |i| at_turn(i, half), pool)? else {
                unreachable!("they are not in bf16");
            };
            return Ok(Matrix::Gated(matrix));
        }
        let mut parts = Vec::new();
        for group in parameters.chunk_by(alike) {
            parts.push(pack(group, Packing::of(&group[0], form), |i| i, pool)?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Matrix::Parts(parts) })
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        match self {
            Matrix::Bf16(matrix) => matrix.n(),
            Matrix::Quant(matrix) | Matrix::Gated(matrix) => matrix.n(),
            Matrix::Parts(parts) => parts.iter().map(Matrix::rows).sum(),
        }
    }

    /// Inputs.
    pub fn columns(&self) -> usize {
        match self {
            Matrix::Bf16(matrix) => matrix.k(),
            Matrix::Quant(matrix) | Matrix::Gated(matrix) => matrix.k(),
            Matrix::Parts(parts) => parts[0].columns(),
        }
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> u64 {
        match self {
            Matrix::Bf16(matrix) => matrix.bytes() as u64,
            Matrix::Quant(matrix) | Matrix::Gated(matrix) => matrix.bytes() as u64,
            Matrix::Parts(parts) => parts.iter().map(Matrix::bytes).sum(),
        }
    }

    /// Adds the names of the forms that the weights are in.
    pub fn name_forms(&self, out: &mut BTreeSet<String>) {
        match self {
            Matrix::Bf16(_) => drop(out.insert("bf16".into())),
            Matrix::Quant(matrix) | Matrix::Gated(matrix) => drop(out.insert(matrix.kind().to_string())),
            Matrix::Parts(parts) => parts.iter().for_each(|part| part.name_forms(out)),
        }
    }

    /// Row `i` of the matrix as it counts: the embedding of a token.
    pub fn row(&self, mut i: usize, out: &mut [f32]) {
        match self {
            Matrix::Bf16(matrix) => matrix.row(i, out),
            Matrix::Quant(matrix) => matrix.row(i, out),
            Matrix::Parts(parts) => {
                for part in parts {
                    if i < part.rows() {
                        return part.row(i, out);
                    }
                    i -= part.rows();
                }
                unreachable!("a row of one of the parts")
            }
            Matrix::Gated(matrix) => matrix.row(turn_of(i, matrix.n() / 2), out),
        }
    }

    /// Whether it reads quantised rows, and not rows in bf16.
    pub fn reads_quantised(&self) -> bool {
        match self {
            Matrix::Bf16(_) => false,
            Matrix::Quant(_) | Matrix::Gated(_) => true,
            Matrix::Parts(parts) => parts.iter().all(Matrix::reads_quantised),
        }
    }

    /// `x` becomes what its products give, one half as gates of the other, if the matrix is for that: as `next` reads it.
    pub fn gate(
        &self,
        isa: Isa,
        pool: &Pool,
        x: &mut Input,
        rows: usize,
        activation: Activation,
        next: &Matrix,
    ) -> bool {
        let Matrix::Gated(matrix) = self else { return false };
        x.replace(next, rows * matrix.n() / 2, |x, out| kernels::gated_quant(isa, pool, x, matrix, activation, out));
        true
    }

    /// `y = x w^T`, or `y += x w^T` with `add`. x is `[rows][columns]`, y f32 `[rows][outputs]`.
    pub fn matmul(&self, isa: Isa, pool: &Pool, x: &Input, rows: usize, y: &mut [f32], add: bool) {
        let columns = self.columns();
        let bf16 = || x.bf16().expect("rows that a matrix in bf16 reads");
        let parts = match self {
            Matrix::Bf16(matrix) => return kernels::matmul(isa, pool, bf16(), rows, matrix, y, add),
            Matrix::Gated(_) => unreachable!("products with gates are gated"),
            Matrix::Quant(_) => std::slice::from_ref(self),
            Matrix::Parts(parts) => parts.as_slice(),
        };
        match x.quantised() {
            Some(quant) => {
                assert_eq!(quant.rows(), rows);
                self.matmul_parts(isa, pool, x, quant, parts, rows, y, add);
            }
            // Some of the parts are in bf16.
            None => INPUT.with_borrow_mut(|quant| {
                quant.set(isa, pool, bf16(), columns);
                self.matmul_parts(isa, pool, x, quant, parts, rows, y, add);
            }),
        }
    }

    /// The same, part by part, with the rows quantised as well.
    #[expect(clippy::too_many_arguments, reason = "each is a plain size or buffer")]
    fn matmul_parts(
        &self,
        isa: Isa,
        pool: &Pool,
        x: &Input,
        quant: &QuantRows,
        parts: &[Matrix],
        rows: usize,
        y: &mut [f32],
        add: bool,
    ) {
        let (stride, mut first) = (self.rows(), 0);
        for part in parts {
            match part {
                Matrix::Quant(matrix) => {
                    kernels::matmul_quant(isa, pool, quant, matrix, &mut y[first..], stride, add);
                }
                other => OUTPUT.with_borrow_mut(|out| {
                    out.resize(rows * other.rows(), 0.0);
                    other.matmul(isa, pool, x, rows, out, false);
                    let rows = y.chunks_exact_mut(stride).zip(out.chunks_exact(other.rows()));
                    for (y, out) in rows {
                        let y = &mut y[first..first + out.len()];
                        y.iter_mut().zip(out).for_each(|(y, &out)| *y = if add { *y + out } else { out });
                    }
                }),
            }
            first += part.rows();
        }
    }
}

/// Of `half` gates and then as many rows that they multiply, the one that is `i`-th where they take turns.
fn at_turn(i: usize, half: usize) -> usize {
    i / (2 * TURN) * TURN + i % TURN + if i % (2 * TURN) < TURN { 0 } else { half }
}

/// The inverse of [`at_turn`].
fn turn_of(i: usize, half: usize) -> usize {
    let (j, later) = if i < half { (i, 0) } else { (i - half, TURN) };
    j / TURN * 2 * TURN + j % TURN + later
}

/// One matrix of parameters that are packed alike; `order` gives the row of all of them that a row of the matrix is.
fn pack(parts: &[Parameter], packing: Packing, order: impl Fn(usize) -> usize + Sync, pool: &Pool) -> Result<Matrix> {
    let (rows, columns) = (parts.iter().map(Parameter::rows).sum(), parts[0].columns());
    let failed = Mutex::new(None);
    let fail = |error| *failed.lock().unwrap_or_else(|e| e.into_inner()) = Some(error);
    let packed = match packing {
        Packing::Bf16 => {
            let fill = |i: usize, out: &mut [u16]| {
                let (part, i) = place(parts, order(i));
                part.row_bf16(i, out).unwrap_or_else(fail);
            };
            PackedBf16::pack(rows, columns, pool, &fill).map(Matrix::Bf16).map_err(|e| memory(e.bytes))
        }
        Packing::Stored(kind) => {
            let fill = |i: usize, out: &mut [u8]| {
                let (part, i) = place(parts, order(i));
                part.row_bytes(i, out).unwrap_or_else(fail);
            };
            PackedQuant::pack(kind, rows, columns, pool, &fill).map(Matrix::Quant).map_err(refused)
        }
        Packing::Made(kind) => {
            let fill = |i: usize, out: &mut [f32]| {
                let (part, i) = place(parts, order(i));
                part.row_f32(i, out).unwrap_or_else(fail);
            };
            PackedQuant::quantise(kind, rows, columns, pool, &fill).map(Matrix::Quant).map_err(refused)
        }
    };
    match failed.into_inner().unwrap_or_else(|e| e.into_inner()) {
        Some(error) => Err(error),
        None => packed,
    }
}

/// The part that row `i` of the whole belongs to, and its number there.
fn place<'a, 'b>(parts: &'a [Parameter<'b>], mut i: usize) -> (&'a Parameter<'b>, usize) {
    for part in parts {
        if i < part.rows() {
            return (part, i);
        }
        i -= part.rows();
    }
    unreachable!("a row of one of the parts")
}

fn memory(bytes: u128) -> Error {
    kvist_weights::Error::Memory { bytes: usize::try_from(bytes).unwrap_or(usize::MAX) }.into()
}

fn refused(error: QuantError) -> Error {
    match error {
        QuantError::OutOfMemory(error) => memory(error.bytes),
        other => Error::Unsupported {
            what: other.to_string(),
            supported: "--weights q8 and q4 for models whose sizes are multiples of 32; --weights bf16 for all",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_found_again() {
        for half in [TURN, 3 * TURN, 40 * TURN] {
            for i in 0..2 * half {
                let row = at_turn(i, half);
                assert!(turn_of(row, half) == i && (row < half) == (i / TURN).is_multiple_of(2), "{i} of {half}");
            }
        }
    }
}
