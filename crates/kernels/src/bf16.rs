//! bfloat16: the upper half of an f32.

/// Exact.
#[inline(always)]
pub fn to_f32(x: u16) -> f32 {
    f32::from_bits((x as u32) << 16)
}

/// Rounds to nearest, ties to even; NaN stays NaN.
#[inline(always)]
pub fn from_f32(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    // Rounding could carry a NaN's payload into infinity: set the quiet bit instead.
    let quiet = (bits >> 16) | 0x40;
    (if x.is_nan() { quiet } else { rounded }) as u16
}

/// Widens `src` into `dst`, which has the same length.
pub fn to_f32_slice(src: &[u16], dst: &mut [f32]) {
    assert_eq!(src.len(), dst.len());
    dst.iter_mut().zip(src).for_each(|(d, &s)| *d = to_f32(s));
}

/// Rounds `src` into `dst`, which has the same length.
pub fn from_f32_slice(src: &[f32], dst: &mut [u16]) {
    assert_eq!(src.len(), dst.len());
    dst.iter_mut().zip(src).for_each(|(d, &s)| *d = from_f32(s));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bf16_round_trips() {
        for x in 0..=u16::MAX {
            let f = to_f32(x);
            if f.is_nan() {
                assert!(to_f32(from_f32(f)).is_nan());
            } else {
                assert_eq!(from_f32(f), x);
            }
        }
    }

    #[test]
    fn rounds_to_nearest_even() {
        // Between 1.0 and its successor lie 2^16 floats; the tie goes to the even mantissa.
        for (low, want) in [(0x0000, 0x3f80), (0x7fff, 0x3f80), (0x8000, 0x3f80), (0x8001, 0x3f81), (0xffff, 0x3f81)] {
            assert_eq!(from_f32(f32::from_bits(0x3f80_0000 | low)), want);
        }
        assert_eq!(from_f32(f32::from_bits(0x3f81_8000)), 0x3f82);
        assert_eq!(from_f32(f32::MAX), 0x7f80);
    }
}
