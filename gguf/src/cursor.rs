//! The one bounded reader under the parser: it knows how long the file is and how much of it is here.

use crate::HEADER_BYTES_MAX;
use crate::error::{Error, Part, clip};

/// What is being read, borrowed; [`Part`] is its owned form.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PartRef<'a> {
    Header,
    Key(u64),
    Value(&'a str),
    Tensor(u64),
}

#[derive(Debug)]
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    file_bytes: u64,
    /// Named by the error if the file ends here.
    pub(crate) part: PartRef<'a>,
}

impl<'a> Cursor<'a> {
    /// `bytes` is a prefix of a file of `file_bytes` bytes.
    pub(crate) fn new(bytes: &'a [u8], file_bytes: u64) -> Self {
        Self { bytes, at: 0, file_bytes, part: PartRef::Header }
    }

    pub(crate) fn position(&self) -> u64 {
        self.at as u64
    }

    pub(crate) fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Bytes of the file, here or not, behind the cursor.
    pub(crate) fn remaining(&self) -> u64 {
        self.file_bytes.saturating_sub(self.position())
    }

    pub(crate) fn take(&mut self, count: u64) -> Result<&'a [u8], Error> {
        self.expect(count)?;
        // `expect` has compared with the slice's length, so the count fits a usize.
        let end = self.at + count as usize;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// The bytes from `start` up to the cursor.
    pub(crate) fn since(&self, start: u64) -> &'a [u8] {
        &self.bytes[start as usize..self.at]
    }

    /// Refuses unless `count` more bytes are here.
    pub(crate) fn expect(&self, count: u64) -> Result<(), Error> {
        let end_bytes = self.position().saturating_add(count);
        if end_bytes > self.file_bytes {
            Err(Error::Truncated { part: self.owned_part(), end_bytes, file_bytes: self.file_bytes })
        } else if end_bytes > HEADER_BYTES_MAX {
            Err(Error::HeaderTooLarge { end_bytes })
        } else if end_bytes > self.bytes.len() as u64 {
            Err(Error::NeedMore { at_least: end_bytes })
        } else {
            Ok(())
        }
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let taken = self.take(N as u64)?;
        Ok(*taken.first_chunk().expect("take gave N bytes"))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Error> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Error> {
        self.array().map(u64::from_le_bytes)
    }

    /// A string: its length as u64, its bytes.
    pub(crate) fn string(&mut self) -> Result<&'a [u8], Error> {
        let count = self.u64()?;
        self.take(count)
    }

    fn owned_part(&self) -> Part {
        match self.part {
            PartRef::Header => Part::Header,
            PartRef::Key(index) => Part::Key(index),
            PartRef::Value(key) => Part::Value(clip(key)),
            PartRef::Tensor(index) => Part::Tensor(index),
        }
    }
}
