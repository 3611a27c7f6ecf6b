//! Hostile files: what recovery makes of a segment that is not what was written, and what the decoders make of records.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};

use super::Report;
use super::world::{DIR, Durable, World};
use crate::crypto::{Mode, Part, Sealer, TAG, checksum};
use crate::format::{
    ALIGN, ExtentMeta, FILE_HEADER, KeysHeader, NoteMeta, RECORD_HEADER, RecordHeader, SegmentHeader, TRAILER, Trailer,
    segment_sequence,
};
use crate::keys::{KeyTable, Master};
use crate::state::{Canary, lock};
use crate::vfs::{Loss, SimVfs, Vfs};

/// In the first byte of an input: checksums and unkeyed seals are made to fit, so that what is behind them is reached.
const REPAIR: u8 = 1;
/// And: of which of the two worlds the rest is a segment.
const PLAIN: u8 = 2;

/// A world, and the files that it left.
struct Left {
    /// It knows what was saved.
    world: Mutex<World>,
    files: Vec<(PathBuf, Vec<u8>)>,
    secrets: SimVfs,
    segments: Vec<Vec<u8>>,
}

/// Worlds with and without encryption.
static LEFT: LazyLock<[Left; 2]> = LazyLock::new(|| [Mode::Aead, Mode::Plain].map(leave));

fn world(seed: u64) -> World {
    let mut world = World::new(seed, Canary::None);
    world.open().expect("a simulated disk does not fail unless told to");
    for _ in 0..40 {
        world.step().expect("nothing goes wrong");
    }
    world.flush();
    world
}

fn leave(mode: Mode) -> Left {
    let wanted = |seed: &u64| World::new(*seed, Canary::None).mode() == mode;
    let seed = (0..).find(wanted).expect("both modes are drawn");
    let mut world = world(seed);
    let segment = |(path, bytes): (PathBuf, Vec<u8>)| name(&path).and_then(segment_sequence).map(|_| bytes);
    // Some segments end without a footer: those of a process that was killed.
    let killed = world.vfs.crash(world.vfs.changes(), Loss::Nothing, 0).files();
    world.store = None;
    let closed = world.vfs.files();
    let segments = killed.into_iter().chain(closed.clone()).filter_map(segment).collect();
    let secrets = world.vfs.clone();
    Left { world: Mutex::new(world), files: closed.into_iter().collect(), secrets, segments }
}

fn name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

/// Sound inputs of [`open_segment`].
pub fn segments() -> Vec<Vec<u8>> {
    let mut corpus = Vec::new();
    for (left, plain) in LEFT.iter().zip([0, PLAIN]) {
        for segment in &left.segments {
            for repair in [0, REPAIR] {
                corpus.push([&[plain | repair], &segment[..]].concat());
            }
        }
    }
    corpus
}

/// Opens a store one of whose segments is the input, and takes out everything that it offers.
///
/// # Panics
/// If anything is served that was not saved under the same tokens.
pub fn open_segment(input: &[u8]) -> Result<(), String> {
    let (&flags, file) = input.split_first().ok_or("no flags")?;
    let left = &LEFT[usize::from(flags & PLAIN != 0)];
    let mut file = file.to_vec();
    if flags & REPAIR != 0 {
        repair(left, flags & PLAIN != 0, &mut file);
    }
    let sequence = match SegmentHeader::decode(&file) {
        Ok(header) => header.sequence,
        Err(e) => return Err(format!("{e:?} header of a segment")),
    };
    let keys = left.files.iter().filter(|(path, _)| name(path).is_some_and(|n| n.starts_with("keys-"))).cloned();
    let segment = (Path::new(DIR).join(crate::format::segment_name(sequence)), file);
    let vfs = SimVfs::with_files(7, keys.chain([segment]));
    vfs.adopt_secrets(&left.secrets);
    let mut world = lock(&left.world);
    world.report = Report::default();
    let store = world.check_after(vfs, &Durable::default(), false).unwrap_or_else(|e| panic!("{e}"));
    let (found, restored) = (store.entries().len(), world.report.served);
    let stats = store.stats();
    match (stats.entries, stats.corrupt + stats.read_errors) {
        _ if stats.foreign > 0 => Err("another fingerprint or key".into()),
        (0, 0) if stats.notes == 0 && world.restored.dropped > 0 => Err("every record is left out".into()),
        (0, 0) if stats.notes == 0 => Err("there is no record".into()),
        (0, 1..) => Err("no chunk verifies as a whole".into()),
        (_, 1..) => Err("some slices do not verify".into()),
        _ if world.restored.dropped > 0 => Err("some records are left out".into()),
        _ if found > 0 && restored == 0 => Err("paths that nobody saved".into()),
        _ => Ok(()),
    }
}

/// Makes checksums fit, and seals where everybody knows the key.
fn repair(left: &Left, plain: bool, file: &mut [u8]) {
    resum(file, 0, FILE_HEADER);
    let table = if plain { KeyTable::load(&left.secrets, Path::new(DIR), &Master::plain()).ok() } else { None };
    let keys: Vec<_> = table.and_then(Result::ok).map(|(t, _)| t.domains.into_values().collect()).unwrap_or_default();
    let master = Master::plain();
    for at in (FILE_HEADER..file.len()).step_by(ALIGN as usize) {
        if !file[at..].starts_with(b"KVISTREC") || file.len() - at < RECORD_HEADER {
            continue;
        }
        resum(file, at, RECORD_HEADER);
        let Ok(header) = RecordHeader::decode(&file[at..]) else { continue };
        let (from, to) = (at + RECORD_HEADER, at + header.head() as usize);
        let Some(sealed) = file.get_mut(from..to) else { continue };
        let uid = master.hide(&header.domain, &header.id);
        if let Some(keys) = keys.iter().find(|k| k.uid == uid) {
            let (meta, tag) = sealed.split_at_mut(header.meta as usize - TAG);
            let sealer = Sealer::new(Mode::Plain, &keys.key, &header.id);
            tag.copy_from_slice(&sealer.seal(Part::Meta, &header.identity(), meta));
        }
    }
    let Some(end) = file.last_chunk::<TRAILER>().copied() else { return };
    if let Ok(trailer) = Trailer::decode(&end, file.len() as u64) {
        let footer = trailer.footer as usize..(trailer.footer + trailer.length) as usize;
        let sum = checksum(&[&file[footer], &end[..TRAILER - TAG]]);
        let len = file.len();
        file[len - TAG..].copy_from_slice(&sum);
    }
}

/// The last 16 bytes of a header become the checksum of the others.
fn resum(file: &mut [u8], at: usize, length: usize) {
    if let Some(header) = file.get_mut(at..at + length) {
        let (body, sum) = header.split_at_mut(length - TAG);
        sum.copy_from_slice(&checksum(&[body]));
    }
}

/// Sound inputs of [`decode_record`]: a kind, and what is encoded so.
pub fn records() -> Vec<Vec<u8>> {
    let mut corpus = Vec::new();
    let note = NoteMeta { kind: 1, number: 5, key: b"key".to_vec(), value: Some(b"value".to_vec()) };
    corpus.push([&[0], &note.encode()[..]].concat());
    let extent = ExtentMeta { parent: [1; 32], created: 2, first: 3, variant: [4; TAG], tokens: (0..128).collect() };
    corpus.push([&[1], &extent.encode()[..]].concat());
    for (left, plain) in LEFT.iter().zip([false, true]) {
        let segment = &left.segments[0];
        corpus.push([&[2], &segment[..FILE_HEADER]].concat());
        corpus.push([&[3], &segment[FILE_HEADER..FILE_HEADER + RECORD_HEADER]].concat());
        for (path, bytes) in &left.files {
            let keys = name(path).is_some_and(|n| n.starts_with("keys-"));
            if keys && plain {
                corpus.push([&[4], &bytes[..]].concat());
            } else if !keys {
                corpus.push([&[5], &bytes[bytes.len() - TRAILER..]].concat());
            }
        }
    }
    corpus
}

/// Decodes, and holds what was decoded to being encoded the same way again.
///
/// # Panics
/// If it is not.
pub fn decode_record(input: &[u8]) -> Result<(), String> {
    let (&kind, bytes) = input.split_first().ok_or("no kind")?;
    let mut bytes = bytes.to_vec();
    let bad = |what: &'static str| move |e: crate::format::Bad| format!("{what} {e:?}");
    match kind % 6 {
        0 => drop(NoteMeta::decode(&bytes).map_err(bad("note"))?),
        1 => {
            let meta = ExtentMeta::decode(&bytes).map_err(bad("extent"))?;
            assert_eq!(meta.encode(), bytes);
        }
        2 => {
            resum(&mut bytes, 0, FILE_HEADER);
            drop(SegmentHeader::decode(&bytes).map_err(bad("segment"))?);
        }
        3 => {
            resum(&mut bytes, 0, RECORD_HEADER);
            let header = RecordHeader::decode(&bytes).map_err(bad("record"))?;
            let again = header.encode();
            // Eight bytes are kept for later.
            assert_eq!(again[..88], bytes[..88]);
        }
        4 => {
            resum(&mut bytes, 0, FILE_HEADER);
            let sealed = bytes.len().checked_sub(FILE_HEADER).filter(|n| *n >= TAG).ok_or("short keys")?;
            let header = KeysHeader::decode(&bytes).map_err(bad("keys"))?;
            let master = Master::plain();
            let path = Path::new(DIR);
            let (head, body) = bytes.split_at_mut(FILE_HEADER);
            let (body, tag) = body.split_at_mut(sealed - TAG);
            tag.copy_from_slice(&master.sealer(&header.id).seal(Part::Meta, head, body));
            let table = SimVfs::with_files(1, [(KeyTable::path_of(path, &master), bytes)]);
            let vfs: Arc<dyn Vfs> = Arc::new(table);
            let loaded = KeyTable::load(&*vfs, path, &master).map_err(|e| e.to_string())?.map_err(bad("keys"))?;
            if loaded.1 {
                return Err("a damaged table of keys".into());
            }
        }
        _ => {
            let end = bytes.last_chunk::<TRAILER>().ok_or("short trailer")?;
            Trailer::decode(end, bytes.len() as u64).map_err(bad("trailer"))?;
        }
    }
    Ok(())
}
