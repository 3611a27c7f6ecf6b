//! Raw memory under the pool's KV and the packed weights.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Cache line, and the widest vector.
const LINE: usize = 64;

/// Size of a huge page on the machines we know; buffers of at least one are aligned to it.
const HUGE: usize = 2 << 20;

/// Zeroed elements of 16 bits, aligned to 64 bytes and followed by 64 readable bytes, so that a vector may be loaded across
/// the end. Pages that were never written take no memory where the system allocates lazily.
pub(crate) struct Buffer {
    base: NonNull<u8>,
    layout: Layout,
    start: NonNull<u16>,
    len: usize,
}

impl Buffer {
    /// `None` when the system refuses, or when the size overflows.
    pub(crate) fn zeroed(len: usize) -> Option<Buffer> {
        let align = if len >= HUGE / 2 { HUGE } else { LINE };
        // Asking for more alignment than malloc gives would make the allocator write the zeros itself and so touch
        // every page: align by hand instead.
        let bytes = len.checked_mul(2)?.checked_add(align + LINE)?;
        let layout = Layout::from_size_align(bytes, 16).ok()?;
        // SAFETY: the size is not zero.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let skip = base.align_offset(align);
        assert!(skip < align);
        // SAFETY: `align` bytes more were allocated than the elements and the line behind them take.
        let start = unsafe { base.add(skip) };
        if align == HUGE {
            advise_huge_pages(start, len * 2);
        }
        Some(Buffer { base, layout, start: start.cast(), len })
    }

    pub(crate) fn as_ptr(&self) -> *mut u16 {
        self.start.as_ptr()
    }
}

/// Weights and KV are read from end to end: with small pages, address translation would bound the bandwidth.
#[cfg(target_os = "linux")]
fn advise_huge_pages(start: NonNull<u8>, bytes: usize) {
    use std::ffi::{c_int, c_void};
    const MADV_HUGEPAGE: c_int = 14;
    // SAFETY: the declaration of the C library that std links.
    unsafe extern "C" {
        fn madvise(addr: *mut c_void, len: usize, advice: c_int) -> c_int;
    }
    // SAFETY: whole pages inside an allocation of ours. The advice changes no content, and a kernel that does not
    // know it refuses, which leaves everything as it was.
    unsafe { madvise(start.as_ptr().cast(), bytes / HUGE * HUGE, MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_: NonNull<u8>, _: usize) {}

impl Deref for Buffer {
    type Target = [u16];

    fn deref(&self) -> &[u16] {
        // SAFETY: `len` zero-initialised elements at an aligned address inside the allocation.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u16] {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}

// SAFETY: plain memory, owned by the value; shared references only read.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

/// On a boundary of a cache line: a vector of 64 bytes that lies across one takes two reads or writes.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct Aligned<T>(pub T);

/// Numbers of 32 bits that start on such a boundary.
#[derive(Debug)]
pub(crate) struct Words(Vec<Aligned<[u32; LINE / 4]>>);

impl Words {
    pub(crate) const fn new() -> Words {
        Words(Vec::new())
    }

    /// Makes room for `n`. What was in it is lost.
    pub(crate) fn grow(&mut self, n: usize) {
        let lines = n.div_ceil(LINE / 4);
        if self.0.len() < lines {
            self.0.clear();
            self.0.resize(lines, Aligned::default());
        }
    }

    /// The first `n` as floats, with room made for them.
    pub(crate) fn floats(&mut self, n: usize) -> &mut [f32] {
        self.grow(n);
        // SAFETY: there are so many, and all bit patterns are floats.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr(), n) }
    }

    pub(crate) fn as_ptr<T>(&self) -> *const T {
        const { assert!(size_of::<T>() == 4) };
        self.0.as_ptr().cast()
    }

    pub(crate) fn as_mut_ptr<T>(&mut self) -> *mut T {
        const { assert!(size_of::<T>() == 4) };
        self.0.as_mut_ptr().cast()
    }
}

/// A pointer that tiles of one job share; each tile writes a part of its own.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<T>(pub(crate) *mut T);

// SAFETY: dereferencing is unsafe and up to the user.
unsafe impl<T: Send> Send for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<T> {}

impl<T> SharedMut<T> {
    pub(crate) fn new(slice: &mut [T]) -> Self {
        SharedMut(slice.as_mut_ptr())
    }

    /// A method, so that closures capture the wrapper and not the bare pointer in it.
    pub(crate) fn get(self) -> *mut T {
        self.0
    }

    /// # Safety
    /// `at..at + len` lies in the slice, and nothing else refers to it while the result lives.
    pub(crate) unsafe fn slice<'a>(self, at: usize, len: usize) -> &'a mut [T] {
        // SAFETY: the caller's contract.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(at), len) }
    }
}
