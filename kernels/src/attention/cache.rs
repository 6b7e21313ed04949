//! Layout of the KV cache: head blocks in a pool of F16 bits.
//!
//! A head block holds [`BLOCK`] positions of one layer and one KV head: first K in groups of [`GROUP`] positions, each
//! `[head_dim][GROUP]`, so that positions are lanes; then V, `[BLOCK][head_dim]`.

use super::{BLOCK, GROUP};
use crate::Isa;
use crate::simd::{Kernel, LANES, Simd, dispatch};

/// u16 elements of one head block.
#[must_use]
pub const fn head_block_len(head_dim: usize) -> usize {
    2 * BLOCK * head_dim
}

/// Rounds one position's key and value (`head_dim` values each) to F16 and writes them to `slot` of a head block.
///
/// # Panics
/// If a length is not the one of `head_dim`, or `slot >= BLOCK`.
pub fn store(isa: Isa, block: &mut [u16], head_dim: usize, slot: usize, k: &[f32], v: &[f32]) {
    assert_eq!(block.len(), head_block_len(head_dim), "one head block");
    assert!(slot < BLOCK, "slot {slot} of {BLOCK}");
    assert!(k.len() == head_dim && v.len() == head_dim, "one key and one value");
    dispatch(isa, Store { block, slot, k, v });
}

/// The cached positions of one sequence, for one layer and one KV head.
#[derive(Clone, Copy, Debug)]
pub struct KvView<'a> {
    /// F16 bits of all blocks.
    pub pool: &'a [u16],
    /// Block that holds positions `i * BLOCK ..`, for each i.
    pub table: &'a [u32],
    /// Elements from one block to the next.
    pub block_stride: usize,
    /// Elements from a block's start to the head block of this layer and head.
    pub offset: usize,
}

impl<'a> KvView<'a> {
    /// Keys (`[BLOCK / GROUP][head_dim]` vectors) and values (`[BLOCK][head_dim]`) of table entry `index`.
    #[inline(always)]
    pub(super) fn block(&self, index: usize, head_dim: usize) -> (&'a [[u16; GROUP]], &'a [u16]) {
        let start = self.table[index] as usize * self.block_stride + self.offset;
        let (keys, values) = self.pool[start..start + head_block_len(head_dim)].split_at(BLOCK * head_dim);
        (keys.as_chunks().0, values)
    }
}

struct Store<'a> {
    block: &'a mut [u16],
    slot: usize,
    k: &'a [f32],
    v: &'a [f32],
}

impl Kernel for Store<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let head_dim = self.k.len();
        let (keys, values) = self.block.split_at_mut(BLOCK * head_dim);
        let group = &mut keys.as_chunks_mut::<GROUP>().0[self.slot / GROUP * head_dim..][..head_dim];
        let value = &mut values[self.slot * head_dim..][..head_dim];
        let mut half = [0; LANES];
        for (k, lanes) in self.k.chunks(LANES).zip(group.chunks_mut(LANES)) {
            s.store_f16(s.load_part(k, 0.0), &mut half);
            for (lane, half) in lanes.iter_mut().zip(half) {
                lane[self.slot % GROUP] = half;
            }
        }
        for (v, out) in self.v.chunks(LANES).zip(value.chunks_mut(LANES)) {
            s.store_f16(s.load_part(v, 0.0), &mut half);
            out.copy_from_slice(&half[..out.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::f32_to_f16;
    use crate::testing::Draw;

    #[test]
    fn each_slot_holds_its_own_rounded_values() {
        let mut draw = Draw::new(11);
        for head_dim in [16, 64, 80, 100, 128] {
            for isa in Isa::available() {
                let rows: Vec<_> =
                    (0..BLOCK).map(|_| (draw.floats(head_dim, 9.0), draw.floats(head_dim, 9.0))).collect();
                let mut block = vec![0xffff; head_block_len(head_dim)];
                for (slot, (k, v)) in rows.iter().enumerate() {
                    store(isa, &mut block, head_dim, slot, k, v);
                }
                for (slot, (k, v)) in rows.iter().enumerate() {
                    for d in 0..head_dim {
                        let key = block[(slot / GROUP * head_dim + d) * GROUP + slot % GROUP];
                        assert_eq!(key, f32_to_f16(k[d]), "{} key {slot} {d}", isa.name());
                        assert_eq!(block[(BLOCK + slot) * head_dim + d], f32_to_f16(v[d]), "{} value", isa.name());
                    }
                }
            }
        }
    }
}
