//! Integer dot products of one instruction set. They are exact, so that they agree between the paths.
#![expect(unsafe_op_in_unsafe_fn, reason = "each operation is a few intrinsics under the contract of `Simd`")]

use crate::simd::{Portable, Simd};

/// Sums of products of four bytes at a time; lanes are outputs.
///
/// `WIDE` products are of signed 8-bit codes. Others are of unsigned codes of at most 6 bits, and their sum starts at
/// minus `centre` times the sum of the activations: it is then that of `code - centre`, which fits 16 bits for each
/// two elements of the fours, whatever happens on the way there.
///
/// # Safety
/// Contract of every method: as [`Simd`].
pub(crate) trait Dots: Simd {
    /// A word for each of `LANES` outputs.
    type I: Copy;

    unsafe fn words(p: *const u32) -> Self::I;
    /// Four activations for all lanes.
    unsafe fn four(p: *const u32) -> Self::I;
    /// Before the first product; `sums` as in [`super::rows::Group`].
    unsafe fn start<const WIDE: bool>(sums: *const u32, centre: i16) -> Self::I;
    /// Adds the products of four codes `w` and four activations `x`.
    unsafe fn dot<const WIDE: bool>(acc: Self::I, w: Self::I, x: Self::I) -> Self::I;
    /// The sum, exactly.
    unsafe fn total<const WIDE: bool>(acc: Self::I) -> Self::F;
}

impl Dots for Portable {
    type I = [u32; 4];

    #[inline(always)]
    unsafe fn words(p: *const u32) -> [u32; 4] {
        p.cast::<[u32; 4]>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn four(p: *const u32) -> [u32; 4] {
        [*p; 4]
    }
    #[inline(always)]
    unsafe fn start<const WIDE: bool>(sums: *const u32, centre: i16) -> [u32; 4] {
        if WIDE {
            return [0; 4];
        }
        let sum = (*sums as i16 as i32) + (*sums as i32 >> 16);
        [(-(centre as i32) * sum) as u32; 4]
    }
    #[inline(always)]
    unsafe fn dot<const WIDE: bool>(acc: [u32; 4], w: [u32; 4], x: [u32; 4]) -> [u32; 4] {
        let mut acc = acc;
        for i in 0..4 {
            let (w, x) = (w[i].to_le_bytes(), x[i].to_le_bytes());
            for (w, x) in w.into_iter().zip(x) {
                let w = if WIDE { w as i8 as i32 } else { w as i32 };
                acc[i] = acc[i].wrapping_add((w * x as i8 as i32) as u32);
            }
        }
        acc
    }
    #[inline(always)]
    unsafe fn total<const WIDE: bool>(acc: [u32; 4]) -> Self::F {
        Self::load(acc.map(|sum| sum as i32 as f32).as_ptr())
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Dots;
    use crate::simd::{Avx2, Avx512};

    /// Narrow sums are in 16 bits, two for an output. Wide products of two are exact in 16 bits (`127 * 128 * 2`) where
    /// the codes' signs are moved to the activations.
    impl Dots for Avx2 {
        type I = __m256i;

        #[inline(always)]
        unsafe fn words(p: *const u32) -> __m256i {
            _mm256_loadu_si256(p.cast())
        }
        #[inline(always)]
        unsafe fn four(p: *const u32) -> __m256i {
            _mm256_set1_epi32(*p as i32)
        }
        #[inline(always)]
        unsafe fn start<const WIDE: bool>(sums: *const u32, centre: i16) -> __m256i {
            if WIDE {
                return _mm256_setzero_si256();
            }
            _mm256_mullo_epi16(_mm256_set1_epi32(*sums as i32), _mm256_set1_epi16(-centre))
        }
        #[inline(always)]
        unsafe fn dot<const WIDE: bool>(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
            if WIDE {
                let twos = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
                _mm256_add_epi32(acc, _mm256_madd_epi16(twos, _mm256_set1_epi16(1)))
            } else {
                _mm256_add_epi16(acc, _mm256_maddubs_epi16(w, x))
            }
        }
        #[inline(always)]
        unsafe fn total<const WIDE: bool>(acc: __m256i) -> Self::F {
            let acc = if WIDE { acc } else { _mm256_madd_epi16(acc, _mm256_set1_epi16(1)) };
            _mm256_cvtepi32_ps(acc)
        }
    }

    /// Wide codes are made unsigned, with 128 as their centre.
    impl Dots for Avx512 {
        type I = __m512i;

        #[inline(always)]
        unsafe fn words(p: *const u32) -> __m512i {
            _mm512_loadu_si512(p.cast())
        }
        #[inline(always)]
        unsafe fn four(p: *const u32) -> __m512i {
            _mm512_set1_epi32(*p as i32)
        }
        #[inline(always)]
        unsafe fn start<const WIDE: bool>(sums: *const u32, centre: i16) -> __m512i {
            let centre = if WIDE { 128 } else { centre };
            _mm512_dpwssd_epi32(_mm512_setzero_si512(), _mm512_set1_epi32(*sums as i32), _mm512_set1_epi16(-centre))
        }
        #[inline(always)]
        unsafe fn dot<const WIDE: bool>(acc: __m512i, w: __m512i, x: __m512i) -> __m512i {
            let w = if WIDE { _mm512_xor_si512(w, _mm512_set1_epi8(-128)) } else { w };
            _mm512_dpbusd_epi32(acc, w, x)
        }
        #[inline(always)]
        unsafe fn total<const WIDE: bool>(acc: __m512i) -> Self::F {
            _mm512_cvtepi32_ps(acc)
        }
    }
}
