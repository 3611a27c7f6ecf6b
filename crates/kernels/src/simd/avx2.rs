use std::arch::asm;
use std::arch::x86_64::*;

use super::{AT_ONCE, LINE, Rows, Simd, at};
use crate::Isa;

/// 8 lanes; bf16 products as two FMAs on widened operands. `VNNI`: integer products have an instruction of their own.
#[derive(Clone, Copy)]
pub(crate) struct Avx2<const VNNI: bool = false>;

pub(crate) type AvxVnni = Avx2<true>;

/// Lane mask for `maskload`: all ones in the first `n` lanes.
#[inline(always)]
unsafe fn first(n: usize) -> __m256i {
    _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
}

/// Bit patterns of the values rounded to bf16 (ties to even), in the upper halves; NaN becomes the quiet NaN.
#[inline(always)]
unsafe fn round(x: __m256) -> __m256i {
    let bits = _mm256_castps_si256(x);
    let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
    let up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
    let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
    _mm256_and_si256(_mm256_blendv_epi8(up, quiet, nan), _mm256_set1_epi32(0xffff_0000_u32 as i32))
}

/// As [`Simd::prefetch_lines`]. Left to itself, the compiler unrolls a loop that seldom goes round twice.
#[inline(always)]
#[expect(clippy::pointers_in_nomem_asm_block, reason = "nothing is read or written there")]
pub(super) unsafe fn prefetch_lines(p: *const u32, n: usize) {
    debug_assert!(n > 0);
    asm!(
        "2:",
        "prefetcht1 byte ptr [{p}]",
        "add {p}, {line}",
        "dec {n}",
        "jnz 2b",
        p = inout(reg) p => _, n = inout(reg) n => _, line = const LINE,
        options(nomem, nostack)
    );
}

impl<const VNNI: bool> Simd for Avx2<VNNI> {
    const ISA: Isa = if VNNI { Isa::AvxVnni } else { Isa::Avx2 };
    const LANES: usize = 8;
    const PAIR: usize = 2;
    const ROWS: usize = 6;
    type F = __m256;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        _mm256_set1_ps(x)
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m256 {
        _mm256_loadu_ps(p)
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: __m256) {
        _mm256_storeu_ps(p, x)
    }
    #[inline(always)]
    unsafe fn load_n(p: *const f32, n: usize) -> __m256 {
        _mm256_maskload_ps(p, first(n))
    }
    #[inline(always)]
    unsafe fn store_n(p: *mut f32, n: usize, x: __m256) {
        _mm256_maskstore_ps(p, first(n), x)
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        _mm256_add_ps(a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        _mm256_sub_ps(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        _mm256_mul_ps(a, b)
    }
    #[inline(always)]
    unsafe fn div(a: __m256, b: __m256) -> __m256 {
        _mm256_div_ps(a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        _mm256_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn min(a: __m256, b: __m256) -> __m256 {
        _mm256_min_ps(a, b)
    }
    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        _mm256_max_ps(a, b)
    }
    #[inline(always)]
    unsafe fn larger(x: __m256, size: __m256) -> __m256 {
        _mm256_max_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0), x), size)
    }
    #[inline(always)]
    unsafe fn select(bits: u32, a: __m256, b: __m256) -> __m256 {
        let lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
        let set = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(bits as i32), lane), lane);
        _mm256_blendv_ps(b, a, _mm256_castsi256_ps(set))
    }
    #[inline(always)]
    unsafe fn keep_ge(a: __m256, b: __m256, x: __m256) -> __m256 {
        _mm256_and_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(a, b), x)
    }
    #[inline(always)]
    unsafe fn select_ge(a: __m256, b: __m256, x: __m256, y: __m256) -> __m256 {
        _mm256_blendv_ps(y, x, _mm256_cmp_ps::<_CMP_GE_OQ>(a, b))
    }
    #[inline(always)]
    unsafe fn add_exponent(x: __m256, n: __m256) -> __m256 {
        let n = _mm256_slli_epi32::<23>(_mm256_castps_si256(n));
        _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), n))
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> __m256 {
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()))))
    }
    #[inline(always)]
    unsafe fn load_halves(p: *const u32) -> [__m256; 2] {
        let pairs = _mm256_loadu_si256(p.cast());
        let high = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32 as i32));
        [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)), _mm256_castsi256_ps(high)]
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, x: __m256) {
        let high = _mm256_srli_epi32::<16>(round(x));
        let packed = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256::<1>(high));
        _mm_storeu_si128(p.cast(), packed)
    }
    #[inline(always)]
    unsafe fn reduce_each<const LARGEST: bool>(x: [__m256; AT_ONCE], to: *mut f32) {
        // Both 128-bit lanes of two rows, pairs of four, single elements of eight: rows 0 2 4 6 1 3 5 7 in the end.
        let mut halves = [x[0]; AT_ONCE / 2];
        for (half, &[a, b]) in halves.iter_mut().zip(x.as_chunks().0) {
            *half = Self::meet::<LARGEST>(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b));
        }
        let [a, b, c, d] = halves;
        let low = Self::meet::<LARGEST>(_mm256_shuffle_ps::<0x44>(a, b), _mm256_shuffle_ps::<0xee>(a, b));
        let high = Self::meet::<LARGEST>(_mm256_shuffle_ps::<0x44>(c, d), _mm256_shuffle_ps::<0xee>(c, d));
        let all = Self::meet::<LARGEST>(_mm256_shuffle_ps::<0x88>(low, high), _mm256_shuffle_ps::<0xdd>(low, high));
        Self::store(to, _mm256_permutevar8x32_ps(all, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
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
    unsafe fn prefetch_lines(p: *const u32, n: usize) {
        prefetch_lines(p, n)
    }
    #[inline(always)]
    unsafe fn step<const R: usize, const V: usize>(
        acc: &mut [[__m256; V]; R],
        w: *const u32,
        panel: usize,
        x: &Rows<R>,
        i: usize,
    ) {
        if const { R <= 2 } {
            // Pairs of x stay in registers, and a vector of `w` is done with before the next one.
            let mut first = [_mm256_setzero_ps(); R];
            let mut second = first;
            for (r, (first, second)) in first.iter_mut().zip(&mut second).enumerate() {
                let x = x.word(r, i).cast::<f32>();
                (*first, *second) = (_mm256_broadcast_ss(&*x), _mm256_broadcast_ss(&*x.add(1)));
            }
            for v in 0..V {
                let pair = _mm256_loadu_si256(w.add(at::<Self>(v, panel)).cast());
                let low = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pair));
                for (acc, x) in acc.iter_mut().zip(first) {
                    acc[v] = _mm256_fmadd_ps(low, x, acc[v]);
                }
                let high = _mm256_castsi256_ps(_mm256_and_si256(pair, _mm256_set1_epi32(0xffff_0000_u32 as i32)));
                for (acc, x) in acc.iter_mut().zip(second) {
                    acc[v] = _mm256_fmadd_ps(high, x, acc[v]);
                }
            }
            return;
        }
        // First elements of all pairs, then the second ones: half the registers for `w`.
        let mut half = [_mm256_setzero_ps(); V];
        for (v, h) in half.iter_mut().enumerate() {
            let pair = _mm256_loadu_si256(w.add(at::<Self>(v, panel)).cast());
            *h = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pair));
        }
        for (r, acc) in acc.iter_mut().enumerate() {
            let x = _mm256_broadcast_ss(&*x.word(r, i).cast());
            for (a, h) in acc.iter_mut().zip(half) {
                *a = _mm256_fmadd_ps(h, x, *a);
            }
        }
        let mut w = w;
        // Loads the same words again: kept from the first time they would push accumulators out of the registers.
        std::arch::asm!("/* {0} */", inout(reg) w, options(pure, readonly, nostack, preserves_flags));
        for (v, h) in half.iter_mut().enumerate() {
            let pair = _mm256_loadu_si256(w.add(at::<Self>(v, panel)).cast());
            *h = _mm256_castsi256_ps(_mm256_and_si256(pair, _mm256_set1_epi32(0xffff_0000_u32 as i32)));
        }
        for (r, acc) in acc.iter_mut().enumerate() {
            let x = _mm256_broadcast_ss(&*x.word(r, i + 1).cast());
            for (a, h) in acc.iter_mut().zip(half) {
                *a = _mm256_fmadd_ps(h, x, *a);
            }
        }
    }
}
