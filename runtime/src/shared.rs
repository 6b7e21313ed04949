//! Buffers that several workers write at once, each its own part.
#![expect(unsafe_code, reason = "disjoint parts of one buffer are written by different threads")]

use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::ptr::NonNull;

use tuning::memory::Arena;

/// A fixed buffer whose disjoint parts are written by different workers between two barriers.
///
/// The rule that makes it sound: within a phase (the time between two barriers of a team) each element is either
/// written by one worker or read by any number of them, never both.
pub struct Shared<T> {
    cells: NonNull<[UnsafeCell<T>]>,
    /// What the cells lie in.
    memory: Memory<T>,
}

enum Memory<T> {
    /// A box, a little longer.
    Boxed(NonNull<[UnsafeCell<T>]>),
    Arena(Arena),
}

// SAFETY: access goes through `read` and `write`, whose callers keep the phase rule above.
unsafe impl<T: Send + Sync> Sync for Shared<T> {}
// SAFETY: the cells are owned, and nothing else in it is bound to a thread.
unsafe impl<T: Send> Send for Shared<T> {}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        if let Memory::Boxed(cells) = self.memory {
            // SAFETY: these came from a box, and nobody borrows from them any more.
            drop(unsafe { Box::from_raw(cells.as_ptr()) });
        }
    }
}

impl Shared<u16> {
    /// As many zeros as `arena` holds.
    #[must_use]
    pub fn in_arena(arena: Arena) -> Self {
        let mut arena = arena;
        let len = arena.len() / size_of::<u16>();
        // An arena begins on a page, and any bytes are numbers.
        let first = arena.as_mut_ptr().cast::<UnsafeCell<u16>>();
        Self { cells: NonNull::slice_from_raw_parts(first, len), memory: Memory::Arena(arena) }
    }

    /// Gives the memory of `range` back to the system as far as it fills pages; they are zeros again. Whether it could.
    pub fn give_back(&mut self, range: Range<usize>) -> bool {
        let bytes = range.start * size_of::<u16>()..range.end * size_of::<u16>();
        match &mut self.memory {
            Memory::Arena(arena) => arena.give_back(bytes).is_ok(),
            Memory::Boxed(_) => false,
        }
    }
}

impl<T: Copy + Default> Shared<T> {
    /// `len` default elements. Zeroed types take no memory before they are touched.
    ///
    /// They begin with a cache line: a big box lies 16 bytes behind the start of a page, where every vector crosses a line.
    #[must_use]
    pub fn new(len: usize) -> Self {
        let spare = LINE_BYTES / size_of::<T>().max(1);
        let values = Box::into_raw(vec![T::default(); len + spare].into_boxed_slice());
        // `UnsafeCell<T>` has the layout of `T`.
        let boxed = NonNull::new(values as *mut [UnsafeCell<T>]).expect("a box is somewhere");
        let first = boxed.cast::<UnsafeCell<T>>();
        let skipped = first.as_ptr().align_offset(LINE_BYTES).min(spare);
        // SAFETY: the box is longer by `spare`.
        let first = unsafe { first.add(skipped) };
        Self { cells: NonNull::slice_from_raw_parts(first, len), memory: Memory::Boxed(boxed) }
    }

    fn cell_slice(&self) -> &[UnsafeCell<T>] {
        // SAFETY: the cells live as long as self, and a shared view of cells excludes nobody.
        unsafe { self.cells.as_ref() }
    }

    /// The same in pages of 2 MiB from element `start` on, where the machine gives them: for what is written a row here, a row
    /// there. Unasked it lies in small pages, and every row of a matrix costs a walk through the page tables.
    #[must_use]
    pub fn in_huge_pages_from(mut self, start: usize) -> Self {
        let start = start.min(self.cells.len());
        tuning::memory::prefer_huge_pages(&mut self.as_mut_slice()[start..]);
        self
    }

    /// Elements `range`, to read.
    ///
    /// # Safety
    /// No thread writes any of them in this phase.
    #[must_use]
    pub unsafe fn read(&self, range: Range<usize>) -> &[T] {
        let cells = &self.cell_slice()[range];
        // SAFETY: `UnsafeCell<T>` has the layout of `T`; the caller vouches that nobody writes.
        unsafe { std::slice::from_raw_parts(cells.as_ptr().cast::<T>(), cells.len()) }
    }

    /// Elements `range`, to write.
    ///
    /// # Safety
    /// No other thread reads or writes any of them in this phase, and this thread holds no other view of them.
    #[expect(clippy::mut_from_ref, reason = "the caller vouches for exclusive use of the range")]
    #[must_use]
    pub unsafe fn write(&self, range: Range<usize>) -> &mut [T] {
        let cells = &self.cell_slice()[range];
        // SAFETY: as above, exclusive by the caller's word.
        unsafe { std::slice::from_raw_parts_mut(UnsafeCell::raw_get(cells.as_ptr()), cells.len()) }
    }

    /// Elements `range` as cells, of which the caller uses some: columns of a matrix whose other columns are others'.
    ///
    /// # Safety
    /// No other thread writes in this phase what the caller reads or writes through them, nor reads what it writes.
    #[must_use]
    pub unsafe fn cells(&self, range: Range<usize>) -> &[Cell<T>] {
        let cells = &self.cell_slice()[range];
        // SAFETY: `Cell<T>` has the layout of `UnsafeCell<T>`; the caller vouches that threads write elements that no other one uses.
        unsafe { std::slice::from_raw_parts(cells.as_ptr().cast::<Cell<T>>(), cells.len()) }
    }

    /// Everything, where the borrow checker sees that nobody else looks.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        let len = self.cells.len();
        // SAFETY: `&mut self` is exclusive.
        unsafe { self.write(0..len) }
    }

    /// What lies behind the first `start` elements.
    #[must_use]
    pub fn from(&self, start: usize) -> SharedFrom<'_, T> {
        SharedFrom { shared: self, start }
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

/// A buffer from one of its elements on, which counts as the first: the place of some of a step's rows.
#[derive(Clone, Copy)]
pub struct SharedFrom<'a, T> {
    shared: &'a Shared<T>,
    start: usize,
}

impl<'a, T: Copy + Default> SharedFrom<'a, T> {
    /// Elements `range`, to read.
    ///
    /// # Safety
    /// As [`Shared::read`].
    #[must_use]
    pub unsafe fn read(&self, range: Range<usize>) -> &'a [T] {
        // SAFETY: the caller keeps the promises.
        unsafe { self.shared.read(self.shifted(range)) }
    }

    /// Elements `range`, to write.
    ///
    /// # Safety
    /// As [`Shared::write`].
    #[must_use]
    pub unsafe fn write(&self, range: Range<usize>) -> &'a mut [T] {
        // SAFETY: the caller keeps the promises.
        unsafe { self.shared.write(self.shifted(range)) }
    }

    /// Elements `range` as cells.
    ///
    /// # Safety
    /// As [`Shared::cells`].
    #[must_use]
    pub unsafe fn cells(&self, range: Range<usize>) -> &'a [Cell<T>] {
        // SAFETY: the caller keeps the promises.
        unsafe { self.shared.cells(self.shifted(range)) }
    }

    fn shifted(&self, range: Range<usize>) -> Range<usize> {
        self.start + range.start..self.start + range.end
    }
}

impl<'a> SharedFrom<'a, f32> {
    /// The bytes of elements `range`, to read: each is a number of its own.
    ///
    /// # Safety
    /// As [`Shared::read`].
    #[must_use]
    pub unsafe fn read_bytes(&self, range: Range<usize>) -> &'a [i8] {
        // SAFETY: the caller keeps the promises.
        let floats = unsafe { self.read(range) };
        // SAFETY: any bytes are values, and there are as many.
        unsafe { std::slice::from_raw_parts(floats.as_ptr().cast(), size_of_val(floats)) }
    }

    /// The bytes of elements `range`, to write: each becomes a number of its own.
    ///
    /// # Safety
    /// As [`Shared::write`].
    #[must_use]
    pub unsafe fn write_bytes(&self, range: Range<usize>) -> &'a mut [i8] {
        // SAFETY: the caller keeps the promises.
        let floats = unsafe { self.write(range) };
        // SAFETY: as above, and any bytes are floats.
        unsafe { std::slice::from_raw_parts_mut(floats.as_mut_ptr().cast(), size_of_val(floats)) }
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

    /// What `change` makes of each.
    #[must_use]
    pub fn map(self, mut change: impl FnMut(T) -> T) -> Self {
        Self { cells: self.cells.into_iter().map(|cell| UnsafeCell::new(change(cell.into_inner()))).collect() }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.cells.len()
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

const LINE_BYTES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_an_arena_and_of_a_box_serve_alike() {
        for mut shared in [Shared::<u16>::new(1 << 12), Shared::in_arena(Arena::reserve(1 << 13, None).unwrap())] {
            assert_eq!((shared.len(), shared.is_empty()), (1 << 12, false));
            assert_eq!(shared.as_mut_slice().as_ptr().align_offset(LINE_BYTES), 0);
            assert!(shared.as_mut_slice().iter().all(|value| *value == 0));
            // SAFETY: this thread is the only one.
            unsafe { shared.write(7..9) }.copy_from_slice(&[3, 4]);
            // SAFETY: as above.
            assert_eq!(unsafe { shared.read(6..10) }, [0, 3, 4, 0]);
        }
        assert!(Shared::in_arena(Arena::reserve(0, None).unwrap()).is_empty());
    }
}
