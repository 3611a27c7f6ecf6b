use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::transmute;
use std::ptr;

use super::avx2::prefetch_lines;
use super::{AT_ONCE, Avx2, Rows, Simd, at, meets_widened};
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

/// The upper half of a word.
const HIGH: i32 = 0xffff_0000_u32 as i32;

/// Adds the products of halves of pairs with an element of each row of x.
#[inline(always)]
unsafe fn add_half<const R: usize, const V: usize>(
    acc: &mut [[__m512; V]; R],
    halves: [__m512; V],
    x: &Rows<R>,
    i: usize,
) {
    for (r, acc) in acc.iter_mut().enumerate() {
        let x = _mm512_set1_ps(*x.word(r, i).cast());
        for (a, half) in acc.iter_mut().zip(halves) {
            *a = _mm512_fmadd_ps(half, x, *a);
        }
    }
}

/// Writes [`Simd::step`] without bf16 products for so many rows by four vectors. Of 32 registers the sums of six rows,
/// halves, an element and a mask take 30: left to itself the compiler keeps more than that, and sums in memory. Only a
/// function that has the feature may name these registers. `pairs` are widened, with `widening` kept as well; `widened`
/// ones are taken from `wide` (w is not read).
macro_rules! whole_step {
    ($name:ident, $from:ident $options:tt, $rows:literal, $([$r:tt $at:literal $a:ident $b:ident $c:ident $d:ident])*) => {
        #[inline]
        #[target_feature(enable = "avx512f")]
        unsafe fn $name(
            acc: &mut [[__m512; 4]; $rows],
            w: *const u32,
            apart: usize,
            x: *const u32,
            row: usize,
            wide: *mut f32,
        ) {
            let (_x, _0, _1, _2, _3): (__m512, __m512, __m512, __m512, __m512);
            asm!(
                whole_step!($from 0),
                $(whole_step!(row $at, "", $a $b $c $d),)*
                whole_step!($from 1),
                $(whole_step!(row $at, " + 4", $a $b $c $d),)*
                $(
                    $a = inout(zmm_reg) acc[$r][0],
                    $b = inout(zmm_reg) acc[$r][1],
                    $c = inout(zmm_reg) acc[$r][2],
                    $d = inout(zmm_reg) acc[$r][3],
                )*
                h0 = out(zmm_reg) _0,
                h1 = out(zmm_reg) _1,
                h2 = out(zmm_reg) _2,
                h3 = out(zmm_reg) _3,
                x = out(zmm_reg) _x,
                high = in(zmm_reg) _mm512_set1_epi32(HIGH),
                w = in(reg) w,
                apart = in(reg) 4 * apart,
                apart3 = in(reg) 12 * apart,
                first = in(reg) x,
                fourth = in(reg) x.add(3 * row),
                row = in(reg) 4 * row,
                wide = in(reg) wide,
                options $options
            );
        }
    };
    (pairs 0) => {
        "vpslld {h0}, zmmword ptr [{w}], 16
         vpslld {h1}, zmmword ptr [{w} + {apart}], 16
         vpslld {h2}, zmmword ptr [{w} + 2 * {apart}], 16
         vpslld {h3}, zmmword ptr [{w} + {apart3}], 16
         /* {high} {wide} */"
    };
    (pairs 1) => {
        "vpandd {h0}, {high}, zmmword ptr [{w}]
         vpandd {h1}, {high}, zmmword ptr [{w} + {apart}]
         vpandd {h2}, {high}, zmmword ptr [{w} + 2 * {apart}]
         vpandd {h3}, {high}, zmmword ptr [{w} + {apart3}]"
    };
    (widening $half:tt) => { concat!(whole_step!(pairs $half), "\n", whole_step!(store $half)) };
    (store 0) => {
        "vmovaps zmmword ptr [{wide}], {h0}
         vmovaps zmmword ptr [{wide} + 64], {h1}
         vmovaps zmmword ptr [{wide} + 128], {h2}
         vmovaps zmmword ptr [{wide} + 192], {h3}"
    };
    (store 1) => {
        "vmovaps zmmword ptr [{wide} + 256], {h0}
         vmovaps zmmword ptr [{wide} + 320], {h1}
         vmovaps zmmword ptr [{wide} + 384], {h2}
         vmovaps zmmword ptr [{wide} + 448], {h3}"
    };
    (widened 0) => {
        "vmovaps {h0}, zmmword ptr [{wide}]
         vmovaps {h1}, zmmword ptr [{wide} + 64]
         vmovaps {h2}, zmmword ptr [{wide} + 128]
         vmovaps {h3}, zmmword ptr [{wide} + 192]
         /* {high} {w} {apart} {apart3} */"
    };
    (widened 1) => {
        "vmovaps {h0}, zmmword ptr [{wide} + 256]
         vmovaps {h1}, zmmword ptr [{wide} + 320]
         vmovaps {h2}, zmmword ptr [{wide} + 384]
         vmovaps {h3}, zmmword ptr [{wide} + 448]"
    };
    (row $at:literal, $half:literal, $a:ident $b:ident $c:ident $d:ident) => {
        concat!(
            "vbroadcastss {x}, dword ptr [", $at, $half, "]\n",
            "vfmadd231ps {", stringify!($a), "}, {h0}, {x}\n",
            "vfmadd231ps {", stringify!($b), "}, {h1}, {x}\n",
            "vfmadd231ps {", stringify!($c), "}, {h2}, {x}\n",
            "vfmadd231ps {", stringify!($d), "}, {h3}, {x}",
        )
    };
}
macro_rules! steps {
    ($from:ident $options:tt $four:ident $five:ident $six:ident) => {
        whole_step!($four, $from $options, 4,
            [0 "{first}" a b c d] [1 "{first} + {row}" e f g h] [2 "{first} + 2 * {row}" i j k l] [3 "{fourth}" m n o p]);
        whole_step!($five, $from $options, 5,
            [0 "{first}" a b c d] [1 "{first} + {row}" e f g h] [2 "{first} + 2 * {row}" i j k l] [3 "{fourth}" m n o p]
            [4 "{fourth} + {row}" q r s t]);
        whole_step!($six, $from $options, 6,
            [0 "{first}" a b c d] [1 "{first} + {row}" e f g h] [2 "{first} + 2 * {row}" i j k l] [3 "{fourth}" m n o p]
            [4 "{fourth} + {row}" q r s t] [5 "{fourth} + 2 * {row}" u v y z]);
    };
}
steps!(pairs (pure, readonly, nostack) step_of_4 step_of_5 step_of_6);
steps!(widening (nostack) widening_step_of_4 widening_step_of_5 widening_step_of_6);
steps!(widened (pure, readonly, nostack) widened_step_of_4 widened_step_of_5 widened_step_of_6);

impl<const BF16: bool> Simd for Avx512<BF16> {
    const ISA: Isa = if BF16 { Isa::Avx512 } else { Isa::Avx512Vnni };
    const LANES: usize = LANES;
    const PAIR: usize = if BF16 { 1 } else { 2 };
    const ROWS: usize = 6;
    const WIDENS: bool = !BF16;
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
    unsafe fn larger(x: __m512, size: __m512) -> __m512 {
        // The larger in size, without its sign.
        _mm512_range_ps::<0b1011>(x, size)
    }
    #[inline(always)]
    unsafe fn select(bits: u32, a: __m512, b: __m512) -> __m512 {
        _mm512_mask_blend_ps(bits as __mmask16, b, a)
    }
    #[inline(always)]
    unsafe fn keep_ge(a: __m512, b: __m512, x: __m512) -> __m512 {
        // As integers, so that one instruction keeps what it computes.
        let kept = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(a, b);
        _mm512_castsi512_ps(_mm512_maskz_mov_epi32(kept, _mm512_castps_si512(x)))
    }
    #[inline(always)]
    unsafe fn select_ge(a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
        _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(a, b), y, x)
    }
    #[inline(always)]
    unsafe fn round(x: __m512) -> __m512 {
        _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x)
    }
    #[inline(always)]
    unsafe fn integers(rounded: __m512) -> __m512 {
        rounded
    }
    #[inline(always)]
    unsafe fn times_exp2(p: __m512, rounded: __m512, x: __m512, least: __m512) -> __m512 {
        _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(x, least), p, rounded)
    }
    #[inline(always)]
    unsafe fn add_exponent(x: __m512, n: __m512) -> __m512 {
        let n = _mm512_slli_epi32::<23>(_mm512_castps_si512(n));
        _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), n))
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> __m512 {
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()))))
    }
    #[inline(always)]
    unsafe fn load_halves(p: *const u32) -> [__m512; 2] {
        let pairs = _mm512_loadu_si512(p.cast());
        let high = _mm512_and_si512(pairs, _mm512_set1_epi32(HIGH));
        [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(high)]
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
    unsafe fn prefetch_lines(p: *const u32, n: usize) {
        prefetch_lines(p, n)
    }
    #[inline(always)]
    unsafe fn step_widened<const R: usize, const V: usize, const FIRST: bool>(
        acc: &mut [[__m512; V]; R],
        w: *const u32,
        panel: usize,
        x: *const u32,
        row: usize,
        wide: *mut f32,
    ) {
        assert!(const { meets_widened::<Self>(R, V) });
        let acc = ptr::from_mut(acc);
        match R {
            4 if FIRST => widening_step_of_4(&mut *acc.cast(), w, panel, x, row, wide),
            5 if FIRST => widening_step_of_5(&mut *acc.cast(), w, panel, x, row, wide),
            6 if FIRST => widening_step_of_6(&mut *acc.cast(), w, panel, x, row, wide),
            4 => widened_step_of_4(&mut *acc.cast(), wide.cast(), row, x, row, wide),
            5 => widened_step_of_5(&mut *acc.cast(), wide.cast(), row, x, row, wide),
            6 => widened_step_of_6(&mut *acc.cast(), wide.cast(), row, x, row, wide),
            rows => unreachable!("no step of {rows} rows"),
        }
    }
    #[inline(always)]
    unsafe fn step<const R: usize, const V: usize>(
        acc: &mut [[__m512; V]; R],
        w: *const u32,
        panel: usize,
        x: &Rows<R>,
        i: usize,
    ) {
        // As many rows and vectors as are widened together.
        if const { meets_widened::<Self>(R, V) } {
            let acc = ptr::from_mut(acc);
            return match R {
                4 => step_of_4(&mut *acc.cast(), w, panel, x.word(0, i), x.apart, w.cast_mut().cast()),
                5 => step_of_5(&mut *acc.cast(), w, panel, x.word(0, i), x.apart, w.cast_mut().cast()),
                6 => step_of_6(&mut *acc.cast(), w, panel, x.word(0, i), x.apart, w.cast_mut().cast()),
                rows => unreachable!("no step of {rows} rows"),
            };
        }
        let mut pairs = [_mm512_setzero_si512(); V];
        for (v, pair) in pairs.iter_mut().enumerate() {
            *pair = _mm512_loadu_si512(w.add(at::<Self>(v, panel)).cast());
        }
        if const { BF16 } {
            for (r, acc) in acc.iter_mut().enumerate() {
                let x = transmute::<__m512i, __m512bh>(_mm512_set1_epi32(*x.word(r, i) as i32));
                for (a, pair) in acc.iter_mut().zip(pairs) {
                    *a = _mm512_dpbf16_ps(*a, transmute::<__m512i, __m512bh>(pair), x);
                }
            }
            return;
        }
        let mut halves = [_mm512_setzero_ps(); V];
        for (pair, h) in pairs.iter().zip(&mut halves) {
            *h = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(*pair));
        }
        add_half(acc, halves, x, i);
        let mut second = i + 1;
        // What is read from now on stays behind what was read before: the compiler would read elements of all
        // rows together, and run out of registers.
        asm!("/* {0} */", inout(reg) second, options(pure, readonly, nostack, preserves_flags));
        for (pair, h) in pairs.iter().zip(&mut halves) {
            *h = _mm512_castsi512_ps(_mm512_and_si512(*pair, _mm512_set1_epi32(HIGH)));
        }
        add_half(acc, halves, x, second);
    }
}
