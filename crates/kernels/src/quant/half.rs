//! f16, the type of ggml's scales.

/// The exact value of an f16.
#[inline(always)]
pub(crate) fn to_f32(bits: u16) -> f32 {
    let sign = (bits as u32 & 0x8000) << 16;
    let rest = (bits as u32 & 0x7fff) << 13;
    // The exponent's bias grows from 15 to 127; f16's denormals are f32's denormals before that.
    let finite = (f32::from_bits(rest) * f32::from_bits(0x7780_0000)).to_bits();
    let special = rest | 0x7f80_0000;
    f32::from_bits(sign | if rest >= 0x7c00 << 13 { special } else { finite })
}

/// The nearest f16, ties to even; NaN stays NaN, what is too large becomes infinite.
pub(crate) fn from_f32(x: f32) -> u16 {
    let sign = (x.to_bits() >> 16 & 0x8000) as u16;
    let rest = x.to_bits() & 0x7fff_ffff;
    let bits = if rest > 0x7f80_0000 {
        0x7e00
    } else if rest >= 0x477f_f000 {
        // 65520, from where the nearest is 2^16, and beyond.
        0x7c00
    } else if rest < 0x3880_0000 {
        // Below 2^-14 the step is 2^-24: adding 1/2 leaves the rounded multiple of it in the low bits.
        (f32::from_bits(rest) + 0.5).to_bits() - 0.5_f32.to_bits()
    } else {
        (rest + 0xfff + (rest >> 13 & 1) - (112 << 23)) >> 13
    };
    sign | bits as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition: sign, 5 bits of exponent, 10 of fraction.
    fn value(bits: u16) -> f64 {
        let (exponent, fraction) = ((bits >> 10 & 31) as i32, (bits & 1023) as f64);
        let size = match exponent {
            0 => fraction * 2_f64.powi(-24),
            31 if fraction == 0.0 => f64::INFINITY,
            31 => f64::NAN,
            _ => (1024.0 + fraction) * 2_f64.powi(exponent - 25),
        };
        if bits >> 15 == 1 { -size } else { size }
    }

    #[test]
    fn all_values_by_definition_and_back() {
        for bits in 0..=u16::MAX {
            let x = to_f32(bits);
            assert!(x as f64 == value(bits) || x.is_nan() && value(bits).is_nan(), "{bits:#06x}");
            assert_eq!(x.is_sign_negative(), bits >> 15 == 1);
            if x.is_nan() {
                assert!(to_f32(from_f32(x)).is_nan());
            } else {
                assert_eq!(from_f32(x), bits);
            }
        }
    }

    #[test]
    fn rounds_to_the_nearest_even() {
        for bits in 0..0x7c00_u16 {
            // Exact in f32; the last is 65520, half way to 2^16.
            let above = if bits == 0x7bff { 65536.0 } else { value(bits + 1) };
            let middle = ((value(bits) + above) / 2.0) as f32;
            assert_eq!(from_f32(middle), bits + (bits & 1), "{middle}");
            assert_eq!(from_f32(middle.next_down()), bits, "{middle}");
            assert_eq!(from_f32(-middle.next_up()), 0x8000 | (bits + 1), "{middle}");
        }
        assert_eq!(from_f32(f32::MAX), 0x7c00);
        assert_eq!(from_f32(1e-45), 0);
    }
}
