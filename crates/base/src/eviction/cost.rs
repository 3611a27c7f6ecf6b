//! What it costs to compute a chunk again, in bands: chunks of a band are taken to cost the same.

use crate::CHUNK;

/// Quarters of octaves in 2^-16.
const STEPS: [u64; 4] = [65536, 77936, 92682, 110218];
/// Chunks that cost more than this many octaves above the first count no more.
const OCTAVES: u32 = 16;

pub const BANDS: u32 = 4 * OCTAVES;

/// The band of a chunk with `depth` chunks above it. `parity`: position in tokens at which attention costs as much as the
/// dense layers; a deeper chunk costs more, as its rows attend to more.
pub fn band(depth: u32, parity: u32) -> u32 {
    let parity = u64::from(parity.max(1));
    let cost = ((parity + u64::from(depth) * CHUNK as u64) << 16) / parity;
    let octave = cost.ilog2() - 16;
    let step = STEPS.iter().filter(|&&step| step << octave <= cost).count() as u32 - 1;
    (4 * octave + step).min(BANDS - 1)
}

/// Cost of a band's chunks in 2^-16 of the first chunk's.
pub fn cost(band: u32) -> u64 {
    STEPS[band as usize % 4] << (band / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deeper_is_dearer() {
        assert_eq!((band(0, 16384), band(256, 16384), band(768, 16384)), (0, 4, 8), "twice, four times as dear");
        assert_eq!((cost(0), cost(4), cost(8)), (1 << 16, 1 << 17, 1 << 18));
        assert_eq!((band(u32::MAX, 1), band(1, 0)), (BANDS - 1, 24));
        assert!((0..5000).all(|depth| band(depth, 777) <= band(depth + 1, 777)));
        assert!((1..BANDS).all(|band| cost(band) > cost(band - 1)));
    }
}
