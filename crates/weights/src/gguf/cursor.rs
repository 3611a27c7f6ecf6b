use crate::error::{Error, Result};
use crate::source::Source;

/// Bytes read ahead.
const BLOCK: usize = 1 << 16;

/// Reads a file from front to back in small pieces, by position.
pub(super) struct Cursor<'a> {
    pub source: &'a Source,
    /// Next byte.
    at: u64,
    block: Vec<u8>,
    /// Where `block` lies in the file.
    block_at: u64,
}

impl<'a> Cursor<'a> {
    pub fn new(source: &'a Source) -> Cursor<'a> {
        Cursor { source, at: 0, block: Vec::new(), block_at: 0 }
    }

    pub fn at(&self) -> u64 {
        self.at
    }

    pub fn seek(&mut self, at: u64) {
        self.at = at;
    }

    /// The file is damaged in this way.
    pub fn bad(&self, what: impl Into<String>) -> Error {
        Error::Gguf { file: self.source.name().into(), what: what.into() }
    }

    /// Bytes up to the end of the file.
    pub fn left(&self) -> u64 {
        self.source.bytes().saturating_sub(self.at)
    }

    /// `n` things of at least `bytes` bytes each follow: they must fit into the rest of the file.
    pub fn expect(&self, n: u64, bytes: u64) -> Result<()> {
        let need = n.checked_mul(bytes).and_then(|b| b.checked_add(self.at)).unwrap_or(u64::MAX);
        if need > self.source.bytes() {
            return Err(Error::Truncated { file: self.source.name().into(), need, have: self.source.bytes() });
        }
        Ok(())
    }

    pub fn skip(&mut self, n: u64) -> Result<()> {
        self.expect(n, 1)?;
        self.at += n;
        Ok(())
    }

    pub fn fill(&mut self, mut out: &mut [u8]) -> Result<()> {
        self.expect(out.len() as u64, 1)?;
        while !out.is_empty() {
            let inside = self.at.checked_sub(self.block_at).filter(|&i| i < self.block.len() as u64);
            let Some(inside) = inside else {
                if out.len() >= BLOCK {
                    self.source.read_at(self.at, out)?;
                    self.at += out.len() as u64;
                    return Ok(());
                }
                self.block.resize(self.left().min(BLOCK as u64) as usize, 0);
                // Nothing of a failed read may be taken for the file's content.
                self.block_at = u64::MAX;
                self.source.read_at(self.at, &mut self.block)?;
                self.block_at = self.at;
                continue;
            };
            let have = &self.block[inside as usize..];
            let n = have.len().min(out.len());
            out[..n].copy_from_slice(&have[..n]);
            out = &mut out[n..];
            self.at += n as u64;
        }
        Ok(())
    }

    pub fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        self.fill(&mut out)?;
        Ok(out)
    }

    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    /// A string of at most `limit` bytes: its length, then UTF-8.
    pub fn string(&mut self, limit: u64) -> Result<String> {
        let n = self.u64()?;
        if n > limit {
            return Err(self.bad(format!("a name of {n} bytes at byte {}, at most {limit} are allowed", self.at - 8)));
        }
        self.expect(n, 1)?;
        let at = self.at;
        let mut bytes = reserve(n as usize)?;
        bytes.resize(n as usize, 0);
        self.fill(&mut bytes)?;
        String::from_utf8(bytes).map_err(|_| self.bad(format!("the string at byte {at} is not UTF-8")))
    }
}

pub(super) fn reserve<T>(n: usize) -> Result<Vec<T>> {
    let mut out = Vec::new();
    out.try_reserve_exact(n).map_err(|_| Error::Memory { bytes: n.saturating_mul(size_of::<T>()) })?;
    Ok(out)
}
