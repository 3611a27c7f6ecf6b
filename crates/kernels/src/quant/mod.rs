//! Matrices in the block formats of ggml, multiplied in integers: packed weights of 4, 5, 6 or 8 bits against
//! activations of 8 bits.

mod ahead;
mod block;
pub(crate) mod dots;
mod encode;
mod few;
mod half;
mod kernel;
mod kind;
mod matmul;
mod packed;
pub(crate) mod reference;
mod rows;
mod unpack;

pub use kind::QuantKind;
pub use matmul::matmul_quant;
pub use packed::{PackedQuant, QuantError};
pub use rows::QuantRows;
