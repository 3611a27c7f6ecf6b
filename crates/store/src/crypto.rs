//! Keys and seals. Every record has a key of its own, derived from its domain's key and a random id of 192 bits, so that
//! nonces need not be remembered across crashes: they count the parts of a record.
//!
//! Where encryption is off the same code seals with keys that everybody knows, by keyed BLAKE3 instead of AES-256-GCM:
//! the tags are then checksums of 128 bits.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

pub(crate) type Key = [u8; 32];
pub(crate) type RecordId = [u8; 24];
pub(crate) type Tag = [u8; TAG];

const NONCE: usize = 12;
/// Bytes of a seal.
pub(crate) const TAG: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Aead,
    Plain,
}

/// A part of a record that is sealed by itself.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Part {
    Meta,
    Slice { layer: u32, chunk: u32 },
}

impl Part {
    fn nonce(self) -> [u8; NONCE] {
        let (kind, layer, chunk) = match self {
            Part::Meta => (0u32, 0, 0),
            Part::Slice { layer, chunk } => (1, layer, chunk),
        };
        let mut nonce = [0; NONCE];
        nonce[..4].copy_from_slice(&kind.to_le_bytes());
        nonce[4..8].copy_from_slice(&layer.to_le_bytes());
        nonce[8..].copy_from_slice(&chunk.to_le_bytes());
        nonce
    }
}

/// A key for one purpose out of another.
pub(crate) fn derive(purpose: &str, from: &[u8]) -> Key {
    blake3::derive_key(purpose, from)
}

/// The first 16 bytes of BLAKE3: what tells damage, not malice.
pub(crate) fn checksum(parts: &[&[u8]]) -> Tag {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    first(hasher.finalize().as_bytes())
}

/// The first 16 bytes of keyed BLAKE3.
pub(crate) fn keyed(key: &Key, parts: &[&[u8]]) -> Key {
    let mut hasher = blake3::Hasher::new_keyed(key);
    for part in parts {
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

pub(crate) fn first(key: &Key) -> Tag {
    let mut out = [0; TAG];
    out.copy_from_slice(&key[..TAG]);
    out
}

/// Seals and opens the parts of one record.
pub(crate) enum Sealer {
    Aead(Box<LessSafeKey>),
    Plain(Key),
}

impl Sealer {
    pub fn new(mode: Mode, key: &Key, id: &RecordId) -> Self {
        let key = keyed(key, &[b"record", id]);
        match mode {
            Mode::Aead => {
                let key = UnboundKey::new(&AES_256_GCM, &key).expect("a key of 256 bits");
                Sealer::Aead(Box::new(LessSafeKey::new(key)))
            }
            Mode::Plain => Sealer::Plain(key),
        }
    }

    /// Encrypts in place; nothing may be sealed twice as the same part.
    pub fn seal(&self, part: Part, identity: &[u8], bytes: &mut [u8]) -> Tag {
        match self {
            Sealer::Aead(key) => {
                let nonce = Nonce::assume_unique_for_key(part.nonce());
                let sealed = key.seal_in_place_separate_tag(nonce, Aad::from(identity), bytes);
                let mut tag = [0; TAG];
                tag.copy_from_slice(sealed.expect("parts are far shorter than 64 GiB").as_ref());
                tag
            }
            Sealer::Plain(key) => plain_tag(key, part, identity, bytes),
        }
    }

    /// Decrypts in place if the tag is the one of these bytes under this identity; otherwise the bytes may be anything.
    #[must_use]
    pub fn open(&self, part: Part, identity: &[u8], bytes: &mut [u8], tag: &Tag) -> bool {
        match self {
            Sealer::Aead(key) => {
                let nonce = Nonce::assume_unique_for_key(part.nonce());
                key.open_in_place_separate_tag(nonce, Aad::from(identity), (*tag).into(), bytes, 0..).is_ok()
            }
            Sealer::Plain(key) => plain_tag(key, part, identity, bytes) == *tag,
        }
    }
}

fn plain_tag(key: &Key, part: Part, identity: &[u8], bytes: &[u8]) -> Tag {
    let length = (identity.len() as u64).to_le_bytes();
    first(&keyed(key, &[&part.nonce(), &length, identity, bytes]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_holds_for_its_part_and_identity_alone() {
        for mode in [Mode::Aead, Mode::Plain] {
            let sealer = Sealer::new(mode, &[1; 32], &[2; 24]);
            let part = Part::Slice { layer: 3, chunk: 4 };
            let mut bytes = *b"sixteen or more bytes";
            let tag = sealer.seal(part, b"who", &mut bytes);
            assert_eq!(&bytes == b"sixteen or more bytes", mode == Mode::Plain);
            for (sealer, part, who) in [
                (&Sealer::new(mode, &[1; 32], &[3; 24]), part, &b"who"[..]),
                (&Sealer::new(mode, &[2; 32], &[2; 24]), part, b"who"),
                (&sealer, Part::Slice { layer: 4, chunk: 3 }, b"who"),
                (&sealer, Part::Meta, b"who"),
                (&sealer, part, b"whom"),
            ] {
                assert!(!sealer.open(part, who, &mut bytes.clone(), &tag));
            }
            let mut other = bytes;
            other[20] ^= 1;
            assert!(!sealer.open(part, b"who", &mut other, &tag));
            assert!(sealer.open(part, b"who", &mut bytes, &tag));
            assert_eq!(&bytes, b"sixteen or more bytes");
        }
    }
}
