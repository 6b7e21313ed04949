//! Tile sizes by matrix: those of bitnet.cpp's models, the `kernel_config.ini` that it writes for others, and the
//! metadata with which our own files say theirs.
//!
//! ```
//! use gguf::{TensorType, ternary::TileTable};
//! let table = TileTable::parse_ini("[Kernels_0]\nm = 256\nk = 768\nbm = 128\nbk = 96\nbmm = 32\n")?;
//! assert_eq!(table.get(256, 768).map(|tile| tile.cols), Some(96));
//! assert!(TileTable::preset(TensorType::Tl2).get(4096, 4096).is_some());
//! # Ok::<(), gguf::ternary::TableError>(())
//! ```

use super::{BAND_ROWS, TileShape, Tiled};
use crate::writer::Writer;
use crate::{Error, Metadata, TensorType};

/// Tile sizes of matrices of some shapes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TileTable {
    /// Rows, columns, tiles.
    entries: Vec<(usize, usize, TileShape)>,
}

/// What is wrong with a table of tile sizes.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TableError {
    #[error(transparent)]
    Metadata(#[from] Error),
    #[error("`{TILES_KEY}` holds {found}, tile sizes are five numbers from 1 to {NUMBER_MAX} for each shape")]
    Numbers { found: String },
    #[error("{bytes} bytes, a tile configuration has {INI_BYTES_MAX} at most")]
    TooLong { bytes: usize },
    #[error("more than {TABLE_LEN_MAX} shapes")]
    TooManyShapes,
    #[error("line {line}: neither `[section]` nor `key = number`")]
    Syntax { line: usize },
    #[error("line {line}: key {key:?} is not known, only m, k, bm, bk and bmm are")]
    UnknownKey { line: usize, key: String },
    #[error("line {line}: {key} is given twice")]
    KeyTwice { line: usize, key: &'static str },
    #[error("line {line}: {key} is {value:?}, no number from 1 to {NUMBER_MAX}")]
    Number { line: usize, key: &'static str, value: String },
    #[error("section before line {line} lacks {key}")]
    KeyMissing { line: usize, key: &'static str },
    #[error("matrices of {rows} x {cols} have two different tile sizes")]
    Conflict { rows: usize, cols: usize },
}

/// Metadata of our own files, by which their tiles need no other file.
pub const TILES_KEY: &str = "bitnetd.tiles";
/// Longest `kernel_config.ini`; a model has four shapes of about 60 bytes.
pub const INI_BYTES_MAX: usize = 1 << 16;
/// Most shapes of a table.
const TABLE_LEN_MAX: usize = 256;
const NUMBER_MAX: u32 = 1 << 20;
const KEYS: [&str; 5] = ["m", "k", "bm", "bk", "bmm"];

impl TileTable {
    /// The sizes that bitnet.cpp uses for bitnet_b1_58-large, bitnet_b1_58-3B and Llama3-8B-1.58, empty for a type
    /// without tiles.
    pub fn preset(kind: TensorType) -> Self {
        let known: &[(usize, usize, usize, usize, usize)] = match kind {
            TensorType::Tl1 => &TL1_PRESETS,
            TensorType::Tl2 | TensorType::Tl2Later => &TL2_PRESETS,
            _ => &[],
        };
        let entry = |&(rows, cols, tile_rows, tile_cols, group_rows)| {
            (rows, cols, TileShape { rows: tile_rows, cols: tile_cols, group_rows })
        };
        Self { entries: known.iter().map(entry).collect() }
    }

    /// The table in a file's metadata, `None` where there is none: [`TILES_KEY`] holds m, k, bm, bk and bmm of each shape.
    pub fn from_metadata(metadata: &Metadata<'_>) -> Result<Option<Self>, TableError> {
        let Some(numbers) = metadata.i32s(TILES_KEY)? else { return Ok(None) };
        if !numbers.len().is_multiple_of(KEYS.len()) {
            return Err(TableError::Numbers { found: format!("{} numbers", numbers.len()) });
        }
        if numbers.len() > TABLE_LEN_MAX * KEYS.len() {
            return Err(TableError::TooManyShapes);
        }
        let mut table = Self::default();
        let numbers: Vec<i32> = numbers.iter().collect();
        for shape in numbers.as_chunks::<{ KEYS.len() }>().0 {
            let mut values = [0; KEYS.len()];
            for (value, &number) in values.iter_mut().zip(shape) {
                let sound = u32::try_from(number).ok().filter(|number| (1..=NUMBER_MAX).contains(number));
                *value = sound.ok_or_else(|| TableError::Numbers { found: number.to_string() })? as usize;
            }
            table.add(values)?;
        }
        Ok(Some(table))
    }

    /// Adds the shapes to a file's metadata.
    pub fn write_metadata(&self, writer: &mut Writer) {
        let numbers: Vec<i32> = self
            .entries
            .iter()
            .flat_map(|&(rows, cols, tile)| [rows, cols, tile.rows, tile.cols, tile.group_rows])
            .map(|number| i32::try_from(number).expect("the table has numbers up to NUMBER_MAX"))
            .collect();
        writer.array(TILES_KEY, &numbers);
    }

    /// Adds the tiles that [`TileTable::choose`] gives for such matrices, if there are any.
    pub fn add_chosen(&mut self, kind: TensorType, rows: usize, cols: usize) -> Option<TileShape> {
        let tile = match self.get(rows, cols) {
            Some(tile) => tile,
            None => Self::choose(kind, rows, cols)?,
        };
        let largest = rows.max(cols);
        let known =
            largest <= NUMBER_MAX as usize && self.add([rows, cols, tile.rows, tile.cols, tile.group_rows]).is_ok();
        known.then_some(tile)
    }

    /// The tiles of matrices of `rows` x `cols`.
    pub fn get(&self, rows: usize, cols: usize) -> Option<TileShape> {
        self.entries.iter().find(|entry| (entry.0, entry.1) == (rows, cols)).map(|entry| entry.2)
    }

    /// Tiles that such a matrix can lie in: the preset, or sizes of the kind that bitnet.cpp picks. `None` where none
    /// fits.
    pub fn choose(kind: TensorType, rows: usize, cols: usize) -> Option<TileShape> {
        let fits = |tile: &TileShape| Tiled::new(kind, rows, cols, *tile).is_ok();
        let preset = Self::preset(kind).get(rows, cols);
        let heights = [256, 128, 64, BAND_ROWS];
        let widths: &[usize] = if kind == TensorType::Tl1 { &[128, 64, 32, 8] } else { &[96, 192] };
        let others = heights
            .iter()
            .flat_map(|&rows| widths.iter().map(move |&cols| TileShape { rows, cols, group_rows: BAND_ROWS }));
        preset.into_iter().chain(others).find(fits)
    }

    /// Reads the text of a `kernel_config.ini`: a section for each shape with m and k (rows and columns of the matrix),
    /// bm and bk (of a tile), bmm (rows of a group).
    pub fn parse_ini(text: &str) -> Result<Self, TableError> {
        if text.len() > INI_BYTES_MAX {
            return Err(TableError::TooLong { bytes: text.len() });
        }
        let mut table = Self::default();
        let mut section: Option<Section> = None;
        let mut last_line = 0;
        for (index, line) in text.lines().enumerate() {
            let (number, line) = (index + 1, line.trim());
            last_line = number;
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            if line.starts_with('[') && line.ends_with(']') {
                if let Some(section) = section.replace(Section::default()) {
                    table.add(section.values(number)?)?;
                }
                continue;
            }
            let (Some(section), Some((key, value))) = (&mut section, line.split_once('=')) else {
                return Err(TableError::Syntax { line: number });
            };
            section.set(number, key.trim(), value.trim())?;
        }
        if let Some(section) = section {
            table.add(section.values(last_line + 1)?)?;
        }
        Ok(table)
    }

    fn add(&mut self, [rows, cols, tile_rows, tile_cols, group_rows]: [usize; KEYS.len()]) -> Result<(), TableError> {
        let tile = TileShape { rows: tile_rows, cols: tile_cols, group_rows };
        match self.get(rows, cols) {
            Some(found) if found == tile => return Ok(()),
            Some(_) => return Err(TableError::Conflict { rows, cols }),
            None => {}
        }
        if self.entries.len() == TABLE_LEN_MAX {
            return Err(TableError::TooManyShapes);
        }
        self.entries.push((rows, cols, tile));
        Ok(())
    }
}

/// Values of [`KEYS`], as they come.
#[derive(Default)]
struct Section {
    found: [Option<usize>; KEYS.len()],
}

impl Section {
    fn set(&mut self, line: usize, key: &str, value: &str) -> Result<(), TableError> {
        let known = KEYS.iter().position(|known| known.eq_ignore_ascii_case(key));
        let Some(index) = known else {
            return Err(TableError::UnknownKey { line, key: clip(key) });
        };
        let key = KEYS[index];
        let number: Option<u32> = value.parse().ok().filter(|number| (1..=NUMBER_MAX).contains(number));
        let Some(number) = number else {
            return Err(TableError::Number { line, key, value: clip(value) });
        };
        match self.found[index].replace(number as usize) {
            None => Ok(()),
            Some(_) => Err(TableError::KeyTwice { line, key }),
        }
    }

    fn values(&self, line: usize) -> Result<[usize; KEYS.len()], TableError> {
        let mut values = [0; KEYS.len()];
        for ((value, found), key) in values.iter_mut().zip(self.found).zip(KEYS) {
            *value = found.ok_or(TableError::KeyMissing { line, key })?;
        }
        Ok(values)
    }
}

fn clip(text: &str) -> String {
    const CLIP_CHARS: usize = 32;
    text.chars().take(CLIP_CHARS).collect()
}

/// Rows, columns, BM, BK, bm.
const TL1_PRESETS: [(usize, usize, usize, usize, usize); 10] = [
    (1536, 4096, 256, 128, 32),
    (1536, 1536, 128, 64, 64),
    (4096, 1536, 256, 128, 32),
    (3200, 8640, 160, 64, 32),
    (3200, 3200, 320, 128, 64),
    (8640, 3200, 320, 64, 32),
    (14_336, 4096, 256, 128, 32),
    (4096, 14_336, 128, 64, 64),
    (1024, 4096, 256, 128, 32),
    (4096, 4096, 128, 64, 64),
];
const TL2_PRESETS: [(usize, usize, usize, usize, usize); 10] = [
    (1536, 4096, 256, 96, 32),
    (1536, 1536, 128, 192, 32),
    (4096, 1536, 256, 96, 32),
    (3200, 8640, 160, 96, 32),
    (3200, 3200, 320, 96, 32),
    (8640, 3200, 320, 96, 32),
    (14_336, 4096, 256, 96, 32),
    (4096, 14_336, 128, 96, 32),
    (1024, 4096, 256, 96, 32),
    (4096, 4096, 128, 96, 32),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_presets_fit_their_matrices() {
        for kind in [TensorType::Tl1, TensorType::Tl2, TensorType::Tl2Later] {
            for (rows, cols, tile) in TileTable::preset(kind).entries {
                assert!(Tiled::new(kind, rows, cols, tile).is_ok(), "{} {rows} {cols}", kind.name());
                assert_eq!(TileTable::choose(kind, rows, cols), Some(tile));
            }
        }
        assert!(TileTable::preset(TensorType::I2S).entries.is_empty());
    }

    #[test]
    fn tiles_are_chosen_where_any_fit() {
        for (rows, cols) in [(256, 256), (128, 256), (768, 256), (256, 768), (6912, 2560), (2560, 6912), (640, 2560)] {
            for kind in [TensorType::Tl1, TensorType::Tl2] {
                assert!(TileTable::choose(kind, rows, cols).is_some(), "{} {rows} {cols}", kind.name());
            }
        }
        assert_eq!(TileTable::choose(TensorType::Tl1, 100, 256), None);
        assert_eq!(TileTable::choose(TensorType::Tl2, 256, 128), None);
        assert_eq!(TileTable::choose(TensorType::I2S, 256, 256), None);
    }

    #[test]
    fn sections_are_read_with_comments_and_without_order() {
        let text = "# tiles\r\n[Kernels_0]\r\nBMM=32\nbk = 96\n; more\nk=256\n\nm = 512\nbm = 128\n[x]\nm=1\nk=2\nbm=3\nbk=4\nbmm=5";
        let table = TileTable::parse_ini(text).unwrap();
        assert_eq!(table.get(512, 256), Some(TileShape { rows: 128, cols: 96, group_rows: 32 }));
        assert_eq!(table.get(1, 2), Some(TileShape { rows: 3, cols: 4, group_rows: 5 }));
        assert_eq!(table.get(256, 512), None);
        assert_eq!(TileTable::parse_ini("").unwrap(), TileTable::default());
    }

    #[test]
    fn tables_go_through_metadata() {
        let mut table = TileTable::default();
        assert!(table.add_chosen(TensorType::Tl2, 256, 768).is_some());
        assert!(table.add_chosen(TensorType::Tl2, 256, 768).is_some());
        assert!(table.add_chosen(TensorType::Tl2, 8640, 3200).is_some());
        assert_eq!(table.add_chosen(TensorType::Tl2, 100, 256), None);
        let read = |writer: &Writer| {
            let bytes = writer.write_header(vec![]).unwrap().finish().unwrap();
            TileTable::from_metadata(crate::Gguf::parse(&bytes, bytes.len() as u64).unwrap().metadata())
        };
        let mut writer = Writer::new(3);
        assert_eq!(read(&writer), Ok(None));
        table.write_metadata(&mut writer);
        assert_eq!(read(&writer), Ok(Some(table)));
        for numbers in [&[1, 1, 1, 1][..], &[1, 1, 1, 1, 0], &[1, -1, 1, 1, 1], &[i32::MAX; 5]] {
            let mut writer = Writer::new(3);
            writer.array(TILES_KEY, numbers);
            assert!(matches!(read(&writer), Err(TableError::Numbers { .. })), "{numbers:?}");
        }
        let mut writer = Writer::new(3);
        writer.array(TILES_KEY, &vec![1; 5 * (TABLE_LEN_MAX + 1)]);
        assert_eq!(read(&writer), Err(TableError::TooManyShapes));
        let mut writer = Writer::new(3);
        writer.kv(TILES_KEY, "tiles");
        assert!(matches!(read(&writer), Err(TableError::Metadata(_))));
    }

    #[test]
    fn every_prefix_and_every_changed_byte_is_read_or_refused() {
        let good =
            "[Kernels_0]\nm = 256\nk = 768\nbm = 128\nbk = 96\nbmm = 32\n[b]\nm=32\nk=256\nbm=32\nbk=96\nbmm=32\n";
        for end in 0..good.len() {
            let _ = TileTable::parse_ini(&good[..end]);
        }
        for at in 0..good.len() {
            for byte in [0, b'\n', b'[', b'=', b'9', b'-', 0x7f] {
                let mut bytes = good.as_bytes().to_vec();
                bytes[at] = byte;
                let text = String::from_utf8(bytes).expect("ASCII stays ASCII");
                if let Ok(table) = TileTable::parse_ini(&text) {
                    for (rows, cols, tile) in table.entries {
                        for kind in [TensorType::Tl1, TensorType::Tl2] {
                            let _ = Tiled::new(kind, rows, cols, tile);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn broken_configurations_are_refused_with_their_line() {
        let refused = |text: &str| TileTable::parse_ini(text).unwrap_err();
        assert_eq!(refused("m = 1"), TableError::Syntax { line: 1 });
        assert_eq!(refused("[a]\nm 1"), TableError::Syntax { line: 2 });
        assert_eq!(refused("[a]\nn = 1"), TableError::UnknownKey { line: 2, key: "n".into() });
        assert_eq!(refused("[a]\nm = 1\nM = 1"), TableError::KeyTwice { line: 3, key: "m" });
        for value in ["0", "-1", "1.5", "", "1048577", "99999999999999999999", "0x10"] {
            let wanted = TableError::Number { line: 2, key: "k", value: value.into() };
            assert_eq!(refused(&format!("[a]\nk = {value}")), wanted);
        }
        assert_eq!(refused("[a]\nm = 1\n[b]"), TableError::KeyMissing { line: 3, key: "k" });
        let section = |m: usize, bm: usize| format!("[s]\nm={m}\nk=1\nbm={bm}\nbk=1\nbmm=1\n");
        assert_eq!(refused(&(section(1, 1) + &section(1, 2))), TableError::Conflict { rows: 1, cols: 1 });
        assert!(TileTable::parse_ini(&section(1, 1).repeat(1000)).is_ok());
        let many: String = (1..=TABLE_LEN_MAX + 1).map(|m| section(m, 1)).collect();
        assert_eq!(refused(&many), TableError::TooManyShapes);
        assert!(matches!(refused(&"\n".repeat(INI_BYTES_MAX + 1)), TableError::TooLong { .. }));
        assert!(
            matches!(refused(&format!("[a]\n{}=1", "k".repeat(9999))), TableError::UnknownKey { key, .. } if key.len() == 32)
        );
    }
}
