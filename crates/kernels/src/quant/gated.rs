//! Gates and what they multiply, while both are in the cache.

use super::bytes::Encode;
use super::packed::GROUP;
use super::rows::{Target, quantise_group};
use crate::Activation;
use crate::elementwise::gated_lanes;
use crate::simd::PANEL;

/// Outputs of the gate, and then of what it multiplies, that lie side by side: two panels, and what become a group.
pub const TURN: usize = 2 * PANEL;

const _: () = assert!(TURN == GROUP);

/// Panels of a turn of both.
pub(crate) const TURN_PANELS: usize = 2 * TURN / PANEL;

/// Where gated products go.
pub(crate) struct Gated {
    pub activation: Activation,
    /// `[rows][width]`.
    pub out: Target,
    pub width: usize,
}

impl Gated {
    /// Writes what becomes of `sums`, `[panels][rows][16]`, for the rows from `row` and the panels from `panel` on.
    ///
    /// # Safety
    /// The ISA of `S` is available; there are such outputs, whole [`TURN`]s, and nobody else writes them.
    #[inline(always)]
    pub unsafe fn put<S: Encode>(&self, sums: &[f32], rows: usize, row: usize, panel: usize) {
        let of_panel = rows * PANEL;
        for (turn, sums) in sums.chunks_exact(TURN_PANELS * of_panel).enumerate() {
            let first = (panel / TURN_PANELS + turn) * TURN;
            for r in 0..rows {
                // SAFETY: the contract above; a panel of the gate and the one that it multiplies are two apart.
                unsafe {
                    let mut all = [0; TURN];
                    for i in (0..TURN).step_by(S::LANES) {
                        let gate = sums.as_ptr().add(i / PANEL * of_panel + r * PANEL + i % PANEL);
                        let up = gate.add(2 * of_panel);
                        let y = gated_lanes::<S>(self.activation, S::load(gate), S::load(up));
                        S::store_bf16(all.as_mut_ptr().add(i), y);
                    }
                    let at = (row + r) * self.width + first;
                    match self.out {
                        Target::Bf16(out) => out.slice(at, TURN).copy_from_slice(&all),
                        Target::Quant(out) => *out.get().add(at / GROUP) = quantise_group::<S>(&all),
                    }
                }
            }
        }
    }
}
