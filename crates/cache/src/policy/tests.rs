//! The queue and the learner against what scores everything.

use super::*;

/// splitmix64.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// A learner that has seen requests of conversations that go on, and of some that do not.
fn learnt(rng: &mut Rng, requests: u64) -> (Returns, u64) {
    let mut returns = Returns::new(3000);
    let mut now = 0;
    let mut conversations: Vec<(u64, Vec<u64>)> = Vec::new();
    for id in 0..requests {
        now += rng.below(4_000_000);
        let goes_on = !conversations.is_empty() && rng.below(3) > 0;
        let at = if goes_on { rng.below(conversations.len() as u64) as usize } else { conversations.len() };
        if !goes_on {
            conversations.push((id, vec![]));
        }
        let (name, keys) = &mut conversations[at];
        let visit = returns.arrive(now, keys.iter().copied(), |_| None);
        (0..1 + rng.below(6)).for_each(|_| keys.push(*name << 32 | keys.len() as u64));
        let end = End { prompt: 64 * keys.len() as u32, fresh: 64, reply: (*name % 7) as u32, open: false };
        returns.leave(now + rng.below(1_000_000), &visit, &end, keys, |_, _| {});
    }
    (returns, now)
}

#[test]
fn the_victim_is_worth_least_of_all() {
    for seed in 0..20 {
        let mut rng = Rng(seed);
        let (returns, mut now) = learnt(&mut rng, 60 * seed);
        let mut queue = Queue::default();
        let mut entries: Vec<(Place, u32)> = Vec::new();
        for id in 0..3000 {
            now += rng.below(3_000_000);
            if rng.below(5) < 3 || entries.is_empty() {
                let guard = if rng.below(10) == 0 { 1 + rng.below(5) } else { 0 };
                let band = rng.below(Class::COUNT as u64) as u32;
                let octaves = rng.below(34);
                let last = now - rng.below(1 << octaves).min(now);
                let place = Place { guard, band, last, tie: rng.below(3) as u32 };
                entries.push((place, id));
                queue.insert(place, id);
            } else if rng.below(2) == 0 {
                let (place, id) = entries.swap_remove(rng.below(entries.len() as u64) as usize);
                assert!(queue.remove(place, id) && !queue.remove(place, id));
            } else {
                let worth = |band: u32, last| returns.worth(Class::from_index(band as usize), last, now);
                let (place, id) = queue.victim(worth).unwrap();
                let free: Vec<_> = entries.iter().filter(|(place, _)| place.guard == 0).collect();
                if free.is_empty() {
                    assert_eq!((place, id), *entries.iter().min().unwrap(), "the least wanted");
                } else {
                    assert_eq!(place.guard, 0, "somebody wants it");
                    let least = free.iter().map(|(place, _)| worth(place.band, place.last)).min().unwrap();
                    assert_eq!(worth(place.band, place.last), least, "seed {seed}");
                }
                assert!(queue.remove(place, id));
                entries.retain(|entry| entry.1 != id);
            }
            assert_eq!(queue.len(), entries.len());
            assert!(entries.iter().all(|&(place, id)| queue.contains(place, id)));
        }
    }
}

#[test]
fn equal_calls_give_equal_answers_and_memory_is_bounded() {
    let run = || learnt(&mut Rng(7), 2000).0;
    let (a, b) = (run(), run());
    for class in (0..Class::COUNT).map(Class::from_index) {
        for age in [0, 1_000_000, 77_000_000, 1 << 40] {
            assert_eq!(a.worth(class, 0, age), b.worth(class, 0, age));
        }
    }
    assert!(a.remembered() <= 3000);
}

#[test]
fn conversations_that_go_on_are_worth_more() {
    let mut returns = Returns::new(1 << 12);
    let mut classes = [Class::UNKNOWN; 2];
    for round in 0..400u64 {
        // One of two comes back after 30 s with two chunks more, the other, with a long answer, never.
        let now = round * 10_000_000;
        let going = (round % 3) << 32 | 1 << 40;
        let n = 1 + round / 3;
        let keys: Vec<u64> = (0..n).map(|i| going | i).collect();
        let visit = returns.arrive(now, keys.iter().copied(), |_| None);
        assert_eq!(visit.turn as u64, n - 1);
        let end = End { prompt: 500, fresh: 64, reply: 50, open: false };
        returns.leave(now, &visit, &end, &keys, |_, class| classes[0] = class);
        let visit = returns.arrive(now, [round], |_| None);
        assert_eq!(visit, Visit::default());
        let end = End { prompt: 500, fresh: 500, reply: 2000, open: false };
        returns.leave(now, &visit, &end, &[round], |_, class| classes[1] = class);
    }
    let [going, single] = classes;
    assert!(going > single, "{going:?} {single:?}");
    assert!(returns.share(going) > 0.8 && returns.share(single) < 0.2);
    let worth = |class, age| returns.worth(class, 0, age);
    assert!(worth(going, 20_000_000) > 5 * worth(single, 20_000_000));
    assert!(worth(going, 20_000_000) > 5 * worth(going, 200_000_000), "it is overdue");
}
