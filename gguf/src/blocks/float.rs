//! IEEE half and bfloat16 to f32 and back, rounding to nearest, ties to even.

/// Exact.
#[inline]
pub fn f16_to_f32(half: u16) -> f32 {
    const SUBNORMAL_UNIT: f32 = 1.0 / (1 << 24) as f32;
    const EXPONENT_BIAS_DIFFERENCE: u32 = (127 - 15) << 23;
    let sign = u32::from(half & 0x8000) << 16;
    let magnitude = u32::from(half & 0x7fff);
    // All three, then selects: with branches a loop over this is not vectorised.
    let subnormal = (magnitude.cast_signed() as f32 * SUBNORMAL_UNIT).to_bits();
    let normal = (magnitude << 13) + EXPONENT_BIAS_DIFFERENCE;
    let special = (magnitude << 13) | 0x7f80_0000;
    let finite = if magnitude < 0x0400 { subnormal } else { normal };
    f32::from_bits(sign | if magnitude < 0x7c00 { finite } else { special })
}

/// Overflow gives an infinity, NaN stays NaN.
#[inline]
pub fn f32_to_f16(value: f32) -> u16 {
    const SMALLEST_NORMAL: u32 = 0x3880_0000;
    const TWO_TO_16: u32 = 0x4780_0000;
    const INFINITY: u32 = 0x7f80_0000;
    let sign = (value.to_bits() >> 16) as u16 & 0x8000;
    let magnitude = value.to_bits() & 0x7fff_ffff;
    // An ulp of 0.5 is 2^-24, the unit of subnormal halves: the addition rounds to it.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits() as u16;
    let normal = ((magnitude + 0x0fff + ((magnitude >> 13) & 1)) >> 13).wrapping_sub(112 << 10) as u16;
    let special = if magnitude > INFINITY { 0x7e00 } else { 0x7c00 };
    let finite = if magnitude < SMALLEST_NORMAL { subnormal } else { normal };
    sign | if magnitude < TWO_TO_16 { finite } else { special }
}

/// Exact.
#[inline]
pub fn bf16_to_f32(half: u16) -> f32 {
    f32::from_bits(u32::from(half) << 16)
}

/// NaN stays NaN.
#[inline]
pub fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_comes_back() {
        for half in 0..=u16::MAX {
            let value = f16_to_f32(half);
            if half & 0x7fff > 0x7c00 {
                assert!(value.is_nan() && f16_to_f32(f32_to_f16(value)).is_nan());
            } else {
                assert_eq!(f32_to_f16(value), half, "{half:#06x}");
            }
            let wide = bf16_to_f32(half);
            assert!(if wide.is_nan() { bf16_to_f32(f32_to_bf16(wide)).is_nan() } else { f32_to_bf16(wide) == half });
        }
    }

    #[test]
    fn halfway_values_go_to_the_even_neighbour() {
        for half in 0..0x7c00u16 {
            let (low, high) = (f64::from(f16_to_f32(half)), f64::from(f16_to_f32(half + 1)));
            if half == 0x7bff {
                continue;
            }
            let middle = ((low + high) / 2.0) as f32;
            assert_eq!(f32_to_f16(middle), half + (half & 1), "{half:#06x}");
            assert_eq!(f32_to_f16(f32::from_bits(middle.to_bits() + 1)), half + 1);
            assert_eq!(f32_to_f16(f32::from_bits(middle.to_bits() - 1)), half);
        }
    }

    #[test]
    fn values_at_the_edges_are_those_of_ieee_754() {
        for (value, half) in [
            (0.0, 0),
            (-0.0, 0x8000),
            (1.0, 0x3c00),
            (-2.0, 0xc000),
            (65504.0, 0x7bff),
            (65519.996, 0x7bff),
            (65520.0, 0x7c00),
            (1e9, 0x7c00),
            (f32::NEG_INFINITY, 0xfc00),
            (2.0f32.powi(-24), 1),
            (2.0f32.powi(-25), 0),
            (2.0f32.powi(-14), 0x0400),
        ] {
            assert_eq!(f32_to_f16(value), half, "{value}");
        }
        assert_eq!(f32_to_bf16(f32::from_bits(0x3f80_8000)), 0x3f80);
        assert_eq!(f32_to_bf16(f32::from_bits(0x3f81_8000)), 0x3f82);
        assert_eq!(f32_to_bf16(f32::MAX), 0x7f80);
    }
}
