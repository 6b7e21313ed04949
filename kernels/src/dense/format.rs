//! How each kind of weights becomes groups of 16 floats. Every product below is exact in f32: 11 significant bits of a
//! half, at most 7 of a scale, at most 8 of a code (5 with a scale).

use super::lanes::{LANES, Lanes};

/// Decoder of one [`DenseKind`](super::DenseKind).
pub(super) trait Format {
    /// Elements and bytes that are decoded together; whole pairs of 16-column groups.
    const COLS: usize;
    const BYTES: usize;
    /// What [`Self::open`] leaves for [`Self::group`].
    type Opened<S: Lanes>: Copy;

    fn empty<S: Lanes>(lanes: S) -> Self::Opened<S>;
    fn open<S: Lanes>(lanes: S, bytes: &[u8], opened: &mut Self::Opened<S>);
    /// Elements `16 * g ..+ 16` of `bytes`.
    fn group<S: Lanes>(lanes: S, bytes: &[u8], opened: &Self::Opened<S>, g: usize) -> S::V;
}

/// The `i`-th `N` bytes.
#[inline(always)]
fn part<const N: usize>(bytes: &[u8], i: usize) -> &[u8; N] {
    &bytes.as_chunks().0[i]
}

macro_rules! plain_float {
    ($format:ident, $from:ident, $bytes:literal) => {
        pub(super) struct $format;

        impl Format for $format {
            const COLS: usize = 2 * LANES;
            const BYTES: usize = 2 * $bytes;
            type Opened<S: Lanes> = ();

            #[inline(always)]
            fn empty<S: Lanes>(_: S) {}

            #[inline(always)]
            fn open<S: Lanes>(_: S, _: &[u8], (): &mut ()) {}

            #[inline(always)]
            fn group<S: Lanes>(lanes: S, bytes: &[u8], (): &(), g: usize) -> S::V {
                lanes.$from(part(bytes, g))
            }
        }
    };
}

plain_float!(F32, widen_f32, 64);
plain_float!(F16, widen_f16, 32);
plain_float!(Bf16, widen_bf16, 32);

pub(super) struct Q8_0;

impl Format for Q8_0 {
    const COLS: usize = 32;
    const BYTES: usize = 34;
    type Opened<S: Lanes> = S::V;

    #[inline(always)]
    fn empty<S: Lanes>(lanes: S) -> S::V {
        lanes.splat(0.0)
    }

    #[inline(always)]
    fn open<S: Lanes>(lanes: S, bytes: &[u8], d: &mut S::V) {
        *d = lanes.splat(lanes.half(u16::from_le_bytes(*part(bytes, 0))));
    }

    #[inline(always)]
    fn group<S: Lanes>(lanes: S, bytes: &[u8], d: &S::V, g: usize) -> S::V {
        let q: &[u8; LANES] = part(&bytes[2..], g);
        lanes.mul(lanes.widen_i8(&q.map(u8::cast_signed)), *d)
    }
}

pub(super) struct Q4_0;

impl Format for Q4_0 {
    const COLS: usize = 32;
    const BYTES: usize = 18;
    type Opened<S: Lanes> = S::V;

    #[inline(always)]
    fn empty<S: Lanes>(lanes: S) -> S::V {
        lanes.splat(0.0)
    }

    #[inline(always)]
    fn open<S: Lanes>(lanes: S, bytes: &[u8], d: &mut S::V) {
        *d = lanes.splat(lanes.half(u16::from_le_bytes(*part(bytes, 0))));
    }

    #[inline(always)]
    fn group<S: Lanes>(lanes: S, bytes: &[u8], d: &S::V, g: usize) -> S::V {
        let nibbles: &[u8; LANES] = part(&bytes[2..], 0);
        let mut q = [0; LANES];
        for (q, byte) in q.iter_mut().zip(nibbles) {
            *q = (byte >> (4 * g) & 15).cast_signed() - 8;
        }
        lanes.mul(lanes.widen_i8(&q), *d)
    }
}

pub(super) struct Q6K;

/// Codes less 32 and their scales `d * scale`.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct OpenedQ6K {
    q: [i8; 256],
    scale: [f32; 16],
}

impl Format for Q6K {
    const COLS: usize = 256;
    const BYTES: usize = 210;
    type Opened<S: Lanes> = OpenedQ6K;

    #[inline(always)]
    fn empty<S: Lanes>(_: S) -> OpenedQ6K {
        OpenedQ6K { q: [0; 256], scale: [0.0; 16] }
    }

    /// Each half of a block is 128 elements, from 64 bytes of nibbles and 32 of bit pairs: element `32 * i + l` has the
    /// nibble `i / 2` of byte `32 * (i % 2) + l` and the pair `i` of byte `l`.
    #[inline(always)]
    fn open<S: Lanes>(lanes: S, bytes: &[u8], opened: &mut OpenedQ6K) {
        let (scales, d) = (part::<16>(bytes, 12), part::<2>(bytes, 104));
        for half in 0..2 {
            let (low, high) = (part::<64>(bytes, half), part::<32>(&bytes[128..], half));
            let q = &mut opened.q.as_chunks_mut::<128>().0[half];
            for l in 0..32 {
                let pair = high[l];
                q[l] = (low[l] & 15 | (pair & 3) << 4).cast_signed() - 32;
                q[32 + l] = (low[32 + l] & 15 | (pair >> 2 & 3) << 4).cast_signed() - 32;
                q[64 + l] = (low[l] >> 4 | (pair >> 4 & 3) << 4).cast_signed() - 32;
                q[96 + l] = (low[32 + l] >> 4 | (pair >> 6) << 4).cast_signed() - 32;
            }
        }
        let d = lanes.splat(lanes.half(u16::from_le_bytes(*d)));
        let scales = lanes.widen_i8(&scales.map(u8::cast_signed));
        lanes.store(lanes.mul(d, scales), &mut opened.scale);
    }

    #[inline(always)]
    fn group<S: Lanes>(lanes: S, _: &[u8], opened: &OpenedQ6K, g: usize) -> S::V {
        lanes.mul(lanes.splat(opened.scale[g]), lanes.widen_i8(&opened.q.as_chunks().0[g]))
    }
}
