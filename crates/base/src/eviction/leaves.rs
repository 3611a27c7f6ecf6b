//! Chunks of a tree that may go, in order: those that no waiting request wants, the least worth first; then those that are
//! wanted, of the worst rank first.
//!
//! The tree says which of its nodes are leaves that may go ([`Leaves::stand`]), and which left it ([`Leaves::left`]).

use crate::Micros;
use crate::eviction::{Class, Guards, Place, Queue, Valuation};

/// What a leaf's place follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    pub class: Class,
    /// Chunks above it.
    pub depth: u32,
    /// Last use.
    pub last: Micros,
}

#[derive(Debug, Default)]
pub struct Leaves {
    queue: Queue,
    guards: Guards,
    valuation: Valuation,
    /// By node.
    standing: Vec<Option<(Leaf, Place)>>,
}

impl Leaves {
    /// Leaves that may go.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Tickets that somebody holds.
    pub fn tickets(&self) -> usize {
        self.guards.len()
    }

    pub fn valuation(&self) -> &Valuation {
        &self.valuation
    }

    /// What chunks are worth from now on.
    pub fn value(&mut self, valuation: &Valuation) {
        let same = (valuation.order, valuation.parity) == (self.valuation.order, self.valuation.parity);
        self.valuation = valuation.clone();
        if !same {
            (0..self.standing.len() as u32).for_each(|node| self.place(node));
        }
    }

    /// A node is a leaf that may go, or is not.
    pub fn stand(&mut self, node: u32, leaf: Option<Leaf>) {
        let at = node as usize;
        if at >= self.standing.len() {
            self.standing.resize(at + 1, None);
        }
        if let Some((_, place)) = self.standing[at] {
            self.queue.remove(place, node);
        }
        self.standing[at] = leaf.map(|leaf| {
            let place = self.place_of(node, &leaf);
            self.queue.insert(place, node);
            (leaf, place)
        });
    }

    pub fn standing(&self, node: u32) -> Option<Leaf> {
        Some(self.standing.get(node as usize)?.as_ref()?.0)
    }

    /// A node is in the tree no more: who wanted it wants what was above it.
    pub fn left(&mut self, node: u32, above: Option<u32>) {
        self.stand(node, None);
        match above {
            Some(above) => {
                self.guards.shift(node, above);
                self.place(above);
            }
            None => self.guards.drop_node(node),
        }
    }

    /// A request waits that will use the path to a node, until [`Leaves::unwant`]. A ticket wants one node: asking again
    /// replaces it. What is above a node is safe with it.
    pub fn want(&mut self, ticket: u64, node: u32, rank: u32) {
        self.unwant(ticket);
        self.guards.set(ticket, node, rank);
        self.place(node);
    }

    /// Nothing happens for an unknown ticket.
    pub fn unwant(&mut self, ticket: u64) {
        if let Some(node) = self.guards.remove(ticket) {
            self.place(node);
        }
    }

    /// The next to go. O(bands + log n), whatever became of the worths since leaves were placed.
    pub fn victim(&self, now: Micros) -> Option<u32> {
        Some(self.queue.victim(|band, last| self.valuation.worth(band, last, now))?.1)
    }

    /// How many of new chunks, each below the one before and the first below `above`, are to take the place of the next that
    /// would go: those before the first that is worth less than that; where waiting requests want all that is here, none
    /// unless some of a better rank may want them. `chunks`: class and depth.
    pub fn admits(&self, chunks: impl Iterator<Item = (Class, u32)>, above: Option<u32>, now: Micros) -> usize {
        let worth = |band, last| self.valuation.worth(band, last, now);
        let victim = self.queue.victim(worth).map(|(place, _)| (place.guard, worth(place.band, place.last)));
        // Who wants the path to the chunk above may go on with these.
        let guard = above.map_or(0, |above| self.guard(above));
        let takes = |&(class, depth): &(Class, u32)| {
            let new = || worth(self.valuation.band(class, depth), now);
            victim.is_none_or(|(wanted, least)| guard > wanted || wanted == 0 && new() >= least)
        };
        chunks.take_while(takes).count()
    }

    fn guard(&self, node: u32) -> u64 {
        self.guards.rank(node).map_or(0, |rank| 1 + u64::from(u32::MAX - rank))
    }

    fn place_of(&self, node: u32, leaf: &Leaf) -> Place {
        let band = self.valuation.band(leaf.class, leaf.depth);
        // Of a path that was used as a whole the end goes first.
        Place { guard: self.guard(node), band, last: leaf.last, tie: u32::MAX - leaf.depth }
    }

    fn place(&mut self, node: u32) {
        if let Some(leaf) = self.standing(node) {
            self.stand(node, Some(leaf));
        }
    }

    /// What every operation relies on, where `leaf` says which nodes are leaves that may go and `stands` which there are.
    pub fn check(&self, leaf: impl Fn(u32) -> Option<Leaf>, stands: impl Fn(u32) -> bool) -> Result<(), String> {
        for (node, standing) in (0..).zip(&self.standing) {
            if standing.map(|s| s.0) != leaf(node) {
                return Err(format!("leaf {node} stands as {standing:?}, is {:?}", leaf(node)));
            }
            if let Some((leaf, place)) = standing
                && (*place != self.place_of(node, leaf) || !self.queue.contains(*place, node))
            {
                return Err(format!("leaf {node} is not where it belongs: {place:?}"));
            }
        }
        if self.queue.len() != self.standing.iter().flatten().count() {
            return Err("the queue holds others than the leaves".into());
        }
        self.guards.check(stands)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eviction::Order;

    fn leaf(last: Micros) -> Option<Leaf> {
        Some(Leaf { class: Class::UNKNOWN, depth: 0, last })
    }

    #[test]
    fn what_is_wanted_goes_last_and_of_the_worst_rank_first() {
        let mut leaves = Leaves::default();
        (0..4).for_each(|node| leaves.stand(node, leaf(10 + u64::from(node))));
        leaves.want(7, 0, 3);
        leaves.want(8, 1, 5);
        let order: Vec<u32> = std::iter::from_fn(|| {
            let node = leaves.victim(100)?;
            leaves.left(node, None);
            Some(node)
        })
        .collect();
        assert_eq!(order, [2, 3, 1, 0]);
        assert_eq!(leaves.tickets(), 0, "nobody wants what is nowhere");
    }

    #[test]
    fn a_want_moves_up_when_the_end_of_its_path_goes() {
        let mut leaves = Leaves::default();
        leaves.stand(2, leaf(50));
        leaves.stand(9, leaf(60));
        leaves.want(1, 2, 0);
        leaves.left(2, Some(1));
        leaves.stand(1, leaf(5));
        assert_eq!(leaves.victim(100), Some(9));
        leaves.unwant(1);
        assert_eq!(leaves.victim(100), Some(1));
        leaves.unwant(1);
    }

    #[test]
    fn what_is_worth_less_than_the_least_is_not_admitted() {
        let mut rows = vec![[0; crate::eviction::AGES]; Class::COUNT];
        for (class, row) in rows.iter_mut().enumerate() {
            *row = [class as u64; crate::eviction::AGES];
        }
        let worths = std::sync::Arc::new(crate::eviction::Worths::new(rows));
        let mut leaves = Leaves::default();
        let below = |leaves: &Leaves, classes: &[usize], above| {
            leaves.admits(classes.iter().map(|&class| (Class::from_index(class), 0)), above, 100)
        };
        let admits = |leaves: &Leaves, class| below(leaves, &[class], Some(3)) == 1;
        assert!(admits(&leaves, 0), "nothing would have to go for it");
        leaves.stand(3, leaf(1));
        assert!(admits(&leaves, 0), "by last use the newest is always worth most");
        leaves.value(&Valuation { order: Order::Returns, worths, ..Valuation::default() });
        assert!(!admits(&leaves, 9) && admits(&leaves, 10) && admits(&leaves, 11));
        assert_eq!(below(&leaves, &[12, 10, 9, 15], Some(3)), 2, "nothing is saved below what is not");
        // All that is here is wanted, as is what comes below it, by none of a better rank.
        leaves.want(1, 3, 5);
        assert!(!admits(&leaves, 11));
        leaves.stand(4, leaf(1));
        leaves.want(2, 4, 6);
        assert!(admits(&leaves, 0) && below(&leaves, &[19], None) == 0);
    }
}
