//! Tensor types, their block geometry and sizes, and the entry of the tensor table.

use crate::error::ShapeError;

/// One entry of the tensor table, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorInfo<'a> {
    pub name: &'a str,
    /// Dimensions, the contiguous one first; unused ones are 1.
    pub dims: [u64; 4],
    /// How many of `dims` the file gives, 1 to 4.
    pub dim_count: u32,
    pub kind: TensorType,
    /// Where the data starts, in bytes from the start of the file.
    pub offset: u64,
    /// Size of the data without padding.
    pub bytes: u64,
}

impl TensorInfo<'_> {
    /// Product of all dimensions.
    pub fn elements(&self) -> u64 {
        self.dims.iter().product()
    }

    /// The contiguous dimension: inputs of a linear layer, width of an embedding.
    pub fn cols(&self) -> u64 {
        self.dims[0]
    }

    /// Product of the dimensions behind the contiguous one.
    pub fn rows(&self) -> u64 {
        self.dims[1..].iter().product()
    }
}

/// How a tensor's elements are stored. Ids are ggml's, 36 to 39 as bitnet.cpp gives them.
#[expect(non_camel_case_types, reason = "ggml's names")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q8_0,
    Q6_K,
    /// Ternary, base 3 packing, one f16 scale per 256.
    Tq1_0,
    /// Ternary, 2 bits, one f16 scale per 256.
    Tq2_0,
    /// Ternary, 2 bits, one f32 scale per tensor.
    I2S,
    /// Ternary, lookup-table tiles for NEON; tile sizes are not in the file.
    Tl1,
    /// Ternary, lookup-table tiles for AVX2; tile sizes are not in the file. Mainline ggml gives this id to MXFP4.
    Tl2,
    /// The same with the id that bitnet.cpp of July 2026 gives it.
    Tl2Later,
    /// A type whose size is known and whose contents are not read.
    Other(OtherType),
}

/// A tensor type of which only the name and the geometry are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OtherType {
    id: u32,
    name: &'static str,
    block_elements: u64,
    block_bytes: u64,
}

/// The I2_S and TL tail: an f32 scale and 28 unused bytes.
pub(crate) const SCALE_TAIL_BYTES: u64 = 32;
const TL2_COLS_MIN: u64 = 256;

impl TensorType {
    /// The type with ggml's id `id`, `None` for one that is not known.
    pub fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            8 => Self::Q8_0,
            14 => Self::Q6_K,
            30 => Self::BF16,
            34 => Self::Tq1_0,
            35 => Self::Tq2_0,
            36 => Self::I2S,
            38 => Self::Tl1,
            39 => Self::Tl2,
            42 => Self::Tl2Later,
            _ => Self::Other(*OTHER_TYPES.iter().find(|other| other.id == id)?),
        })
    }

    /// ggml's id.
    pub fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 8,
            Self::Q6_K => 14,
            Self::BF16 => 30,
            Self::Tq1_0 => 34,
            Self::Tq2_0 => 35,
            Self::I2S => 36,
            Self::Tl1 => 38,
            Self::Tl2 => 39,
            Self::Tl2Later => 42,
            Self::Other(other) => other.id,
        }
    }

    /// ggml's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q8_0 => "Q8_0",
            Self::Q6_K => "Q6_K",
            Self::Tq1_0 => "TQ1_0",
            Self::Tq2_0 => "TQ2_0",
            Self::I2S => "I2_S",
            Self::Tl1 => "TL1",
            Self::Tl2 => "TL2",
            Self::Tl2Later => "TL2 (id 42)",
            Self::Other(other) => other.name,
        }
    }

    /// True for the types that hold -1, 0 and +1 times a scale.
    pub fn is_ternary(self) -> bool {
        matches!(self, Self::I2S | Self::Tq1_0 | Self::Tq2_0) || self.is_tiled()
    }

    /// True for the types that lie in tiles, whose sizes are not in the file.
    pub fn is_tiled(self) -> bool {
        matches!(self, Self::Tl1 | Self::Tl2 | Self::Tl2Later)
    }

    /// Elements of one block; 0 for those that lie in tiles.
    pub fn block_elements(self) -> u64 {
        self.geometry().0
    }

    /// Bytes of one block, without the tail of I2_S; 0 for those that lie in tiles.
    pub fn block_bytes(self) -> u64 {
        self.geometry().1
    }

    /// Bytes of a tensor of this type, without padding to the file's alignment.
    ///
    /// Block types need whole blocks in each row. I2_S packs the flat index, so the whole tensor must be whole blocks;
    /// one f32 scale and 28 unused bytes follow. TL1 and TL2 sizes are those of bitnet.cpp's `ggml_nbytes`.
    pub fn tensor_bytes(self, dims: &[u64; 4]) -> Result<u64, ShapeError> {
        if let Some(index) = dims.iter().position(|&dim| dim == 0) {
            return Err(ShapeError::ZeroDim { index });
        }
        let elements = dims
            .iter()
            .try_fold(1u64, |product, &dim| product.checked_mul(dim))
            .filter(|&elements| i64::try_from(elements).is_ok())
            .ok_or(ShapeError::ElementsOverflow)?;
        let (cols, rows) = (dims[0], elements / dims[0]);
        match self {
            Self::I2S => whole_blocks(elements, self.geometry()).map(|bytes| bytes + SCALE_TAIL_BYTES),
            Self::Tl1 => whole_blocks(elements, (4, 1)).map(|bytes| pad_32(bytes) + SCALE_TAIL_BYTES),
            Self::Tl2 | Self::Tl2Later => tl2_bytes(cols, rows),
            _ => whole_blocks(cols, self.geometry())?.checked_mul(rows).ok_or(ShapeError::BytesOverflow),
        }
    }

    fn geometry(self) -> (u64, u64) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q4_0 => (32, 2 + 16),
            Self::Q8_0 => (32, 2 + 32),
            Self::Q6_K => (256, 128 + 64 + 16 + 2),
            Self::Tq1_0 => (256, 48 + 4 + 2),
            Self::Tq2_0 => (256, 64 + 2),
            Self::I2S => (128, 32),
            Self::Tl1 | Self::Tl2 | Self::Tl2Later => (0, 0),
            Self::Other(other) => (other.block_elements, other.block_bytes),
        }
    }
}

fn whole_blocks(elements: u64, (block_elements, block_bytes): (u64, u64)) -> Result<u64, ShapeError> {
    if !elements.is_multiple_of(block_elements) {
        return Err(ShapeError::PartialBlock { elements, block_elements });
    }
    (elements / block_elements).checked_mul(block_bytes).ok_or(ShapeError::BytesOverflow)
}

/// Integer divisions in bitnet.cpp's order; 5/3 bits an element but for the last 256 columns, which have 2.
fn tl2_bytes(cols: u64, rows: u64) -> Result<u64, ShapeError> {
    let three =
        cols.checked_sub(TL2_COLS_MIN).ok_or(ShapeError::RowTooShort { kind: "TL2", cols, cols_min: TL2_COLS_MIN })?;
    let three_bytes = (three * rows / 3).checked_mul(5).ok_or(ShapeError::BytesOverflow)? / 8;
    Ok(pad_32(three_bytes + TL2_COLS_MIN * rows / 2 * 4 / 8) + SCALE_TAIL_BYTES)
}

fn pad_32(bytes: u64) -> u64 {
    bytes.next_multiple_of(32)
}

const fn other(id: u32, name: &'static str, block_elements: u64, block_bytes: u64) -> OtherType {
    OtherType { id, name, block_elements, block_bytes }
}

/// Types of ggml that are not read, with the sizes of ggml's block structures.
const OTHER_TYPES: [OtherType; 29] = [
    other(3, "Q4_1", 32, 20),
    other(6, "Q5_0", 32, 22),
    other(7, "Q5_1", 32, 24),
    other(9, "Q8_1", 32, 36),
    other(10, "Q2_K", 256, 84),
    other(11, "Q3_K", 256, 110),
    other(12, "Q4_K", 256, 144),
    other(13, "Q5_K", 256, 176),
    other(15, "Q8_K", 256, 292),
    other(16, "IQ2_XXS", 256, 66),
    other(17, "IQ2_XS", 256, 74),
    other(18, "IQ3_XXS", 256, 98),
    other(19, "IQ1_S", 256, 50),
    other(20, "IQ4_NL", 32, 18),
    other(21, "IQ3_S", 256, 110),
    other(22, "IQ2_S", 256, 82),
    other(23, "IQ4_XS", 256, 136),
    other(24, "I8", 1, 1),
    other(25, "I16", 1, 2),
    other(26, "I32", 1, 4),
    other(27, "I64", 1, 8),
    other(28, "F64", 1, 8),
    other(29, "IQ1_M", 256, 56),
    other(31, "Q4_0_4_4", 32, 18),
    other(32, "Q4_0_4_8", 32, 18),
    other(33, "Q4_0_8_8", 32, 18),
    other(37, "I8_S", 1, 1),
    other(40, "NVFP4", 64, 36),
    other(41, "Q1_0", 128, 18),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_id_is_its_own() {
        let known: Vec<TensorType> = (0..1000).filter_map(TensorType::from_id).collect();
        assert_eq!(known.len(), 12 + OTHER_TYPES.len());
        for kind in &known {
            assert_eq!(TensorType::from_id(kind.id()), Some(*kind));
            assert_eq!(known.iter().filter(|other| other.name() == kind.name()).count(), 1, "{}", kind.name());
        }
    }

    #[test]
    fn sizes_are_those_of_ggml() {
        let bytes = |kind: TensorType, dims| kind.tensor_bytes(&dims).unwrap();
        assert_eq!(bytes(TensorType::F32, [7, 3, 1, 1]), 84);
        assert_eq!(bytes(TensorType::BF16, [7, 3, 2, 1]), 84);
        assert_eq!(bytes(TensorType::Q8_0, [64, 3, 1, 1]), 204);
        assert_eq!(bytes(TensorType::Q4_0, [64, 3, 1, 1]), 108);
        assert_eq!(bytes(TensorType::Q6_K, [512, 1, 1, 1]), 420);
        assert_eq!(bytes(TensorType::Tq1_0, [256, 2, 1, 1]), 108);
        assert_eq!(bytes(TensorType::Tq2_0, [256, 2, 1, 1]), 132);
        // Rows of 8640 are no whole blocks of 128, the tensor is.
        assert_eq!(bytes(TensorType::I2S, [8640, 3200, 1, 1]), 8640 * 3200 / 4 + 32);
        assert_eq!(bytes(TensorType::Tl1, [256, 128, 1, 1]), 256 * 128 / 4 + 32);
        // As in TL2 files written by bitnet.cpp.
        assert_eq!(bytes(TensorType::Tl2, [256, 256, 1, 1]), 16_384 + 32);
        assert_eq!(bytes(TensorType::Tl2, [768, 256, 1, 1]), 43_712 + 32);
    }
}
