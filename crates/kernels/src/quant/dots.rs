//! Integer dot products of one instruction set. They are exact, so that they agree between the paths.
#![expect(unsafe_op_in_unsafe_fn, reason = "each operation is a few intrinsics under the contract of `Simd`")]

use super::half;
use crate::simd::{Portable, ROUND, Simd};

/// Sums of products of four bytes, or two 16-bit integers, at a time; lanes are outputs.
///
/// `WIDE` products are of signed 8-bit codes. Others are of unsigned codes, of at most 6 bits or [flipped](Dots::FLIPS), and
/// their sum starts at minus `centre` times the sum of the activations: it is then that of `code - centre`, which for 6 bits
/// fits 16 for each two elements of the fours, whatever happens on the way there.
///
/// # Safety
/// Contract of every method: as [`Simd`].
pub(crate) trait Dots: Simd {
    /// A word for each of `LANES` outputs.
    type I: Copy;
    /// Whether all sums are of 32 bits, and `WIDE` codes are made unsigned each time they are multiplied, with 128 as their
    /// centre: where many rows meet them, once before is better.
    const FLIPS: bool = false;
    /// Whether signed bytes are multiplied with bytes of what they meet, in place of being widened.
    const DIGITS: bool = false;

    unsafe fn words(p: *const u32) -> Self::I;
    unsafe fn store_words(p: *mut u32, x: Self::I);
    /// 16-bit words, widened.
    unsafe fn half_words(p: *const u16) -> Self::I;
    /// Values of f16.
    unsafe fn halves(p: *const u16) -> Self::F;
    unsafe fn and(x: Self::I, mask: u32) -> Self::I;
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn xor(x: Self::I, mask: u32) -> Self::I;
    unsafe fn minus(a: Self::I, b: Self::I) -> Self::I;
    /// To the left by `by` bits, to the right where it is negative; zeros come in.
    unsafe fn shift(x: Self::I, by: i32) -> Self::I;
    /// The lowest byte, which has a sign.
    unsafe fn low_byte(x: Self::I) -> Self::I;
    unsafe fn float(x: Self::I) -> Self::F;
    /// Four activations for all lanes.
    unsafe fn four(p: *const u32) -> Self::I;
    /// Before the first product; `sums` is the one of [`super::rows::Starts`].
    unsafe fn start<const WIDE: bool>(sums: *const u32, centre: i16) -> Self::I;
    /// Adds the products of four codes `w` and four activations `x`.
    unsafe fn dot<const WIDE: bool>(acc: Self::I, w: Self::I, x: Self::I) -> Self::I;
    /// The sum, exactly.
    unsafe fn total<const WIDE: bool>(acc: Self::I) -> Self::F;
    /// As [`Simd::step`], of pairs of 16 bits at `w`, vector after vector, with others, whose rows are `ROW` words apart;
    /// exactly, while the sums fit 32 bits.
    unsafe fn step_shorts<const ROW: usize, const R: usize, const V: usize>(
        acc: &mut [[Self::I; V]; R],
        w: *const u8,
        x: *const u32,
    );
    /// Two steps, the second one of what is `apart` bytes behind `w`.
    #[inline(always)]
    unsafe fn two_steps_shorts<const ROW: usize, const R: usize, const V: usize>(
        acc: &mut [[Self::I; V]; R],
        w: *const u8,
        apart: usize,
        x: *const u32,
    ) {
        Self::step_shorts::<ROW, R, V>(acc, w, x);
        Self::step_shorts::<ROW, R, V>(acc, w.add(apart), x.add(1));
    }
    /// Whether [`Dots::two_steps_asking`] is there, for four rows or more by four vectors.
    const ASKS_WITHIN: bool = false;
    /// The same, and four lines are asked for with each step, one after each of the first rows: from the places on, so many
    /// bytes apart. All at once some would be dropped.
    unsafe fn two_steps_asking<const ROW: usize, const R: usize, const V: usize>(
        _acc: &mut [[Self::I; V]; R],
        _w: *const u8,
        _apart: usize,
        _x: *const u32,
        _lines: ([*const u8; 2], usize),
    ) {
        unreachable!("what is due is asked for between the steps")
    }
    /// `LANES` pairs of numbers of at most 32767 in size as 16 bits, ties to even.
    unsafe fn shorts(x: [Self::F; 2]) -> Self::I;
    /// What fours of signed bytes meet: `x * by`, at most 32767 in size, as 16 bits, ties to even. Those for the even bytes of
    /// the fours and those for the odd ones; or, with [`Dots::DIGITS`], the higher bytes of all and the lower ones. These have
    /// no sign: of what is `SIGNED` the higher ones are 128 more than they should be.
    #[inline(always)]
    unsafe fn for_codes<const SIGNED: bool>(x: [Self::F; 4], by: Self::F) -> [Self::I; 2] {
        let [a, b, c, d] = Self::low_shorts(x, by, ROUND);
        [Self::or(Self::and(a, 0xffff), Self::shift(c, 16)), Self::or(Self::and(b, 0xffff), Self::shift(d, 16))]
    }
    /// `x * by + round` as words, whose lower 16 bits are the nearest integers, ties to even, if `round` is [`ROUND`].
    #[inline(always)]
    unsafe fn low_shorts(x: [Self::F; 4], by: Self::F, round: f32) -> [Self::I; 4] {
        x.map(|x| Self::bits(Self::fma(x, by, Self::splat(round))))
    }
    unsafe fn bits(x: Self::F) -> Self::I;
    /// Adds the products of fours of signed bytes at `w`, vector after vector, with rows of [what they meet](Dots::for_codes),
    /// the first or the `SECOND`, which are `ROW` words apart; exactly, while the sums fit 32 bits.
    unsafe fn step_codes<const SECOND: bool, const ROW: usize, const R: usize, const V: usize>(
        acc: &mut [[Self::I; V]; R],
        w: *const u8,
        x: *const u32,
    );
    /// With [`Dots::DIGITS`]: adds 128 times the sum of each four of signed bytes.
    unsafe fn add_codes(_acc: Self::I, _w: *const u8) -> Self::I {
        unreachable!("codes are widened")
    }
}

impl Dots for Portable {
    type I = [u32; 4];

    #[inline(always)]
    unsafe fn words(p: *const u32) -> [u32; 4] {
        p.cast::<[u32; 4]>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn store_words(p: *mut u32, x: [u32; 4]) {
        p.cast::<[u32; 4]>().write_unaligned(x)
    }
    #[inline(always)]
    unsafe fn half_words(p: *const u16) -> [u32; 4] {
        p.cast::<[u16; 4]>().read_unaligned().map(u32::from)
    }
    #[inline(always)]
    unsafe fn halves(p: *const u16) -> Self::F {
        Self::load(p.cast::<[u16; 4]>().read_unaligned().map(half::to_f32).as_ptr())
    }
    #[inline(always)]
    unsafe fn and(x: [u32; 4], mask: u32) -> [u32; 4] {
        x.map(|x| x & mask)
    }
    #[inline(always)]
    unsafe fn or(a: [u32; 4], b: [u32; 4]) -> [u32; 4] {
        [a[0] | b[0], a[1] | b[1], a[2] | b[2], a[3] | b[3]]
    }
    #[inline(always)]
    unsafe fn xor(x: [u32; 4], mask: u32) -> [u32; 4] {
        x.map(|x| x ^ mask)
    }
    #[inline(always)]
    unsafe fn minus(a: [u32; 4], b: [u32; 4]) -> [u32; 4] {
        std::array::from_fn(|i| a[i].wrapping_sub(b[i]))
    }
    #[inline(always)]
    unsafe fn shift(x: [u32; 4], by: i32) -> [u32; 4] {
        if by < 0 { x.map(|x| x >> -by) } else { x.map(|x| x << by) }
    }
    #[inline(always)]
    unsafe fn low_byte(x: [u32; 4]) -> [u32; 4] {
        x.map(|x| x as i8 as u32)
    }
    #[inline(always)]
    unsafe fn float(x: [u32; 4]) -> Self::F {
        Self::load(x.map(|x| x as i32 as f32).as_ptr())
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
        Self::float(acc)
    }
    #[inline(always)]
    unsafe fn step_shorts<const ROW: usize, const R: usize, const V: usize>(
        acc: &mut [[[u32; 4]; V]; R],
        w: *const u8,
        x: *const u32,
    ) {
        for v in 0..V {
            let pairs = Self::words(w.add(4 * v * Self::LANES).cast());
            for (r, acc) in acc.iter_mut().enumerate() {
                add_products(&mut acc[v], pairs, *x.add(r * ROW));
            }
        }
    }
    #[inline(always)]
    unsafe fn shorts(x: [Self::F; 2]) -> [u32; 4] {
        let mut floats = [0.0; 8];
        for (i, x) in x.into_iter().enumerate() {
            Self::store(floats.as_mut_ptr().add(4 * i), x);
        }
        let short = |x: f32| (x + ROUND).to_bits() & 0xffff;
        std::array::from_fn(|i| short(floats[2 * i]) | short(floats[2 * i + 1]) << 16)
    }
    #[inline(always)]
    unsafe fn bits(x: Self::F) -> [u32; 4] {
        let mut floats = [0.0_f32; 4];
        Self::store(floats.as_mut_ptr(), x);
        floats.map(f32::to_bits)
    }
    #[inline(always)]
    unsafe fn step_codes<const SECOND: bool, const ROW: usize, const R: usize, const V: usize>(
        acc: &mut [[[u32; 4]; V]; R],
        w: *const u8,
        x: *const u32,
    ) {
        for v in 0..V {
            let pairs = Self::words(w.add(4 * v * Self::LANES).cast()).map(|fours| {
                let fours = if SECOND { fours >> 8 } else { fours };
                fours as i8 as u16 as u32 | ((fours >> 16) as i8 as u32) << 16
            });
            for (r, acc) in acc.iter_mut().enumerate() {
                add_products(&mut acc[v], pairs, *x.add(r * ROW));
            }
        }
    }
}

/// Adds the products of pairs of 16 bits.
#[inline(always)]
fn add_products(sums: &mut [u32; 4], pairs: [u32; 4], x: u32) {
    let halves = |x: u32| (x as i16 as i32, x as i32 >> 16);
    let (first, second) = halves(x);
    for (sum, pair) in sums.iter_mut().zip(pairs) {
        let (a, b) = halves(pair);
        *sum = sum.wrapping_add((first * a).wrapping_add(second * b) as u32);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::*;
    use std::ptr;

    use super::Dots;
    use crate::simd::{Avx2, Avx512, ROUND, Simd};

    /// Its argument. Left to itself, the compiler turns chains of additions into trees, whose leaves it keeps in memory.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn chain(mut x: __m256i) -> __m256i {
        // SAFETY: no instruction.
        unsafe { asm!("/* {0} */", inout(ymm_reg) x, options(nomem, nostack, preserves_flags)) };
        x
    }

    /// Its argument, computed before what comes later in the source. Left to itself, the compiler finishes one row
    /// after the other, and runs out of registers for the codes of all steps.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn in_order(mut x: __m512i) -> __m512i {
        // SAFETY: no instruction.
        unsafe { asm!("/* {0} */", inout(zmm_reg) x, options(nomem, nostack, preserves_flags)) };
        x
    }

    /// `acc` and the products of 16 bits. Left to itself, the compiler takes an instruction each for products and sum, where it
    /// hopes that the sum is there sooner.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn add_products(mut acc: __m512i, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the instruction is there, says the only caller, and touches nothing but its operands.
        unsafe {
            asm!(
                "vpdpwssd {0}, {1}, {2}",
                inout(zmm_reg) acc, in(zmm_reg) a, in(zmm_reg) b,
                options(pure, nomem, nostack, preserves_flags)
            )
        };
        acc
    }

    /// `acc` and the products of unsigned bytes with signed ones.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn add_products_of_bytes(mut acc: __m512i, unsigned: __m512i, signed: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe {
            asm!(
                "vpdpbusd {0}, {1}, {2}",
                inout(zmm_reg) acc, in(zmm_reg) unsigned, in(zmm_reg) signed,
                options(pure, nomem, nostack, preserves_flags)
            )
        };
        acc
    }

    /// `a`, but of `b` the bits of the mask.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn merged(a: __m512i, b: __m512i, mask: u32) -> __m512i {
        _mm512_ternarylogic_epi32::<0b1101_1000>(a, b, _mm512_set1_epi32(mask as i32))
    }

    /// The products of `V` vectors of pairs with `R` rows, `ROW` words apart.
    ///
    /// # Safety
    /// AVX2 is available and the rows are valid for a word.
    #[inline(always)]
    unsafe fn add_products_of_pairs<const ROW: usize, const R: usize, const V: usize>(
        acc: &mut [[__m256i; V]; R],
        pairs: [__m256i; V],
        x: *const u32,
    ) {
        for (r, sums) in acc.iter_mut().enumerate() {
            let x = _mm256_set1_epi32(*x.add(r * ROW) as i32);
            for (sum, pair) in sums.iter_mut().zip(pairs) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pair, x));
            }
        }
    }

    /// Writes [`Dots::two_steps_shorts`] for so many rows by four vectors, and [`Dots::two_steps_asking`]. The first row and the
    /// fourth are broadcast by each product: four instructions instead of five, and three loads more, of which a step has room
    /// for so many.
    macro_rules! two_steps {
        ($name:ident $asking:ident, $rows:literal, $($row:tt)*) => {
            two_steps!(plain $name (pure, readonly, nostack, preserves_flags) () () $rows, $($row)*);
            two_steps!(asking $asking (readonly, nostack, preserves_flags) (from: [*const u8; 2], lines: usize)
                (first = in(reg) from[0], then = in(reg) from[1], line = in(reg) lines, line3 = in(reg) 3 * lines)
                $rows, $($row)*);
        };
        ($kind:ident $name:ident $options:tt ($($arg:ident: $ty:ty),*) ($($of:ident = in(reg) $value:expr),*) $rows:literal,
            $([$how:ident $r:tt $ask:tt $a:ident $b:ident $c:ident $d:ident])*) => {
            #[inline]
            #[target_feature(enable = "avx512f,avx512vnni")]
            unsafe fn $name<const ROW: usize>(
                acc: &mut [[__m512i; 4]; $rows],
                w: *const u8,
                apart: usize,
                x: *const u32,
                $($arg: $ty),*
            ) {
                let (_x, _0, _1, _2, _3): (__m512i, __m512i, __m512i, __m512i, __m512i);
                asm!(
                    two_steps!(w ""),
                    $(two_steps!($how $r "" $a $b $c $d), two_steps!($kind "first" $ask),)*
                    two_steps!(w " + {apart}"),
                    $(two_steps!($how $r " + 4" $a $b $c $d), two_steps!($kind "then" $ask),)*
                    $(
                        $a = inout(zmm_reg) acc[$r][0],
                        $b = inout(zmm_reg) acc[$r][1],
                        $c = inout(zmm_reg) acc[$r][2],
                        $d = inout(zmm_reg) acc[$r][3],
                    )*
                    w0 = out(zmm_reg) _0,
                    w1 = out(zmm_reg) _1,
                    w2 = out(zmm_reg) _2,
                    w3 = out(zmm_reg) _3,
                    one = out(zmm_reg) _x,
                    w = in(reg) w,
                    apart = in(reg) apart,
                    x = in(reg) x,
                    $($of = in(reg) $value,)*
                    row = const 4 * ROW,
                    options $options
                );
            }
        };
        (w $step:literal) => {
            concat!(
                "vmovdqu32 {w0}, zmmword ptr [{w}", $step, "]\n",
                "vmovdqu32 {w1}, zmmword ptr [{w}", $step, " + 64]\n",
                "vmovdqu32 {w2}, zmmword ptr [{w}", $step, " + 128]\n",
                "vmovdqu32 {w3}, zmmword ptr [{w}", $step, " + 192]",
            )
        };
        (apart $r:literal $step:literal $a:ident $b:ident $c:ident $d:ident) => {
            concat!(
                "vpbroadcastd {one}, dword ptr [{x} + ", $r, " * {row}", $step, "]\n",
                "vpdpwssd {", stringify!($a), "}, {w0}, {one}\n",
                "vpdpwssd {", stringify!($b), "}, {w1}, {one}\n",
                "vpdpwssd {", stringify!($c), "}, {w2}, {one}\n",
                "vpdpwssd {", stringify!($d), "}, {w3}, {one}",
            )
        };
        (within $r:literal $step:literal $a:ident $b:ident $c:ident $d:ident) => {
            concat!(
                two_steps!(product $r $step "{w0}" $a), "\n", two_steps!(product $r $step "{w1}" $b), "\n",
                two_steps!(product $r $step "{w2}" $c), "\n", two_steps!(product $r $step "{w3}" $d),
            )
        };
        (product $r:literal $step:literal $w:literal $a:ident) => {
            concat!("vpdpwssd {", stringify!($a), "}, ", $w, ", dword ptr [{x} + ", $r, " * {row}", $step, "]{{1to16}}")
        };
        (asking $from:literal $line:literal) => { concat!("prefetcht0 [{", $from, "}", $line, "]") };
        ($kind:ident $from:literal $line:tt) => { "" };
    }
    two_steps!(two_steps_of_4 asking_steps_of_4, 4,
        [within 0 "" a b c d] [apart 1 " + {line}" e f g h] [apart 2 " + 2 * {line}" i j k l]
        [within 3 " + {line3}" m n o p]);
    two_steps!(two_steps_of_5 asking_steps_of_5, 5,
        [within 0 "" a b c d] [apart 1 " + {line}" e f g h] [apart 2 " + 2 * {line}" i j k l]
        [within 3 " + {line3}" m n o p] [apart 4 () q r s t]);
    two_steps!(two_steps_of_6 asking_steps_of_6, 6,
        [within 0 "" a b c d] [apart 1 " + {line}" e f g h] [apart 2 " + 2 * {line}" i j k l]
        [within 3 " + {line3}" m n o p] [apart 4 () q r s t] [apart 5 () u v y z]);

    /// Narrow sums are in 16 bits, two for an output. Wide products of two are exact in 16 bits (`127 * 128 * 2`) where
    /// the codes' signs are moved to the activations. With VNNI, all is as with [`Avx512`].
    impl<const VNNI: bool> Dots for Avx2<VNNI> {
        type I = __m256i;
        const FLIPS: bool = VNNI;

        #[inline(always)]
        unsafe fn words(p: *const u32) -> __m256i {
            _mm256_loadu_si256(p.cast())
        }
        #[inline(always)]
        unsafe fn store_words(p: *mut u32, x: __m256i) {
            _mm256_storeu_si256(p.cast(), x)
        }
        #[inline(always)]
        unsafe fn half_words(p: *const u16) -> __m256i {
            _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()))
        }
        #[inline(always)]
        unsafe fn halves(p: *const u16) -> Self::F {
            _mm256_cvtph_ps(_mm_loadu_si128(p.cast()))
        }
        #[inline(always)]
        unsafe fn and(x: __m256i, mask: u32) -> __m256i {
            _mm256_and_si256(x, _mm256_set1_epi32(mask as i32))
        }
        #[inline(always)]
        unsafe fn or(a: __m256i, b: __m256i) -> __m256i {
            _mm256_or_si256(a, b)
        }
        #[inline(always)]
        unsafe fn xor(x: __m256i, mask: u32) -> __m256i {
            _mm256_xor_si256(x, _mm256_set1_epi32(mask as i32))
        }
        #[inline(always)]
        unsafe fn minus(a: __m256i, b: __m256i) -> __m256i {
            _mm256_sub_epi32(a, b)
        }
        #[inline(always)]
        unsafe fn shift(x: __m256i, by: i32) -> __m256i {
            if by < 0 {
                _mm256_srl_epi32(x, _mm_cvtsi32_si128(-by))
            } else {
                _mm256_sll_epi32(x, _mm_cvtsi32_si128(by))
            }
        }
        #[inline(always)]
        unsafe fn low_byte(x: __m256i) -> __m256i {
            _mm256_srai_epi32::<24>(_mm256_slli_epi32::<24>(x))
        }
        #[inline(always)]
        unsafe fn float(x: __m256i) -> Self::F {
            _mm256_cvtepi32_ps(x)
        }
        #[inline(always)]
        unsafe fn four(p: *const u32) -> __m256i {
            _mm256_set1_epi32(*p as i32)
        }
        #[inline(always)]
        unsafe fn start<const WIDE: bool>(sums: *const u32, centre: i16) -> __m256i {
            if VNNI {
                chain(Self::four(sums))
            } else if WIDE {
                _mm256_setzero_si256()
            } else {
                _mm256_mullo_epi16(Self::four(sums), _mm256_set1_epi16(-centre))
            }
        }
        #[inline(always)]
        unsafe fn dot<const WIDE: bool>(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
            let sum = if VNNI {
                let w = if WIDE { _mm256_xor_si256(w, _mm256_set1_epi8(-128)) } else { w };
                _mm256_dpbusd_avx_epi32(acc, w, x)
            } else if WIDE {
                let twos = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
                _mm256_add_epi32(acc, _mm256_madd_epi16(twos, _mm256_set1_epi16(1)))
            } else {
                _mm256_add_epi16(acc, _mm256_maddubs_epi16(w, x))
            };
            chain(sum)
        }
        #[inline(always)]
        unsafe fn total<const WIDE: bool>(acc: __m256i) -> Self::F {
            Self::float(if VNNI || WIDE { acc } else { _mm256_madd_epi16(acc, _mm256_set1_epi16(1)) })
        }
        #[inline(always)]
        unsafe fn step_shorts<const ROW: usize, const R: usize, const V: usize>(
            acc: &mut [[__m256i; V]; R],
            w: *const u8,
            x: *const u32,
        ) {
            let mut pairs = [_mm256_setzero_si256(); V];
            for (v, pair) in pairs.iter_mut().enumerate() {
                *pair = Self::words(w.add(4 * v * Self::LANES).cast());
            }
            add_products_of_pairs::<ROW, R, V>(acc, pairs, x);
        }
        #[inline(always)]
        unsafe fn shorts([a, b]: [__m256; 2]) -> __m256i {
            // Four of `a`, four of `b`, in each half.
            let shorts = _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b));
            _mm256_permute4x64_epi64::<0b11_01_10_00>(shorts)
        }
        #[inline(always)]
        unsafe fn bits(x: __m256) -> __m256i {
            _mm256_castps_si256(x)
        }
        #[inline(always)]
        unsafe fn step_codes<const SECOND: bool, const ROW: usize, const R: usize, const V: usize>(
            acc: &mut [[__m256i; V]; R],
            w: *const u8,
            x: *const u32,
        ) {
            let mut pairs = [_mm256_setzero_si256(); V];
            for (v, pair) in pairs.iter_mut().enumerate() {
                let codes = Self::words(w.add(4 * v * Self::LANES).cast());
                *pair = _mm256_srai_epi16::<8>(if SECOND { codes } else { _mm256_slli_epi16::<8>(codes) });
            }
            add_products_of_pairs::<ROW, R, V>(acc, pairs, x);
        }
    }

    /// Wide codes are made unsigned, with 128 as their centre.
    impl<const BF16: bool> Dots for Avx512<BF16> {
        type I = __m512i;
        const FLIPS: bool = true;
        const DIGITS: bool = true;

        #[inline(always)]
        unsafe fn words(p: *const u32) -> __m512i {
            _mm512_loadu_si512(p.cast())
        }
        #[inline(always)]
        unsafe fn store_words(p: *mut u32, x: __m512i) {
            _mm512_storeu_si512(p.cast(), x)
        }
        #[inline(always)]
        unsafe fn half_words(p: *const u16) -> __m512i {
            _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()))
        }
        #[inline(always)]
        unsafe fn halves(p: *const u16) -> Self::F {
            _mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))
        }
        #[inline(always)]
        unsafe fn and(x: __m512i, mask: u32) -> __m512i {
            _mm512_and_si512(x, _mm512_set1_epi32(mask as i32))
        }
        #[inline(always)]
        unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
            _mm512_or_si512(a, b)
        }
        #[inline(always)]
        unsafe fn xor(x: __m512i, mask: u32) -> __m512i {
            _mm512_xor_si512(x, _mm512_set1_epi32(mask as i32))
        }
        #[inline(always)]
        unsafe fn minus(a: __m512i, b: __m512i) -> __m512i {
            _mm512_sub_epi32(a, b)
        }
        #[inline(always)]
        unsafe fn shift(x: __m512i, by: i32) -> __m512i {
            if by < 0 {
                _mm512_srl_epi32(x, _mm_cvtsi32_si128(-by))
            } else {
                _mm512_sll_epi32(x, _mm_cvtsi32_si128(by))
            }
        }
        #[inline(always)]
        unsafe fn low_byte(x: __m512i) -> __m512i {
            _mm512_srai_epi32::<24>(_mm512_slli_epi32::<24>(x))
        }
        #[inline(always)]
        unsafe fn float(x: __m512i) -> Self::F {
            _mm512_cvtepi32_ps(x)
        }
        #[inline(always)]
        unsafe fn four(p: *const u32) -> __m512i {
            _mm512_set1_epi32(*p as i32)
        }
        #[inline(always)]
        unsafe fn start<const WIDE: bool>(sums: *const u32, _: i16) -> __m512i {
            in_order(Self::four(sums))
        }
        #[inline(always)]
        unsafe fn dot<const WIDE: bool>(acc: __m512i, w: __m512i, x: __m512i) -> __m512i {
            let w = if WIDE { _mm512_xor_si512(w, _mm512_set1_epi8(-128)) } else { w };
            in_order(_mm512_dpbusd_epi32(acc, w, x))
        }
        #[inline(always)]
        unsafe fn total<const WIDE: bool>(acc: __m512i) -> Self::F {
            Self::float(acc)
        }
        const ASKS_WITHIN: bool = true;

        #[inline(always)]
        unsafe fn two_steps_asking<const ROW: usize, const R: usize, const V: usize>(
            acc: &mut [[__m512i; V]; R],
            w: *const u8,
            apart: usize,
            x: *const u32,
            (from, lines): ([*const u8; 2], usize),
        ) {
            assert!(const { V == 4 && R >= 4 && R <= 6 });
            let acc = ptr::from_mut(acc);
            match R {
                4 => asking_steps_of_4::<ROW>(&mut *acc.cast(), w, apart, x, from, lines),
                5 => asking_steps_of_5::<ROW>(&mut *acc.cast(), w, apart, x, from, lines),
                _ => asking_steps_of_6::<ROW>(&mut *acc.cast(), w, apart, x, from, lines),
            }
        }
        #[inline(always)]
        unsafe fn two_steps_shorts<const ROW: usize, const R: usize, const V: usize>(
            acc: &mut [[__m512i; V]; R],
            w: *const u8,
            apart: usize,
            x: *const u32,
        ) {
            if const { V == 4 && R >= 4 && R <= 6 } {
                let acc = ptr::from_mut(acc);
                return match R {
                    4 => two_steps_of_4::<ROW>(&mut *acc.cast(), w, apart, x),
                    5 => two_steps_of_5::<ROW>(&mut *acc.cast(), w, apart, x),
                    _ => two_steps_of_6::<ROW>(&mut *acc.cast(), w, apart, x),
                };
            }
            Self::step_shorts::<ROW, R, V>(acc, w, x);
            Self::step_shorts::<ROW, R, V>(acc, w.add(apart), x.add(1));
        }
        #[inline(always)]
        unsafe fn step_shorts<const ROW: usize, const R: usize, const V: usize>(
            acc: &mut [[__m512i; V]; R],
            w: *const u8,
            x: *const u32,
        ) {
            let mut pairs = [_mm512_setzero_si512(); V];
            for (v, pair) in pairs.iter_mut().enumerate() {
                *pair = Self::words(w.add(4 * v * Self::LANES).cast());
            }
            for (r, sums) in acc.iter_mut().enumerate() {
                let x = _mm512_set1_epi32(*x.add(r * ROW) as i32);
                for (sum, pair) in sums.iter_mut().zip(pairs) {
                    *sum = add_products(*sum, pair, x);
                }
            }
        }
        #[inline(always)]
        unsafe fn shorts([a, b]: [__m512; 2]) -> __m512i {
            // Four of `a`, four of `b`, in each quarter.
            let shorts = _mm512_packs_epi32(_mm512_cvtps_epi32(a), _mm512_cvtps_epi32(b));
            _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), shorts)
        }
        #[inline(always)]
        unsafe fn for_codes<const SIGNED: bool>(x: [__m512; 4], by: __m512) -> [__m512i; 2] {
            let [a, b, c, d] = Self::low_shorts(x, by, if SIGNED { ROUND + 32_768.0 } else { ROUND });
            let even = merged(a, _mm512_slli_epi32::<16>(c), 0xffff_0000);
            let odd = merged(b, _mm512_slli_epi32::<16>(d), 0xffff_0000);
            let high = merged(_mm512_srli_epi32::<8>(even), odd, 0xff00_ff00);
            [high, merged(even, _mm512_slli_epi32::<8>(odd), 0xff00_ff00)]
        }
        #[inline(always)]
        unsafe fn bits(x: __m512) -> __m512i {
            _mm512_castps_si512(x)
        }
        #[inline(always)]
        unsafe fn step_codes<const SECOND: bool, const ROW: usize, const R: usize, const V: usize>(
            acc: &mut [[__m512i; V]; R],
            w: *const u8,
            x: *const u32,
        ) {
            let mut codes = [_mm512_setzero_si512(); V];
            for (v, codes) in codes.iter_mut().enumerate() {
                *codes = Self::words(w.add(4 * v * Self::LANES).cast());
            }
            for (r, sums) in acc.iter_mut().enumerate() {
                let x = _mm512_set1_epi32(*x.add(r * ROW) as i32);
                for (sum, codes) in sums.iter_mut().zip(codes) {
                    *sum = add_products_of_bytes(*sum, x, codes);
                }
            }
        }
        #[inline(always)]
        unsafe fn add_codes(acc: __m512i, w: *const u8) -> __m512i {
            add_products_of_bytes(acc, _mm512_set1_epi8(-128), Self::words(w.cast()))
        }
    }
}
