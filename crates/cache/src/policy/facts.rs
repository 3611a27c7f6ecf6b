//! What is known of a chunk when a request that used it ends.

use kvist_base::Micros;

/// Facts that the odds of a return are learnt from, and bins of each.
pub const FACTS: usize = 9;
pub const BINS: usize = 96;
/// The bin of each fact.
pub type Bins = [u8; FACTS];

/// What is known of a chunk when a request that used it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Requests that used the chunk, as far as remembered, this one included.
    pub uses: u32,
    /// Requests that the request extends, each the one before it.
    pub turn: u32,
    /// Tokens of the prompt, of these not seen before, and tokens generated.
    pub prompt: u32,
    pub fresh: u32,
    pub reply: u32,
    /// From the end of the request that this one extends to its arrival.
    pub pause: Option<Micros>,
    /// From the use before this one to this one.
    pub gap: Option<Micros>,
    /// The chunk may still grow: it is the last one, and not full.
    pub open: bool,
}

impl Facts {
    /// Names of the facts that odds are learnt from, in the order of their bins.
    pub const NAMES: [&str; FACTS] = [
        "uses",
        "turn",
        "uses and turn together",
        "length of the prompt",
        "length of the reply",
        "what is new, and turn",
        "pause before the request",
        "not full",
        "gap before this use",
    ];

    pub(crate) fn bins(&self) -> Bins {
        let uses = match self.uses {
            0..=4 => self.uses as u8,
            5..=6 => 5,
            7..=9 => 6,
            _ => 7,
        };
        let turn = self.turn.min(9) as u8;
        [
            uses,
            turn,
            // A chunk that a late turn brought in is not one that all turns used.
            uses.min(4) * 5 + turn.min(4),
            octave(self.prompt),
            octave(self.reply),
            octave(self.fresh).min(23) * 4 + turn.min(3),
            seconds(self.pause),
            u8::from(self.open),
            seconds(self.gap),
        ]
    }
}

fn octave(n: u32) -> u8 {
    n.max(1).ilog2() as u8
}

/// Octaves of seconds.
fn seconds(time: Option<Micros>) -> u8 {
    time.map_or(0, |time| 1 + (1 + time / 1_000_000).ilog2() as u8)
}
