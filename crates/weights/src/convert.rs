//! Conversions between the element types of weight files.

/// The exact value of a bf16.
#[inline]
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

/// Rounds to the nearest bf16, ties to even; NaN stays NaN.
#[inline]
pub fn bf16_from_f32(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// The exact value of an IEEE 754 binary16.
#[inline]
pub fn f16_to_f32(bits: u16) -> f32 {
    let sign = ((bits & 0x8000) as u32) << 16;
    let magnitude = (bits & 0x7fff) as u32;
    if magnitude >= 0x7c00 {
        return f32::from_bits(sign | 0x7f80_0000 | (magnitude & 0x3ff) << 13);
    }
    // Shifted into place the exponent is short by 127 - 15; the product repairs it, for subnormals too, and is exact.
    let scaled = f32::from_bits(magnitude << 13) * f32::from_bits((254 - 15) << 23);
    f32::from_bits(sign | scaled.to_bits())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f16_by_its_definition() {
        for bits in 0..=u16::MAX {
            let (exponent, fraction) = ((bits >> 10) & 31, (bits & 1023) as f64);
            let magnitude = match exponent {
                0 => fraction * 2f64.powi(-24),
                31 if fraction == 0.0 => f64::INFINITY,
                31 => f64::NAN,
                e => (1024.0 + fraction) * 2f64.powi(e as i32 - 25),
            };
            let expected = if bits & 0x8000 != 0 { -magnitude } else { magnitude };
            let found = f16_to_f32(bits);
            assert!(found as f64 == expected && found.is_sign_negative() == (bits >= 0x8000) || expected.is_nan());
            assert_eq!(found.is_nan(), expected.is_nan());
        }
    }

    #[test]
    fn bf16_rounds_to_the_nearest_even() {
        for bits in 0..=u16::MAX {
            let value = bf16_to_f32(bits);
            if value.is_nan() {
                assert!(bf16_to_f32(bf16_from_f32(value)).is_nan());
                continue;
            }
            assert_eq!(bf16_from_f32(value), bits);
            if value.is_finite() {
                let half = f32::from_bits((bits as u32) << 16 | 0x8000);
                assert_eq!(bf16_from_f32(half), bits + (bits & 1), "a tie");
                assert_eq!(bf16_from_f32(f32::from_bits(half.to_bits() - 1)), bits);
                assert_eq!(bf16_from_f32(f32::from_bits(half.to_bits() + 1)), bits + 1);
            }
        }
        assert!(bf16_to_f32(bf16_from_f32(f32::from_bits(0x7f80_0001))).is_nan());
    }
}
