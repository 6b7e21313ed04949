//! Layout of the KV cache: head blocks in a pool of 16-bit elements.
//!
//! A head block holds [`BLOCK`] positions of one layer and one KV head: first keys in groups of [`GROUP`] positions, so
//! that positions are lanes, then values, whose lanes are dimensions.
//!
//! F16: keys `[BLOCK / GROUP][head_dim][GROUP]`, values `[BLOCK][head_dim]`. Int8: two bytes in an element, so that a
//! product of pairs has a sum in each lane: keys `[BLOCK / GROUP][head_dim / 2][GROUP]`, a pair being two dimensions,
//! and `BLOCK` scales; values `[BLOCK / 2][head_dim]`, a pair being two positions, and `BLOCK` scales. As in GGML's Q8_0
//! a scale is an F16, the greatest magnitude over 127, but one for a whole head of a position.

use std::fmt;
use std::str::FromStr;

use super::pool::{KvPool, Run};
use super::{BLOCK, GROUP};
use crate::Isa;
use crate::math;
use crate::simd::{Kernel, LANES, Simd, dispatch};

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    #[default]
    F16,
    /// Eight bits, with a scale for each head of each position.
    Int8,
}

impl KvType {
    /// `f16` or `int8`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Int8 => "int8",
        }
    }
}

impl FromStr for KvType {
    type Err = NoSuchKvType;

    fn from_str(name: &str) -> Result<Self, NoSuchKvType> {
        [Self::F16, Self::Int8].into_iter().find(|kv_type| kv_type.name() == name).ok_or(NoSuchKvType)
    }
}

/// A name that is no type of a KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSuchKvType;

impl fmt::Display for NoSuchKvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "f16 and int8")
    }
}

impl std::error::Error for NoSuchKvType {}

/// Where the head blocks of a pool are: block by block, in it head by head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    pub kv_type: KvType,
    pub head_dim: usize,
    /// Head blocks of a block: layers times KV heads.
    pub heads: usize,
}

impl KvLayout {
    /// Elements of one head block.
    #[must_use]
    pub const fn head_block_len(&self) -> usize {
        match self.kv_type {
            KvType::F16 => 2 * BLOCK * self.head_dim,
            KvType::Int8 => self.pairs() * BLOCK + BLOCK / 2 * self.head_dim + 2 * BLOCK,
        }
    }

    /// Elements of one block.
    #[must_use]
    pub const fn block_len(&self) -> usize {
        self.heads * self.head_block_len()
    }

    /// Elements of a pool of so many blocks.
    #[must_use]
    pub const fn pool_len(&self, blocks: usize) -> usize {
        blocks * self.block_len()
    }

    /// First element of a head block.
    #[must_use]
    pub const fn start(&self, block: usize, head: usize) -> usize {
        (block * self.heads + head) * self.head_block_len()
    }

    /// Pairs of dimensions of a key.
    const fn pairs(&self) -> usize {
        self.head_dim.div_ceil(2)
    }

    /// Elements of the keys of a head block, with their scales.
    const fn keys_len(&self) -> usize {
        match self.kv_type {
            KvType::F16 => BLOCK * self.head_dim,
            KvType::Int8 => BLOCK * self.pairs() + BLOCK,
        }
    }
}

/// Rounds one position's key and value (`head_dim` values each) and writes them to `slot` of a head block.
///
/// # Panics
/// If a length is not the one of `head_dim`, or `slot >= BLOCK`.
pub fn store(isa: Isa, layout: &KvLayout, block: &mut [u16], slot: usize, k: &[f32], v: &[f32]) {
    assert_eq!(block.len(), layout.head_block_len(), "one head block");
    assert!(slot < BLOCK, "slot {slot} of {BLOCK}");
    assert!(k.len() == layout.head_dim && v.len() == layout.head_dim, "one key and one value");
    let (keys, values) = block.split_at_mut(layout.keys_len());
    match layout.kv_type {
        KvType::F16 => dispatch(isa, Store { keys, values, slot, k, v }),
        KvType::Int8 => dispatch(isa, StoreBytes { keys, values, slot, k, v }),
    }
}

/// The cached positions of one sequence, for one layer and one KV head.
#[derive(Clone, Copy, Debug)]
pub struct KvView<'a> {
    /// All blocks.
    pub pool: KvPool<'a>,
    /// Block that holds positions `i * BLOCK ..`, for each i.
    pub table: &'a [u32],
    pub layout: KvLayout,
    /// Head block of this layer and head.
    pub head: usize,
}

impl<'a> KvView<'a> {
    /// Keys and values of table entry `index`, each with its scales.
    #[inline(always)]
    fn halves(&self, index: usize) -> (&'a [u16], &'a [u16]) {
        let start = self.start(index);
        self.pool.read(start..start + self.layout.head_block_len()).split_at(self.layout.keys_len())
    }

    /// F16 keys (`[BLOCK / GROUP][head_dim]` vectors) and values (`[BLOCK][head_dim]`) of table entry `index`.
    #[inline(always)]
    pub(super) fn block(&self, index: usize) -> (&'a [[u16; GROUP]], &'a [u16]) {
        let (keys, values) = self.halves(index);
        (keys.as_chunks().0, values)
    }

    /// Int8 keys (`[BLOCK / GROUP][pairs]` vectors) with their scales.
    #[inline(always)]
    pub(super) fn byte_keys(&self, index: usize) -> (&'a [[u16; GROUP]], &'a [u16; BLOCK]) {
        let (keys, scales) = self.halves(index).0.split_last_chunk().expect("keys have scales");
        (keys.as_chunks().0, scales)
    }

    /// Int8 values (`[BLOCK / 2][head_dim]` pairs) with their scales.
    #[inline(always)]
    pub(super) fn byte_values(&self, index: usize) -> (&'a [u16], &'a [u16; BLOCK]) {
        self.halves(index).1.split_last_chunk().expect("values have scales")
    }

    /// Where keys or values of table entry `index` are, and their scales, of which F16 has none.
    #[inline(always)]
    pub(super) fn half(&self, index: usize, values: bool) -> (Run<'a>, Run<'a>) {
        let (start, keys) = (self.start(index), self.layout.keys_len());
        let half = if values { keys..self.layout.head_block_len() } else { 0..keys };
        let scales = if self.layout.kv_type == KvType::Int8 { BLOCK } else { 0 };
        self.pool.run(start + half.start..start + half.end).split_at(half.len() - scales)
    }

    /// Elements of the keys, or values, of a block, without scales.
    pub(super) const fn half_len(&self) -> usize {
        match self.layout.kv_type {
            KvType::F16 => BLOCK * self.layout.head_dim,
            KvType::Int8 => BLOCK * self.layout.pairs(),
        }
    }

    /// First element of the head block of table entry `index`.
    #[inline(always)]
    fn start(&self, index: usize) -> usize {
        self.layout.start(self.table[index] as usize, self.head)
    }
}

struct Store<'a> {
    keys: &'a mut [u16],
    values: &'a mut [u16],
    slot: usize,
    k: &'a [f32],
    v: &'a [f32],
}

impl Kernel for Store<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let head_dim = self.k.len();
        let group = &mut self.keys.as_chunks_mut::<GROUP>().0[self.slot / GROUP * head_dim..][..head_dim];
        let value = &mut self.values[self.slot * head_dim..][..head_dim];
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

struct StoreBytes<'a> {
    keys: &'a mut [u16],
    values: &'a mut [u16],
    slot: usize,
    k: &'a [f32],
    v: &'a [f32],
}

impl Kernel for StoreBytes<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (slot, head_dim) = (self.slot, self.k.len());
        let (keys, key_scales) = self.keys.split_last_chunk_mut::<BLOCK>().expect("keys have scales");
        let group = &mut keys.as_chunks_mut::<GROUP>().0[slot / GROUP * head_dim.div_ceil(2)..];
        let mut bytes = [0; LANES];
        let inverse;
        (key_scales[slot], inverse) = scale_of(s, self.k);
        for (k, lanes) in self.k.chunks(LANES).zip(group.chunks_mut(LANES / 2)) {
            round_bytes(s, k, inverse, &mut bytes);
            for (lane, pair) in lanes.iter_mut().zip(bytes.as_chunks().0) {
                lane[slot % GROUP] = u16::from_le_bytes(*pair);
            }
        }
        let (values, value_scales) = self.values.split_last_chunk_mut::<BLOCK>().expect("values have scales");
        let inverse;
        (value_scales[slot], inverse) = scale_of(s, self.v);
        for (v, pairs) in self.v.chunks(LANES).zip(values[slot / 2 * head_dim..][..head_dim].chunks_mut(LANES)) {
            round_bytes(s, v, inverse, &mut bytes);
            for (pair, byte) in pairs.iter_mut().zip(bytes) {
                let mut both = pair.to_le_bytes();
                both[slot % 2] = byte;
                *pair = u16::from_le_bytes(both);
            }
        }
    }
}

/// The F16 scale of some values, and what to multiply them with: 0 where the scale is.
#[inline(always)]
fn scale_of<S: Simd>(s: S, values: &[f32]) -> (u16, f32) {
    let scale = math::f32_to_f16(greatest_magnitude(s, values) / BYTE_MAX);
    let wide = math::f16_to_f32(scale);
    (scale, if wide == 0.0 { 0.0 } else { 1.0 / wide })
}

/// The greatest magnitude; NaN counts as none.
#[inline(always)]
pub(super) fn greatest_magnitude<S: Simd>(s: S, values: &[f32]) -> f32 {
    let mut most = s.splat(0.0);
    for part in values.chunks(LANES) {
        let part = s.load_part(part, 0.0);
        most = s.max(part, most);
        most = s.max(s.sub(s.splat(0.0), part), most);
    }
    s.greatest(most)
}

/// The nearest whole numbers of up to 16 values times `factor`, ties to even, as bytes of two's complement.
#[inline(always)]
fn round_bytes<S: Simd>(s: S, values: &[f32], factor: f32, bytes: &mut [u8; LANES]) {
    let scaled = s.mul(s.load_part(values, 0.0), s.splat(factor));
    // A NaN becomes the bound that comes second.
    let bounded = s.min(s.max(scaled, s.splat(-BYTE_MAX)), s.splat(BYTE_MAX));
    let mut whole = [0; LANES];
    s.store_i16(bounded, &mut whole);
    for (byte, whole) in bytes.iter_mut().zip(whole) {
        *byte = whole.to_le_bytes()[0];
    }
}

const BYTE_MAX: f32 = 127.0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::{f16_to_f32, f32_to_f16};
    use crate::testing::Draw;

    fn layout(kv_type: KvType, head_dim: usize) -> KvLayout {
        KvLayout { kv_type, head_dim, heads: 3 }
    }

    #[test]
    fn each_slot_holds_its_own_rounded_values() {
        let mut draw = Draw::new(11);
        for head_dim in [16, 64, 80, 100, 128] {
            let layout = layout(KvType::F16, head_dim);
            for isa in Isa::available() {
                let rows: Vec<_> =
                    (0..BLOCK).map(|_| (draw.floats(head_dim, 9.0), draw.floats(head_dim, 9.0))).collect();
                let mut block = vec![0xffff; layout.head_block_len()];
                for (slot, (k, v)) in rows.iter().enumerate() {
                    store(isa, &layout, &mut block, slot, k, v);
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

    /// The value of byte `which` of an element.
    fn byte(element: u16, which: usize) -> f32 {
        f32::from(element.to_le_bytes()[which].cast_signed())
    }

    #[test]
    fn bytes_are_within_half_a_step_and_the_same_on_every_isa() {
        let mut draw = Draw::new(12);
        for head_dim in [16, 17, 31, 64, 80, 128, 256] {
            let layout = layout(KvType::Int8, head_dim);
            let rows: Vec<_> = (0..BLOCK).map(|_| (draw.floats(head_dim, 9.0), draw.floats(head_dim, 0.1))).collect();
            let mut blocks = Vec::new();
            for isa in Isa::available() {
                let mut block = vec![0x7e01; layout.head_block_len()];
                for (slot, (k, v)) in rows.iter().enumerate() {
                    store(isa, &layout, &mut block, slot, k, v);
                }
                blocks.push(block);
                assert!(blocks.last() == blocks.first(), "{} {head_dim}", isa.name());
            }
            let (keys, values) = blocks[0].split_at(layout.keys_len());
            let (keys, key_scales) = keys.split_at(keys.len() - BLOCK);
            let (values, value_scales) = values.split_at(values.len() - BLOCK);
            for (slot, (k, v)) in rows.iter().enumerate() {
                let (key_step, value_step) = (f16_to_f32(key_scales[slot]), f16_to_f32(value_scales[slot]));
                for d in 0..head_dim {
                    let key = keys[(slot / GROUP * layout.pairs() + d / 2) * GROUP + slot % GROUP];
                    // A step that was rounded down leaves a little of the greatest value out.
                    assert!((byte(key, d % 2) * key_step - k[d]).abs() <= key_step * 0.57, "key {slot} {d}");
                    let value = values[slot / 2 * head_dim + d];
                    assert!((byte(value, slot % 2) * value_step - v[d]).abs() <= value_step * 0.57, "value {slot} {d}");
                }
            }
        }
    }

    #[test]
    fn nothing_and_no_numbers_are_stored_alike_on_every_isa() {
        let layout = layout(KvType::Int8, 16);
        for odd in [0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-30, 3e38] {
            let k: Vec<f32> = (0..16).map(|d| if d == 5 { odd } else { 0.0 }).collect();
            let mut first = None;
            for isa in Isa::available() {
                let mut block = vec![0; layout.head_block_len()];
                store(isa, &layout, &mut block, 3, &k, &k);
                assert_eq!(first.get_or_insert_with(|| block.clone()), &block, "{} {odd}", isa.name());
            }
        }
    }

    #[test]
    fn head_blocks_of_a_pool_do_not_overlap() {
        for kv_type in [KvType::F16, KvType::Int8] {
            let layout = layout(kv_type, 18);
            let mut starts: Vec<usize> =
                (0..19).flat_map(|block| (0..3).map(move |head| layout.start(block, head))).collect();
            starts.sort_unstable();
            assert!(starts.windows(2).all(|two| two[1] - two[0] >= layout.head_block_len()));
            assert!(starts[starts.len() - 1] + layout.head_block_len() <= layout.pool_len(19));
        }
    }
}
