//! What is dropped of a conversation that has outgrown the context, and under which name what is left of it is kept.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvist_base::{CHUNK, DomainId, TokenId};
use kvist_engine::{Carry, CarrySource};
use kvist_store::Store;
use kvist_text::{ChatInput, ChatTemplate, Prompt, Tokenizer};
use sha2::{Digest, Sha256};

use crate::auth::Tenant;

/// Tokens at the start that always stay: attention rests on them whatever they say (StreamingLLM, section 3.1).
const SINKS: usize = 4;
/// Earlier cuts of a conversation that are looked for in the store, the latest ones.
const MOST_EARLIER: usize = 8;
/// A namespace that nothing is in, and the one under which the store is asked for others.
const NOWHERE: DomainId = DomainId::carried((1 << 31) - 2);
const SCRATCH: DomainId = DomainId::carried((1 << 31) - 1);
/// Ids of dropped tokens that are remembered, over all conversations.
const MOST_TOKENS: usize = 8 << 20;
/// Stands between a domain's name and the digest of a cut, in the name under which a store keeps what is carried over it.
pub const CARRIED_NAME: &str = " / carried ";
/// Kind of the store's notes that hold what a namespace was cut from.
const CARRIED: u8 = 2;

/// What to do with a conversation that does not fit (`truncation`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnOverflow {
    /// It is refused.
    #[default]
    Error,
    /// Its oldest turns after the system prompt are dropped.
    Truncate {
        /// What is left is computed anew.
        exact: bool,
    },
}

/// Tokens `[start, end)` of a prompt are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    pub start: usize,
    pub end: usize,
}

/// Where a prompt of `length` tokens is cut so that it and `reserve` more fit into `room`: behind `head`, the tokens of the
/// system prompt, and up to the first of the ascending `turns` behind what must go. What must go grows in steps of a
/// quarter of the room, so that later turns find the same cut. `None`: it fits, or no cut makes it fit.
fn cut(length: usize, head: usize, turns: impl Iterator<Item = usize>, room: usize, reserve: usize) -> Option<Cut> {
    let start = head.max(SINKS);
    // Chunks at both borders are kept whole.
    let over = (length + reserve + 2 * CHUNK).checked_sub(room).filter(|_| length + reserve > room)?;
    let step = (room / 4).next_multiple_of(CHUNK);
    let least = start + over.div_ceil(step) * step;
    let end = { turns }.find(|&turn| turn >= least && turn + 2 < length).unwrap_or(least);
    let kept = length.checked_sub(end / CHUNK * CHUNK)? + start.next_multiple_of(CHUNK);
    (end + 1 < length && kept + reserve <= room).then_some(Cut { start, end })
}

/// The cuts that [`cut`] may have made of the same conversation when it was shorter, the latest first: at a turn, or inside one
/// that was then the last.
fn earlier(turns: &[usize], room: usize, cut: Cut) -> Vec<Cut> {
    let step = (room / 4).next_multiple_of(CHUNK);
    let steps = (cut.start..cut.end).step_by(step).skip(1);
    let ends = steps.flat_map(|least| [Some(least), turns.iter().copied().find(|&turn| turn >= least)]);
    let mut ends: Vec<usize> = ends.flatten().filter(|&end| end < cut.end).collect();
    ends.sort_unstable_by(|a, b| b.cmp(a));
    ends.dedup();
    ends.into_iter().take(MOST_EARLIER).map(|end| Cut { end, ..cut }).collect()
}

/// Tokens of a prompt before its first message that is no instruction, and the tokens at which its user messages begin.
/// Empty where the template does not write messages one after another, or where texts and tokens do not agree.
fn turns(text: Text, prompt: &Prompt) -> (usize, Vec<usize>) {
    let Text { tokenizer, template, input } = text;
    let mut ends = Vec::with_capacity(prompt.ids.len());
    let mut bytes = 0;
    for &id in &prompt.ids {
        bytes += tokenizer.token_bytes(id).len();
        ends.push(bytes);
    }
    if bytes != prompt.text.len() {
        return (0, Vec::new());
    }
    let starts_at = |k: usize| {
        let before = ChatInput { messages: &input.messages[..k], add_generation_prompt: false, ..input.clone() };
        let text = template.render(&ChatInput { continue_final_message: false, ..before }).ok()?;
        let at = prompt.text.starts_with(&text).then_some(text.len())?;
        if at == 0 { Some(0) } else { ends.binary_search(&at).ok().map(|i| i + 1) }
    };
    let role = |k: usize| input.messages[k]["role"].as_str().unwrap_or_default();
    let first = (0..input.messages.len()).find(|&k| !matches!(role(k), "system" | "developer")).unwrap_or(0);
    let head = if first == 0 { 0 } else { starts_at(first).unwrap_or(0) };
    let users = (first + 1..input.messages.len()).filter(|&k| role(k) == "user");
    (head, users.filter_map(starts_at).collect())
}

/// Whose conversation it is.
#[derive(Clone, Debug)]
pub struct Owner {
    pub domain: DomainId,
    /// What a store calls the domain.
    pub name: String,
}

impl From<&Tenant> for Owner {
    fn from(tenant: &Tenant) -> Owner {
        Owner { domain: tenant.domain, name: tenant.store_name() }
    }
}

/// Whether a conversation that does not fit is cut, and where what is left of it lies.
pub struct Overflow<'a> {
    pub on: OnOverflow,
    /// Tokens that prompt and reply may have together.
    pub room: usize,
    pub owner: Owner,
    pub carried: &'a Carried,
    pub store: Option<&'a Store>,
    /// Off: nothing is noted, for who only asks.
    pub make: bool,
}

/// What is left of a conversation that did not fit.
pub struct Left {
    pub dropped: usize,
    /// How it keeps its KV; `None`: it is computed anew.
    pub carry: Option<Carry>,
    pub ids: Vec<TokenId>,
}

impl Overflow<'_> {
    /// `None`: it fits with a reply of `max_tokens`, or it may not be cut, or no cut makes it fit.
    pub fn left(&self, text: Text, prompt: &Prompt, max_tokens: Option<u32>) -> Option<Left> {
        let OnOverflow::Truncate { exact } = self.on else { return None };
        let Overflow { room, owner, carried, store, make, .. } = self;
        let (ids, room) = (&prompt.ids, *room);
        // A reply of which nothing is said may take an eighth of the context.
        let reserve = max_tokens.map_or(room / 8, |n| n as usize).max(1);
        if ids.len() + reserve <= room {
            return None;
        }
        let (head, turns) = turns(text, prompt);
        let cut = cut(ids.len(), head, turns.iter().copied(), room, reserve)?;
        let dropped = cut.end - cut.start;
        if !exact {
            let before = earlier(&turns, room, cut);
            if let Some((carry, ids)) = carried.path(owner, ids, cut, &before, *store, *make) {
                return Some(Left { dropped, carry: Some(carry), ids });
            }
        }
        Some(Left { dropped, carry: None, ids: [&ids[..cut.start], &ids[cut.end..]].concat() })
    }
}

/// How a conversation became a prompt.
#[derive(Clone, Copy)]
pub struct Text<'a> {
    pub tokenizer: &'a Tokenizer,
    pub template: &'a ChatTemplate,
    pub input: &'a ChatInput<'a>,
}

/// The namespaces of carried paths, by owner, cut and all tokens up to the cut's end.
#[derive(Default)]
pub struct Carried {
    inner: Mutex<Spaces>,
}

#[derive(Default)]
struct Spaces {
    made: u32,
    tokens: usize,
    /// The oldest first.
    entries: Vec<Space>,
}

struct Space {
    owner: DomainId,
    cut: Cut,
    /// Up to the cut's end, whole chunks.
    tokens: Arc<[TokenId]>,
    space: DomainId,
}

impl Space {
    fn is(&self, owner: &Owner, cut: Cut, ids: &[TokenId]) -> bool {
        self.owner == owner.domain && self.cut == cut && ids.starts_with(&self.tokens)
    }
}

impl Spaces {
    fn find(&self, owner: &Owner, cut: Cut, ids: &[TokenId]) -> Option<DomainId> {
        self.entries.iter().find(|e| e.is(owner, cut, ids)).map(|e| e.space)
    }

    /// A namespace for what is carried over a cut; what the store has of it is found again. Without `make` there is none
    /// but one that the store knows.
    fn enter(
        &mut self,
        owner: &Owner,
        cut: Cut,
        ids: &[TokenId],
        store: Option<&Store>,
        make: bool,
    ) -> Option<DomainId> {
        let space = DomainId::carried(self.made);
        let tokens = &ids[..cut.end / CHUNK * CHUNK];
        let stored = store.is_some_and(|store| keep(store, owner, cut, tokens, space, make));
        if !stored && !make {
            return None;
        }
        self.made += 1;
        self.tokens += tokens.len();
        self.entries.push(Space { owner: owner.domain, cut, tokens: tokens.into(), space });
        while self.tokens > MOST_TOKENS && self.entries.len() > 1 {
            self.tokens -= self.entries.remove(0).tokens.len();
        }
        Some(space)
    }
}

impl Carried {
    /// The carried path of a prompt, and its tokens. `before`: the cuts from which this one may have moved, which a process
    /// before this one may have made; see [`earlier`]. Without `make` nothing is noted, and a path that is not known has a
    /// namespace in which nothing is. `None`: the cut drops no whole chunk.
    pub fn path(
        &self,
        owner: &Owner,
        ids: &[TokenId],
        cut: Cut,
        before: &[Cut],
        store: Option<&Store>,
        make: bool,
    ) -> Option<(Carry, Vec<TokenId>)> {
        let (mut carry, kept) = Carry::new(ids, cut.start, cut.end, DomainId(0))?;
        let mut inner = self.lock();
        let known = inner.find(owner, cut, ids);
        if known.is_none() {
            for &cut in before {
                if inner.find(owner, cut, ids).is_none() {
                    inner.enter(owner, cut, ids, store, false);
                }
            }
        }
        carry.space = known.or_else(|| inner.enter(owner, cut, ids, store, make)).unwrap_or(NOWHERE);
        // Earlier cuts of the same conversation, the last one first; then the whole conversation.
        let earlier = |e: &&Space| {
            e.owner == owner.domain && e.cut.start == cut.start && e.cut.end < cut.end && ids.starts_with(&e.tokens)
        };
        let mut sources: Vec<&Space> = inner.entries.iter().filter(earlier).collect();
        sources.sort_by_key(|e| std::cmp::Reverse(e.cut.end));
        carry.sources = sources
            .into_iter()
            .filter_map(|e| {
                let (earlier, tokens) = Carry::new(ids, e.cut.start, e.cut.end, e.space)?;
                Some(CarrySource { space: e.space, tokens: tokens.into(), shift: carry.shift - earlier.shift })
            })
            .collect();
        carry.sources.push(CarrySource { space: owner.domain, tokens: ids.into(), shift: carry.shift });
        Some((carry, kept))
    }

    fn lock(&self) -> MutexGuard<'_, Spaces> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a namespace known to the store under a name that a later process finds again. What it was cut from stands beside
/// it and is compared: a digest alone never answers. Without `make` only one that the store knows. Whether it does now.
fn keep(store: &Store, owner: &Owner, cut: Cut, tokens: &[TokenId], space: DomainId, make: bool) -> bool {
    let words = [cut.start as u64, cut.end as u64].map(u64::to_le_bytes).concat();
    let ids: Vec<u8> = tokens.iter().flat_map(|id| id.to_le_bytes()).collect();
    let digest = Sha256::new().chain_update(&words).chain_update(&ids).finalize();
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let name = format!("{}{CARRIED_NAME}{hex}", owner.name);
    // Without a place in the store it is kept in RAM alone.
    if !make && !store.knows(&name) || store.register(SCRATCH, &name).is_err() {
        return false;
    }
    let parts: Vec<&[u8]> = ids.chunks(kvist_store::NOTE_MOST / 2).collect();
    let known = store.notes(SCRATCH, CARRIED);
    let told =
        |i: usize| known.iter().find(|(key, _)| *key == (i as u32).to_le_bytes()).map(|(_, value)| value.as_slice());
    let same = parts.iter().enumerate().all(|(i, part)| told(i) == Some(*part));
    let new = make && known.is_empty() && {
        let put = |(i, part): (usize, &&[u8])| store.put_note(SCRATCH, CARRIED, &(i as u32).to_le_bytes(), part);
        parts.iter().enumerate().all(put)
    };
    (same || new) && store.register(space, &name).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: usize = 2048;

    fn at(length: usize, reserve: usize) -> Option<Cut> {
        cut(length, 100, (1..).map(|turn| 100 + turn * 77).take_while(|turn| *turn < length), ROOM, reserve)
    }

    #[test]
    fn a_cut_makes_room_and_moves_rarely() {
        assert_eq!(at(ROOM - 200, 200), None);
        let mut cuts = Vec::new();
        for length in ROOM - 199..6000 {
            let cut = at(length, 200).unwrap();
            assert_eq!((cut.start, (cut.end - 100) % 77), (100, 0), "{length}");
            let (_, kept) = Carry::new(&vec![0; length], cut.start, cut.end, DomainId(1)).unwrap();
            assert!(kept.len() + 200 <= ROOM && kept.len() >= ROOM / 4, "{length}: {}", kept.len());
            cuts.push(cut.end);
        }
        assert!(cuts.is_sorted());
        cuts.dedup();
        assert!(cuts.len() <= 6000 / (ROOM / 4), "{cuts:?}");
    }

    #[test]
    fn a_cut_knows_those_before_it() {
        let (mut made, mut turns): (Vec<Cut>, Vec<usize>) = (Vec::new(), Vec::new());
        for length in 0..6000 {
            // Turns of all lengths, some longer than a step.
            if length > 100 && length % (77 + length / 1000 * 300) == 0 {
                turns.push(length);
            }
            let Some(cut) = cut(length, 100, turns.iter().copied(), ROOM, 200) else { continue };
            if made.last() != Some(&cut) {
                let known = earlier(&turns, ROOM, cut);
                assert!(known.is_sorted_by_key(|cut| std::cmp::Reverse(cut.end)) && known.len() <= MOST_EARLIER);
                assert!(made.last().is_none_or(|last| known.contains(last)), "{made:?} {cut:?} {known:?}");
                made.push(cut);
            }
        }
        assert!(made.len() > 5, "{made:?}");
    }

    #[test]
    fn a_turn_that_is_too_long_is_cut_inside() {
        assert_eq!(cut(3000, 0, std::iter::empty(), ROOM, 100), Some(Cut { start: 4, end: 4 + 3 * 512 }));
        // A system prompt that leaves no room, and a reply that takes it all.
        assert_eq!(cut(3000, 1900, std::iter::empty(), ROOM, 100), None);
        assert_eq!(cut(3000, 100, std::iter::empty(), ROOM, ROOM), None);
    }

    #[test]
    fn names_are_by_owner_cut_and_every_token() {
        let carried = Carried::default();
        let tenant = |n: u32| Owner { name: format!("{n}"), domain: DomainId(n) };
        let ids: Vec<TokenId> = (0..3000).collect();
        let space = |owner: u32, ids: &[TokenId], end: usize| {
            carried.path(&tenant(owner), ids, Cut { start: 100, end }, &[], None, true).unwrap().0
        };
        let first = space(2, &ids, 700);
        assert_eq!(space(2, &ids, 700).space, first.space);
        assert_eq!(space(2, &ids[..2000], 700).space, first.space, "what comes after the cut is the path's");
        assert_ne!(space(3, &ids, 700).space, first.space);
        let mut other = ids.clone();
        other[300] = 7;
        assert_ne!(space(2, &other, 700).space, first.space, "a dropped token differs");
        // A later cut goes on from the earlier one, where they agree, and from the whole conversation.
        let second = space(2, &ids, 1300);
        let from: Vec<(DomainId, usize)> = second.sources.iter().map(|s| (s.space, s.shift)).collect();
        assert_eq!(from, [(first.space, second.shift - first.shift), (DomainId(2), second.shift)]);
        assert_eq!(second.sources[0].tokens.len(), 3000 - first.shift);
    }
}
