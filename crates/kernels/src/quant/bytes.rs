//! How activations become bytes, on each path.
#![expect(unsafe_op_in_unsafe_fn, reason = "each operation is a few intrinsics under the contract of `Simd`")]

use super::dots::Dots;
use super::packed::GROUP;
use super::rows::Starts;
use crate::bf16;
use crate::simd::{Portable, ROUND};

/// Groups of bf16 numbers as signed bytes.
///
/// # Safety
/// Contract of every method: as [`Dots`].
pub(crate) trait Encode: Dots {
    /// The largest magnitude of bf16 numbers, infinity or more where one is not finite.
    #[inline(always)]
    unsafe fn largest(x: &[u16; GROUP]) -> u16 {
        // Bit patterns are ordered as magnitudes are, and what is not finite is larger than everything else there.
        x.iter().fold(0, |largest, x| largest.max(x & 0x7fff))
    }

    /// `x * inverse` (at most 127 in size) as signed bytes, ties to even, their [`Starts`], and their sum.
    #[inline(always)]
    unsafe fn encode(x: &[u16; GROUP], inverse: f32) -> ([u32; GROUP / 4], Starts, i32) {
        let codes = x.map(|x| (bf16::to_f32(x) * inverse + ROUND).to_bits() as i8);
        let halves = codes.as_chunks::<{ GROUP / 2 }>().0.iter().map(|half| {
            let sum =
                |at: usize| (0..4).map(|four| half[4 * four + at] as i16 + half[4 * four + at + 1] as i16).sum::<i16>();
            sum(0) as u16 as u32 | (sum(2) as u16 as u32) << 16
        });
        let mut sums = [0; 2];
        sums.iter_mut().zip(halves).for_each(|(sum, half)| *sum = half);
        let words = std::array::from_fn(|i| u32::from_le_bytes(std::array::from_fn(|j| codes[4 * i + j] as u8)));
        let (starts, sum) = starts::<false>(sums);
        (words, starts, sum)
    }
}

impl Encode for Portable {}

/// [`Starts`] and the sum of all, from sums of the halves as pairs of 16 bits.
#[inline(always)]
fn starts<const FLIPS: bool>(pairs: [u32; 2]) -> (Starts, i32) {
    let both = |pair: u32| (pair as i16 as i32) + (pair as i32 >> 16);
    let [first, second] = pairs.map(both);
    if FLIPS {
        return centred([first, second]);
    }
    // Neither half of a word overflows, but the lower carries into the upper where it is negative.
    let whole = (pairs[0] & 0xffff).wrapping_add(pairs[1]) & 0xffff
        | (pairs[0] & 0xffff_0000).wrapping_add(pairs[1] & 0xffff_0000);
    ([pairs[0], pairs[1], whole, 0, 0], first + second)
}

/// The same with [`Dots::FLIPS`], from the sums of the halves.
#[inline(always)]
fn centred([first, second]: [i32; 2]) -> (Starts, i32) {
    let sum = first + second;
    ([-8 * sum, -16 * sum, -128 * sum, -32 * first, -32 * second].map(|start| start as u32), sum)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Encode, GROUP, Starts, centred, starts};
    use crate::simd::{Avx2, Avx512};

    #[target_feature(enable = "avx2")]
    #[inline]
    fn largest(x: &[u16; GROUP]) -> u16 {
        // SAFETY: two vectors.
        let [a, b] = [0, 16].map(|at| unsafe { _mm256_loadu_si256(x.as_ptr().add(at).cast()) });
        let size = _mm256_set1_epi16(i16::MAX);
        of_sixteen(_mm256_max_epu16(_mm256_and_si256(a, size), _mm256_and_si256(b, size)))
    }

    /// The largest of 16 numbers without a sign.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn of_sixteen(x: __m256i) -> u16 {
        let eight = _mm_max_epu16(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
        // There is an instruction for the smallest.
        !_mm_cvtsi128_si32(_mm_minpos_epu16(_mm_xor_si128(eight, _mm_set1_epi16(-1)))) as u16
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn encode<const FLIPS: bool>(x: &[u16; GROUP], inverse: f32) -> ([u32; GROUP / 4], Starts, i32) {
        let inverse = _mm256_set1_ps(inverse);
        let mut eights = [_mm256_setzero_si256(); 4];
        for (eight, x) in eights.iter_mut().zip(x.as_chunks::<8>().0) {
            // SAFETY: eight elements.
            let wide = _mm256_cvtepu16_epi32(unsafe { _mm_loadu_si128(x.as_ptr().cast()) });
            let x = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide));
            *eight = _mm256_cvtps_epi32(_mm256_mul_ps(x, inverse));
        }
        let [a, b, c, d] = eights;
        // Fours of a, b, c, d, their first ones in the lower half.
        let bytes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
        let bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        let twos = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
        let sums = _mm256_add_epi16(twos, _mm256_shuffle_epi32::<0b01_00_11_10>(twos));
        let sums = _mm256_add_epi16(sums, _mm256_shuffle_epi32::<0b10_11_00_01>(sums));
        let mut codes = [0; GROUP / 4];
        // SAFETY: 32 bytes.
        unsafe { _mm256_storeu_si256(codes.as_mut_ptr().cast(), bytes) };
        let pairs = [_mm256_extract_epi32::<0>(sums) as u32, _mm256_extract_epi32::<4>(sums) as u32];
        let (starts, sum) = starts::<FLIPS>(pairs);
        (codes, starts, sum)
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn largest_wide(x: &[u16; GROUP]) -> u16 {
        // SAFETY: a vector.
        let x = unsafe { _mm512_loadu_si512(x.as_ptr().cast()) };
        let x = _mm512_and_si512(x, _mm512_set1_epi16(i16::MAX));
        of_sixteen(_mm256_max_epu16(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64::<1>(x)))
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn encode_wide(x: &[u16; GROUP], inverse: f32) -> ([u32; GROUP / 4], Starts, i32) {
        let inverse = _mm512_set1_ps(inverse);
        let [a, b] = [0, 16].map(|at| {
            // SAFETY: sixteen elements.
            let wide = _mm512_cvtepu16_epi32(unsafe { _mm256_loadu_si256(x.as_ptr().add(at).cast()) });
            let x = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide));
            _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(x, inverse)))
        });
        let bytes = _mm256_set_m128i(b, a);
        let mut codes = [0; GROUP / 4];
        // SAFETY: 32 bytes.
        unsafe { _mm256_storeu_si256(codes.as_mut_ptr().cast(), bytes) };
        // Eights of the codes, each 128 too large.
        let eights = _mm256_sad_epu8(_mm256_xor_si256(bytes, _mm256_set1_epi8(-128)), _mm256_setzero_si256());
        let halves = _mm256_add_epi32(eights, _mm256_shuffle_epi32::<0b01_00_11_10>(eights));
        let halves = [_mm256_extract_epi32::<0>(halves), _mm256_extract_epi32::<4>(halves)];
        let (starts, sum) = centred(halves.map(|half| half - (GROUP / 2 * 128) as i32));
        (codes, starts, sum)
    }

    impl<const VNNI: bool> Encode for Avx2<VNNI> {
        #[inline(always)]
        unsafe fn largest(x: &[u16; GROUP]) -> u16 {
            largest(x)
        }
        #[inline(always)]
        unsafe fn encode(x: &[u16; GROUP], inverse: f32) -> ([u32; GROUP / 4], Starts, i32) {
            encode::<VNNI>(x, inverse)
        }
    }

    impl<const BF16: bool> Encode for Avx512<BF16> {
        #[inline(always)]
        unsafe fn largest(x: &[u16; GROUP]) -> u16 {
            largest_wide(x)
        }
        #[inline(always)]
        unsafe fn encode(x: &[u16; GROUP], inverse: f32) -> ([u32; GROUP / 4], Starts, i32) {
            encode_wide(x, inverse)
        }
    }
}
