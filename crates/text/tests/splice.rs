//! Conversations whose replies were generated in tokens that no tokenizer would choose.

mod common;

use common::tokenizers;
use kvist_base::DomainId;
use kvist_text::{ChatInput, ChatTemplate, Detokenizer, Prompt, ReplyTable, Tokenizer, splice};
use proptest::prelude::*;
use serde_json::{Value, json};

const A: DomainId = DomainId(1);
const B: DomainId = DomainId(2);

const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
const TRIMMING: &str = "{{ '<|begin_of_text|>' }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n\
    {{ m.content | trim }}<|eot_id|>{% endfor %}\
    {% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}";
const INST: &str = "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content | trim }} [/INST]\
    {% else %} {{ m.content | trim }} </s>{% endif %}{% endfor %}";

struct Chat {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    table: ReplyTable,
    messages: Vec<Value>,
}

impl Chat {
    fn new(tokenizer: &Tokenizer, template: &str) -> Self {
        let template = ChatTemplate::from_config(&json!({ "chat_template": template }), None).unwrap();
        Chat { tokenizer: tokenizer.clone(), template, table: ReplyTable::new(1 << 20), messages: Vec::new() }
    }

    fn say(&mut self, role: &str, content: &str) {
        self.messages.push(json!({ "role": role, "content": content }));
    }

    fn prompt(&self, domain: DomainId) -> Prompt {
        let input = ChatInput { messages: &self.messages, add_generation_prompt: true, ..ChatInput::default() };
        splice(&self.tokenizer, &self.template, &self.table, domain, &input).unwrap()
    }

    /// The model answers with these ids; the client sends the text back in its next request.
    fn answer(&mut self, prompt: &Prompt, ids: &[u32]) -> String {
        let mut stream = Detokenizer::after_prompt(&self.tokenizer, true);
        let mut text: String = ids.iter().map(|&id| stream.push(id)).collect();
        text += &stream.finish();
        self.table.remember(&self.tokenizer, prompt.key, &text, ids);
        self.say("assistant", &text);
        text
    }

    fn bytes(&self, ids: &[u32]) -> Vec<u8> {
        ids.iter().flat_map(|&id| self.tokenizer.token_bytes(id)).collect()
    }
}

fn named(name: &str) -> Tokenizer {
    TOKENIZERS.with(|all| all.iter().find(|(n, _)| n == name).unwrap().1.clone())
}

/// Ids that spell `text` byte by byte: what no tokenizer would choose.
fn byte_by_byte(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let find = |byte: u8| (0..tokenizer.vocab_size() as u32).rev().find(|&id| tokenizer.token_bytes(id) == [byte]);
    text.bytes().map(|byte| find(byte).unwrap()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Decoding the ids gives the rendered text, and the next prompt begins with this prompt and this reply's ids.
    #[test]
    fn next_turn_hits_up_to_the_last_token(
        turns in prop::collection::vec(("[a-c \n{é<]{0,12}", prop::collection::vec(any::<u32>(), 1..20)), 1..5),
        eos in any::<bool>(),
    ) {
        for (name, tokenizer) in TOKENIZERS.with(Clone::clone) {
            // A normalizer may change text that is tokenised; NFC leaves this text as it is.
            if !["embedded", "llama3", "qwen2"].contains(&name.as_str()) {
                continue;
            }
            let mut chat = Chat::new(&tokenizer, CHATML);
            let end = tokenizer.special_ids()[2];
            let mut before: Option<(Vec<u32>, usize)> = None;
            for (user, seed) in &turns {
                chat.say("user", user);
                let prompt = chat.prompt(A);
                prop_assert_eq!(chat.bytes(&prompt.ids), prompt.text.as_bytes());
                if let Some((path, spliced)) = &before {
                    prop_assert!(prompt.ids.starts_with(path), "{}", name);
                    prop_assert_eq!(prompt.spliced, *spliced);
                }
                // Any tokens but special ones; those that leave UTF-8 broken are kept up to the break.
                let size = tokenizer.vocab_size() as u32 - 16;
                let mut ids: Vec<u32> = seed.iter().map(|n| n % size).filter(|&id| !tokenizer.is_special(id)).collect();
                while std::str::from_utf8(&chat.bytes(&ids)).is_err() {
                    ids.pop();
                }
                let path = [&prompt.ids[..], &ids[..]].concat();
                let spliced = prompt.spliced + ids.len();
                if eos {
                    ids.push(end);
                }
                chat.answer(&prompt, &ids);
                before = Some((path, spliced));
            }
            // Another tenant gets the plain ids.
            let plain = chat.prompt(B);
            prop_assert_eq!(plain.spliced, 0);
            prop_assert_eq!(plain.ids, tokenizer.encode(&plain.text, false).unwrap());
        }
    }
}

#[test]
fn broken_utf8_is_spliced_up_to_the_break() {
    let tokenizer = named("llama3");
    let mut chat = Chat::new(&tokenizer, CHATML);
    chat.say("user", "x");
    let prompt = chat.prompt(A);
    let mut ids = byte_by_byte(&tokenizer, "abé");
    ids.extend(&byte_by_byte(&tokenizer, "€")[..2]);
    assert_eq!(chat.answer(&prompt, &ids), "abé\u{FFFD}");
    chat.say("user", "y");
    let next = chat.prompt(A);
    assert_eq!(next.spliced, 4);
    assert!(next.ids.starts_with(&[&prompt.ids[..], &ids[..4]].concat()));
    assert_eq!(String::from_utf8(chat.bytes(&next.ids)).unwrap(), next.text);
}

#[test]
fn a_stop_string_cuts_the_reply_inside_a_token() {
    let tokenizer = named("embedded");
    let mut chat = Chat::new(&tokenizer, CHATML);
    chat.say("user", "x");
    let prompt = chat.prompt(A);
    let ids = tokenizer.encode("the function returns the value", false).unwrap();
    let text = "the function ret";
    chat.table.remember(&tokenizer, prompt.key, text, &ids);
    chat.say("assistant", text);
    let next = chat.prompt(A);
    assert!(next.spliced > 0 && next.spliced < ids.len());
    assert!(next.ids.starts_with(&[&prompt.ids[..], &ids[..next.spliced]].concat()));
    assert_eq!(tokenizer.decode(&next.ids, false), next.text);
}

#[test]
fn a_trimming_template_keeps_what_is_verbatim() {
    let tokenizer = named("llama3");
    let mut chat = Chat::new(&tokenizer, TRIMMING);
    chat.say("user", "x");
    let prompt = chat.prompt(A);
    assert_eq!(prompt.ids.iter().filter(|&&id| id == tokenizer.id_of("<|begin_of_text|>").unwrap()).count(), 1);
    let ids = byte_by_byte(&tokenizer, "tree\n\n");
    chat.answer(&prompt, &ids);
    let next = chat.prompt(A);
    assert_eq!(next.spliced, 4, "the space is gone");
    assert!(next.ids.starts_with(&[&prompt.ids[..], &ids[..4]].concat()));

    // Trimmed in front: nothing stands where it was generated.
    chat.messages.truncate(1);
    chat.answer(&prompt, &byte_by_byte(&tokenizer, " tree"));
    let next = chat.prompt(A);
    assert_eq!((next.spliced, &next.ids), (0, &tokenizer.encode(&next.text, false).unwrap()));
}

#[test]
fn metaspace_tokenizers_splice_without_an_extra_space() {
    for name in ["llama2", "llama2-metaspace"] {
        let tokenizer = named(name);
        let mut chat = Chat::new(&tokenizer, INST);
        chat.say("user", "which tree?");
        let prompt = chat.prompt(A);
        let mut ids = byte_by_byte(&tokenizer, " the");
        ids.extend([
            tokenizer.id_of("▁prefix").unwrap_or(tokenizer.id_of("▁p").unwrap()),
            tokenizer.id_of("</s>").unwrap(),
        ]);
        let text = chat.answer(&prompt, &ids);
        assert!(text.starts_with(" the p"), "{text:?}");
        chat.say("user", "why?");
        let next = chat.prompt(A);
        assert_eq!(next.spliced, ids.len() - 1, "{name}");
        assert!(next.ids.starts_with(&[&prompt.ids[..], &ids[..ids.len() - 1]].concat()));
        // The rest is what the tokenizer makes of it where nothing stands before it.
        let rest = &next.ids[prompt.ids.len() + ids.len() - 1..];
        assert_eq!(tokenizer.token_bytes(rest[0]), b" ", "{name}");
        assert_eq!(rest[1], tokenizer.id_of("</s>").unwrap());
        let plain = tokenizer.encode(&next.text, false).unwrap();
        assert_eq!(chat.bytes(&next.ids), chat.bytes(&plain), "{name}");
    }
}

#[test]
fn edited_or_moved_replies_are_tokenised_plainly() {
    let tokenizer = named("embedded");
    let mut chat = Chat::new(&tokenizer, CHATML);
    chat.say("user", "question");
    let prompt = chat.prompt(A);
    let ids = byte_by_byte(&tokenizer, "same words");
    chat.answer(&prompt, &ids);
    assert_eq!(chat.prompt(A).spliced, ids.len());

    let plain = |chat: &Chat| {
        let prompt = chat.prompt(A);
        assert_eq!((prompt.spliced, &prompt.ids), (0, &tokenizer.encode(&prompt.text, false).unwrap()));
    };
    chat.messages[1]["content"] = "same words!".into();
    plain(&chat);
    chat.messages[1]["content"] = "same words".into();
    chat.messages[0]["content"] = "questions".into();
    plain(&chat);
    chat.messages[0]["content"] = "Question".into();
    plain(&chat);
    // The same text where the user says it is no reply.
    chat.messages =
        vec![json!({ "role": "user", "content": "question" }), json!({ "role": "user", "content": "same words" })];
    plain(&chat);
}

#[test]
fn choices_of_one_prompt_are_told_apart() {
    let tokenizer = named("embedded");
    let mut chat = Chat::new(&tokenizer, CHATML);
    chat.say("user", "n = 2");
    let prompt = chat.prompt(A);
    let replies = ["first one", "second one"].map(|text| byte_by_byte(&tokenizer, text));
    for ids in &replies {
        chat.answer(&prompt, ids);
        chat.messages.pop();
    }
    for (text, ids) in ["first one", "second one"].iter().zip(&replies) {
        chat.say("assistant", text);
        assert!(chat.prompt(A).ids.starts_with(&[&prompt.ids[..], &ids[..]].concat()));
        chat.messages.pop();
    }
}

#[test]
fn an_earlier_reply_lost_means_the_later_is_not_used() {
    let tokenizer = named("embedded");
    let mut chat = Chat::new(&tokenizer, CHATML);
    let mut keys = Vec::new();
    for turn in 0..3 {
        chat.say("user", "again");
        let prompt = chat.prompt(A);
        let text = format!("answer {turn}");
        chat.answer(&prompt, &byte_by_byte(&tokenizer, &text));
        keys.push((prompt, text));
    }
    let whole = chat.prompt(A);
    assert_eq!(whole.spliced, 3 * "answer 0".len());

    // The second is replaced by other ids of the same text: the third stood after the first ones.
    let (prompt, text) = &keys[1];
    let other = tokenizer.encode(text, false).unwrap();
    chat.table.remember(&tokenizer, prompt.key, text, &other);
    let next = chat.prompt(A);
    assert_eq!(next.spliced, "answer 0".len() + other.len());
    assert_eq!(tokenizer.decode(&next.ids, false), next.text);
}

#[test]
fn the_table_is_bounded_and_forgets_the_least_used() {
    let tokenizer = named("embedded");
    let mut chat = Chat::new(&tokenizer, CHATML);
    chat.table = ReplyTable::new(4000);
    let mut prompts = Vec::new();
    for i in 0..40 {
        chat.messages.clear();
        chat.say("user", &format!("question {i}"));
        let prompt = chat.prompt(A);
        chat.answer(&prompt, &byte_by_byte(&tokenizer, "reply"));
        prompts.push(chat.messages.clone());
        // The first is used all the time.
        chat.messages = prompts[0].clone();
        assert_eq!(chat.prompt(A).spliced, 5, "after {i}");
        assert!(chat.table.stats().bytes <= 4000);
    }
    let stats = chat.table.stats();
    assert!((10..30).contains(&stats.entries), "{stats:?}");
    let kept = |chat: &mut Chat, i: usize| {
        chat.messages = prompts[i].clone();
        chat.prompt(A).spliced == 5
    };
    assert!(!kept(&mut chat, 1) && !kept(&mut chat, 10));
    assert!(kept(&mut chat, 39) && kept(&mut chat, 0));

    chat.table.forget(B);
    assert_eq!(chat.table.stats(), stats);
    chat.table.forget(A);
    assert_eq!(chat.table.stats(), Default::default());
    assert!(!kept(&mut chat, 0));

    chat.table = ReplyTable::new(0);
    let prompt = chat.prompt(A);
    chat.answer(&prompt, &byte_by_byte(&tokenizer, "reply"));
    assert_eq!(chat.table.stats(), Default::default());
}

/// A later reply is no use without the earlier ones, so it goes first.
#[test]
fn a_conversation_is_forgotten_from_its_end() {
    let tokenizer = named("embedded");
    let mut chat = Chat::new(&tokenizer, CHATML);
    chat.table = ReplyTable::new(500);
    for _ in 0..2 {
        chat.say("user", "again");
        let prompt = chat.prompt(A);
        chat.answer(&prompt, &byte_by_byte(&tokenizer, "reply"));
    }
    assert_eq!(chat.prompt(A).spliced, 10);
    let conversation = std::mem::take(&mut chat.messages);
    chat.say("user", "question");
    let prompt = chat.prompt(A);
    chat.answer(&prompt, &byte_by_byte(&tokenizer, "reply"));
    assert_eq!(chat.table.stats().entries, 2);
    chat.messages = conversation;
    assert_eq!(chat.prompt(A).spliced, 5);
}

thread_local! {
    static TOKENIZERS: Vec<(String, Tokenizer)> = tokenizers();
}
