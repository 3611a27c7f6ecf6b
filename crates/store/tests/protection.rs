//! What the store's files tell, whom they let in, and what they refuse.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kvist_base::{CHUNK, DomainId, TokenId};
use kvist_store::{Encryption, Fingerprint, OpenError, Priority, RealVfs, Restored, Store, StoreConfig};

const TENANT: DomainId = DomainId(1);
const SLICES: [usize; 3] = [600, 200, 600];

struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("kvist-protection-{}-{n}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory");
        Dir(dir)
    }

    fn config(&self) -> StoreConfig {
        let fingerprint = Fingerprint { digest: [7; 32], text: "a model".into() };
        let keys = Encryption::Keys(self.0.join("key"));
        let mut config = StoreConfig::new(self.0.join("store"), 16 << 20, fingerprint, SLICES.to_vec(), keys);
        config.segment = Some(256 << 10);
        config
    }

    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let names = fs::read_dir(self.0.join("store")).into_iter().flatten().flatten();
        names.map(|f| (f.path(), fs::read(f.path()).expect("a file"))).collect()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn open(config: StoreConfig) -> Result<(Store, Restored), OpenError> {
    let opened = Store::open(Arc::new(RealVfs::new()), config)?;
    opened.0.register(TENANT, "the tenant's name")?;
    Ok(opened)
}

fn tokens(chunks: usize) -> Vec<TokenId> {
    (0..(chunks * CHUNK) as u32).map(|i| 40_000 + i * 13 % 9_973).collect()
}

fn chunk(n: usize) -> Vec<u8> {
    (0..SLICES.iter().sum()).map(|i: usize| (i * 31 + n * 7 + i / 251) as u8).collect()
}

fn fill(store: &Store, chunks: usize) {
    store.save(TENANT, &tokens(chunks), 0, (0..chunks).map(chunk).collect());
    store.put_note(TENANT, 1, b"a key of a note", b"a value of a note");
    assert!(store.flush(Duration::from_secs(20)));
}

fn contains(files: &BTreeMap<PathBuf, Vec<u8>>, needle: &[u8]) -> bool {
    files.values().any(|bytes| bytes.windows(needle.len()).any(|w| w == needle))
}

#[test]
fn the_files_hold_no_prompt_and_no_kv_in_the_clear() {
    for (encryption, hidden) in [(None, true), (Some(Encryption::Off), false)] {
        let dir = Dir::new();
        let mut config = dir.config();
        config.encryption = encryption.unwrap_or(config.encryption);
        let (store, _) = open(config).unwrap();
        fill(&store, 20);
        let unsealed = dir.files();
        drop(store);
        for files in [unsealed, dir.files()] {
            assert!(contains(&files, b"a model"), "the search finds what is there");
            for n in 0..20 {
                // Three tokens in a row, or sixteen bytes of a slice, are no accident.
                let ids: Vec<u8> = tokens(20)[n * CHUNK + 5..][..3].iter().flat_map(|t| t.to_le_bytes()).collect();
                assert_eq!(!contains(&files, &ids), hidden, "tokens of chunk {n}");
                assert_eq!(!contains(&files, &chunk(n)[100..116]), hidden, "bytes of chunk {n}");
            }
            for text in [&b"a key of a note"[..], b"a value of a note", b"the tenant's name"] {
                assert_eq!(!contains(&files, text), hidden, "{}", String::from_utf8_lossy(text));
            }
        }
    }
}

#[test]
fn a_destroyed_key_takes_everything_with_it() {
    let dir = Dir::new();
    let (store, _) = open(dir.config()).unwrap();
    fill(&store, 9);
    let before = dir.files();
    assert!(store.forget("the tenant's name").unwrap());
    drop(store);
    // The segments are as they were; the table of keys is not, and without the old one they are noise.
    for (path, bytes) in &before {
        if path.to_string_lossy().contains("segment") {
            fs::write(path, bytes).unwrap();
        }
    }
    let (store, restored) = open(dir.config()).unwrap();
    assert_eq!((restored.entries, restored.notes, restored.dropped), (0, 0, 2));
    assert_eq!(store.probe(TENANT, &tokens(9), 0), 0);
}

#[test]
fn only_the_owner_gets_in_and_links_are_not_followed() {
    let dir = Dir::new();
    let (store, _) = open(dir.config()).unwrap();
    fill(&store, 3);
    assert_eq!(fs::metadata(dir.0.join("store")).unwrap().mode() & 0o777, 0o700);
    for file in dir.files().into_keys().chain([dir.0.join("key")]) {
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600, "{}", file.display());
    }
    drop(store);
    fs::set_permissions(dir.0.join("key"), fs::Permissions::from_mode(0o644)).unwrap();
    match open(dir.config()).err() {
        Some(e @ OpenError::Key { .. }) => assert!(e.to_string().contains("chmod 600"), "{e}"),
        other => panic!("{other:?}"),
    }
    fs::set_permissions(dir.0.join("key"), fs::Permissions::from_mode(0o600)).unwrap();
    // A segment that is a link to the real one is none.
    let segment = dir.files().into_keys().find(|p| p.to_string_lossy().contains("segment")).unwrap();
    fs::rename(&segment, dir.0.join("elsewhere")).unwrap();
    symlink(dir.0.join("elsewhere"), &segment).unwrap();
    assert_eq!(open(dir.config()).unwrap().1.entries, 0);
    let lock = dir.0.join("store/lock");
    fs::remove_file(&lock).unwrap();
    fs::write(dir.0.join("victim"), "precious").unwrap();
    symlink(dir.0.join("victim"), &lock).unwrap();
    assert!(matches!(open(dir.config()).err(), Some(OpenError::Io(_))));
    assert_eq!(fs::read(dir.0.join("victim")).unwrap(), b"precious");
}

#[test]
fn another_fingerprint_key_or_layout_is_a_miss_and_leaves_the_rest_alone() {
    let dir = Dir::new();
    let (store, _) = open(dir.config()).unwrap();
    fill(&store, 9);
    drop(store);
    let change: [fn(&mut StoreConfig); 4] = [
        |c| c.fingerprint.digest[31] ^= 1,
        |c| c.slices = vec![200, 600, 600],
        |c| c.encryption = Encryption::Off,
        |c| c.encryption = Encryption::Keys(c.dir.join("../another-key")),
    ];
    for change in change {
        let mut other = dir.config();
        change(&mut other);
        let (store, restored) = open(other).unwrap();
        assert!(restored.entries == 0 && restored.foreign > 0, "{restored:?}");
        assert_eq!(store.probe(TENANT, &tokens(9), 0), 0);
        assert_eq!(store.notes(TENANT, 1), []);
        store.save(TENANT, &tokens(1), 0, vec![chunk(0)]);
        assert!(store.flush(Duration::from_secs(20)));
    }
    let (store, restored) = open(dir.config()).unwrap();
    assert_eq!(restored.entries, 9);
    // What is of no use to this process goes first when room is needed.
    assert!(store.gc().unwrap() > 0);
    assert_eq!((store.stats().foreign, store.stats().entries), (0, 9));
}

#[test]
fn a_later_format_is_refused_and_nothing_is_touched() {
    for name in ["segment", "keys-"] {
        let dir = Dir::new();
        let (store, _) = open(dir.config()).unwrap();
        fill(&store, 9);
        drop(store);
        let path = dir.files().into_keys().find(|p| p.to_string_lossy().contains(name)).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        bytes[8..12].copy_from_slice(&2u32.to_le_bytes());
        // A version that the checksum does not vouch for is damage, not a version.
        fs::write(&path, &bytes).unwrap();
        let (store, restored) = open(dir.config()).unwrap();
        assert!(restored.entries == 0 && (restored.keys_lost || restored.foreign > 0), "{restored:?}");
        drop(store);
        let sum = blake3::hash(&bytes[..496]);
        bytes[496..512].copy_from_slice(&sum.as_bytes()[..16]);
        fs::write(&path, &bytes).unwrap();
        let stamp = |dir: &Dir| -> Vec<_> {
            let files = dir.files();
            files.into_iter().map(|(p, b)| (fs::metadata(&p).unwrap().mtime_nsec(), p, b)).collect()
        };
        let before = stamp(&dir);
        for opened in [open(dir.config()), Store::read_only(Arc::new(RealVfs::new()), dir.config())] {
            match opened.err() {
                Some(OpenError::Newer { version: 2, .. }) => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(stamp(&dir), before);
    }
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1")
}

/// Writes the files that later versions must read; run with `KVIST_WRITE_FIXTURE=1` once for each version of the format.
fn write_fixture() {
    let dir = Dir::new();
    for (encryption, name) in [(Encryption::Keys(dir.0.join("key")), "sealed"), (Encryption::Off, "plain")] {
        let mut config = dir.config();
        config.dir = dir.0.join("store");
        config.encryption = encryption;
        config.segment = Some(32 << 10);
        let (store, _) = open(config.clone()).unwrap();
        fill(&store, 5);
        drop(store);
        // And a segment without a footer.
        let (store, _) = open(config).unwrap();
        store.save(TENANT, &tokens(8), 5, (5..8).map(chunk).collect());
        assert!(store.flush(Duration::from_secs(20)));
        let to = fixture().join(name);
        fs::create_dir_all(&to).unwrap();
        for (path, bytes) in dir.files().into_iter().filter(|(path, _)| !path.ends_with("lock")) {
            fs::write(to.join(path.file_name().unwrap()), bytes).unwrap();
        }
        drop(store);
        fs::remove_dir_all(dir.0.join("store")).unwrap();
    }
    fs::copy(dir.0.join("key"), fixture().join("key")).unwrap();
}

#[test]
fn stores_of_the_released_format_are_read() {
    if std::env::var_os("KVIST_WRITE_FIXTURE").is_some() {
        write_fixture();
    }
    let dir = Dir::new();
    fs::copy(fixture().join("key"), dir.0.join("key")).unwrap();
    fs::set_permissions(dir.0.join("key"), fs::Permissions::from_mode(0o600)).unwrap();
    for (encryption, name) in [(Encryption::Keys(dir.0.join("key")), "sealed"), (Encryption::Off, "plain")] {
        let mut config = dir.config();
        config.dir = dir.0.join(name);
        config.encryption = encryption;
        fs::create_dir(&config.dir).unwrap();
        for file in fs::read_dir(fixture().join(name)).unwrap().flatten() {
            fs::copy(file.path(), config.dir.join(file.file_name())).unwrap();
        }
        let (store, restored) = open(config).unwrap();
        assert_eq!(
            (restored.entries, restored.notes, restored.scanned, restored.dropped),
            (8, 1, 1, 0),
            "{restored:?}"
        );
        assert_eq!(store.notes(TENANT, 1), [(b"a key of a note".to_vec(), b"a value of a note".to_vec())]);
        let load = store.load(TENANT, &tokens(8), 0..8, Priority::Urgent);
        for layer in 0..SLICES.len() {
            let from: usize = SLICES[..layer].iter().sum();
            let mut to = vec![0; SLICES[layer]];
            for i in 0..8 {
                load.wait(layer, i, &mut to).unwrap();
                assert_eq!(to, chunk(i)[from..from + to.len()]);
            }
        }
    }
}

/// Files are read on machines of the other kind, too.
#[test]
fn numbers_are_little_endian_everywhere() {
    fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).expect("a directory").flatten() {
            match entry.path() {
                path if path.is_dir() => sources(&path, out),
                path => out.push(path),
            }
        }
    }
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    assert!(files.len() > 20);
    for file in files {
        let text = fs::read_to_string(&file).expect("a source");
        for word in ["_ne_bytes", "_be_bytes", "bytemuck", "transmute", "usize::to_le_bytes", "usize::from_le_bytes"] {
            assert!(!text.contains(word), "{} has {word}", file.display());
        }
    }
}
