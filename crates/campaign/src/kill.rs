//! Processes that save to a store, killed at any moment; and file systems under them that lose their power.

use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use kvist_sim::Random;
use kvist_store::campaign::{Report, inspect};

/// Ends of a process on one directory.
const ROUNDS: u64 = 5;
/// Bytes of a file system whose power fails.
const IMAGE: u64 = 512 << 20;
/// Ends a mounted ext4 or XFS at once: nothing more is written to it, not even its log. `_IOR('X', 125, __u32)` with
/// "no log flush".
const SHUTDOWN: &str = "import fcntl, os, struct, sys
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";

/// Held to start a process: for a moment it has all our files, and with them the locks of stores that we look at.
static STARTING: RwLock<()> = RwLock::new(());

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// `kill -9`.
    Kill,
    /// Its file system is shut down under it and mounted again. Needs root, loop devices, mkfs.ext4 and python3.
    Power,
}

/// A directory that is gone afterwards, on a file system of its own if its power is to fail.
struct Dir {
    path: PathBuf,
    image: Option<PathBuf>,
}

fn start(command: &mut Command) -> io::Result<Child> {
    let _starting = STARTING.write().unwrap_or_else(PoisonError::into_inner);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
}

fn command(program: &str, args: &[&Path]) -> Result<(), String> {
    let child = start(Command::new(program).args(args));
    let out = child.and_then(Child::wait_with_output).map_err(|e| format!("{program}: {e}"))?;
    let what = || format!("{program}: {}", String::from_utf8_lossy(&out.stderr).trim());
    if out.status.success() { Ok(()) } else { Err(what()) }
}

impl Dir {
    fn new(seed: u64, end: End) -> Result<Self, String> {
        let path = std::env::temp_dir().join(format!("kvist-store-{end:?}-{}-{seed}", std::process::id()));
        std::fs::create_dir_all(&path).map_err(|e| e.to_string())?;
        if end == End::Kill {
            return Ok(Dir { path, image: None });
        }
        let image = path.with_extension("img");
        let dir = Dir { path, image: Some(image.clone()) };
        let file = std::fs::File::create(&image).and_then(|f| f.set_len(IMAGE));
        file.map_err(|e| e.to_string())?;
        command("mkfs.ext4", &[Path::new("-q"), &image])?;
        dir.mount()?;
        Ok(dir)
    }

    fn mount(&self) -> Result<(), String> {
        let Some(image) = &self.image else { return Ok(()) };
        command("mount", &[Path::new("-o"), Path::new("loop"), image, &self.path])
    }

    fn cut(&self) -> Result<(), String> {
        command("python3", &[Path::new("-c"), Path::new(SHUTDOWN), &self.path])
    }

    fn unmount(&self) -> Result<(), String> {
        if self.image.is_none() { Ok(()) } else { command("umount", &[&self.path]) }
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = self.unmount();
        let _ = std::fs::remove_dir_all(&self.path);
        if let Some(image) = &self.image {
            let _ = std::fs::remove_file(image);
        }
    }
}

/// Starts a process that saves, ends it, and looks at what it and those before it left.
pub fn run(seed: u64, end: End) -> Result<Report, String> {
    let failed = |e: &dyn std::fmt::Display| format!("seed {seed}: {e}");
    let mut rng = Random::new(seed);
    let dir = Dir::new(seed, end).map_err(|e| failed(&e))?;
    let program = std::env::current_exe().map_err(|e| failed(&e))?;
    let mut said: Vec<(u64, Vec<u8>)> = Vec::new();
    let mut report = Report::default();
    for round in seed * ROUNDS..(seed + 1) * ROUNDS {
        let mut victim = start(Command::new(&program).arg("store-victim").arg(&dir.path).arg(round.to_string()))
            .map_err(|e| failed(&e))?;
        let mut out = victim.stdout.take().ok_or("no output")?;
        let words = Arc::new(Mutex::new(Vec::new()));
        let heard = || words.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let to = Arc::clone(&words);
        let reader = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = out.read(&mut bytes) {
                to.lock().unwrap_or_else(PoisonError::into_inner).extend(&bytes[..n]);
            }
        });
        std::thread::sleep(Duration::from_micros(2_000 + rng.below(300_000) as u64));
        let early = victim.try_wait().map_err(|e| failed(&e))?;
        // What is said later does not count: an fdatasync that is under way when ext4 is shut down may return success for
        // what is lost (Linux 6.18: after one cut in six of a process that only writes and syncs).
        let before = heard();
        let cut = if end == End::Power { dir.cut() } else { Ok(()) };
        victim.kill().map_err(|e| failed(&e))?;
        let output = victim.wait_with_output().map_err(|e| failed(&e))?;
        reader.join().map_err(|_| failed(&"the reader panicked"))?;
        cut.map_err(|e| failed(&e))?;
        if let Some(status) = early {
            let what = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(failed(&format!("round {round} ended by itself, {status}: {what}")));
        }
        if end == End::Power {
            dir.unmount().and_then(|()| dir.mount()).map_err(|e| failed(&e))?;
        }
        said.push((round, if end == End::Power { before } else { heard() }));
        for (round, words) in &said {
            let _looking = STARTING.read().unwrap_or_else(PoisonError::into_inner);
            let found = inspect(&dir.path, *round, BufReader::new(&words[..]));
            report.add(&found.map_err(|e| failed(&format!("round {round}: {e}")))?);
        }
    }
    // A look is a look; ends are what counts.
    report.states = ROUNDS;
    Ok(report)
}
