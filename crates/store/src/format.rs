//! The bytes on disk, as `docs/store-format.md` draws them. All numbers are little-endian. Whatever is read here may be
//! anything: every length is checked against what holds it before it is used.

use kvist_base::{CHUNK, TokenId};

use crate::crypto::{Key, RecordId, TAG, Tag, checksum};

/// What this program writes, and the newest that it reads.
pub(crate) const VERSION: u32 = 1;
/// Bytes at the beginning of every file. Magic, version, and the checksum in the last 16 stay where they are for good.
pub(crate) const FILE_HEADER: usize = 512;
/// Records begin at multiples of this.
pub(crate) const ALIGN: u64 = 512;
/// Bytes of a record's header before the sealed part.
pub(crate) const RECORD_HEADER: usize = 112;
/// Chunks in an extent at most.
pub(crate) const EXTENT: usize = 16;
/// Bytes of a sealed part at most: a note's key and value, mostly.
pub(crate) const META_MOST: usize = 1 << 20;
pub(crate) const TRAILER: usize = 64;

const SEGMENT_MAGIC: [u8; 8] = *b"KVISTSEG";
const KEYS_MAGIC: [u8; 8] = *b"KVISTKEY";
const RECORD_MAGIC: [u8; 8] = *b"KVISTREC";
const TRAILER_MAGIC: [u8; 8] = *b"KVISTEND";

/// Why bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bad {
    /// Damaged, torn, or something else altogether.
    Damaged,
    /// Sound, and of a later version.
    Newer(u32),
}

/// Reads numbers from the front of some bytes.
pub(crate) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], Bad> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(Bad::Damaged)?;
        self.0 = tail;
        Ok(head)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Bad> {
        let (head, tail) = self.0.split_first_chunk().ok_or(Bad::Damaged)?;
        self.0 = tail;
        Ok(*head)
    }

    pub fn u8(&mut self) -> Result<u8, Bad> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub fn u16(&mut self) -> Result<u16, Bad> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub fn u32(&mut self) -> Result<u32, Bad> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64, Bad> {
        Ok(u64::from_le_bytes(self.array()?))
    }
}

/// Pads to the length of a file header and closes it with its checksum.
fn close(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(FILE_HEADER - TAG, 0);
    let sum = checksum(&[&bytes]);
    bytes.extend(sum);
    bytes
}

/// Checks magic, checksum and version, in the way that all versions share; what follows the version.
fn open(bytes: &[u8], magic: [u8; 8]) -> Result<Reader<'_>, Bad> {
    let bytes = bytes.get(..FILE_HEADER).ok_or(Bad::Damaged)?;
    let (body, sum) = bytes.split_at(FILE_HEADER - TAG);
    let mut r = Reader(body);
    if r.array()? != magic || checksum(&[body]) != sum {
        return Err(Bad::Damaged);
    }
    match r.u32()? {
        VERSION => Ok(r),
        version if version > VERSION => Err(Bad::Newer(version)),
        _ => Err(Bad::Damaged),
    }
}

/// The beginning of a segment file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub sequence: u64,
    /// Seconds since 1970.
    pub created: u64,
    pub fingerprint: Key,
    /// Of the master key under which its domains' keys are.
    pub key: Tag,
    /// What the fingerprint is of, for people.
    pub text: String,
}

/// Bytes of text in a segment's header.
const TEXT: usize = 256;

impl SegmentHeader {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FILE_HEADER);
        out.extend(SEGMENT_MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend((FILE_HEADER as u32).to_le_bytes());
        out.extend(self.sequence.to_le_bytes());
        out.extend(self.created.to_le_bytes());
        out.extend(self.fingerprint);
        out.extend(self.key);
        let mut end = self.text.len().min(TEXT);
        while !self.text.is_char_boundary(end) {
            end -= 1;
        }
        out.extend((end as u32).to_le_bytes());
        out.extend(&self.text.as_bytes()[..end]);
        close(out)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Bad> {
        let mut r = open(bytes, SEGMENT_MAGIC)?;
        if r.u32()? as usize != FILE_HEADER {
            return Err(Bad::Damaged);
        }
        let (sequence, created, fingerprint, key) = (r.u64()?, r.u64()?, r.array()?, r.array()?);
        let length = r.u32()? as usize;
        let text = String::from_utf8_lossy(r.take(length)?).into_owned();
        Ok(SegmentHeader { sequence, created, fingerprint, key, text })
    }
}

/// The beginning of the file of domain keys; the sealed table follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeysHeader {
    pub id: RecordId,
    /// Of the master key.
    pub key: Tag,
    /// Bytes of the sealed table, tag included.
    pub sealed: u32,
}

impl KeysHeader {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FILE_HEADER);
        out.extend(KEYS_MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend(self.sealed.to_le_bytes());
        out.extend(self.id);
        out.extend(self.key);
        close(out)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Bad> {
        let mut r = open(bytes, KEYS_MAGIC)?;
        let sealed = r.u32()?;
        Ok(KeysHeader { sealed, id: r.array()?, key: r.array()? })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Extent = 1,
    Note = 2,
}

/// The clear part of a record's header: where it is (which copying changes), and who it is (which it does not).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub kind: Kind,
    /// Chunks of the extent as it was saved; 0 for a note.
    pub chunks: u8,
    /// Which of them are here.
    pub present: u16,
    pub segment: u64,
    /// Of the record in its segment.
    pub offset: u64,
    /// Everything before this place in the segment was on the medium when the record was written.
    pub durable: u64,
    /// Bytes of the sealed part, tag included.
    pub meta: u32,
    /// Bytes of slices behind the header.
    pub data: u64,
    pub id: RecordId,
    /// The domain, for those who have the master key.
    pub domain: Tag,
}

impl RecordHeader {
    /// Bytes of header and sealed part; slices follow.
    pub fn head(&self) -> u64 {
        RECORD_HEADER as u64 + u64::from(self.meta)
    }

    /// Bytes up to the next record.
    pub fn total(&self) -> u64 {
        (self.head() + self.data).next_multiple_of(ALIGN)
    }

    /// What the sealed part is bound to: all that copying the record keeps.
    pub fn identity(&self) -> Vec<u8> {
        let mut out = vec![self.kind as u8, self.chunks];
        out.extend(VERSION.to_le_bytes());
        out.extend(self.id);
        out.extend(self.domain);
        out
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(RECORD_HEADER);
        out.extend(RECORD_MAGIC);
        out.extend(self.meta.to_le_bytes());
        out.extend([self.kind as u8, self.chunks]);
        out.extend(self.present.to_le_bytes());
        out.extend(self.segment.to_le_bytes());
        out.extend(self.offset.to_le_bytes());
        out.extend(self.durable.to_le_bytes());
        out.extend(self.data.to_le_bytes());
        out.extend(self.id);
        out.extend(self.domain);
        out.extend(0u64.to_le_bytes());
        let sum = checksum(&[&out]);
        out.extend(sum);
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Bad> {
        let bytes = bytes.get(..RECORD_HEADER).ok_or(Bad::Damaged)?;
        let (body, sum) = bytes.split_at(RECORD_HEADER - TAG);
        let mut r = Reader(body);
        if r.array()? != RECORD_MAGIC || checksum(&[body]) != sum {
            return Err(Bad::Damaged);
        }
        let meta = r.u32()?;
        let kind = match r.u8()? {
            1 => Kind::Extent,
            2 => Kind::Note,
            _ => return Err(Bad::Damaged),
        };
        let (chunks, present) = (r.u8()?, r.u16()?);
        let (segment, offset, durable, data) = (r.u64()?, r.u64()?, r.u64()?, r.u64()?);
        let header = RecordHeader {
            kind,
            chunks,
            present,
            segment,
            offset,
            durable,
            meta,
            data,
            id: r.array()?,
            domain: r.array()?,
        };
        let fits = (TAG..=META_MOST).contains(&(meta as usize)) && data <= 1 << 48 && offset.is_multiple_of(ALIGN);
        let counted = match kind {
            Kind::Extent => {
                (1..=EXTENT).contains(&usize::from(chunks)) && present != 0 && u32::from(present) >> chunks == 0
            }
            Kind::Note => chunks == 0 && present == 0 && data == 0,
        };
        if fits && counted { Ok(header) } else { Err(Bad::Damaged) }
    }
}

/// What an extent's sealed part says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExtentMeta {
    /// Chain key of the chunk before the first one.
    pub parent: Key,
    /// Seconds since 1970.
    pub created: u64,
    /// Index on its path of the first chunk.
    pub first: u32,
    /// Which of the domain's trees it is in: zeros for exact paths.
    pub variant: Tag,
    /// `[chunk][64]`.
    pub tokens: Vec<TokenId>,
}

impl ExtentMeta {
    /// Bytes of the sealed part, tag included.
    pub fn sealed(chunks: usize) -> usize {
        64 + chunks * CHUNK * 4 + TAG
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::sealed(self.tokens.len() / CHUNK));
        out.extend(self.parent);
        out.extend(self.created.to_le_bytes());
        out.extend(self.first.to_le_bytes());
        out.extend(((self.tokens.len() / CHUNK) as u32).to_le_bytes());
        out.extend(self.variant);
        self.tokens.iter().for_each(|t| out.extend(t.to_le_bytes()));
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Bad> {
        let mut r = Reader(bytes);
        let (parent, created, first, chunks) = (r.array()?, r.u64()?, r.u32()?, r.u32()? as usize);
        let variant = r.array()?;
        if !(1..=EXTENT).contains(&chunks) || r.0.len() != chunks * CHUNK * 4 {
            return Err(Bad::Damaged);
        }
        let tokens = r.0.as_chunks::<4>().0.iter().map(|b| TokenId::from_le_bytes(*b)).collect();
        Ok(ExtentMeta { parent, created, first, variant, tokens })
    }
}

/// What a note's sealed part says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NoteMeta {
    pub kind: u8,
    /// Counts up with every note written: the highest of a key is what it says now.
    pub number: u64,
    pub key: Vec<u8>,
    /// `None`: there is no such note any more.
    pub value: Option<Vec<u8>>,
}

impl NoteMeta {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![self.kind, u8::from(self.value.is_some())];
        out.extend(self.number.to_le_bytes());
        out.extend((self.key.len() as u32).to_le_bytes());
        out.extend(&self.key);
        out.extend(self.value.as_deref().unwrap_or_default());
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Bad> {
        let mut r = Reader(bytes);
        let (kind, there, number, length) = (r.u8()?, r.u8()?, r.u64()?, r.u32()? as usize);
        let key = r.take(length)?.to_vec();
        Ok(NoteMeta { kind, number, key, value: (there == 1).then(|| r.0.to_vec()) })
    }
}

/// The end of a full segment: where the copies of its records' headers are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trailer {
    pub sequence: u64,
    pub footer: u64,
    pub length: u64,
    pub records: u32,
}

impl Trailer {
    /// With the checksum of the footer in it.
    pub fn encode(&self, footer: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(TRAILER);
        out.extend(TRAILER_MAGIC);
        out.extend(self.sequence.to_le_bytes());
        out.extend(self.footer.to_le_bytes());
        out.extend(self.length.to_le_bytes());
        out.extend(self.records.to_le_bytes());
        out.resize(TRAILER - TAG, 0);
        let sum = checksum(&[footer, &out]);
        out.extend(sum);
        out
    }

    /// Of a file of `len` bytes that ends with `bytes`.
    pub fn decode(bytes: &[u8; TRAILER], len: u64) -> Result<Self, Bad> {
        let mut r = Reader(bytes);
        if r.array()? != TRAILER_MAGIC {
            return Err(Bad::Damaged);
        }
        let (sequence, footer, length, records) = (r.u64()?, r.u64()?, r.u64()?, r.u32()?);
        let end = footer.checked_add(length).and_then(|end| end.checked_add(TRAILER as u64));
        if end != Some(len) || footer < FILE_HEADER as u64 || length > 1 << 30 {
            return Err(Bad::Damaged);
        }
        Ok(Trailer { sequence, footer, length, records })
    }

    /// Whether the footer is the one that the trailer was written for.
    pub fn holds(bytes: &[u8; TRAILER], footer: &[u8]) -> bool {
        let (body, sum) = bytes.split_at(TRAILER - TAG);
        checksum(&[footer, body]) == sum
    }
}

/// Name of a segment's file.
pub(crate) fn segment_name(sequence: u64) -> String {
    format!("segment-{sequence:016x}.kvist")
}

/// The sequence number in a segment's name.
pub(crate) fn segment_sequence(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("segment-")?.strip_suffix(".kvist")?;
    (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok())?
}
