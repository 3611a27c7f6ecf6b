use std::sync::{Arc, OnceLock};

use kvist_base::{Constraint, TokenId};
use llguidance::api::{GrammarInit, ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};
use llguidance::{Logger, Matcher, ParserFactory};

use super::costs::Costs;
use super::state::{Grammar, told};
use super::{GrammarSource, expressions, gbnf, lark, schema};
use crate::{TextError, Tokenizer};

/// Bounds of one grammar. Whatever a client sends, compiling it and each of its steps stay within a fraction of a
/// second and some tens of megabytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrammarLimits {
    /// Bytes of the source: the schema as compact JSON, the pattern, the grammar, all choices.
    pub bytes: usize,
    /// Levels of nesting of a schema.
    pub depth: usize,
    /// Strings of a choice.
    pub choices: usize,
    /// Work of building the lexer; about 50,000 are a millisecond.
    pub lexer_work: u64,
    /// Work in the lexer for the tokens that may come next; about 14,000 are a millisecond.
    pub step_lexer_work: u64,
    /// Items of the parser for the tokens that may come next; about 20,000 are a millisecond.
    pub step_items: usize,
    /// Items in one row of the parser: how ambiguous a grammar may be.
    pub row_items: usize,
    /// States of the lexer, of one to two kilobytes each.
    pub lexer_states: usize,
    /// Symbols in the rules.
    pub symbols: usize,
}

impl Default for GrammarLimits {
    fn default() -> Self {
        GrammarLimits {
            bytes: 128 << 10,
            depth: 64,
            choices: 4096,
            lexer_work: 250_000,
            step_lexer_work: 200_000,
            step_items: 50_000,
            row_items: 2000,
            lexer_states: 25_000,
            symbols: 45_000,
        }
    }
}

/// Stack of the thread that compiles. The parser recurses over schemas and expressions: [`GrammarLimits`] keep the
/// depth below what fits here. Only what is used of it takes memory.
const STACK: usize = 256 << 20;

/// Compiles grammars for one tokenizer. Its table of the vocabulary is built by the first one.
pub struct GrammarFactory {
    tokenizer: Tokenizer,
    limits: GrammarLimits,
    parsers: OnceLock<Result<ParserFactory, String>>,
}

impl GrammarFactory {
    pub fn new(tokenizer: &Tokenizer, limits: GrammarLimits) -> Self {
        GrammarFactory { tokenizer: tokenizer.clone(), limits, parsers: OnceLock::new() }
    }

    /// Compiles a grammar and works out what may come first, so that most of what can go wrong goes wrong here. Takes
    /// milliseconds as a rule, a second at most.
    pub fn compile(&self, source: &GrammarSource) -> Result<Grammar, TextError> {
        let refuse = TextError::Grammar;
        // Recursion on a stack of known size, and a panic of the parser ends only this thread.
        let compile = || self.translate(source).and_then(|(source, lenient)| self.parse(source, lenient));
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("kvist-grammar".into()).stack_size(STACK);
            match thread.spawn_scoped(scope, compile).map(|thread| thread.join()) {
                Ok(Ok(result)) => result.map_err(refuse),
                Ok(Err(_)) => Err(refuse("it is beyond what the parser can do".into())),
                Err(e) => Err(TextError::Tokenizer(format!("no thread to compile a grammar: {e}"))),
            }
        })
    }

    /// The source in the parser's own terms, and whether it may leave something out.
    fn translate(&self, source: &GrammarSource) -> Result<(TopLevelGrammar, bool), String> {
        let limits = &self.limits;
        let fits = |bytes: usize| match bytes <= limits.bytes {
            true => Ok(()),
            false => Err(format!("it has {bytes} bytes; at most {} are allowed", limits.bytes)),
        };
        let (mut lenient, mut costs) = (false, Costs::default());
        let grammar = match source {
            GrammarSource::JsonObject => {
                let schema = schema::prepared(&schema::any_object(), true, limits, &mut costs)?;
                TopLevelGrammar::from_json_schema(schema)
            }
            GrammarSource::JsonSchema { schema, strict } => {
                lenient = !strict;
                TopLevelGrammar::from_json_schema(schema::prepared(schema, *strict, limits, &mut costs)?)
            }
            GrammarSource::Regex(pattern) => {
                fits(pattern.len())?;
                expressions::check(pattern, false)?;
                TopLevelGrammar::from_lark(lark::regex(pattern)?)
            }
            GrammarSource::Choice(choices) => {
                fits(choices.iter().map(String::len).sum())?;
                if choices.is_empty() || choices.len() > limits.choices {
                    return Err(format!("{} choices; 1 to {} are allowed", choices.len(), limits.choices));
                }
                TopLevelGrammar::from_lark(lark::choice(choices))
            }
            GrammarSource::Grammar(text) => {
                fits(text.len())?;
                match gbnf::is_gbnf(text) {
                    true => TopLevelGrammar::from_lark(gbnf::to_lark(text)?),
                    false => TopLevelGrammar::from_lark(lark::read(text, limits, &mut costs)?),
                }
            }
            GrammarSource::Calls(calls) => return calls.grammar(limits),
        };
        Ok((grammar, lenient))
    }

    fn parse(&self, source: TopLevelGrammar, lenient: bool) -> Result<Grammar, String> {
        let parsers = self.parsers.get_or_init(|| parsers(&self.tokenizer)).as_ref()?;
        let limits = ParserLimits {
            max_items_in_row: self.limits.row_items,
            initial_lexer_fuel: self.limits.lexer_work,
            step_lexer_fuel: self.limits.step_lexer_work,
            step_max_items: self.limits.step_items,
            max_lexer_states: self.limits.lexer_states,
            max_grammar_size: self.limits.symbols,
            precompute_large_lexemes: false,
            verbose_errors: false,
        };
        let parser = parsers.create_parser_from_init_ext(
            GrammarInit::Serialized(source),
            Logger::new(0, 0),
            InferenceCapabilities::default(),
            limits,
        );
        let end = parsers.tok_env().eos_token();
        let mut grammar = Grammar::new(Matcher::new(Ok(parser.map_err(|e| told(&e))?)), end);
        let warnings = grammar.warnings();
        if !lenient && !warnings.is_empty() {
            return Err(told(&warnings.join("; ")));
        }
        let allowed = grammar.allowed()?;
        if !allowed.end && allowed.tokens.iter().all(|&word| word == 0) {
            return Err("no text of this vocabulary can match".into());
        }
        Ok(grammar)
    }
}

fn parsers(tokenizer: &Tokenizer) -> Result<ParserFactory, String> {
    let env: TokEnv = Arc::new(Vocabulary::new(tokenizer));
    let caps = InferenceCapabilities::default();
    ParserFactory::new(&env, caps, &SlicedBiasComputer::general_slices()).map_err(|e| told(&e))
}

/// The model's tokens by their exact bytes, and after them one that stands for the end of the text: which of its
/// tokens end a text is the engine's matter.
struct Vocabulary(TokTrie);

impl Vocabulary {
    fn new(tokenizer: &Tokenizer) -> Self {
        let named = |name: &[u8]| [&[TokTrie::SPECIAL_TOKEN_MARKER], name].concat();
        let size = tokenizer.vocab_size() as TokenId;
        let word = |id: TokenId| match tokenizer.token_bytes(id) {
            // Only by name: their text is not theirs to match.
            bytes if tokenizer.is_special(id) => named(&bytes),
            // No text of UTF-8 begins or goes on like this, and it would be taken for a special token's name.
            bytes if bytes.starts_with(&[TokTrie::SPECIAL_TOKEN_MARKER]) => Vec::new(),
            bytes => bytes,
        };
        let words: Vec<Vec<u8>> = (0..size).map(word).chain([named(b"<|end of text|>")]).collect();
        Vocabulary(TokTrie::from(&TokRxInfo::new(size + 1, size), &words))
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.0
    }

    fn tokenize_bytes(&self, text: &[u8]) -> Vec<TokenId> {
        self.0.greedy_tokenize(text)
    }

    /// Tokens are never forced upon the model: any of its ways to spell what must come is allowed.
    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}
