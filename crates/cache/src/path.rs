//! A sequence's place in the tree.

use crate::node::NodeId;

/// The nodes that hold tokens [0, `used`) of a sequence: node i holds tokens [64 i, 64 i + 64), the last one may be
/// used in part. Nothing on a path can be evicted or change under it; [`crate::Cache::invalidate`] and
/// [`crate::Cache::unpublish`] may take a tail of it away, which [`crate::Cache::truncate`] tells.
///
/// Only the cache writes the fields. Not `Clone`, and to be given back by [`crate::Cache::release`], because it counts.
#[derive(Debug, Default)]
#[must_use = "a path that is dropped and not released pins its nodes for ever"]
pub struct Path {
    pub nodes: Vec<NodeId>,
    pub used: usize,
    /// Epoch of the tree up to which `nodes` and `used` are true.
    pub(crate) seen: u64,
}

impl Path {
    pub fn new() -> Path {
        Path::default()
    }

    /// The last node: the one that the path pins, and with it all above.
    pub fn tip(&self) -> Option<NodeId> {
        self.nodes.last().copied()
    }
}
