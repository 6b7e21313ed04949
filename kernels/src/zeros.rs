//! Working memory that is not there before it is used.
#![expect(unsafe_code, reason = "the first whole element of zeroed bytes, and a view of as many as fit")]

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Types of which all bytes may be zero, and hold for values then.
///
/// # Safety
/// Zeroed bytes are a value of the type, nothing is to be dropped, and it is aligned to a cache line at most.
pub(crate) unsafe trait Zeroed: Copy {}

/// `len` elements of zero bytes, aligned as `T` wants. They take no memory before they are touched: allocators clear what is
/// aligned to more than 16 bytes by writing to it, and so what no form of a kernel needs here would stay resident.
#[derive(Debug)]
pub(crate) struct Zeros<T> {
    first: NonNull<T>,
    len: usize,
    /// What the elements lie in.
    _memory: Vec<u8>,
    _elements: PhantomData<T>,
}

// SAFETY: the elements are owned, as those of a vector.
unsafe impl<T: Send> Send for Zeros<T> {}
// SAFETY: shared views give shared elements, as those of a vector.
unsafe impl<T: Sync> Sync for Zeros<T> {}

impl<T: Zeroed> Zeros<T> {
    pub(crate) fn new(len: usize) -> Self {
        let mut memory = vec![0_u8; len * size_of::<T>() + align_of::<T>()];
        // A pointer to all of the memory, where one to its first element would reach no further than that.
        let memory_start = memory.as_mut_ptr();
        let skipped = memory_start.align_offset(align_of::<T>());
        let first = NonNull::new(memory_start.wrapping_add(skipped)).expect("memory is somewhere").cast();
        Self { first, len, _memory: memory, _elements: PhantomData }
    }
}

impl<T> Deref for Zeros<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: `new` has made room for `len` elements from `first` on, whose zeros are values; nobody else has them.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for Zeros<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and this view is the only one.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr(), self.len) }
    }
}
