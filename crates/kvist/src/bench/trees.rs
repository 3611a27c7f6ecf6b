//! The trees that attention is measured on.

use std::collections::BTreeMap;

use kvist_base::{CHUNK, ChunkId, RunList};
use kvist_engine::{Assembler, Place};

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
    /// So many nodes on each level, of so many tokens each, spread evenly below those of the level above; each of the last
    /// level decodes.
    Levels { nodes: &'static [usize], tokens: &'static [usize] },
    /// A chain of `depth` nodes of `edge` tokens; at the end of each a sequence of `own` more tokens decodes.
    Comb { depth: usize, edge: usize, own: usize },
    /// `batch` prompts compute `rows` tokens each after `shared` common ones.
    Prefill { batch: usize, shared: usize, rows: usize },
    /// `batch` sequences of `context` tokens (whole chunks) each verify a tree of drafted tokens: so many on each level.
    Draft { batch: usize, context: usize, nodes: &'static [usize] },
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
    /// The paths, and the first of the rows of each.
    paths: Vec<(Vec<Place>, usize)>,
    rows_each: usize,
    pub rows: usize,
    pub chunks: usize,
    /// Tokens of the tree, each counted once; chunks in which paths part hold some of them twice.
    pub tokens: usize,
    /// Tokens that each row sees, summed over the rows.
    pub row_tokens: usize,
}

impl Case {
    pub fn name(&self) -> String {
        let Heads { q, kv, dim } = self.heads;
        let joined = |numbers: &[usize]| numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        let tree = match self.tree {
            Tree::Flat { batch, shared, own: 0 } => format!("decode {batch} on {shared} shared"),
            Tree::Flat { batch, shared: 0, own } => format!("decode {batch} on {own} each"),
            Tree::Flat { batch, shared, own } => format!("decode {batch} on {shared} shared + {own}"),
            Tree::Levels { nodes, tokens } => format!("decode nodes {} of {}", joined(nodes), joined(tokens)),
            Tree::Comb { depth, edge, own } => format!("decode {own} off each of a chain {depth} x {edge}"),
            Tree::Prefill { batch, shared, rows } => format!("prefill {batch} x {rows} rows on {shared} shared"),
            Tree::Draft { batch, context, nodes } => format!("verify {batch} x tree {} on {context}", joined(nodes)),
        };
        let dim = if dim == D { String::new() } else { format!(" of {dim}") };
        format!("{tree}, heads {q}/{kv}{dim}")
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
        let mut paths = Paths::default();
        match self.tree {
            Tree::Flat { batch, shared, own } | Tree::Prefill { batch, shared, rows: own } => {
                let root = paths.grow(&[], shared);
                for _ in 0..batch {
                    let path = if own == 0 { root.clone() } else { paths.grow(&root, own) };
                    paths.list.push(path);
                }
            }
            Tree::Levels { nodes, tokens } => {
                let mut level = vec![Vec::new()];
                for (&n, &tokens) in nodes.iter().zip(tokens) {
                    level = (0..n).map(|i| paths.grow(&level[i * level.len() / n], tokens)).collect();
                }
                paths.list = level;
            }
            Tree::Comb { depth, edge, own } => {
                let mut chain = Vec::new();
                for _ in 0..depth {
                    chain = paths.grow(&chain, edge);
                    let path = paths.grow(&chain, own);
                    paths.list.push(path);
                }
            }
            Tree::Draft { batch, context, nodes } => {
                assert!(context.is_multiple_of(CHUNK) && nodes.iter().sum::<usize>() <= CHUNK);
                for _ in 0..batch {
                    let own = paths.grow(&[], context);
                    let path = paths.grow(&own, nodes.iter().sum());
                    paths.list.push(path);
                }
            }
        }
        let rows_each = match self.tree {
            Tree::Prefill { rows, .. } => rows,
            Tree::Draft { nodes, .. } => nodes.iter().sum(),
            _ => 1,
        };
        let list = std::mem::take(&mut paths.list);
        let chunks: Vec<Vec<ChunkId>> = list.iter().map(|path| paths.chunks(path)).collect();
        let count = paths.ids.len();
        let open = |chunk: ChunkId| encoded.map_or(chunk, |open| ChunkId(count as u32 + chunk.0 % open));
        let place = |&chunk: &ChunkId| Place { chunk, open: open(chunk) };
        let first = |path: &Vec<usize>| paths.length(path) - rows_each;
        let places = |(path, chunks): (&Vec<usize>, &Vec<ChunkId>)| (chunks.iter().map(place).collect(), first(path));
        let mut planned = Planned {
            runs: RunList::default(),
            paths: list.iter().zip(&chunks).map(places).collect(),
            rows_each,
            rows: rows_each * list.len(),
            chunks: count,
            tokens: paths.tokens.iter().sum(),
            row_tokens: list.iter().flat_map(|path| (first(path)..first(path) + rows_each).map(|p| p + 1)).sum(),
        };
        let mut runs = RunList::default();
        planned.assemble(&mut runs);
        if let Tree::Draft { batch, context, nodes } = self.tree {
            let seen = ancestors(nodes);
            planned.row_tokens = batch * seen.iter().map(|mask| context + mask.count_ones() as usize).sum::<usize>();
            for run in runs.runs.iter().filter(|run| run.place as usize == context / CHUNK) {
                let at = run.masks.expect("rows see parts of the last chunk") as usize;
                runs.masks[at..at + rows_each].copy_from_slice(&seen);
            }
        }
        Planned { runs, ..planned }
    }
}

impl Planned {
    /// What the scheduler does for every step.
    pub fn assemble(&self, runs: &mut RunList) {
        let mut assembler = Assembler::default();
        for (chunks, first) in &self.paths {
            assembler.push(chunks.iter().copied(), *first, self.rows_each, None);
        }
        assembler.assemble(runs);
    }
}

/// Which slots each token of a drafted tree sees, level after level: those on its way and its own.
fn ancestors(nodes: &[usize]) -> Vec<u64> {
    let (mut masks, mut above): (Vec<u64>, Vec<u64>) = (Vec::new(), vec![0]);
    for &n in nodes {
        above = (0..n).map(|i| above[i * above.len() / n] | 1 << (masks.len() + i)).collect();
        masks.extend(&above);
    }
    masks
}

/// Sequences as the nodes on their way.
#[derive(Default)]
struct Paths {
    list: Vec<Vec<usize>>,
    /// Of each node.
    tokens: Vec<usize>,
    /// A chunk is shared by the paths that agree on all of it: by the node of its last token, and where it lies.
    ids: BTreeMap<(usize, usize), ChunkId>,
}

impl Paths {
    /// `path` with a fresh node of so many tokens.
    fn grow(&mut self, path: &[usize], tokens: usize) -> Vec<usize> {
        self.tokens.push(tokens);
        path.iter().copied().chain([self.tokens.len() - 1]).collect()
    }

    fn length(&self, path: &[usize]) -> usize {
        path.iter().map(|&node| self.tokens[node]).sum()
    }

    fn chunks(&mut self, path: &[usize]) -> Vec<ChunkId> {
        let length = self.length(path);
        let (mut node, mut end) = (0, self.tokens[path[0]]);
        let mut chunks = Vec::new();
        for depth in 0..length.div_ceil(CHUNK) {
            let last = length.min((depth + 1) * CHUNK);
            while end < last {
                node += 1;
                end += self.tokens[path[node]];
            }
            let next = ChunkId(self.ids.len() as u32);
            chunks.push(*self.ids.entry((path[node], depth)).or_insert(next));
        }
        chunks
    }
}

/// Head size unless a name says another.
pub const D: usize = 128;

#[cfg(test)]
mod tests {
    use super::super::tree_cases;
    use super::*;

    const GQA: Heads = Heads { q: 32, kv: 8, dim: D };

    #[test]
    fn trees_have_the_tokens_that_their_names_say() {
        let check = |tree, rows, tokens, row_tokens, chunks| {
            let p = Case { tree, heads: GQA }.plan(None);
            assert_eq!((p.rows, p.tokens, p.row_tokens, p.chunks), (rows, tokens, row_tokens, chunks), "{tree:?}");
        };
        check(Tree::Flat { batch: 32, shared: 2048, own: 64 }, 32, 2048 + 32 * 64, 32 * 2112, 64);
        check(Tree::Flat { batch: 32, shared: 2048, own: 0 }, 32, 2048, 32 * 2048, 32);
        check(Tree::Flat { batch: 1, shared: 0, own: 256 }, 1, 256, 256, 4);
        let levels = Tree::Levels { nodes: &[1, 4, 32], tokens: &[1024, 512, 64] };
        check(levels, 32, 1024 + 4 * 512 + 32 * 64, 32 * 1600, 16 + 4 * 8 + 32);
        // The nodes of 8 tokens lie in chunks that their children have copies of.
        let ragged = Tree::Levels { nodes: &[1, 2, 4], tokens: &[64, 8, 56] };
        check(ragged, 4, 64 + 2 * 8 + 4 * 56, 4 * 128, 1 + 4);
        check(Tree::Comb { depth: 3, edge: 128, own: 10 }, 3, 3 * 138, 138 + 266 + 394, 3 * 2 + 3);
        check(Tree::Prefill { batch: 2, shared: 64, rows: 64 }, 128, 64 + 128, 2 * (64 * 64 + 64 * 65 / 2), 3);
        let draft = Tree::Draft { batch: 2, context: 128, nodes: &[1, 2, 4] };
        check(draft, 14, 2 * (128 + 7), 2 * (7 * 128 + 1 + 2 * 2 + 4 * 3), 2 * 3);
    }

    #[test]
    fn a_drafted_token_sees_its_ancestors() {
        assert_eq!(ancestors(&[1, 2, 4]), [0b1, 0b11, 0b101, 0b1011, 0b10011, 0b10_0101, 0b100_0101]);
        let planned = Case { tree: Tree::Draft { batch: 1, context: 64, nodes: &[1, 2, 4] }, heads: GQA }.plan(None);
        let last = &planned.runs.runs[1];
        assert_eq!((planned.runs.mask(last, 0, 4), last.place), (0b10011, 1));
    }

    #[test]
    fn the_unshared_form_is_the_same_attention() {
        for case in tree_cases::some() {
            let planned = case.plan(None);
            let unshared = planned.runs.unshared(planned.rows as u32);
            assert!(unshared.runs.iter().all(|run| run.rows.len() == 1), "{}", case.name());
            if case.is_one_sequence() {
                assert_eq!(unshared, planned.runs, "{}", case.name());
            }
        }
    }
}
