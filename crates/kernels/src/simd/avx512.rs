use std::arch::x86_64::*;
use std::mem::transmute;

use super::{AT_ONCE, Avx2, PANEL, Simd, at};
use crate::Isa;

/// 16 lanes. `BF16`: bf16 products by `vdpbf16ps`, which flushes denormals and adds the second element of a pair first.
/// Without it they are two FMAs on widened operands, as with AVX2, whose bits these are.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool = true>;

pub(crate) type Avx512Vnni = Avx512<false>;

const LANES: usize = 16;

/// Mask of the first `n` lanes.
#[inline(always)]
fn first(n: usize) -> __mmask16 {
    ((1_u32 << n) - 1) as __mmask16
}

/// The lower or the upper bytes of the bf16 numbers from `from` on.
const fn bytes_of(from: u32, shift: u32) -> [u8; 64] {
    let mut bytes = [0; 64];
    let mut i = 0;
    while i < 64 {
        bytes[i as usize] = ((from + i) as f32).to_bits().wrapping_shr(shift) as u8;
        i += 1;
    }
    bytes
}

static LOWER: [[u8; 64]; 2] = [bytes_of(0, 16), bytes_of(64, 16)];
static UPPER: [[u8; 64]; 2] = [bytes_of(0, 24), bytes_of(64, 24)];

/// The byte of a table of 128 at each magnitude.
#[inline(always)]
unsafe fn looked_up(table: &[[u8; 64]; 2], magnitude: __m512i) -> __m512i {
    let [first, second] = table;
    let (first, second) = (_mm512_loadu_si512(first.as_ptr().cast()), _mm512_loadu_si512(second.as_ptr().cast()));
    _mm512_permutex2var_epi8(first, magnitude, second)
}

/// 64 codes as 32 pairs of bf16. The bytes of a magnitude are looked up, and the sign is set.
#[inline(always)]
unsafe fn widened(codes: __m512i) -> [__m512i; 2] {
    /// `a | b & c`.
    const OR_AND: i32 = 0xf8;
    // Both halves of a 128-bit lane go to different vectors.
    let codes = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), codes);
    let magnitude = _mm512_abs_epi8(codes);
    let lower = looked_up(&LOWER, magnitude);
    let upper = looked_up(&UPPER, magnitude);
    let upper = _mm512_ternarylogic_epi32::<OR_AND>(upper, codes, _mm512_set1_epi8(i8::MIN));
    [_mm512_unpacklo_epi8(lower, upper), _mm512_unpackhi_epi8(lower, upper)]
}

/// [`widened`] for `V` vectors of pairs: of the last of an odd number there are only 32.
#[inline(always)]
unsafe fn pairs_of<const V: usize>(codes: *const i8) -> [__m512i; V] {
    let mut pairs = [_mm512_setzero_si512(); V];
    for v in (0..V).step_by(2) {
        let at = codes.add(2 * v * LANES);
        if v + 1 < V {
            [pairs[v], pairs[v + 1]] = widened(_mm512_loadu_si512(at.cast()));
        } else {
            pairs[v] = widened(_mm512_castsi256_si512(_mm256_loadu_si256(at.cast())))[0];
        }
    }
    pairs
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

#[inline(always)]
unsafe fn store_words<const V: usize>(pairs: [__m512i; V], words: *mut u32) {
    for (v, pair) in pairs.into_iter().enumerate() {
        _mm512_storeu_si512(words.add(v * LANES).cast(), pair);
    }
}

/// The upper half of a word.
const HIGH: i32 = 0xffff_0000_u32 as i32;

/// The first (0) or second bytes of 16 pairs of signed bytes, each pair in a word, as f32, times 2^24: as the highest byte
/// of an integer it brings its sign with it.
#[inline(always)]
unsafe fn half<const H: usize>(pairs: __m512i) -> __m512 {
    let high = if H == 0 {
        _mm512_slli_epi32::<24>(pairs)
    } else {
        _mm512_and_si512(_mm512_slli_epi32::<16>(pairs), _mm512_set1_epi32(HIGH << 8))
    };
    _mm512_cvtepi32_ps(high)
}

/// 16 pairs of codes, each in a word.
#[inline(always)]
unsafe fn load_pairs(codes: *const i8) -> __m512i {
    _mm512_cvtepu16_epi32(_mm256_loadu_si256(codes.cast()))
}

/// Pairs of bf16 from both halves of codes, which have seven bits of significand: the lower half of such an f32 is zero.
#[inline(always)]
unsafe fn joined(first: __m512, second: __m512) -> __m512i {
    let first = _mm512_srli_epi32::<16>(_mm512_castps_si512(first));
    _mm512_or_si512(first, _mm512_castps_si512(second))
}

/// Adds the products of halves of pairs with an element of each row of x.
#[inline(always)]
unsafe fn add_half<const R: usize, const V: usize>(
    acc: &mut [[__m512; V]; R],
    halves: [__m512; V],
    x: *const u32,
    row: usize,
) {
    for (r, acc) in acc.iter_mut().enumerate() {
        let x = _mm512_set1_ps(*x.add(r * row).cast());
        for (a, half) in acc.iter_mut().zip(halves) {
            *a = _mm512_fmadd_ps(half, x, *a);
        }
    }
}

/// Keeps what is read at `x` from now on behind what was read before: the compiler would read elements of all rows
/// together, and run out of registers.
#[inline(always)]
unsafe fn in_turn(x: &mut *const u32) {
    std::arch::asm!("/* {0} */", inout(reg) * x, options(pure, readonly, nostack, preserves_flags));
}

/// [`Simd::step_codes`] without bf16 products.
#[inline(always)]
unsafe fn add_codes<const R: usize, const V: usize>(
    acc: &mut [[__m512; V]; R],
    codes: *const i8,
    mut x: *const u32,
    row: usize,
    keep: Option<*mut u32>,
) {
    let mut pairs = [_mm512_setzero_si512(); V];
    let mut halves = [_mm512_setzero_ps(); V];
    for (v, (pairs, h)) in pairs.iter_mut().zip(&mut halves).enumerate() {
        *pairs = load_pairs(codes.add(2 * v * LANES));
        *h = half::<0>(*pairs);
    }
    add_half(acc, halves, x, row);
    in_turn(&mut x);
    for (v, (pairs, h)) in pairs.iter().zip(&mut halves).enumerate() {
        let first = *h;
        *h = half::<1>(*pairs);
        if let Some(words) = keep {
            _mm512_storeu_si512(words.add(v * LANES).cast(), joined(first, *h));
        }
    }
    add_half(acc, halves, x.add(1), row);
}

impl<const BF16: bool> Simd for Avx512<BF16> {
    const ISA: Isa = if BF16 { Isa::Avx512 } else { Isa::Avx512Vnni };
    const LANES: usize = LANES;
    const PAIR: usize = if BF16 { 1 } else { 2 };
    const ROWS: usize = 6;
    const CODE: f32 = if BF16 { 1.0 } else { <Avx2>::CODE };
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
    unsafe fn add_up(sums: __m512, x: __m512) -> __m512 {
        if const { BF16 } {
            return Self::add(sums, x);
        }
        // Eight sums as with AVX2; in the upper lanes zeros, which add nothing to them in the end.
        let (first, last) = (_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
        _mm512_zextps256_ps512(_mm256_add_ps(_mm256_add_ps(_mm512_castps512_ps256(sums), first), last))
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, x: __m512) {
        if const { BF16 } {
            let rounded: __m256i = transmute(_mm512_cvtneps_pbh(x));
            return _mm256_storeu_si256(p.cast(), rounded);
        }
        <Avx2>::store_bf16(p, _mm512_castps512_ps256(x));
        <Avx2>::store_bf16(p.add(LANES / 2), _mm512_extractf32x8_ps::<1>(x));
    }
    #[inline(always)]
    unsafe fn rounded(x: __m512) -> __m512 {
        if const { BF16 } {
            let rounded: __m256i = transmute(_mm512_cvtneps_pbh(x));
            return _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(rounded)));
        }
        let bits = _mm512_castps_si512(x);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        _mm512_castsi512_ps(_mm512_and_si512(up, _mm512_set1_epi32(HIGH)))
    }
    #[inline(always)]
    unsafe fn store_prepared(p: *mut u32, x: __m512) -> __m512 {
        let rounded = Self::rounded(x);
        if const { BF16 } {
            Self::store_bf16(p.cast(), x);
        } else {
            Self::store_pairs(p, [rounded]);
        }
        rounded
    }
    #[inline(always)]
    unsafe fn store_pairs<const N: usize>(p: *mut u32, x: [__m512; N]) {
        if const { !BF16 } {
            return super::store_floats::<Self, N>(p, x);
        }
        let (twos, one) = x.as_chunks::<2>();
        for (i, &[a, b]) in twos.iter().enumerate() {
            let rounded: __m512i = transmute(_mm512_cvtne2ps_pbh(b, a));
            _mm512_storeu_si512(p.add(i * Self::LANES).cast(), rounded);
        }
        for &x in one {
            Self::store_bf16(p.add(twos.len() * Self::LANES).cast(), x);
        }
    }
    #[inline(always)]
    unsafe fn widen(codes: *const i8, words: *mut u32) {
        if const { BF16 } {
            return store_words(pairs_of::<2>(codes), words);
        }
        for at in (0..2 * PANEL).step_by(LANES) {
            let pairs = load_pairs(codes.add(2 * at));
            _mm512_storeu_si512(words.add(at).cast(), joined(half::<0>(pairs), half::<1>(pairs)));
        }
    }
    #[inline(always)]
    unsafe fn reduce_each<const LARGEST: bool>(x: [__m512; AT_ONCE], to: *mut f32) {
        // 256 bits of two rows, 128 of four, pairs of eight, single elements, each twice: rows 0 4, 1 5, 2 6, 3 7.
        let mut halves = [x[0]; AT_ONCE / 2];
        for (half, &[a, b]) in halves.iter_mut().zip(x.as_chunks().0) {
            *half = Self::meet::<LARGEST>(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
        }
        let [a, b, c, d] = halves;
        let low = Self::meet::<LARGEST>(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
        let high = Self::meet::<LARGEST>(_mm512_shuffle_f32x4::<0x88>(c, d), _mm512_shuffle_f32x4::<0xdd>(c, d));
        let pairs = Self::meet::<LARGEST>(_mm512_shuffle_ps::<0x44>(low, high), _mm512_shuffle_ps::<0xee>(low, high));
        let all =
            Self::meet::<LARGEST>(_mm512_shuffle_ps::<0x88>(pairs, pairs), _mm512_shuffle_ps::<0xdd>(pairs, pairs));
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 4, 8, 12, 1, 5, 9, 13);
        _mm256_storeu_ps(to, _mm512_castps512_ps256(_mm512_permutexvar_ps(order, all)));
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
        keep: Option<*mut u32>,
    ) {
        if const { !BF16 } {
            return add_codes(acc, w, x, row, keep);
        }
        if const { R > 4 && V > 2 } {
            // What vectors are widened with leaves no registers for all of them: two at a time, and x again for the
            // next two.
            let mut x = x;
            for v in (0..V).step_by(2) {
                let pairs = pairs_of::<2>(w.add(2 * v * Self::LANES));
                if let Some(words) = keep {
                    store_words(pairs, words.add(v * Self::LANES));
                }
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
        let pairs = pairs_of::<V>(w);
        if let Some(words) = keep {
            store_words(pairs, words);
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
        if const { BF16 } {
            return add_products(acc, pairs, x, row);
        }
        let mut halves = [_mm512_setzero_ps(); V];
        for (pair, h) in pairs.iter().zip(&mut halves) {
            *h = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(*pair));
        }
        add_half(acc, halves, x, row);
        let mut x = x;
        in_turn(&mut x);
        for (pair, h) in pairs.iter().zip(&mut halves) {
            *h = _mm512_castsi512_ps(_mm512_and_si512(*pair, _mm512_set1_epi32(HIGH)));
        }
        add_half(acc, halves, x.add(1), row);
    }
}
