//! Who may read what: a master key from a file of its own, and under it a table with a random key for each domain. A
//! domain that leaves the table takes everything sealed under its key with it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::crypto::{Key, Mode, Part, RecordId, Sealer, TAG, Tag, derive, first, keyed};
use crate::format::{Bad, FILE_HEADER, KeysHeader, Reader};
use crate::vfs::{Vfs, read_small, write_all};

/// Bytes of the key table at most.
const TABLE_MOST: u64 = 16 << 20;

/// What the master key gives.
pub(crate) struct Master {
    pub mode: Mode,
    key: Key,
    /// Tells master keys apart without telling them.
    pub id: Tag,
    hide: Key,
}

impl Master {
    pub fn new(mode: Mode, secret: &Key) -> Self {
        let id = first(&derive("kvist store 1 key id", secret));
        Master { mode, key: derive("kvist store 1 keys", secret), id, hide: derive("kvist store 1 domains", secret) }
    }

    /// The key that everybody knows.
    pub fn plain() -> Self {
        Self::new(Mode::Plain, &[0; 32])
    }

    /// Reads the key file; makes it if `create`.
    pub fn load(vfs: &dyn Vfs, path: &Path, create: bool) -> io::Result<Self> {
        let mut secret = [0; 32];
        vfs.random(&mut secret)?;
        let text = format!("{PREFIX}{}\n", hex(&secret));
        let bytes = vfs.secret(path, create.then_some(text.as_bytes()))?;
        let key = parse(&bytes).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("not a key file: {PREFIX:?} and 64 hex digits are wanted"),
            )
        })?;
        Ok(Self::new(Mode::Aead, &key))
    }

    /// Seals the table of keys.
    pub fn sealer(&self, id: &RecordId) -> Sealer {
        Sealer::new(self.mode, &self.key, id)
    }

    /// The domain as it stands in the clear: different in every record.
    pub fn hide(&self, uid: &Tag, id: &RecordId) -> Tag {
        let pad = first(&keyed(&self.hide, &[id]));
        std::array::from_fn(|i| uid[i] ^ pad[i])
    }
}

const PREFIX: &str = "kvist-store-key-1 ";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn parse(bytes: &[u8]) -> Option<Key> {
    let digits = bytes.strip_prefix(PREFIX.as_bytes())?.trim_ascii_end();
    let digits = std::str::from_utf8(digits).ok().filter(|d| d.len() == 64 && d.is_ascii())?;
    let mut key = [0; 32];
    for (i, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(key)
}

/// A domain's keys.
#[derive(Clone)]
pub(crate) struct DomainKeys {
    pub uid: Tag,
    pub key: Key,
    /// For chain keys: what a path is called in records.
    pub chain: Key,
}

impl DomainKeys {
    fn new(uid: Tag, key: Key) -> Self {
        DomainKeys { uid, chain: derive("kvist store 1 chain", &key), key }
    }
}

/// Bytes of a domain in the table: uid, key, length of the name, name.
fn entry(name: &str) -> u64 {
    (TAG + 32 + 2 + name.len()) as u64
}

/// The domains' keys by the domains' names.
pub(crate) struct KeyTable {
    path: PathBuf,
    pub domains: BTreeMap<String, DomainKeys>,
    /// What the domains take in the file.
    bytes: u64,
    /// Changed since it was written.
    pub dirty: bool,
}

impl KeyTable {
    /// Reads the table of this master key. Where there is none it is empty; where it is damaged it is empty, too, and the
    /// second result says so: what was sealed under it is lost.
    pub fn load(vfs: &dyn Vfs, dir: &Path, master: &Master) -> io::Result<Result<(Self, bool), Bad>> {
        let mut table = KeyTable { path: Self::path_of(dir, master), domains: BTreeMap::new(), bytes: 0, dirty: false };
        let bytes = match vfs.open(&table.path) {
            Ok(file) => read_small(&*file, TABLE_MOST)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Ok((table, false))),
            Err(e) => return Err(e),
        };
        Ok(match table.decode(master, &bytes) {
            Ok(()) => {
                // Whether the name of what was read is on the medium, only the process knew that wrote it.
                table.dirty = true;
                Ok((table, false))
            }
            Err(Bad::Damaged) => {
                (table.domains, table.bytes) = (BTreeMap::new(), 0);
                Ok((table, true))
            }
            Err(newer) => Err(newer),
        })
    }

    /// Each master key has a table of its own.
    pub fn path_of(dir: &Path, master: &Master) -> PathBuf {
        dir.join(format!("keys-{}", hex(&master.id[..8])))
    }

    fn decode(&mut self, master: &Master, bytes: &[u8]) -> Result<(), Bad> {
        let header = KeysHeader::decode(bytes)?;
        let mut body = bytes[FILE_HEADER..].to_vec();
        if body.len() != header.sealed as usize || body.len() < TAG || header.key != master.id {
            return Err(Bad::Damaged);
        }
        let tag = body.split_off(body.len() - TAG);
        let tag = Reader(&tag).array()?;
        if !master.sealer(&header.id).open(Part::Meta, &bytes[..FILE_HEADER], &mut body, &tag) {
            return Err(Bad::Damaged);
        }
        let mut r = Reader(&body);
        for _ in 0..r.u32()? {
            let (uid, key, length) = (r.array()?, r.array()?, r.u16()?);
            let name = std::str::from_utf8(r.take(length.into())?).map_err(|_| Bad::Damaged)?;
            self.insert(name, DomainKeys::new(uid, key));
        }
        Ok(())
    }

    /// Makes keys for a domain that has none.
    ///
    /// # Errors
    /// If the table holds as many as can be read back.
    pub fn make(&mut self, vfs: &dyn Vfs, name: &str) -> io::Result<DomainKeys> {
        if (FILE_HEADER + 4 + TAG) as u64 + self.bytes + entry(name) > TABLE_MOST {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the table of keys is full"));
        }
        let (mut uid, mut key) = ([0; TAG], [0; 32]);
        vfs.random(&mut uid)?;
        vfs.random(&mut key)?;
        let keys = DomainKeys::new(uid, key);
        self.insert(name, keys.clone());
        self.dirty = true;
        Ok(keys)
    }

    fn insert(&mut self, name: &str, keys: DomainKeys) {
        if self.domains.insert(name.into(), keys).is_none() {
            self.bytes += entry(name);
        }
    }

    /// Takes a domain's keys out; whether there were any.
    pub fn remove(&mut self, name: &str) -> bool {
        let known = self.domains.remove(name).is_some();
        self.bytes -= if known { entry(name) } else { 0 };
        self.dirty |= known;
        known
    }

    /// The table as a file.
    pub fn encode(&self, vfs: &dyn Vfs, master: &Master) -> io::Result<Vec<u8>> {
        let mut body = (self.domains.len() as u32).to_le_bytes().to_vec();
        for (name, keys) in &self.domains {
            body.extend(keys.uid);
            body.extend(keys.key);
            body.extend((name.len() as u16).to_le_bytes());
            body.extend(name.as_bytes());
        }
        let mut id = [0; 24];
        vfs.random(&mut id)?;
        let mut out = KeysHeader { id, key: master.id, sealed: (body.len() + TAG) as u32 }.encode();
        let tag = master.sealer(&id).seal(Part::Meta, &out, &mut body);
        out.extend(body);
        out.extend(tag);
        Ok(out)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts `bytes` in the place of the table, durably, or leaves it as it is.
    pub fn write(vfs: &dyn Vfs, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let new = path.with_extension("new");
        match vfs.remove(&new) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let file = vfs.create(&new)?;
        write_all(&*file, bytes, 0)?;
        file.sync_data()?;
        vfs.rename(&new, path)?;
        vfs.sync_dir(path.parent().ok_or(io::ErrorKind::InvalidInput)?)
    }
}
