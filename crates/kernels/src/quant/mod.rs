//! Matrices in the block formats of ggml, multiplied in integers: packed weights of 4, 5, 6 or 8 bits against
//! activations of 8 bits.

mod ahead;
mod block;
pub(crate) mod bytes;
pub(crate) mod dots;
mod encode;
mod few;
mod gated;
mod half;
mod kernel;
mod kind;
mod matmul;
pub(crate) mod packed;
pub(crate) mod reference;
pub(crate) mod rows;
mod unpack;

pub use gated::TURN;
pub use kind::QuantKind;
pub use matmul::{gated_quant, matmul_quant};
pub use packed::{PackedQuant, QuantError};
pub use rows::{QuantRows, RowsMut};
