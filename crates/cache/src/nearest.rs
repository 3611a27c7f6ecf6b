use kvist_base::{CHUNK, DomainId, TokenId};

use crate::node::ROOT;
use crate::tree::Cache;

impl Cache {
    /// The tokens of the path visible in `domain` that agrees longest with `tokens`, to the end of the node in which the
    /// two part. Changes nothing.
    pub fn nearest(&self, domain: DomainId, tokens: &[TokenId]) -> Vec<TokenId> {
        let (mut parent, mut path) = (ROOT, Vec::new());
        for window in tokens.chunks(CHUNK) {
            let Some(found) = self.arena.best(parent, domain, window, None) else { break };
            let node = &self.arena[found.node];
            path.extend(&node.tokens()[..node.valid()]);
            if found.n < CHUNK {
                break;
            }
            parent = found.node;
        }
        path
    }
}
