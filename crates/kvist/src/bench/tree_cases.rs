//! Which trees are measured.

use super::trees::{Case, D, Heads, Tree};

const MHA: Heads = Heads { q: 32, kv: 32, dim: D };
const GQA: Heads = Heads { q: 32, kv: 8, dim: D };
const MQA: Heads = Heads { q: 16, kv: 1, dim: D };

/// The standing set: flat, levels, chains, fans, examples before questions, drafts, prompts.
const STANDING: [Tree; 20] = [
    Tree::Flat { batch: 1, shared: 0, own: 4096 },
    Tree::Flat { batch: 8, shared: 0, own: 256 },
    Tree::Flat { batch: 8, shared: 2048, own: 64 },
    Tree::Flat { batch: 32, shared: 4096, own: 256 },
    Tree::Flat { batch: 64, shared: 1024, own: 64 },
    Tree::Levels { nodes: &[1, 4, 32], tokens: &[1024, 512, 64] },
    Tree::Levels { nodes: &[1, 16, 64], tokens: &[1024, 256, 32] },
    Tree::Levels { nodes: &[1, 3, 9, 27], tokens: &[512, 512, 512, 128] },
    Tree::Levels { nodes: &[1, 2, 4, 8, 16, 32], tokens: &[256; 6] },
    Tree::Comb { depth: 16, edge: 128, own: 64 },
    Tree::Comb { depth: 64, edge: 64, own: 32 },
    Tree::Levels { nodes: &[1, 256], tokens: &[1024, 16] },
    Tree::Levels { nodes: &[1, 128], tokens: &[128, 128] },
    Tree::Levels { nodes: &[1, 4, 16, 64], tokens: &[512, 256, 128, 32] },
    Tree::Levels { nodes: &[1, 8, 128], tokens: &[2048, 256, 16] },
    Tree::Levels { nodes: &[1, 4, 16, 64, 256, 1024], tokens: &[256, 8, 256, 64, 32, 256] },
    Tree::Draft { batch: 1, context: 4096, nodes: &[1, 4, 8, 16] },
    Tree::Draft { batch: 8, context: 1024, nodes: &[1, 2, 2, 2, 1] },
    Tree::Prefill { batch: 1, shared: 0, rows: 512 },
    Tree::Prefill { batch: 16, shared: 2048, rows: 16 },
];

/// Those with goals.
const GOALS: [Case; 5] = [
    Case { tree: Tree::Flat { batch: 32, shared: 2048, own: 0 }, heads: MHA },
    Case { tree: Tree::Flat { batch: 32, shared: 2048, own: 64 }, heads: MHA },
    Case { tree: Tree::Flat { batch: 32, shared: 0, own: 2048 }, heads: GQA },
    Case { tree: Tree::Prefill { batch: 1, shared: 1024, rows: 256 }, heads: GQA },
    Case { tree: Tree::Prefill { batch: 4, shared: 1024, rows: 64 }, heads: GQA },
];

/// The goals, where the tree cannot help, and one of each kind.
pub fn some() -> Vec<Case> {
    let mut cases = GOALS.to_vec();
    let with = |tree| Case { tree, heads: GQA };
    cases.extend(
        [
            Tree::Flat { batch: 1, shared: 0, own: 256 },
            Tree::Flat { batch: 1, shared: 0, own: 4096 },
            Tree::Flat { batch: 8, shared: 0, own: 256 },
            Tree::Flat { batch: 32, shared: 0, own: 64 },
        ]
        .map(with),
    );
    cases.extend([3, 6, 8, 9, 13, 16].map(|i| with(STANDING[i])));
    cases.push(Case { tree: Tree::Flat { batch: 32, shared: 2048, own: 64 }, heads: MQA });
    cases
}

/// Those, the standing set with the heads of each kind of attention, and other sizes and groups of heads.
pub fn all() -> Vec<Case> {
    let mut cases = some();
    for heads in [MQA, GQA, MHA] {
        cases.extend(STANDING.map(|tree| Case { tree, heads }));
    }
    for (q, kv, dim) in [(32, 8, 64), (14, 2, 64), (9, 3, 64), (20, 4, 80), (32, 32, 96), (24, 8, 128), (8, 1, 256)] {
        for tree in [Tree::Flat { batch: 16, shared: 1024, own: 64 }, Tree::Flat { batch: 8, shared: 0, own: 1024 }] {
            cases.push(Case { tree, heads: Heads { q, kv, dim } });
        }
    }
    let mut seen = Vec::new();
    cases.retain(|case| {
        !seen.contains(case) && {
            seen.push(*case);
            true
        }
    });
    cases
}

/// What varies in a plot, the kinds of heads there, and for each of them the cases by what varies.
pub struct Sweep {
    pub name: &'static str,
    pub axis: &'static str,
    pub heads: Vec<Heads>,
    pub cases: Vec<(f64, Tree)>,
}

impl Sweep {
    pub fn all(&self) -> impl Iterator<Item = Case> {
        self.heads.iter().flat_map(|&heads| self.cases.iter().map(move |&(_, tree)| Case { tree, heads }))
    }
}

pub fn sweeps() -> Vec<Sweep> {
    /// Levels of 2048 tokens in all, a binary tree as far as 32 leaves allow.
    const DEPTHS: [(&[usize], &[usize]); 5] = [
        (&[32], &[2048]),
        (&[1, 32], &[1024; 2]),
        (&[1, 8, 16, 32], &[512; 4]),
        (&[1, 2, 4, 8, 16, 16, 32, 32], &[256; 8]),
        (&[1, 1, 2, 2, 4, 4, 8, 8, 8, 16, 16, 16, 16, 32, 32, 32], &[128; 16]),
    ];
    let flat = |batch, shared| Tree::Flat { batch, shared, own: 64 };
    let batches = [1, 2, 4, 8, 16, 32, 64];
    let lengths = [256, 512, 1024, 2048, 4096, 8192, 16384];
    let depths = DEPTHS.into_iter().map(|(nodes, tokens)| (nodes.len() as f64, Tree::Levels { nodes, tokens }));
    let heads = vec![GQA, MHA];
    vec![
        Sweep {
            name: "batch",
            axis: "sequences, each on 2048 shared tokens + 64",
            heads: heads.clone(),
            cases: batches.map(|n| (n as f64, flat(n, 2048))).to_vec(),
        },
        Sweep {
            name: "shared",
            axis: "shared tokens, 32 sequences of 64 more each",
            heads: heads.clone(),
            cases: lengths.map(|n| (n as f64, flat(32, n))).to_vec(),
        },
        Sweep { name: "depth", axis: "levels of a tree of 32 paths of 2048 tokens", heads, cases: depths.collect() },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sets_hold_what_they_should() {
        let (some, all) = (some(), all());
        assert!(GOALS.iter().all(|case| some.contains(case)) && some.iter().all(|case| all.contains(case)));
        assert!(some.iter().any(Case::shares_nothing) && some.iter().any(Case::is_one_sequence));
        for heads in [MQA, GQA, MHA] {
            assert!(all.iter().filter(|case| case.heads == heads).count() >= 20);
        }
        let mut names: Vec<String> = all.iter().map(Case::name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all.len(), "a name says which case it is");
    }

    #[test]
    fn paths_of_the_depth_sweep_are_of_one_length() {
        for sweep in sweeps().iter().filter(|sweep| sweep.name == "depth") {
            for &(levels, tree) in &sweep.cases {
                let planned = Case { tree, heads: GQA }.plan(None);
                assert_eq!((planned.rows, planned.row_tokens), (32, 32 * 2048), "{levels} levels");
            }
        }
    }
}
