//! Activations as the matrices of the CPU executor read them.

use kvist_kernels::{Isa, Pool, QuantRows, RowsMut};

use crate::matrix::Matrix;

/// Rows for one kind of matrices. Memory is kept from step to step, and never cleared.
#[derive(Default)]
pub(crate) struct Input {
    bf16: Vec<u16>,
    quant: QuantRows,
    /// For what is written while `quant` is read.
    next: QuantRows,
    is_quantised: bool,
    /// Elements.
    len: usize,
}

impl Input {
    /// Room for so many elements as `matrix` reads them.
    pub fn room_for(&mut self, matrix: &Matrix, elements: usize) -> RowsMut<'_> {
        (self.is_quantised, self.len) = (matrix.reads_quantised(), elements);
        if self.is_quantised { RowsMut::Quant(&mut self.quant) } else { RowsMut::Bf16(room(&mut self.bf16, elements)) }
    }

    /// Has `fill` write rows of `k` elements in bf16, which become what `matrix` reads.
    pub fn fill_bf16(
        &mut self,
        isa: Isa,
        pool: &Pool,
        matrix: &Matrix,
        (rows, k): (usize, usize),
        fill: impl FnOnce(&mut [u16]),
    ) {
        let bf16 = room(&mut self.bf16, rows * k);
        fill(bf16);
        (self.is_quantised, self.len) = (matrix.reads_quantised(), rows * k);
        if self.is_quantised {
            self.quant.set(isa, pool, bf16, k);
        }
    }

    /// The rows in bf16; `None` where they are quantised.
    pub fn bf16(&self) -> Option<&[u16]> {
        (!self.is_quantised).then(|| &self.bf16[..self.len])
    }

    /// `None` where they are in bf16.
    pub fn quantised(&self) -> Option<&QuantRows> {
        self.is_quantised.then_some(&self.quant)
    }

    /// Has `make` write `elements` as `matrix` reads them out of the quantised rows that are there, which are gone then.
    pub fn replace(&mut self, matrix: &Matrix, elements: usize, make: impl FnOnce(&QuantRows, RowsMut<'_>)) {
        assert!(self.is_quantised, "rows are quantised for this matrix");
        (self.is_quantised, self.len) = (matrix.reads_quantised(), elements);
        if self.is_quantised {
            make(&self.quant, RowsMut::Quant(&mut self.next));
            std::mem::swap(&mut self.quant, &mut self.next);
        } else {
            make(&self.quant, RowsMut::Bf16(room(&mut self.bf16, elements)));
        }
    }
}

/// The first elements; what they are does not matter.
fn room(of: &mut Vec<u16>, elements: usize) -> &mut [u16] {
    if of.len() < elements {
        of.resize(elements, 0);
    }
    &mut of[..elements]
}
