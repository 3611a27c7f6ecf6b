//! The order in which waiting sequences are admitted: a pure function over a snapshot.

use std::cmp::Ordering;

use kvist_base::{DomainId, Micros};

/// What the order depends on.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub domain: DomainId,
    pub priority: i32,
    pub arrival: Micros,
    /// Order of arrival, unique.
    pub number: u64,
    /// Seniority of a preempted sequence, which resumes before newcomers.
    pub resumes: Option<u64>,
    /// Tokens that the cache would not save.
    pub uncached: usize,
    /// When the first token is due.
    pub deadline: Option<Micros>,
    /// Work that the domain has had ([`crate::fairness`]).
    pub served: f64,
}

/// The state that candidates are judged in.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub now: Micros,
    /// Waiting longer than this goes before everything else.
    pub overdue: Micros,
    /// Microseconds that computing one token takes.
    pub token_cost: f64,
}

impl Candidate {
    fn overdue(&self, m: &Moment) -> bool {
        m.now.saturating_sub(self.arrival) >= m.overdue
    }

    /// The deadline, while it can still be met.
    fn deadline(&self, m: &Moment) -> Option<Micros> {
        let work = (self.uncached as f64 * m.token_cost) as Micros;
        self.deadline.filter(|&d| m.now + work <= d)
    }

    /// Highest response ratio next, on uncached work: (waited + work) / work. Cached-first, short-first, and nobody
    /// starves, since the ratio grows with waiting.
    fn response_ratio(&self, m: &Moment) -> f64 {
        let work = (self.uncached.max(1) as f64 * m.token_cost).max(1.0);
        (m.now.saturating_sub(self.arrival) as f64 + work) / work
    }

    /// Microseconds waited for each token to compute; what response ratios compare, whatever a token costs.
    pub fn patience(&self, now: Micros) -> f64 {
        now.saturating_sub(self.arrival) as f64 / self.uncached.max(1) as f64
    }

    /// When it will be served, if those are whose patience has come to `pace`, or who are overdue.
    pub fn due(&self, m: &Moment, pace: f64) -> Micros {
        self.arrival + (pace * self.uncached as f64).min(m.overdue as f64) as Micros
    }
}

/// `Less` = `a` goes first. Overdue ones first, of the least-served domain, by arrival; then priority; then preempted
/// sequences by seniority; then the least-served domain; within a domain, earliest feasible deadline, then highest
/// response ratio. Deadlines and response ratios are never compared across domains: they are what a tenant claims,
/// or what it has cached.
pub fn compare(a: &Candidate, b: &Candidate, m: &Moment) -> Ordering {
    let by_arrival = || a.number.cmp(&b.number);
    match (a.overdue(m), b.overdue(m)) {
        (true, true) => return a.served.total_cmp(&b.served).then_with(by_arrival),
        (true, false) => return Ordering::Less,
        (false, true) => return Ordering::Greater,
        (false, false) => {}
    }
    let some_first = |x: Option<u64>, y: Option<u64>| match (x, y) {
        (Some(x), Some(y)) => x.cmp(&y),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => Ordering::Equal,
    };
    a.priority
        .cmp(&b.priority)
        .then_with(|| some_first(a.resumes, b.resumes))
        .then_with(|| {
            if a.domain == b.domain {
                some_first(a.deadline(m), b.deadline(m))
                    .then_with(|| b.response_ratio(m).total_cmp(&a.response_ratio(m)))
            } else {
                a.served.total_cmp(&b.served).then(a.domain.cmp(&b.domain))
            }
        })
        .then_with(by_arrival)
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: Moment = Moment { now: 1_000_000, overdue: 900_000, token_cost: 100.0 };

    fn candidate(number: u64) -> Candidate {
        Candidate {
            domain: DomainId(2),
            priority: 0,
            arrival: 500_000,
            number,
            resumes: None,
            uncached: 100,
            deadline: None,
            served: 0.0,
        }
    }

    fn first(mut list: Vec<Candidate>) -> u64 {
        list.sort_by(|a, b| compare(a, b, &M));
        list[0].number
    }

    #[test]
    fn cached_and_short_go_first_but_waiting_wins_in_the_end() {
        assert_eq!(first(vec![candidate(1), Candidate { uncached: 10, ..candidate(2) }]), 2);
        let old = Candidate { arrival: 200_000, uncached: 100, ..candidate(1) };
        let new = Candidate { arrival: 990_000, uncached: 10, ..candidate(2) };
        assert_eq!(first(vec![new, old]), 1);
    }

    #[test]
    fn overdue_beats_priority_and_deadlines() {
        let overdue = Candidate { arrival: 50_000, priority: 9, ..candidate(7) };
        assert_eq!(
            first(vec![overdue.clone(), Candidate { domain: DomainId(3), served: 1.0, number: 5, ..overdue.clone() }]),
            7
        );
        let urgent = Candidate { priority: -5, deadline: Some(2_000_000), ..candidate(1) };
        assert_eq!(first(vec![urgent, overdue]), 7);
    }

    #[test]
    fn priority_and_preemption_come_before_fairness() {
        assert_eq!(first(vec![candidate(1), Candidate { priority: -1, served: 9.0, ..candidate(2) }]), 2);
        assert_eq!(first(vec![candidate(1), Candidate { resumes: Some(3), uncached: 9999, ..candidate(2) }]), 2);
        let loose = Candidate { domain: DomainId(3), deadline: Some(9_000_000), served: 5.0, ..candidate(2) };
        assert_eq!(first(vec![loose, candidate(1)]), 1, "a deadline gives no precedence over other domains");
    }

    #[test]
    fn a_deadline_that_cannot_be_met_gives_no_precedence() {
        let hopeless = Candidate { deadline: Some(1_000_001), uncached: 100, ..candidate(3) };
        let feasible = Candidate { deadline: Some(1_900_000), uncached: 100, ..candidate(4) };
        assert_eq!(first(vec![hopeless.clone(), feasible]), 4);
        assert_eq!(first(vec![hopeless, candidate(2)]), 2);
    }

    #[test]
    fn across_domains_only_served_work_counts() {
        let cached = Candidate { domain: DomainId(3), uncached: 1, served: 10.0, ..candidate(1) };
        let cold = Candidate { uncached: 4000, served: 5.0, ..candidate(2) };
        assert_eq!(first(vec![cached, cold]), 2);
    }
}
