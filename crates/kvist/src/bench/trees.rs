//! The trees that attention is measured on.

use kvist_base::{CHUNK, ChunkId, RunList};
use kvist_engine::{Branch, Place, assemble};

/// Heads of queries and of keys and values, and elements of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    pub q: usize,
    pub kv: usize,
    pub dim: usize,
}

/// Who attends to what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tree {
    /// `batch` sequences decode, each after `shared` common tokens and `own` tokens of its own.
    Flat { batch: usize, shared: usize, own: usize },
    /// A root of 1,024 tokens, `groups` branches of 512, each with `each` sequences of `own` tokens.
    TwoLevel { groups: usize, each: usize, own: usize },
    /// A binary tree: `depth` levels (two or more) of `edge` tokens; its leaves decode.
    Deep { depth: usize, edge: usize },
    /// `batch` prompts compute `rows` tokens each after `shared` common ones.
    Prefill { batch: usize, shared: usize, rows: usize },
}

/// One measurement's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    pub tree: Tree,
    pub heads: Heads,
}

/// A tree as a step plan has it.
pub struct Planned {
    pub runs: RunList,
    pub rows: usize,
    pub chunks: usize,
    /// Tokens whose keys and values are attended to, each counted once.
    pub tokens: usize,
    /// The same summed over the rows.
    pub row_tokens: usize,
}

impl Case {
    pub fn name(&self) -> String {
        let Heads { q, kv, .. } = self.heads;
        let tree = match self.tree {
            Tree::Flat { batch, shared, own } => format!("decode {batch} x ({shared} shared + {own})"),
            Tree::TwoLevel { groups, each, own } => format!("decode {groups} x {each} x ({own}) below 1024 + 512"),
            Tree::Deep { depth, edge } => format!("decode binary tree, {depth} levels of {edge}"),
            Tree::Prefill { batch, shared, rows } => format!("prefill {batch} x {rows} rows after {shared} shared"),
        };
        format!("{tree}, heads {q}/{kv}")
    }

    /// No two rows of different sequences share anything.
    pub fn shares_nothing(&self) -> bool {
        matches!(self.tree, Tree::Flat { shared: 0, .. })
    }

    pub fn is_one_sequence(&self) -> bool {
        matches!(self.tree, Tree::Flat { batch: 1, .. })
    }

    /// `encoded`: sealed chunks are, and this many open ones, with the ids after theirs, take turns as those in which rows
    /// lie.
    pub fn plan(&self, encoded: Option<u32>) -> Planned {
        let mut paths = Paths { list: Vec::new(), next: 0 };
        match self.tree {
            Tree::Flat { batch, shared, own } | Tree::Prefill { batch, shared, rows: own } => {
                let root = paths.grow(&[], shared);
                (0..batch).for_each(|_| paths.end(&root, own));
            }
            Tree::TwoLevel { groups, each, own } => {
                let root = paths.grow(&[], 1024);
                for _ in 0..groups {
                    let middle = paths.grow(&root, 512);
                    (0..each).for_each(|_| paths.end(&middle, own));
                }
            }
            Tree::Deep { depth, edge } => {
                let mut level = vec![paths.grow(&[], edge)];
                for _ in 2..depth {
                    level = level.iter().flat_map(|p| [paths.grow(p, edge), paths.grow(p, edge)]).collect();
                }
                level.iter().for_each(|path| (0..2).for_each(|_| paths.end(path, edge)));
            }
        }
        let rows_each = match self.tree {
            Tree::Prefill { rows, .. } => rows,
            _ => 1,
        };
        let open = |chunk: ChunkId| encoded.map_or(chunk, |open| ChunkId(paths.next + chunk.0 % open));
        let place = |&chunk: &ChunkId| Place { chunk, open: open(chunk) };
        let places: Vec<Vec<Place>> = paths.list.iter().map(|(path, _)| path.iter().map(place).collect()).collect();
        let branches: Vec<Branch> = (paths.list.iter().zip(&places))
            .map(|((_, length), path)| Branch { chunks: path, first: length - rows_each, rows: rows_each, carry: None })
            .collect();
        let mut runs = RunList::default();
        assemble(&branches, &mut runs);
        let rows = rows_each * branches.len();
        let row_tokens = branches.iter().flat_map(|b| (b.first..b.first + b.rows).map(|p| p + 1)).sum();
        Planned { tokens: seen_once(&runs), runs, rows, chunks: paths.next as usize, row_tokens }
    }
}

/// Slots that at least one row sees.
fn seen_once(runs: &RunList) -> usize {
    let mut tokens = 0;
    for run in &runs.runs {
        for c in 0..run.chunks.end - run.chunks.start {
            let seen = run.rows.clone().fold(0, |all, row| all | runs.mask(run, c, row));
            tokens += seen.count_ones() as usize;
        }
    }
    tokens
}

/// Paths with their lengths in tokens.
struct Paths {
    list: Vec<(Vec<ChunkId>, usize)>,
    next: u32,
}

impl Paths {
    /// `path` with fresh chunks for `tokens` more.
    fn grow(&mut self, path: &[ChunkId], tokens: usize) -> Vec<ChunkId> {
        let mut path = path.to_vec();
        for _ in 0..tokens.div_ceil(CHUNK) {
            path.push(ChunkId(self.next));
            self.next += 1;
        }
        path
    }

    /// Adds a sequence that ends `tokens` after `path`, whose chunks are full.
    fn end(&mut self, path: &[ChunkId], tokens: usize) {
        let length = path.len() * CHUNK + tokens;
        let path = self.grow(path, tokens);
        self.list.push((path, length));
    }
}

const D: usize = 128;
const MHA: Heads = Heads { q: 32, kv: 32, dim: D };
const GQA: Heads = Heads { q: 32, kv: 8, dim: D };
const MQA: Heads = Heads { q: 16, kv: 1, dim: D };

/// What is measured: all combinations, or a few that show the same.
pub fn cases(full: bool) -> Vec<Case> {
    let flat = |batch, shared, own, heads| Case { tree: Tree::Flat { batch, shared, own }, heads };
    let with = |tree, heads| Case { tree, heads };
    let mut cases = Vec::new();
    if full {
        for heads in [MHA, GQA, MQA] {
            for batch in [1, 4, 8, 16, 32, 64] {
                for shared in [0, 1024, 2048, 4096] {
                    cases.extend([64, 256].map(|own| flat(batch, shared, own, heads)));
                }
            }
        }
    } else {
        for (batch, shared, own) in
            [(1, 0, 256), (1, 4096, 256), (8, 0, 256), (32, 0, 64), (8, 2048, 64), (32, 2048, 64), (32, 4096, 256)]
        {
            cases.push(flat(batch, shared, own, GQA));
        }
        cases.extend([flat(32, 2048, 64, MHA), flat(32, 2048, 64, MQA)]);
    }
    for heads in if full { vec![MHA, GQA, MQA] } else { vec![GQA] } {
        cases.push(with(Tree::TwoLevel { groups: 4, each: 8, own: 64 }, heads));
        cases.push(with(Tree::Deep { depth: 6, edge: 256 }, heads));
        cases.push(with(Tree::Prefill { batch: 1, shared: 1024, rows: 256 }, heads));
        cases.push(with(Tree::Prefill { batch: 4, shared: 1024, rows: 64 }, heads));
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_have_the_tokens_that_their_names_say() {
        let check = |tree, rows, tokens, row_tokens| {
            let p = Case { tree, heads: GQA }.plan(None);
            assert_eq!((p.rows, p.tokens, p.row_tokens), (rows, tokens, row_tokens), "{tree:?}");
            assert_eq!(p.chunks, p.tokens.div_ceil(CHUNK), "{tree:?}");
        };
        check(Tree::Flat { batch: 32, shared: 2048, own: 64 }, 32, 2048 + 32 * 64, 32 * 2112);
        check(Tree::Flat { batch: 1, shared: 0, own: 256 }, 1, 256, 256);
        check(Tree::TwoLevel { groups: 4, each: 8, own: 64 }, 32, 1024 + 4 * 512 + 32 * 64, 32 * 1600);
        check(Tree::Deep { depth: 3, edge: 128 }, 4, (1 + 2 + 4) * 128, 4 * 384);
        check(Tree::Prefill { batch: 2, shared: 64, rows: 64 }, 128, 64 + 128, 2 * (64 * 64 + 64 * 65 / 2));
    }

    #[test]
    fn the_unshared_form_is_the_same_attention() {
        for case in cases(false) {
            let planned = case.plan(None);
            let unshared = planned.runs.unshared(planned.rows as u32);
            assert!(unshared.runs.iter().all(|run| run.rows.len() == 1), "{}", case.name());
            if case.is_one_sequence() {
                assert_eq!(unshared, planned.runs, "{}", case.name());
            }
        }
    }

    #[test]
    fn the_full_set_is_every_combination() {
        let all = cases(true);
        assert_eq!(all.len(), 3 * 6 * 4 * 2 + 3 * 4);
        assert!(all.iter().any(Case::shares_nothing) && all.iter().any(Case::is_one_sequence));
    }
}
