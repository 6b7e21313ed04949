//! Q6_K: 256 elements of 6 bits in 210 bytes.
//!
//! 128 bytes of low bits, 64 bytes of high bits, 16 i8 scales, f16 d. Element 128 h + 32 r + l (h < 2, r < 4, l < 32)
//! has its low four bits in byte 64 h + 32 (r % 2) + l of the first part, the high nibble for r >= 2, and its high two
//! bits in byte 32 h + l of the second, at bit 2 r. Its value is d * scale[element / 16] * (q - 32).

use super::{f16_to_f32, f32_to_f16};

const HIGH_AT: usize = 128;
const SCALES_AT: usize = HIGH_AT + 64;
const D_AT: usize = SCALES_AT + 16;
pub(super) const BLOCK_BYTES: usize = D_AT + 2;

/// Where the bits of an element lie: byte and shift of the low ones, byte and shift of the high ones.
const fn place(element: usize) -> (usize, usize, usize, usize) {
    let (h, r, l) = (element / 128, element % 128 / 32, element % 32);
    (64 * h + 32 * (r % 2) + l, 4 * (r / 2), HIGH_AT + 32 * h + l, 2 * r)
}

pub(super) fn decode(block: &[u8; BLOCK_BYTES], out: &mut [f32; 256]) {
    let d = f16_to_f32(u16::from_le_bytes([block[D_AT], block[D_AT + 1]]));
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * f32::from(block[SCALES_AT + group].cast_signed());
        // 16 elements in a row have their bits in 16 bytes in a row, at the same shifts.
        let (low_at, low_shift, high_at, high_shift) = place(16 * group);
        for (j, value) in out.iter_mut().enumerate() {
            let low = (block[low_at + j] >> low_shift) & 15;
            let high = (block[high_at + j] >> high_shift) & 3;
            *value = scale * (f32::from(low | (high << 4)) - 32.0);
        }
    }
}

pub(super) fn encode(values: &[f32; 256], block: &mut [u8; BLOCK_BYTES]) {
    block.fill(0);
    let (groups, _) = values.as_chunks::<16>();
    let mut scales = [0.0; 16];
    for (scale, group) in scales.iter_mut().zip(groups) {
        *scale = best_scale(group);
    }
    let widest = scales.iter().fold(0.0f32, |widest, &scale| if scale.abs() > widest.abs() { scale } else { widest });
    let d_bits = f32_to_f16(widest / -128.0);
    let d = f16_to_f32(d_bits);
    block[D_AT..].copy_from_slice(&d_bits.to_le_bytes());
    for (index, (group, scale)) in groups.iter().zip(scales).enumerate() {
        let scale_q = if d == 0.0 { 0 } else { (scale / d).round().clamp(-128.0, 127.0) as i8 };
        block[SCALES_AT + index] = scale_q.cast_unsigned();
        let step = d * f32::from(scale_q);
        for (j, &value) in group.iter().enumerate() {
            let q = if step == 0.0 { 32 } else { quantum(value / step) as u8 };
            let (low_at, low_shift, high_at, high_shift) = place(16 * index + j);
            block[low_at] |= (q & 15) << low_shift;
            block[high_at] |= (q >> 4) << high_shift;
        }
    }
}

/// 0 to 63. Adding and taking away 1.5 * 2^23 rounds to the nearest; `f32::round` is a call on the x86-64 baseline.
fn quantum(steps: f32) -> f32 {
    const ROUNDER: f32 = 12_582_912.0;
    (steps.clamp(-32.0, 31.0) + ROUNDER) - ROUNDER + 32.0
}

/// The step size with the least squared error, larger elements weighing more, out of nineteen that map the largest
/// element to -31.1 .. -32.9.
fn best_scale(group: &[f32; 16]) -> f32 {
    let widest = group.iter().fold(0.0f32, |widest, &value| if value.abs() > widest.abs() { value } else { widest });
    if widest == 0.0 || !widest.is_finite() {
        return 0.0;
    }
    let (mut best, mut best_gain) = (widest / -32.0, 0.0);
    for candidate in -9..=9i8 {
        let inverse = (-32.0 + f32::from(candidate) * 0.1) / widest;
        let (mut cross, mut square) = (0.0, 0.0);
        for &value in group {
            let q = quantum(value * inverse) - 32.0;
            let weight = value * value;
            cross += weight * value * q;
            square += weight * q * q;
        }
        // Against the error of all zeros, the best step `cross / square` saves cross^2 / square.
        if square > 0.0 && cross * cross > best_gain * square {
            best_gain = cross * cross / square;
            best = cross / square;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_element_has_its_own_six_bits() {
        let mut used = [0u8; BLOCK_BYTES];
        for element in 0..256 {
            let (low_at, low_shift, high_at, high_shift) = place(element);
            for (at, mask) in [(low_at, 15 << low_shift), (high_at, 3 << high_shift)] {
                assert_eq!(used[at] & mask, 0);
                used[at] |= mask;
            }
        }
        assert!(used[..SCALES_AT].iter().all(|&byte| byte == 0xff));
    }

    #[test]
    fn a_handmade_block_decodes_as_the_layout_says() {
        let mut block = [0u8; BLOCK_BYTES];
        block[D_AT..].copy_from_slice(&f32_to_f16(0.25).to_le_bytes());
        for (group, scale) in block[SCALES_AT..D_AT].iter_mut().enumerate() {
            *scale = (group as i8 - 8).cast_unsigned();
        }
        // Element 128 + 64 + 5: second half, r = 2.
        block[64 + 5] = 0xa0;
        block[HIGH_AT + 32 + 5] = 0b11_0000;
        let mut out = [0.0; 256];
        decode(&block, &mut out);
        assert_eq!(out[197], 0.25 * (197 / 16 - 8) as f32 * (0x3a - 32) as f32);
        assert_eq!(out[0], 0.25 * -8.0 * -32.0);
    }
}
