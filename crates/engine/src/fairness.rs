//! Virtual token counters (VTC): the domain that has had the least work goes first. Only uncached work is charged, so
//! a domain is not billed for what the cache saved it.

use std::collections::BTreeMap;

use kvist_base::DomainId;

/// A generated token costs about this many prefilled ones.
const GENERATED: f64 = 2.0;

#[derive(Default)]
pub struct Fairness {
    domains: BTreeMap<DomainId, Account>,
}

#[derive(Default)]
struct Account {
    served: f64,
    /// Unfinished requests.
    active: usize,
}

impl Fairness {
    /// A request of `domain` arrives. An idle domain starts level with the least-served active one: idling earns no
    /// credit.
    pub fn enter(&mut self, domain: DomainId) {
        let floor = self.domains.values().filter(|a| a.active > 0).map(|a| a.served).reduce(f64::min);
        let account = self.domains.entry(domain).or_default();
        if account.active == 0 {
            account.served = account.served.max(floor.unwrap_or(0.0));
        }
        account.active += 1;
    }

    pub fn leave(&mut self, domain: DomainId) {
        let account = self.domains.get_mut(&domain).expect("a request leaves the domain that it entered");
        account.active -= 1;
        // With nobody active the counters compare with nothing: forget them, so the table stays bounded.
        if self.domains.values().all(|a| a.active == 0) {
            self.domains.clear();
        }
    }

    pub fn charge(&mut self, domain: DomainId, computed: usize, generated: usize) {
        if let Some(account) = self.domains.get_mut(&domain) {
            account.served += computed as f64 + GENERATED * generated as f64;
        }
    }

    pub fn served(&self, domain: DomainId) -> f64 {
        self.domains.get(&domain).map_or(0.0, |a| a.served)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idling_earns_no_credit() {
        let (a, b) = (DomainId(2), DomainId(3));
        let mut f = Fairness::default();
        f.enter(a);
        f.charge(a, 1000, 100);
        f.enter(b);
        assert_eq!(f.served(b), 1200.0);
        f.charge(b, 1, 0);
        assert!(f.served(a) < f.served(b));
        f.leave(b);
        f.leave(a);
        assert_eq!(f.served(a), 0.0);
    }
}
