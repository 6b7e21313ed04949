//! Where the tile sizes of TL1 and TL2 come from: the file's own metadata, the file beside it, bitnet.cpp's presets.

use gguf::ternary::{TILES_KEY, TileTable, Tiled};
use gguf::{Gguf, TensorType};

use super::{Error, Source};

/// Tile sizes for the matrices of one file.
pub struct Tiles {
    /// What the file says of itself or else the file beside it; the presets for shapes that are not in it.
    known: Option<TileTable>,
}

impl Tiles {
    /// Reads them, where the file has tensors that lie in tiles.
    ///
    /// # Errors
    /// When the metadata or the file beside can't be read or mean nothing.
    pub fn of(source: &Source, gguf: &Gguf<'_>) -> Result<Self, Error> {
        if !gguf.tensors().iter().any(|tensor| tensor.kind.is_tiled()) {
            return Ok(Self { known: None });
        }
        let own = TileTable::from_metadata(gguf.metadata());
        let own = own.map_err(|source| Error::Tiles { what: format!("metadata `{TILES_KEY}`"), source })?;
        let known = if own.is_some() { own } else { source.tiles_beside()? };
        Ok(Self { known })
    }

    /// The layout of the matrix `name`.
    ///
    /// # Errors
    /// When no tile sizes are known for its shape, or it can't lie in them.
    pub fn layout(&self, kind: TensorType, name: &str, (rows, cols): (usize, usize)) -> Result<Tiled, Error> {
        let known = self.known.as_ref().and_then(|table| table.get(rows, cols));
        let tile = known.or_else(|| TileTable::preset(kind).get(rows, cols));
        let tile = tile.ok_or_else(|| Error::NoTiles { name: name.to_owned(), kind: kind.name(), rows, cols })?;
        Tiled::new(kind, rows, cols, tile)
            .map_err(|error| Error::BadTensor { name: name.to_owned(), why: error.to_string() })
    }
}
