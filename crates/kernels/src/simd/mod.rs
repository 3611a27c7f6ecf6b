//! The operations that the kernels are written in, once per instruction set.
//!
//! Every kernel is one generic function over [`Simd`], `#[inline(always)]` down to the intrinsics and entered through a
//! `#[target_feature]` function that [`isa_entry`] writes. Closures on that way have no intrinsics in them: they would
//! not inherit the features. Lanes are always output elements, so no result depends on how rows are blocked.
#![expect(unsafe_op_in_unsafe_fn, reason = "each operation is one or two intrinsics under the contract of `Simd`")]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
mod rows;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::{Avx2, AvxVnni};
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::{Avx512, Avx512Vnni};
pub(crate) use portable::Portable;
pub(crate) use rows::{FarRows, Rows};

use crate::Isa;

/// Outputs in a panel of packed operands: a step of a panel is `[16][2]` bf16, one cache line.
pub(crate) const PANEL: usize = 16;

/// Vectors that [`Simd::reduce_each`] reduces side by side.
pub(crate) const AT_ONCE: usize = 8;

/// By how many rows are left, the rows of the next of several blocks of almost equal size, at most `most`.
pub(crate) const fn block_sizes<const N: usize>(most: usize) -> [u8; N] {
    let mut sizes = [0; N];
    let mut left = 1;
    while left < N {
        sizes[left] = left.div_ceil(left.div_ceil(most)) as u8;
        left += 1;
    }
    sizes
}

/// 1.5 * 2^23: adding it to a number below 2^22 rounds that to an integer, ties to even, which is then in the low bits.
pub(crate) const ROUND: f32 = 12_582_912.0;

/// Minimax polynomial of `2^f` on [-1/2, 1/2] with the constant term 1.
#[expect(clippy::approx_constant, reason = "close to ln 2, but not meant to be it")]
const EXP2: [f32; 6] = [1.0, 0.693_147, 0.240_222_42, 0.055_507_337, 0.009_671_513, 0.001_326_472_6];

/// The same with one coefficient less.
const COARSE_EXP2: [f32; 5] = [1.0, 0.693_124_2, 0.240_241, 0.055_906_425, 0.009_582_854];

/// `one` times it, for [`Simd::coarse_exp2_each`].
pub(crate) const fn exp2_times(one: f32) -> [f32; 5] {
    let mut polynomial = COARSE_EXP2;
    let mut i = 0;
    while i < polynomial.len() {
        polynomial[i] *= one;
        i += 1;
    }
    polynomial
}

/// Vector operations of one instruction set.
///
/// A *prepared* operand is the left side of a dot product, laid out for [`Simd::step`]: [`Simd::PAIR`] words for two
/// consecutive bf16 elements (one word: the two bf16; two words: the two as f32).
///
/// # Safety
/// Contract of every method: the instruction set is available, and pointers are valid for the lanes they address.
/// No pointer needs to be aligned beyond its element type, but `wide` of [`Simd::step_widened`].
pub(crate) trait Simd: Copy + 'static {
    const ISA: Isa;
    /// f32 lanes of a vector; divides [`PANEL`].
    const LANES: usize;
    /// Words of a prepared pair.
    const PAIR: usize;
    /// Rows of the largest register block.
    const ROWS: usize;
    /// Whether operands in bf16 are widened in the place of products, so that it pays to keep them for other row blocks.
    const WIDENS: bool = false;
    type F: Copy;

    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    unsafe fn store(p: *mut f32, x: Self::F);
    /// The first `n` lanes (`n <= LANES`), zeros behind them.
    unsafe fn load_n(p: *const f32, n: usize) -> Self::F;
    /// The first `n` lanes only.
    unsafe fn store_n(p: *mut f32, n: usize, x: Self::F);
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, fused where the instruction set has it.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// The larger of `|x|` and `size`, which is a number; that where `x` is none.
    #[inline(always)]
    unsafe fn larger(x: Self::F, size: Self::F) -> Self::F {
        Self::max(Self::max(x, Self::sub(Self::splat(0.0), x)), size)
    }
    /// Lane i of `a` where bit i of `bits` is set, else of `b`.
    unsafe fn select(bits: u32, a: Self::F, b: Self::F) -> Self::F;
    /// `x` where `a >= b`, else 0.
    unsafe fn keep_ge(a: Self::F, b: Self::F, x: Self::F) -> Self::F;
    /// `x` where `a >= b`, else `y`.
    unsafe fn select_ge(a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F;
    /// x rounded to integers, ties to even, if none is 2^22 in size, in the form in which [`Simd::times_exp2`] takes them.
    #[inline(always)]
    unsafe fn round(x: Self::F) -> Self::F {
        Self::add(x, Self::splat(ROUND))
    }
    /// The integers themselves.
    #[inline(always)]
    unsafe fn integers(rounded: Self::F) -> Self::F {
        Self::sub(rounded, Self::splat(ROUND))
    }
    /// `p * 2^x` where x was rounded, or 0 where it is below `least`, or no number. With `least` no result is subnormal.
    #[inline(always)]
    unsafe fn times_exp2(p: Self::F, rounded: Self::F, x: Self::F, least: Self::F) -> Self::F {
        Self::keep_ge(x, least, Self::add_exponent(p, rounded))
    }
    /// Adds the low 9 bits of `n`'s bit pattern to the exponents of `x`, as integers.
    unsafe fn add_exponent(x: Self::F, n: Self::F) -> Self::F;
    /// `LANES` values of bf16.
    unsafe fn load_bf16(p: *const u16) -> Self::F;
    /// The lower and the upper bf16 of `LANES` words.
    unsafe fn load_halves(p: *const u32) -> [Self::F; 2];
    /// Rounds to bf16, stores `LANES` of them.
    unsafe fn store_bf16(p: *mut u16, x: Self::F);
    /// One step of `R x V` dot products: `acc[r][v][lane] += w[v][lane][0] * x[r][0] + w[v][lane][1] * x[r][1]`.
    ///
    /// `w` is the step of packed operands (a word holds two bf16), vector `v` of it at [`at`]`(v, panel)`; the prepared
    /// pair of row `r` begins at word `i` of it. The arithmetic of a lane is the same for all `R` and `V`.
    unsafe fn step<const R: usize, const V: usize>(
        acc: &mut [[Self::F; V]; R],
        w: *const u32,
        panel: usize,
        x: &Rows<R>,
        i: usize,
    );

    /// [`Simd::step`] of a block that [`meets_widened`], of as many panels as vectors. Of a step `wide` takes
    /// `[2][V]` vectors of f32, on a boundary of a vector: the first and the second elements of pairs. With `FIRST` they
    /// are kept there, else taken from there.
    #[inline(always)]
    unsafe fn step_widened<const R: usize, const V: usize, const FIRST: bool>(
        _acc: &mut [[Self::F; V]; R],
        _w: *const u32,
        _panel: usize,
        _x: *const u32,
        _row: usize,
        _wide: *mut f32,
    ) {
        unreachable!("operands are not widened")
    }

    /// Asks for a cache line in the L2 cache; any address is allowed.
    unsafe fn prefetch(p: *const u32);
    /// The same in the L1 cache.
    unsafe fn prefetch_near(p: *const u32);
    /// Asks for `n > 0` consecutive lines in the L2 cache.
    #[inline(always)]
    unsafe fn prefetch_lines(p: *const u32, n: usize) {
        for line in 0..n {
            Self::prefetch(p.wrapping_byte_add(line * LINE));
        }
    }

    /// Lane by lane into an array, for reductions; unused lanes are zero.
    #[inline(always)]
    unsafe fn lanes(x: Self::F) -> [f32; PANEL] {
        let mut out = [0.0; PANEL];
        Self::store(out.as_mut_ptr(), x);
        out
    }

    /// Sum of the lanes.
    #[inline(always)]
    unsafe fn sum(x: Self::F) -> f32 {
        let l = Self::lanes(x);
        let mut n = Self::LANES;
        let mut l = l;
        while n > 1 {
            n /= 2;
            for i in 0..n {
                l[i] += l[i + n];
            }
        }
        l[0]
    }

    /// The sum of the lanes of each of [`AT_ONCE`] vectors, or the largest of them: lane i meets lane `i + n` for n of
    /// `LANES / 2`, .. 2, 1, in that order, as in [`Simd::sum`].
    #[inline(always)]
    unsafe fn reduce_each<const LARGEST: bool>(x: [Self::F; AT_ONCE], to: *mut f32) {
        for (i, &x) in x.iter().enumerate() {
            let mut l = Self::lanes(x);
            let mut n = Self::LANES;
            while n > 1 {
                n /= 2;
                for i in 0..n {
                    let (a, b) = (l[i], l[i + n]);
                    l[i] = match LARGEST {
                        true if a > b => a,
                        true => b,
                        false => a + b,
                    };
                }
            }
            *to.add(i) = l[0];
        }
    }

    /// One step of [`Simd::reduce_each`].
    #[inline(always)]
    unsafe fn meet<const LARGEST: bool>(a: Self::F, b: Self::F) -> Self::F {
        if LARGEST { Self::max(a, b) } else { Self::add(a, b) }
    }

    /// `one * 2^x` of several vectors, where no x is above 0, by the polynomial [`exp2_times`]`(one)`: with a relative error
    /// below 4e-6 from -125 on, exactly 0 below and of what is no number, exactly `one` at 0. Step by step: the steps of one wait
    /// for each other, and few of those that wait fit the queues of a CPU.
    #[inline(always)]
    unsafe fn coarse_exp2_each<const N: usize, const R: usize>(x: &mut [[Self::F; N]; R], polynomial: &[f32; 5]) {
        let (mut rounded, mut f, mut p) = (*x, *x, [[Self::splat(polynomial[4]); N]; R]);
        // What is below -125, or no number, is dropped in the end, whatever it is rounded to.
        for r in 0..R {
            for i in 0..N {
                rounded[r][i] = Self::round(x[r][i]);
                f[r][i] = Self::sub(x[r][i], Self::integers(rounded[r][i]));
            }
        }
        for c in (0..4).rev() {
            for r in 0..R {
                for i in 0..N {
                    p[r][i] = Self::fma(p[r][i], f[r][i], Self::splat(polynomial[c]));
                }
            }
        }
        for r in 0..R {
            for i in 0..N {
                x[r][i] = Self::times_exp2(p[r][i], rounded[r][i], x[r][i], Self::splat(-125.0));
            }
        }
    }

    /// `2^x` with a relative error below 3e-7 from -125 to 128; exactly 0 below, infinity above, exactly 1 at 0.
    #[inline(always)]
    unsafe fn exp2(x: Self::F) -> Self::F {
        Self::exp2_each::<1, false>([x])[0]
    }

    /// [`Simd::exp2`] of several vectors, step by step: the steps of one wait for each other. `SMALL`: none is above
    /// 128, though some may be no number, which gives 0 either way.
    #[inline(always)]
    unsafe fn exp2_each<const N: usize, const SMALL: bool>(x: [Self::F; N]) -> [Self::F; N] {
        let low = Self::splat(-125.0);
        let (mut shifted, mut f, mut p) = (x, x, [Self::splat(EXP2[5]); N]);
        for i in 0..N {
            // What is below, or no number, is not kept in the end, whatever becomes of it.
            let clamped = if SMALL { x[i] } else { Self::max(Self::min(x[i], Self::splat(128.0)), low) };
            shifted[i] = Self::add(clamped, Self::splat(ROUND));
            f[i] = Self::sub(clamped, Self::sub(shifted[i], Self::splat(ROUND)));
        }
        for c in (0..5).rev() {
            for i in 0..N {
                p[i] = Self::fma(p[i], f[i], Self::splat(EXP2[c]));
            }
        }
        for i in 0..N {
            p[i] = Self::keep_ge(x[i], low, Self::add_exponent(p[i], shifted[i]));
        }
        p
    }
}

/// Vectors of operands that are widened together, and steps of them: half of an L1 cache of 32 KiB.
pub(crate) const WIDE_VECTORS: usize = 4;
pub(crate) const WIDE_STEPS: usize = 32;

/// f32 elements that these become.
pub(crate) const WIDE: usize = WIDE_STEPS * 2 * WIDE_VECTORS * PANEL;

/// Rows of the smallest block that meets them.
const WIDE_ROWS: usize = 4;

/// Whether blocks of so many rows and vectors have steps on widened operands.
pub(crate) const fn meets_widened<S: Simd>(rows: usize, vectors: usize) -> bool {
    S::WIDENS && rows >= WIDE_ROWS && vectors == WIDE_VECTORS
}

/// Word offset of vector `v` of a step whose panels are `panel` words apart.
#[inline(always)]
pub(crate) const fn at<S: Simd>(v: usize, panel: usize) -> usize {
    v * S::LANES / PANEL * panel + v * S::LANES % PANEL
}

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

/// What a loop asks for while it computes.
pub(crate) trait Ask: Copy {
    /// Whether it is for as many bytes as are read, so that a loop may ask in the midst of its products.
    const ALL: bool = false;
    /// Where the lines of the first step lie, and bytes from step to step and from one of its lines to the next.
    #[inline(always)]
    fn lines(self) -> (*const u8, usize, usize) {
        unreachable!("lines of each step")
    }
    /// Asks for what is due in step `i` of `steps`, each of which reads `bytes`.
    ///
    /// # Safety
    /// The ISA of `S` is available.
    unsafe fn ask<S: Simd>(self, bytes: usize, i: usize, steps: usize);
    /// The same of steps `i` and `i + 1`.
    ///
    /// # Safety
    /// As [`Ask::ask`].
    #[inline(always)]
    unsafe fn ask_two<S: Simd>(self, bytes: usize, i: usize, steps: usize) {
        self.ask::<S>(bytes, i, steps);
        self.ask::<S>(bytes, i + 1, steps);
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Nothing;

impl Ask for Nothing {
    #[inline(always)]
    unsafe fn ask<S: Simd>(self, _: usize, _: usize, _: usize) {}
}

/// As many bytes as are read, but at most a line a step, from here on.
#[derive(Clone, Copy)]
pub(crate) struct Line(pub *const u8);

impl Ask for Line {
    #[inline(always)]
    unsafe fn ask<S: Simd>(self, bytes: usize, i: usize, _: usize) {
        // Every so many steps, where the compiler cannot work it out.
        let (due, line) = if bytes >= LINE {
            (true, i * LINE)
        } else if LINE.is_multiple_of(bytes) {
            (i.is_multiple_of(LINE / bytes), i * bytes)
        } else {
            let line = (i * bytes).next_multiple_of(LINE);
            (line < (i + 1) * bytes, line)
        };
        if due {
            S::prefetch(self.0.wrapping_add(line).cast());
        }
    }
}

/// As many bytes as are read, from here on. Where a step has several lines (or one and a half) they are, on most CPUs, as many
/// places that are read from end to end: the hardware goes ahead of each of them. On those of AMD they follow each other: four
/// places take a sixth longer there.
#[derive(Clone, Copy)]
pub(crate) struct All {
    from: *const u8,
    /// Bytes from step to step, and from one of its lines to the next.
    step: usize,
    line: usize,
}

impl All {
    /// What `steps` steps ask for that read so many bytes each.
    #[inline(always)]
    pub fn new(from: *const u8, bytes: usize, steps: usize) -> All {
        let lines = bytes.div_ceil(LINE);
        let (step, line) = if Isa::of_amd() { (lines * LINE, LINE) } else { (LINE, steps * LINE) };
        All { from, step, line }
    }
}

impl Ask for All {
    const ALL: bool = true;

    #[inline(always)]
    unsafe fn ask<S: Simd>(self, bytes: usize, i: usize, _: usize) {
        let first = self.from.wrapping_add(i * self.step);
        for line in 0..bytes.div_ceil(LINE) {
            S::prefetch_near(first.wrapping_add(line * self.line).cast());
        }
    }

    #[inline(always)]
    fn lines(self) -> (*const u8, usize, usize) {
        (self.from, self.step, self.line)
    }
}

/// `acc += x . w` over `pairs` steps, in ascending order: the inner loop of products with bf16.
///
/// # Safety
/// As [`Simd::step`], for `w + i * stride` and `x + i * PAIR`, `i < pairs`.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "two strided operands")]
pub(crate) unsafe fn dots<S: Simd, const R: usize, const V: usize, A: Ask>(
    acc: &mut [[S::F; V]; R],
    w: *const u32,
    stride: usize,
    panel: usize,
    x: *const u32,
    row: usize,
    pairs: usize,
    ask: A,
) {
    let x = Rows::new(x, row);
    for i in 0..pairs {
        ask.ask::<S>(V * S::LANES * size_of::<u32>(), i, pairs);
        S::step(acc, w.add(i * stride), panel, &x, i * S::PAIR);
    }
}

/// [`dots`] with operands that are kept: see [`Simd::step_widened`].
///
/// # Safety
/// As [`dots`] and [`Simd::step_widened`]; not `FIRST` only after it.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "two strided operands")]
pub(crate) unsafe fn dots_widened<S: Simd, const R: usize, const V: usize, const FIRST: bool, A: Ask>(
    acc: &mut [[S::F; V]; R],
    w: *const u32,
    stride: usize,
    panel: usize,
    x: *const u32,
    row: usize,
    pairs: usize,
    wide: *mut f32,
    ask: A,
) {
    for i in 0..pairs {
        ask.ask::<S>(V * S::LANES * size_of::<u32>(), i, pairs);
        let wide = wide.add(i * 2 * V * S::LANES);
        S::step_widened::<R, V, FIRST>(acc, w.add(i * stride), panel, x.add(i * S::PAIR), row, wide);
    }
}

/// Prepares `src` as pairs of neighbours; the last of an odd number is paired with 0.
///
/// # Safety
/// `dst` is valid for `src.len().div_ceil(2) * PAIR` words.
#[inline(always)]
pub(crate) unsafe fn prepare<S: Simd>(src: &[u16], dst: *mut u32) {
    if S::PAIR == 2 {
        for (i, &x) in src.iter().enumerate() {
            *dst.add(i) = (x as u32) << 16;
        }
        if src.len() % 2 == 1 {
            *dst.add(src.len()) = 0;
        }
    } else {
        let halves = src.chunks_exact(2);
        let odd = halves.remainder().first().copied();
        for (i, pair) in halves.enumerate() {
            *dst.add(i) = pair[0] as u32 | (pair[1] as u32) << 16;
        }
        if let Some(x) = odd {
            *dst.add(src.len() / 2) = x as u32;
        }
    }
}

/// Writes `unsafe fn $name(isa: Isa, ...)`, which runs `$generic::<S>(...)` compiled for the instruction set `isa`.
/// With `, with avx512vnni` behind it AVX-512 without bf16 has code of its own, and with `, with vnni` AVX-VNNI too;
/// otherwise they run that of AVX2.
macro_rules! isa_entry {
    ($vis:vis fn $name:ident($($args:tt)*) = $generic:ident, with vnni) => {
        $crate::simd::isa_entry!(
            $vis fn $name($($args)*) = $generic, first avxvnni of AvxVnni "avx2,fma,f16c,avxvnni", with avx512vnni);
    };
    ($vis:vis fn $name:ident($($args:tt)*) = $generic:ident, with avx512vnni) => {
        $crate::simd::isa_entry!(
            $vis fn $name($($args)*) = $generic,
            first avx512vnni of Avx512Vnni "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni");
    };
    ($vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) = $generic:ident,
        first $own:ident of $isa:ident $features:literal $(, $($others:tt)*)?) => {
        /// # Safety
        /// The machine can run `isa`, and the contract of the generic function.
        $vis unsafe fn $name(isa: $crate::Isa, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = $features)]
            unsafe fn $own($($arg: $ty),*) {
                // SAFETY: the contract is passed on.
                unsafe { $generic::<$crate::simd::$isa>($($arg),*) }
            }
            $crate::simd::isa_entry!(fn others($($arg: $ty),*) = $generic $(, $($others)*)?);
            match isa {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the machine can run it, says the caller.
                $crate::Isa::$isa => unsafe { $own($($arg),*) },
                // SAFETY: likewise.
                _ => unsafe { others(isa, $($arg),*) },
            }
        }
    };
    ($vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) = $generic:ident) => {
        /// # Safety
        /// The machine can run `isa`, and the contract of the generic function.
        $vis unsafe fn $name(isa: $crate::Isa, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni")]
            unsafe fn avx512($($arg: $ty),*) {
                // SAFETY: the contract is passed on.
                unsafe { $generic::<$crate::simd::Avx512>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn avx2($($arg: $ty),*) {
                // SAFETY: the contract is passed on.
                unsafe { $generic::<$crate::simd::Avx2>($($arg),*) }
            }
            match isa {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the machine can run it, says the caller.
                $crate::Isa::Avx512 => unsafe { avx512($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the machine can run it, says the caller.
                $crate::Isa::Avx512Vnni | $crate::Isa::AvxVnni | $crate::Isa::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: needs nothing beyond the baseline.
                _ => unsafe { $generic::<$crate::simd::Portable>($($arg),*) },
            }
        }
    };
}
pub(crate) use isa_entry;

/// Runs `$f::<S, R, V>($args)` for a block of `$rows` rows (at most [`Simd::ROWS`]), with the number of vectors that
/// keeps the registers of `S` full. What is chosen by constants (`if const`) is not even compiled for other instruction
/// sets, where a `match` would be. A vector count times `LANES` is a multiple of [`PANEL`] and at most 64.
macro_rules! row_block {
    ($s:ident, $rows:expr, $f:ident($($arg:expr),* $(,)?)) => {
        if const { $s::LANES == 8 } {
            match $rows {
                1 => $f::<$s, 1, 8>($($arg),*),
                2 => $f::<$s, 2, 4>($($arg),*),
                3 => $f::<$s, 3, 2>($($arg),*),
                4 => $f::<$s, 4, 2>($($arg),*),
                5 => $f::<$s, 5, 2>($($arg),*),
                6 => $f::<$s, 6, 2>($($arg),*),
                rows => unreachable!("no block of {rows} rows"),
            }
        } else {
            match $rows {
                1 => $f::<$s, 1, 4>($($arg),*),
                2 => $f::<$s, 2, 4>($($arg),*),
                3 => $f::<$s, 3, 4>($($arg),*),
                4 => $f::<$s, 4, 4>($($arg),*),
                5 if const { $s::ROWS > 4 } => $f::<$s, 5, 4>($($arg),*),
                6 if const { $s::ROWS > 4 } => $f::<$s, 6, 4>($($arg),*),
                rows => unreachable!("no block of {rows} rows"),
            }
        }
    };
}
pub(crate) use row_block;

#[cfg(test)]
mod tests {
    use super::*;

    isa_entry!(fn exp2_of(x: &mut [f32; PANEL]) = exp2_all, with avx512vnni);

    #[inline(always)]
    unsafe fn exp2_all<S: Simd>(x: &mut [f32; PANEL]) {
        for i in (0..PANEL).step_by(S::LANES) {
            let p = x.as_mut_ptr().add(i);
            S::store(p, S::exp2(S::load(p)));
        }
    }

    #[test]
    fn exp2_is_accurate_and_exact_where_it_must_be() {
        for isa in Isa::available() {
            for i in -125_000..128_000 {
                let mut x = [i as f32 / 1000.0; PANEL];
                // SAFETY: `isa` is available.
                unsafe { exp2_of(isa, &mut x) };
                let want = ((i as f32 / 1000.0) as f64).exp2();
                assert!(x.iter().all(|x| (*x as f64 / want - 1.0).abs() < 3e-7), "{isa} 2^{i}");
            }
            let inf = f32::INFINITY;
            let mut x =
                [0.0, -0.0, -inf, -126.0, -1e30, 128.0, inf, 1e30, 1.0, -1.0, 127.0, -125.0, 0.0, 0.0, 0.0, 0.0];
            let want = x.map(|x: f32| if x < -125.0 { 0.0 } else { x.exp2() });
            // SAFETY: `isa` is available.
            unsafe { exp2_of(isa, &mut x) };
            assert_eq!(x.map(f32::to_bits), want.map(f32::to_bits), "{isa}");
        }
    }

    isa_entry!(fn coarse_exp2_of(x: &mut [f32; PANEL]) = coarse_exp2_all, with avx512vnni);

    #[inline(always)]
    unsafe fn coarse_exp2_all<S: Simd>(x: &mut [f32; PANEL]) {
        for i in (0..PANEL).step_by(S::LANES) {
            let p = x.as_mut_ptr().add(i);
            let mut vector = [[S::load(p)]];
            S::coarse_exp2_each(&mut vector, const { &exp2_times(8194.0) });
            S::store(p, vector[0][0]);
        }
    }

    /// Once fractions were those of the next lower integer, and an instruction of AVX-512 rounds `1 - 0.001` down, which a
    /// subtraction does not. Attention did not notice, whose weights are rounded to integers: all but for one in thousands.
    #[test]
    fn coarse_exp2_is_accurate_and_the_same_on_every_path() {
        let inf = f32::INFINITY;
        let below = |x: f32| f32::from_bits(x.to_bits() + 1);
        let edges = [0.0, -0.0, -1e-9, -f32::MIN_POSITIVE, -1.0, below(-1.0), -125.0, below(-125.0), -inf, f32::NAN];
        let mut all: Vec<f32> = (0..125_000).map(|i| i as f32 * -0.001).chain(edges).collect();
        all.resize(all.len().next_multiple_of(PANEL), -3.5);
        let (mut alone, mut fused) = (None, None);
        for isa in Isa::available() {
            let mut bits = Vec::new();
            for some in all.as_chunks::<PANEL>().0 {
                let mut got = *some;
                // SAFETY: `isa` is available.
                unsafe { coarse_exp2_of(isa, &mut got) };
                for (x, got) in some.iter().zip(got) {
                    let want = if *x >= -125.0 { 8194.0 * f64::from(*x).exp2() } else { 0.0 };
                    let error = if want == 0.0 { f64::from(got) } else { f64::from(got) / want - 1.0 };
                    assert!(error.abs() < 4e-6 && (*x != 0.0 || got == 8194.0), "{isa}: 2^{x} is {got}");
                }
                bits.extend(got.map(f32::to_bits));
            }
            let of = if isa == Isa::Portable { &mut alone } else { &mut fused };
            let first = of.get_or_insert_with(|| bits.clone());
            let other = (0..bits.len()).find(|&i| bits[i] != first[i]);
            assert_eq!(other.map(|i| (all[i], first[i], bits[i])), None, "{isa} has bits of its own");
        }
    }

    type Rows = [[f32; PANEL]; AT_ONCE];
    isa_entry!(
        fn reduce_all(x: &Rows, each: &mut [[f32; AT_ONCE]; 2], alone: &mut [f32; AT_ONCE]) = reduce_rows,
        with avx512vnni
    );

    #[inline(always)]
    unsafe fn reduce_rows<S: Simd>(x: &Rows, each: &mut [[f32; AT_ONCE]; 2], alone: &mut [f32; AT_ONCE]) {
        let mut rows = [S::splat(0.0); AT_ONCE];
        for (row, x) in rows.iter_mut().zip(x) {
            *row = S::load(x.as_ptr());
        }
        S::reduce_each::<true>(rows, each[0].as_mut_ptr());
        S::reduce_each::<false>(rows, each[1].as_mut_ptr());
        for (x, alone) in x.iter().zip(alone) {
            *alone = S::sum(S::load(x.as_ptr()));
        }
    }

    #[test]
    fn rows_are_reduced_side_by_side_as_alone() {
        let x: Rows = std::array::from_fn(|r| std::array::from_fn(|i| ((r * 29 + i * 37) % 101) as f32 * 0.37 - 11.0));
        for isa in Isa::available() {
            let lanes = match isa {
                Isa::Avx512 | Isa::Avx512Vnni => 16,
                Isa::AvxVnni | Isa::Avx2 => 8,
                Isa::Portable => 4,
            };
            let (mut each, mut alone) = ([[0.0; AT_ONCE]; 2], [0.0; AT_ONCE]);
            // SAFETY: `isa` is available.
            unsafe { reduce_all(isa, &x, &mut each, &mut alone) };
            let largest = x.map(|x| x[..lanes].iter().copied().fold(f32::MIN, f32::max));
            assert_eq!((each[0], each[1].map(f32::to_bits)), (largest, alone.map(f32::to_bits)), "{isa}");
        }
    }
}
