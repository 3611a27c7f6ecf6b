//! Choices whose tokens are restricted. The engine only asks and tells: what a constraint has to work out for the next
//! token can be worked out beside the step that computes the logits ([`Engine::in_step`]).

use kvist_base::{Constraint, StepPlan, TokenId};

use crate::engine::Engine;
use crate::request::Finish;

impl Engine {
    /// The plan of the step in flight, and the constraints of the sequences in it. Whoever has a thread to spare may
    /// [`Constraint::prepare`] them while the step runs; what is not prepared is worked out in [`Engine::complete`].
    pub fn in_step(&mut self) -> (&StepPlan, Vec<&mut Box<dyn Constraint>>) {
        let planned = self.running.iter_mut().filter(|s| s.step.n > 0);
        (&self.plan, planned.filter_map(|s| s.constraint.as_mut()).collect())
    }
}

/// Copies a row of logits to `out` with everything struck out that may not come next. `ends` are the tokens that end
/// the choice: they may come where the text may end, and only there. `Err` = nothing may come, the choice ends with this.
pub fn masked<'a>(
    constraint: &mut dyn Constraint,
    row: &[f32],
    ends: &[TokenId],
    out: &'a mut Vec<f32>,
) -> Result<&'a [f32], Finish> {
    let allowed = constraint.allowed().map_err(Finish::Constraint)?;
    out.clear();
    out.resize(row.len(), f32::NEG_INFINITY);
    let mut any = false;
    for (w, (from, to)) in row.chunks(32).zip(out.chunks_mut(32)).enumerate() {
        let mut bits = allowed.tokens.get(w).copied().unwrap_or(0);
        while bits != 0 {
            let i = bits.trailing_zeros() as usize;
            bits &= bits - 1;
            if let (Some(from), Some(to)) = (from.get(i), to.get_mut(i)) {
                *to = *from;
                any = true;
            }
        }
    }
    for &token in ends.iter().filter(|&&token| (token as usize) < row.len()) {
        out[token as usize] = if allowed.end { row[token as usize] } else { f32::NEG_INFINITY };
        any |= allowed.end;
    }
    if any && !allowed.end && ends.iter().any(|&token| allowed.contains(token)) {
        any = out.iter().any(|&x| x != f32::NEG_INFINITY);
    }
    match (any, allowed.end) {
        (true, _) => Ok(out),
        (false, true) => Err(Finish::Complete),
        (false, false) => Err(Finish::Constraint("no token of the vocabulary may follow".into())),
    }
}

/// Moves a constraint past the token that was drawn. `Some` ends the choice.
pub fn moved(constraint: &mut dyn Constraint, token: TokenId) -> Option<Finish> {
    match constraint.accept(token) {
        Err(message) => Some(Finish::Constraint(message)),
        Ok(()) => constraint.is_complete().then_some(Finish::Complete),
    }
}
