//! Soft protection: which node of a tree each queued request wants.

use std::collections::{BTreeMap, BTreeSet};

/// A ticket guards one node; the nodes above it are safe with it, because eviction takes leaves.
#[derive(Debug, Default)]
pub struct Guards {
    by_ticket: BTreeMap<u64, (u32, u32)>,
    /// (node, rank, ticket)
    by_node: BTreeSet<(u32, u32, u64)>,
    /// Tickets of which a node was evicted since they were set.
    short: BTreeSet<u64>,
}

impl Guards {
    /// A ticket guards a node that it did not guard before; ranks: 0 is served next.
    pub fn set(&mut self, ticket: u64, node: u32, rank: u32) {
        self.by_ticket.insert(ticket, (node, rank));
        self.by_node.insert((node, rank, ticket));
    }

    /// Tickets that guard something.
    pub fn len(&self) -> usize {
        self.by_ticket.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_ticket.is_empty()
    }

    /// Returns the node that the ticket guarded.
    pub fn remove(&mut self, ticket: u64) -> Option<u32> {
        let (node, rank) = self.by_ticket.remove(&ticket)?;
        self.by_node.remove(&(node, rank, ticket));
        self.short.remove(&ticket);
        Some(node)
    }

    /// The best rank that guards a node.
    pub fn rank(&self, node: u32) -> Option<u32> {
        self.of(node).next().map(|guard| guard.1)
    }

    /// The node that a ticket guards.
    pub fn node(&self, ticket: u64) -> Option<u32> {
        self.by_ticket.get(&ticket).map(|guard| guard.0)
    }

    /// Whoever guards `from` guards `to` from now on.
    pub fn shift(&mut self, from: u32, to: u32) {
        if self.by_node.is_empty() {
            return;
        }
        let moved: Vec<_> = self.of(from).copied().collect();
        for (_, rank, ticket) in moved {
            self.by_node.remove(&(from, rank, ticket));
            self.set(ticket, to, rank);
        }
    }

    /// A node is evicted: who guarded it guards the one above, and falls short.
    pub fn evict(&mut self, node: u32, parent: u32) {
        let tickets: Vec<u64> = self.of(node).map(|guard| guard.2).collect();
        self.shift(node, parent);
        self.short.extend(tickets);
    }

    /// Ends what guards a node.
    pub fn drop_node(&mut self, node: u32) {
        let tickets: Vec<u64> = self.of(node).map(|guard| guard.2).collect();
        for ticket in tickets {
            self.remove(ticket);
        }
    }

    /// Tickets of which a node was evicted, since the last call.
    pub fn take_short(&mut self) -> BTreeSet<u64> {
        std::mem::take(&mut self.short)
    }

    fn of(&self, node: u32) -> impl Iterator<Item = &(u32, u32, u64)> {
        self.by_node.range((node, 0, 0)..=(node, u32::MAX, u64::MAX))
    }

    /// What every operation relies on, where `linked` says which nodes are in the tree.
    pub fn check(&self, linked: impl Fn(u32) -> bool) -> Result<(), String> {
        let same = self.by_ticket.iter().all(|(&ticket, &(node, rank))| self.by_node.contains(&(node, rank, ticket)));
        if !same || self.by_ticket.len() != self.by_node.len() {
            return Err("guards: the two indices differ".into());
        }
        match self.by_node.iter().find(|guard| !linked(guard.0)) {
            Some(guard) => Err(format!("guards: ticket {} guards node {}, which left the tree", guard.2, guard.0)),
            None => Ok(()),
        }
    }
}
