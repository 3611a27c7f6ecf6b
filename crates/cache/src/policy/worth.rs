//! What goes first when room is needed: a pure function of what a node has seen.
//!
//! Greedy-Dual-Size-Frequency (Cherkasova, HP Labs TR 98-69) with equal sizes: a node is worth its uses times the cost
//! of computing it again, on top of the worth of what was evicted last, so that the past fades.

/// Uses beyond this count no more: a once popular prefix must be able to fade.
pub const MAX_USES: u32 = 16;

/// Worth of a node at the time when its last pin goes.
///
/// `inflation`: worth of the best node evicted so far. `depth`: chunks above it; a deeper chunk costs more, as its rows
/// attend to more. `parity`: position in tokens at which attention costs as much as the dense layers.
pub fn worth(inflation: u64, uses: u32, depth: u32, parity: u32) -> u64 {
    let cost = u64::from(parity) + u64::from(depth) * kvist_base::CHUNK as u64;
    inflation.saturating_add(u64::from(uses.min(MAX_USES)) * cost)
}

/// Order of eviction: the smallest key goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// 0: no queued request wants it; else greater for those who are served earlier.
    pub guard: u64,
    pub worth: u64,
    /// Tick of the last use.
    pub last: u64,
}

impl Key {
    /// `rank`: of the first in the queue who wants the node, 0 = next to be served.
    pub fn new(rank: Option<u32>, worth: u64, last: u64) -> Key {
        Key { guard: rank.map_or(0, |rank| 1 + u64::from(u32::MAX - rank)), worth, last }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order() {
        let parity = 16384;
        assert!(worth(0, 1, 0, parity) < worth(0, 2, 0, parity));
        assert!(worth(0, 1, 3, parity) < worth(0, 1, 4, parity));
        assert!(worth(0, 1, 1000, parity) > worth(0, 2, 0, parity));
        assert_eq!(worth(7, MAX_USES, 0, parity), worth(7, u32::MAX, 0, parity));
        assert_eq!(worth(u64::MAX, 1, 0, parity), u64::MAX);
        let wanted = |rank| Key::new(Some(rank), 0, 0);
        assert!(Key::new(None, u64::MAX, u64::MAX) < wanted(u32::MAX));
        assert!(wanted(9) < wanted(8));
        assert!(Key::new(None, 5, 1) < Key::new(None, 5, 2));
    }
}
