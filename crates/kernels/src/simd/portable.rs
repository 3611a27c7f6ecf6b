use super::{Rows, Simd, at};
use crate::{Isa, bf16};

/// 4 lanes in arrays that the compiler turns into the target's baseline vectors; no fused multiply-add.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(crate) struct F4([f32; 4]);

#[inline(always)]
fn zip(a: F4, b: F4, f: impl Fn(f32, f32) -> f32) -> F4 {
    F4([f(a.0[0], b.0[0]), f(a.0[1], b.0[1]), f(a.0[2], b.0[2]), f(a.0[3], b.0[3])])
}

impl Simd for Portable {
    const ISA: Isa = Isa::Portable;
    const LANES: usize = 4;
    const PAIR: usize = 2;
    /// 16 accumulators need 32 registers: half of that on x86-64.
    const ROWS: usize = if cfg!(target_arch = "x86_64") { 2 } else { 4 };
    type F = F4;

    #[inline(always)]
    unsafe fn splat(x: f32) -> F4 {
        F4([x; 4])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> F4 {
        F4(p.cast::<[f32; 4]>().read_unaligned())
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: F4) {
        p.cast::<[f32; 4]>().write_unaligned(x.0)
    }
    #[inline(always)]
    unsafe fn load_n(p: *const f32, n: usize) -> F4 {
        let mut x = [0.0; 4];
        x[..n].copy_from_slice(std::slice::from_raw_parts(p, n));
        F4(x)
    }
    #[inline(always)]
    unsafe fn store_n(p: *mut f32, n: usize, x: F4) {
        std::slice::from_raw_parts_mut(p, n).copy_from_slice(&x.0[..n]);
    }
    #[inline(always)]
    unsafe fn add(a: F4, b: F4) -> F4 {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: F4, b: F4) -> F4 {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: F4, b: F4) -> F4 {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: F4, b: F4) -> F4 {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn fma(a: F4, b: F4, c: F4) -> F4 {
        Self::add(Self::mul(a, b), c)
    }
    #[inline(always)]
    unsafe fn min(a: F4, b: F4) -> F4 {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn max(a: F4, b: F4) -> F4 {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn select(bits: u32, a: F4, b: F4) -> F4 {
        let pick = |i: usize| if bits >> i & 1 == 1 { a.0[i] } else { b.0[i] };
        F4([pick(0), pick(1), pick(2), pick(3)])
    }
    #[inline(always)]
    unsafe fn keep_ge(a: F4, b: F4, x: F4) -> F4 {
        let pick = |i: usize| if a.0[i] >= b.0[i] { x.0[i] } else { 0.0 };
        F4([pick(0), pick(1), pick(2), pick(3)])
    }
    #[inline(always)]
    unsafe fn select_ge(a: F4, b: F4, x: F4, y: F4) -> F4 {
        let pick = |i: usize| if a.0[i] >= b.0[i] { x.0[i] } else { y.0[i] };
        F4([pick(0), pick(1), pick(2), pick(3)])
    }
    #[inline(always)]
    unsafe fn add_exponent(x: F4, n: F4) -> F4 {
        zip(x, n, |x, n| f32::from_bits(x.to_bits().wrapping_add(n.to_bits() << 23)))
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> F4 {
        F4(p.cast::<[u16; 4]>().read_unaligned().map(bf16::to_f32))
    }
    #[inline(always)]
    unsafe fn load_halves(p: *const u32) -> [F4; 2] {
        let pairs = p.cast::<[u32; 4]>().read_unaligned();
        [F4(pairs.map(|pair| f32::from_bits(pair << 16))), F4(pairs.map(|pair| f32::from_bits(pair & 0xffff_0000)))]
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, x: F4) {
        p.cast::<[u16; 4]>().write_unaligned(x.0.map(bf16::from_f32))
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u32) {}
    #[inline(always)]
    unsafe fn prefetch_near(_: *const u32) {}
    #[inline(always)]
    unsafe fn step<const R: usize, const V: usize>(
        acc: &mut [[F4; V]; R],
        w: *const u32,
        panel: usize,
        x: &Rows<R>,
        i: usize,
    ) {
        for v in 0..V {
            let pairs = w.add(at::<Self>(v, panel)).cast::<[u32; 4]>().read_unaligned();
            let first = F4(pairs.map(|p| f32::from_bits(p << 16)));
            let second = F4(pairs.map(|p| f32::from_bits(p & 0xffff_0000)));
            for (r, acc) in acc.iter_mut().enumerate() {
                let x = x.word(r, i).cast::<f32>();
                acc[v] = Self::fma(first, Self::splat(*x), acc[v]);
                acc[v] = Self::fma(second, Self::splat(*x.add(1)), acc[v]);
            }
        }
    }
}
