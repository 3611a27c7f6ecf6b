//! Addresses of the rows of x that meet a block of operands. Left to itself, the compiler adds up an address for each of
//! them in every step, or keeps them in memory.

/// Rows that a loop goes through with one index: a register for the address of each.
#[derive(Clone, Copy)]
pub(crate) struct Rows<const R: usize> {
    pub at: [*const u32; R],
    /// Words from row to row.
    pub apart: usize,
}

impl<const R: usize> Rows<R> {
    #[inline(always)]
    pub fn new(x: *const u32, apart: usize) -> Rows<R> {
        let mut at = [x; R];
        for (r, at) in at.iter_mut().enumerate() {
            *at = opaque(x.wrapping_add(r * apart));
        }
        Rows { at, apart }
    }

    /// Word `i` of row `r`.
    #[inline(always)]
    pub fn word(&self, r: usize, i: usize) -> *const u32 {
        self.at[r].wrapping_add(i)
    }
}

/// Rows, two of which are known by their addresses, the others by their distance from these: where registers are scarce.
#[derive(Clone, Copy)]
pub(crate) struct FarRows<T: Copy> {
    first: *const T,
    fourth: *const T,
    /// Bytes from row to row.
    stride: usize,
}

impl<T: Copy> FarRows<T> {
    /// From `x` on, `stride` elements apart.
    #[inline(always)]
    pub fn new(x: *const T, stride: usize) -> FarRows<T> {
        let stride = stride * size_of::<T>();
        FarRows { first: x, fourth: x.wrapping_byte_add(3 * stride), stride }
    }

    /// Element `i` of the rows from `r` on, as what a loop's step begins with.
    #[inline(always)]
    pub fn from(self, r: usize, i: usize) -> FarRows<T> {
        let bytes = r * self.stride + i * size_of::<T>();
        let (first, fourth) = (self.first.wrapping_byte_add(bytes), self.fourth.wrapping_byte_add(bytes));
        FarRows { first: opaque(first), fourth: opaque(fourth), stride: self.stride }
    }

    /// The same, where the compiler finds its own way.
    #[inline(always)]
    pub fn after(self, i: usize) -> FarRows<T> {
        FarRows { first: self.first.wrapping_add(i), fourth: self.fourth.wrapping_add(i), stride: self.stride }
    }

    /// One of the first six rows.
    #[inline(always)]
    pub fn row(self, r: usize) -> *const T {
        let (row, r) = if r < 3 { (self.first, r) } else { (self.fourth, r - 3) };
        row.wrapping_byte_add(r * self.stride)
    }
}

/// Its argument; nothing is known of it any more.
#[inline(always)]
#[cfg_attr(
    any(target_arch = "x86_64", target_arch = "aarch64"),
    expect(clippy::pointers_in_nomem_asm_block, reason = "nothing is read or written there")
)]
fn opaque<T>(p: *const T) -> *const T {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    {
        let mut p = p;
        // SAFETY: no instruction.
        unsafe { std::arch::asm!("/* {0} */", inout(reg) p, options(pure, nomem, nostack, preserves_flags)) };
        p
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    p
}
