//! Makes the int8 copy of the head in the arena, by several threads.

use kernels::Isa;
use kernels::dense::DenseMatrix;
use kernels::screen::{self, GROUP_ROWS};

use super::weights::{Linear, Screen, Storage};
use super::{Error, spawn};

/// Fills the place of `screen` from `head`, both in `arena`; the copy lies behind it.
pub(super) fn copy_head(arena: &mut [u8], head: &Linear, screen: Screen, threads: usize) -> Result<Screen, Error> {
    let Storage::Dense(kind) = head.storage else { unreachable!("the plan copies dense heads only") };
    let (weights, copy) = arena.split_at_mut(screen.start);
    let weights = &weights[head.start..head.start + head.bytes];
    let matrix = DenseMatrix::new(kind, weights, head.rows, head.cols).expect("the loader sized the matrix");
    let (groups, group_bytes) = (head.rows.div_ceil(GROUP_ROWS), screen::group_bytes(head.cols));
    let (copies, greatest) = copy[..screen.bytes].split_at_mut(groups * group_bytes);
    let share = groups.div_ceil(threads.max(1));
    let greatest = greatest.chunks_mut(share * (screen.bytes / groups - group_bytes));
    let weight_max = std::thread::scope(|scope| {
        let parts = copies.chunks_mut(share * group_bytes).zip(greatest).enumerate();
        let threads = parts.map(|(part, (copies, greatest))| {
            let range = part * share..groups.min((part + 1) * share);
            spawn(scope, move || screen::pack(Isa::detect(), matrix, range, copies, greatest))
        });
        let threads: Vec<_> = threads.collect::<Result<_, Error>>()?;
        let found = threads.into_iter().map(|thread| thread.join().expect("copying does not panic"));
        Ok::<_, Error>(found.fold(0.0, f32::max))
    })?;
    Ok(Screen { weight_max, ..screen })
}
