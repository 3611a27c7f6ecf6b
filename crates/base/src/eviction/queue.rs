//! What may be evicted, ordered so that the next to go is found without looking at all of it.
//!
//! Entries of one class and cost differ in age alone, and worth rises towards one age and falls after it: of each class
//! only the oldest and the youngest are compared. Worths change with time; nothing is stored that would have to follow.

use std::collections::{BTreeMap, BTreeSet};

use crate::Micros;

/// Where an entry stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// 0: nobody in the queue wants it; else greater for those who are served earlier.
    pub guard: u64,
    /// Entries of the same band are worth the same at the same age.
    pub band: u32,
    /// Last use.
    pub last: Micros,
    /// Of entries used at the same time, the smaller goes first.
    pub tie: u32,
}

#[derive(Clone, Debug, Default)]
pub struct Queue {
    bands: BTreeMap<u32, BTreeSet<(Micros, u32, u32)>>,
    guarded: BTreeSet<(Place, u32)>,
    len: usize,
}

impl Queue {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether there are entries that nobody in the queue wants.
    pub fn has_unwanted(&self) -> bool {
        !self.bands.is_empty()
    }

    /// An entry must not be there already.
    pub fn insert(&mut self, place: Place, id: u32) {
        self.len += 1;
        if place.guard > 0 {
            self.guarded.insert((place, id));
        } else {
            self.bands.entry(place.band).or_default().insert((place.last, place.tie, id));
        }
    }

    /// Returns whether the entry was there.
    pub fn remove(&mut self, place: Place, id: u32) -> bool {
        let was = if place.guard > 0 {
            self.guarded.remove(&(place, id))
        } else if let Some(band) = self.bands.get_mut(&place.band) {
            let was = band.remove(&(place.last, place.tie, id));
            if band.is_empty() {
                self.bands.remove(&place.band);
            }
            was
        } else {
            false
        };
        self.len -= usize::from(was);
        was
    }

    pub fn contains(&self, place: Place, id: u32) -> bool {
        if place.guard > 0 {
            return self.guarded.contains(&(place, id));
        }
        self.bands.get(&place.band).is_some_and(|band| band.contains(&(place.last, place.tie, id)))
    }

    /// The next to go: what nobody wants and is worth least, of these the one used longest ago; where somebody wants
    /// everything, what is wanted last. `worth(band, last)` must rise up to one `last` and fall after it.
    pub fn victim<W: Ord>(&self, worth: impl Fn(u32, Micros) -> W) -> Option<(Place, u32)> {
        let ends = self.bands.iter().flat_map(|(&band, entries)| {
            let oldest = entries.first().copied();
            let youngest = entries.last().and_then(|youngest| entries.range((youngest.0, 0, 0)..).next().copied());
            oldest.into_iter().chain(youngest).map(move |(last, tie, id)| (Place { guard: 0, band, last, tie }, id))
        });
        let least = ends.min_by_key(|&(place, id)| (worth(place.band, place.last), place.last, place.tie, id));
        least.or_else(|| self.guarded.first().copied())
    }
}
