use std::path::PathBuf;

use super::Report;
use super::world::{Durable, World};
use crate::random::Random;
use crate::state::Canary;
use crate::vfs::SimVfs;

/// Bits of the store whose every bit is turned, at least.
pub const STORE_BITS: u64 = 8 * 256 * 1024;

/// A store of which single bits are turned around.
pub struct Flips {
    files: Vec<(PathBuf, Vec<u8>)>,
    seed: u64,
    canary: Canary,
    /// Chunks that are served as long as nothing is damaged.
    whole: u64,
}

impl Flips {
    /// Builds a store of 256 KiB or more.
    pub fn new(seed: u64, canary: Canary) -> Result<Self, String> {
        let mut flips = Flips { files: Vec::new(), seed, canary, whole: 0 };
        let mut world = flips.world()?;
        flips.files = world.vfs.files().into_iter().collect();
        let after = world.vfs.clone();
        let before = world.report.served;
        drop(world.check_after(after.crash(after.changes(), crate::vfs::Loss::All, 0), &Durable::default(), true)?);
        flips.whole = world.report.served - before;
        Ok(flips)
    }

    pub fn bits(&self) -> u64 {
        self.files.iter().map(|(_, bytes)| 8 * bytes.len() as u64).sum()
    }

    fn world(&self) -> Result<World, String> {
        // The same seed makes the same store; a world also knows what it should hold.
        let mut world = World::new(self.seed, self.canary);
        world.open().map_err(|e| e.to_string())?;
        while world.vfs.files().values().map(|f| 8 * f.len() as u64).sum::<u64>() < STORE_BITS {
            world.step()?;
            world.flush();
        }
        world.store = None;
        Ok(world)
    }

    /// Checks the bits of one KiB of the files, one after the other.
    pub fn kib(&self, kib: u64) -> Result<Report, String> {
        let mut checker = self.checker()?;
        let mut total = Report::default();
        for bit in (kib * 8192..(kib + 1) * 8192).take_while(|&bit| bit < self.bits()) {
            total.add(&checker.check(bit)?);
        }
        Ok(total)
    }

    /// A world to check many flips in.
    pub fn checker(&self) -> Result<Checker<'_>, String> {
        Ok(Checker { flips: self, world: self.world()? })
    }
}

/// Checks single flips, one after the other.
pub struct Checker<'a> {
    flips: &'a Flips,
    world: World,
}

impl Checker<'_> {
    /// Turns the `bit`-th bit around, counted over all files, and looks at what is served.
    pub fn check(&mut self, bit: u64) -> Result<Report, String> {
        let mut at = bit;
        let (path, _) = self
            .flips
            .files
            .iter()
            .find(|(_, bytes)| {
                let here = at < 8 * bytes.len() as u64;
                at -= if here { 0 } else { 8 * bytes.len() as u64 };
                here
            })
            .ok_or("no such bit")?;
        let mut damaged = self.flips.files.clone();
        let file = damaged.iter_mut().find(|(p, _)| p == path).ok_or("no such file")?;
        file.1[(at / 8) as usize] ^= 1 << (at % 8);
        let vfs = SimVfs::with_files(Random::new(bit).word(), damaged);
        vfs.adopt_secrets(&self.world.vfs);
        self.world.report = Report::default();
        let checked = self.world.check_after(vfs, &Durable::default(), false);
        drop(checked.map_err(|e| format!("bit {bit} (bit {at} of {}): {e}", path.display()))?);
        let mut report = std::mem::take(&mut self.world.report);
        report.missed = self.flips.whole.saturating_sub(report.served);
        Ok(report)
    }
}
