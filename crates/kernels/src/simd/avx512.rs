use std::arch::x86_64::*;
use std::mem::transmute;

use super::{Simd, at};
use crate::Isa;

/// 16 lanes; bf16 products by `vdpbf16ps`, which flushes denormals and adds the second element of a pair first.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

/// Mask of the first `n` lanes.
#[inline(always)]
fn first(n: usize) -> __mmask16 {
    ((1_u32 << n) - 1) as __mmask16
}

/// 16 pairs of signed bytes as pairs of bf16. Each byte becomes bits of weight 1 and above of a large f32, 128 more than
/// the code; eight bits of significand leave the lower half of what is then a code's f32 zero.
#[inline(always)]
unsafe fn widened(codes: *const i8) -> __m512i {
    /// `a & b ^ c`.
    const AND_XOR: i32 = 0x6a;
    let pairs = _mm512_cvtepu16_epi32(_mm256_loadu_si256(codes.cast()));
    // 2^23 + 128 with the first byte in bits 0 to 7, 2^15 + 128 with the second in bits 8 to 15.
    let first = _mm512_ternarylogic_epi32::<AND_XOR>(pairs, _mm512_set1_epi32(0xff), _mm512_set1_epi32(0x4b00_0080));
    let second = _mm512_ternarylogic_epi32::<AND_XOR>(pairs, _mm512_set1_epi32(0xff00), _mm512_set1_epi32(0x4700_8000));
    let first = _mm512_sub_ps(_mm512_castsi512_ps(first), _mm512_set1_ps(8_388_736.0));
    let second = _mm512_sub_ps(_mm512_castsi512_ps(second), _mm512_set1_ps(32_896.0));
    _mm512_or_si512(_mm512_srli_epi32::<16>(_mm512_castps_si512(first)), _mm512_castps_si512(second))
}

/// Adds the products of pairs of weights with one pair of each of `R` rows of x, which are `row` words apart.
#[inline(always)]
unsafe fn add_products<const R: usize, const V: usize>(
    acc: &mut [[__m512; V]; R],
    pairs: [__m512i; V],
    x: *const u32,
    row: usize,
) {
    for (r, acc) in acc.iter_mut().enumerate() {
        let x = _mm512_set1_epi32(*x.add(r * row) as i32);
        for (a, pair) in acc.iter_mut().zip(pairs) {
            *a = _mm512_dpbf16_ps(*a, transmute::<__m512i, __m512bh>(pair), transmute::<__m512i, __m512bh>(x));
        }
    }
}

impl Simd for Avx512 {
    const ISA: Isa = Isa::Avx512;
    const LANES: usize = 16;
    const PAIR: usize = 1;
    const ROWS: usize = 6;
    type F = __m512;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        _mm512_set1_ps(x)
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        _mm512_loadu_ps(p)
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: __m512) {
        _mm512_storeu_ps(p, x)
    }
    #[inline(always)]
    unsafe fn load_n(p: *const f32, n: usize) -> __m512 {
        _mm512_maskz_loadu_ps(first(n), p)
    }
    #[inline(always)]
    unsafe fn store_n(p: *mut f32, n: usize, x: __m512) {
        _mm512_mask_storeu_ps(p, first(n), x)
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        _mm512_add_ps(a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        _mm512_sub_ps(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        _mm512_mul_ps(a, b)
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        _mm512_div_ps(a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        _mm512_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        _mm512_min_ps(a, b)
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        _mm512_max_ps(a, b)
    }
    #[inline(always)]
    unsafe fn select(bits: u32, a: __m512, b: __m512) -> __m512 {
        _mm512_mask_blend_ps(bits as __mmask16, b, a)
    }
    #[inline(always)]
    unsafe fn keep_ge(a: __m512, b: __m512, x: __m512) -> __m512 {
        _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(a, b), x)
    }
    #[inline(always)]
    unsafe fn add_exponent(x: __m512, n: __m512) -> __m512 {
        let n = _mm512_slli_epi32::<23>(_mm512_castps_si512(n));
        _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), n))
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, x: __m512) {
        let rounded: __m256i = transmute(_mm512_cvtneps_pbh(x));
        _mm256_storeu_si256(p.cast(), rounded)
    }
    #[inline(always)]
    unsafe fn store_prepared(p: *mut u32, x: __m512) -> __m512 {
        let rounded: __m256i = transmute(_mm512_cvtneps_pbh(x));
        _mm256_storeu_si256(p.cast(), rounded);
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(rounded)))
    }
    #[inline(always)]
    unsafe fn widen(codes: *const i8, words: *mut u32) {
        _mm512_storeu_si512(words.cast(), widened(codes));
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u32) {
        _mm_prefetch::<_MM_HINT_T1>(p.cast())
    }
    #[inline(always)]
    unsafe fn prefetch_near(p: *const u32) {
        _mm_prefetch::<_MM_HINT_T0>(p.cast())
    }
    #[inline(always)]
    unsafe fn step_codes<const R: usize, const V: usize>(
        acc: &mut [[__m512; V]; R],
        w: *const i8,
        x: *const u32,
        row: usize,
    ) {
        if R > 4 && V > 2 {
            // What vectors are widened with leaves no registers for all of them: two at a time, and x again for the next two.
            let mut x = x;
            for v in (0..V).step_by(2) {
                let pairs = [widened(w.add(2 * v * Self::LANES)), widened(w.add(2 * (v + 1) * Self::LANES))];
                for (r, acc) in acc.iter_mut().enumerate() {
                    let x = _mm512_set1_epi32(*x.add(r * row) as i32);
                    for (a, pair) in acc[v..].iter_mut().zip(pairs) {
                        *a = _mm512_dpbf16_ps(
                            *a,
                            transmute::<__m512i, __m512bh>(pair),
                            transmute::<__m512i, __m512bh>(x),
                        );
                    }
                }
                std::arch::asm!("/* {0} */", inout(reg) x, options(pure, readonly, nostack, preserves_flags));
            }
            return;
        }
        let mut pairs = [_mm512_setzero_si512(); V];
        for (v, pair) in pairs.iter_mut().enumerate() {
            *pair = widened(w.add(2 * v * Self::LANES));
        }
        add_products(acc, pairs, x, row);
    }
    #[inline(always)]
    unsafe fn step<const R: usize, const V: usize>(
        acc: &mut [[__m512; V]; R],
        w: *const u32,
        panel: usize,
        x: *const u32,
        row: usize,
    ) {
        let mut pairs = [_mm512_setzero_si512(); V];
        for (v, pair) in pairs.iter_mut().enumerate() {
            *pair = _mm512_loadu_si512(w.add(at::<Self>(v, panel)).cast());
        }
        add_products(acc, pairs, x, row);
    }
}
