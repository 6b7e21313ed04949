//! Buffers that several workers write at once, each its own part.
#![expect(unsafe_code, reason = "disjoint parts of one buffer are written by different threads")]

use std::cell::{Cell, UnsafeCell};

/// A fixed buffer whose disjoint parts are written by different workers between two barriers.
///
/// The rule that makes it sound: within a phase (the time between two barriers of a team) each element is either
/// written by one worker or read by any number of them, never both.
pub struct Shared<T> {
    cells: Box<[UnsafeCell<T>]>,
}

// SAFETY: access goes through `read` and `write`, whose callers keep the phase rule above.
unsafe impl<T: Send + Sync> Sync for Shared<T> {}

impl<T: Copy + Default> Shared<T> {
    /// `len` default elements. Zeroed types take no memory before they are touched.
    #[must_use]
    pub fn new(len: usize) -> Self {
        let values = Box::into_raw(vec![T::default(); len].into_boxed_slice());
        // SAFETY: `UnsafeCell<T>` has the layout of `T`, and the box was just given up.
        Self { cells: unsafe { Box::from_raw(values as *mut [UnsafeCell<T>]) } }
    }

    /// Elements `range`, to read.
    ///
    /// # Safety
    /// No thread writes any of them in this phase.
    #[must_use]
    pub unsafe fn read(&self, range: std::ops::Range<usize>) -> &[T] {
        let cells = &self.cells[range];
        // SAFETY: `UnsafeCell<T>` has the layout of `T`; the caller vouches that nobody writes.
        unsafe { std::slice::from_raw_parts(cells.as_ptr().cast::<T>(), cells.len()) }
    }

    /// Elements `range`, to write.
    ///
    /// # Safety
    /// No other thread reads or writes any of them in this phase, and this thread holds no other view of them.
    #[expect(clippy::mut_from_ref, reason = "the caller vouches for exclusive use of the range")]
    #[must_use]
    pub unsafe fn write(&self, range: std::ops::Range<usize>) -> &mut [T] {
        let cells = &self.cells[range];
        // SAFETY: as above, exclusive by the caller's word.
        unsafe { std::slice::from_raw_parts_mut(UnsafeCell::raw_get(cells.as_ptr()), cells.len()) }
    }

    /// Elements `range` as cells, of which the caller uses some: columns of a matrix whose other columns are others'.
    ///
    /// # Safety
    /// No other thread reads or writes in this phase what the caller reads or writes through them.
    #[must_use]
    pub unsafe fn cells(&self, range: std::ops::Range<usize>) -> &[Cell<T>] {
        let cells = &self.cells[range];
        // SAFETY: `Cell<T>` has the layout of `UnsafeCell<T>`; the caller vouches that threads use different elements.
        unsafe { std::slice::from_raw_parts(cells.as_ptr().cast::<Cell<T>>(), cells.len()) }
    }

    /// Everything, where the borrow checker sees that nobody else looks.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        let len = self.cells.len();
        // SAFETY: `&mut self` is exclusive.
        unsafe { self.write(0..len) }
    }

    /// How many elements there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }
}

/// One `T` per worker (or other unit of work), for its own use only.
pub struct PerWorker<T> {
    cells: Box<[UnsafeCell<T>]>,
}

// SAFETY: each cell is used by one worker only (the contract of `get`), so `T` only has to be sendable.
unsafe impl<T: Send> Sync for PerWorker<T> {}

impl<T> PerWorker<T> {
    /// One value of `make` for each of `workers`.
    #[must_use]
    pub fn new(workers: usize, mut make: impl FnMut() -> T) -> Self {
        Self { cells: (0..workers).map(|_| UnsafeCell::new(make())).collect() }
    }

    /// The value of worker `index`, where the borrow checker sees that nobody else looks.
    #[must_use]
    pub fn get_mut(&mut self, index: usize) -> &mut T {
        self.cells[index].get_mut()
    }

    /// The values of all workers, as above.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.cells.iter_mut().map(UnsafeCell::get_mut)
    }

    /// The value of worker `index`.
    ///
    /// # Safety
    /// Only the worker of that index calls this, and it holds no other view of its value.
    #[expect(clippy::mut_from_ref, reason = "each worker has its own cell")]
    #[must_use]
    pub unsafe fn get(&self, index: usize) -> &mut T {
        // SAFETY: exclusive by the caller's word.
        unsafe { &mut *self.cells[index].get() }
    }
}
