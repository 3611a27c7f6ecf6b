use std::collections::BTreeMap;
use std::fmt;
use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value as Jinja};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State};
use serde_json::{Map, Value};

use crate::TextError;
use crate::json::{Style, dumps};
use crate::messages::normalise;
use crate::python;
use crate::strftime::strftime;
use crate::tools::{Dialect, ToolSetting, in_plain_messages};

/// Steps of the template machine that one rendering may take; a message costs some tens.
const FUEL: u64 = 10_000_000;
/// Depth of macros and nested blocks.
const RECURSION: usize = 200;
/// Longest prompt text, in bytes.
const OUTPUT: usize = 64 << 20;
/// Variables that a request cannot set by `chat_template_kwargs`.
const RESERVED: [&str; 5] = ["messages", "tools", "documents", "add_generation_prompt", NOW];
/// Holds the time of the request for `strftime_now`. Not an identifier, so no template can see it.
const NOW: &str = "\0now";
/// Marks the end of the message to be continued; stripped of its space it survives any trimming.
const CONTINUE: &str = "\u{F8FF}CONTINUE\u{F8FF} ";

/// One conversation to be rendered.
#[derive(Clone, Debug, Default)]
pub struct ChatInput<'a> {
    /// Messages as clients send them: objects with `role`, `content` (string, null, or list of `text` parts) and
    /// whatever else the template reads (`name`, `tool_calls`, ...).
    pub messages: &'a [Value],
    /// JSON schemas of the tools, as clients send them.
    pub tools: Option<&'a [Value]>,
    /// Ends the text where the model's reply begins.
    pub add_generation_prompt: bool,
    /// Leaves the last message open, so that the model goes on with it.
    pub continue_final_message: bool,
    /// Further variables for the template (`chat_template_kwargs`).
    pub kwargs: Option<&'a Map<String, Value>>,
    /// Seconds since 1970 for templates that ask for the date (`strftime_now`), UTC.
    pub now: u64,
}

/// A model's chat template, with the semantics of Hugging Face `apply_chat_template`.
///
/// What users write is data: it is never parsed as a template and never escaped. Steps, recursion and output are bounded;
/// a template can read nothing but its arguments. What its intermediate values take is not bounded: the machine counts
/// steps and no bytes, and has no hook at `~`, `+`, `*` or captures. A template that doubles a string in a loop takes all
/// memory, so templates are to be trusted as far as that.
pub struct ChatTemplate {
    env: Environment<'static>,
    names: Vec<String>,
    /// `bos_token`, `eos_token` and so on.
    special: Map<String, Value>,
    dialect: Dialect,
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("names", &self.names).field("special", &self.special).finish()
    }
}

impl ChatTemplate {
    /// From `tokenizer_config.json` and, where a model has one, the text of `chat_template.jinja`, which takes
    /// precedence. [`TextError::NoTemplate`] for a model without any.
    pub fn from_config(tokenizer_config: &Value, jinja_file: Option<&str>) -> Result<Self, TextError> {
        let mut special = Map::new();
        for name in ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"] {
            let token = &tokenizer_config[name];
            // A token is a string, or an object that describes it.
            if let Some(text) = token.as_str().or_else(|| token["content"].as_str()) {
                special.insert(name.to_owned(), text.into());
            }
        }
        let mut templates = Vec::new();
        match (jinja_file, &tokenizer_config["chat_template"]) {
            (Some(source), _) => templates.push(("default".to_owned(), source.to_owned())),
            (None, Value::String(source)) => templates.push(("default".to_owned(), source.clone())),
            (None, Value::Array(list)) => {
                for entry in list {
                    let (Some(name), Some(source)) = (entry["name"].as_str(), entry["template"].as_str()) else {
                        return Err(TextError::NoTemplate("an entry of `chat_template` lacks name or template".into()));
                    };
                    templates.push((name.to_owned(), source.to_owned()));
                }
            }
            (None, _) => {
                return Err(TextError::NoTemplate(
                    "tokenizer_config.json has no `chat_template`; use the completions API".into(),
                ));
            }
        }
        Self::new(templates, special)
    }

    /// From named template texts and the special tokens that they see as variables.
    pub fn new(templates: Vec<(String, String)>, special: Map<String, Value>) -> Result<Self, TextError> {
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        env.set_syntax(syntax.map_err(|e| TextError::TemplateSyntax(e.to_string()))?);
        env.set_auto_escape_callback(|_| AutoEscape::None);
        env.set_unknown_method_callback(python::method);
        env.set_fuel(Some(FUEL));
        env.set_recursion_limit(RECURSION);
        env.set_formatter(|out, _, value| match value.as_str() {
            Some(text) => Ok(out.write_str(text)?),
            None => Ok(out.write_str(&python::str(value)?)?),
        });
        env.add_filter("tojson", tojson);
        env.add_filter("trim", python::trim);
        env.add_filter("string", python::string);
        env.add_filter("join", python::join);
        env.add_filter("indent", python::indent);
        env.add_filter("length", python::length);
        env.add_filter("count", python::length);
        env.add_test("iterable", python::is_iterable);
        env.add_function("raise_exception", |message: String| -> Result<Jinja, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message)))
        });
        env.add_function("strftime_now", |state: &State, format: &str| -> Result<String, Error> {
            let now = state.lookup(NOW).and_then(|v| u64::try_from(v).ok()).unwrap_or(0);
            Ok(strftime(format, now))
        });
        let names = templates.iter().map(|(name, _)| name.clone()).collect();
        for (name, source) in templates {
            env.add_template_owned(name, prepare(&source)).map_err(|e| TextError::TemplateSyntax(describe(&e)))?;
        }
        Ok(ChatTemplate { env, names, special, dialect: Dialect::default() })
    }

    /// Finds out how the model writes calls and, if wanted, reasoning. Until then replies are plain text, and tools are
    /// the template's affair alone.
    pub fn learn_dialect(&mut self, tools: ToolSetting, reasoning: bool) {
        self.dialect = Dialect::of(self, tools, reasoning);
    }

    pub fn dialect(&self) -> &Dialect {
        &self.dialect
    }

    /// The texts of the templates.
    pub(crate) fn sources(&self) -> Vec<String> {
        self.names.iter().filter_map(|name| self.env.get_template(name).ok()).map(|t| t.source().to_owned()).collect()
    }

    /// The template for a conversation without tools, but for its line ends and `{% generation %}`.
    pub fn source(&self) -> Option<String> {
        self.env.get_template(self.choose(false).ok()?).ok().map(|t| t.source().to_owned())
    }

    /// The text of a special token that templates see by this name (`bos_token`, `eos_token`, ...).
    pub fn special(&self, name: &str) -> Option<&str> {
        self.special.get(name).and_then(Value::as_str)
    }

    /// The prompt text of a conversation.
    pub fn render(&self, input: &ChatInput) -> Result<String, TextError> {
        self.render_normalised(&normalise(input.messages)?, input)
    }

    /// As [`Self::render`], by the template alone whatever the dialect is.
    pub(crate) fn render_plainly(&self, input: &ChatInput) -> Result<String, TextError> {
        self.open_or_whole(&normalise(input.messages)?, input)
    }

    pub(crate) fn render_normalised(&self, messages: &[Value], input: &ChatInput) -> Result<String, TextError> {
        match self.dialect.instructions {
            Some(place) => {
                let messages = in_plain_messages(messages, input.tools, place);
                self.open_or_whole(&messages, &ChatInput { tools: None, ..*input })
            }
            None => self.open_or_whole(messages, input),
        }
    }

    fn open_or_whole(&self, messages: &[Value], input: &ChatInput) -> Result<String, TextError> {
        if !input.continue_final_message {
            return self.run(messages, input);
        }
        if input.add_generation_prompt {
            let message = "cannot be combined with `add_generation_prompt`";
            return Err(TextError::invalid("continue_final_message", message));
        }
        let mut messages = messages.to_vec();
        let Some(Value::String(content)) = messages.last_mut().and_then(|m| m.get_mut("content")) else {
            return Err(TextError::invalid("continue_final_message", "the last message has no text to continue"));
        };
        let shown = content.trim_matches(python::is_space).to_owned();
        content.push_str(CONTINUE);
        let mut text = self.run(&messages, input)?;
        let mark = CONTINUE.trim_end();
        let at = text.rfind(mark).filter(|_| text.contains(&shown));
        let Some(at) = at else {
            let message = "the chat template does not show the last message as it is";
            return Err(TextError::invalid("continue_final_message", message));
        };
        let verbatim = text[at..].starts_with(CONTINUE);
        text.truncate(at);
        if !verbatim {
            text.truncate(text.trim_end_matches(python::is_space).len());
        }
        Ok(text)
    }

    /// Runs the template. Where it fails on a conversation in which a message has no content (one that calls tools need
    /// not have any), it is run as if those were empty: many templates put them into sums unseen.
    fn run(&self, messages: &[Value], input: &ChatInput) -> Result<String, TextError> {
        let lacking = |message: &Value| message.get("content").is_none();
        match self.run_once(messages, input) {
            Err(TextError::Render(_)) if messages.iter().any(lacking) => {
                let mut messages = messages.to_vec();
                messages.iter_mut().filter(|m| lacking(m)).for_each(|m| m["content"] = "".into());
                self.run_once(&messages, input)
            }
            result => result,
        }
    }

    fn run_once(&self, messages: &[Value], input: &ChatInput) -> Result<String, TextError> {
        let mut variables: BTreeMap<String, Jinja> = BTreeMap::new();
        for (name, value) in self.special.iter().chain(input.kwargs.into_iter().flatten()) {
            if RESERVED.contains(&name.as_str()) {
                let field = format!("chat_template_kwargs.{name}");
                return Err(TextError::invalid(field, "cannot be set here"));
            }
            variables.insert(name.clone(), Jinja::from(Serde(value)));
        }
        variables.insert("messages".into(), Jinja::from(Serde(messages)));
        variables.insert("tools".into(), Jinja::from(Serde(input.tools)));
        variables.insert("documents".into(), Jinja::from(()));
        variables.insert("add_generation_prompt".into(), input.add_generation_prompt.into());
        variables.insert(NOW.into(), input.now.into());

        let name = self.choose(input.tools.is_some())?;
        let template = self.env.get_template(name).map_err(|e| TextError::NoTemplate(describe(&e)))?;
        let mut out = Capped { bytes: Vec::new(), full: false };
        let result = template.render_captured_to(Jinja::from_object(variables), &mut out).map(drop);
        match result {
            Ok(()) => String::from_utf8(out.bytes).map_err(|e| TextError::Render(e.to_string())),
            Err(_) if out.full => Err(TextError::TooLong { limit: OUTPUT }),
            Err(error) => Err(classify(&error)),
        }
    }

    /// As transformers: `tool_use` for a request with tools where there is one, else `default`, else the only one.
    fn choose(&self, tools: bool) -> Result<&str, TextError> {
        let has = |name: &str| self.names.iter().any(|n| n == name);
        match self.names.as_slice() {
            _ if tools && has("tool_use") => Ok("tool_use"),
            _ if has("default") => Ok("default"),
            [only] => Ok(only),
            _ => Err(TextError::NoTemplate(format!("none is called `default` among {:?}", self.names))),
        }
    }
}

/// Python's line ends, and `{% generation %}` (which marks assistant text for training) as a plain scope.
fn prepare(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        rest = tag;
        let name_at = tag.len() - tag.trim_start_matches(['-', '+']).trim_start().len();
        for (name, scope) in [("generation", "with"), ("endgeneration", "endwith")] {
            let ends = tag[name_at..].strip_prefix(name).map(|t| t.trim_start().trim_start_matches(['-', '+']));
            if ends.is_some_and(|t| t.starts_with("%}")) {
                out.push_str(&tag[..name_at]);
                out.push_str(scope);
                rest = &tag[name_at + name.len()..];
                break;
            }
        }
    }
    out.push_str(rest);
    out
}

/// The message of a template's `raise_exception`, carried through the machine's errors.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

fn classify(error: &Error) -> TextError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = cause {
        if let Some(Raised(message)) = e.downcast_ref() {
            return TextError::Raised(message.clone());
        }
        if e.downcast_ref::<Error>().is_some_and(|e| e.kind() == ErrorKind::OutOfFuel) {
            return TextError::TooMuchWork { limit: FUEL };
        }
        cause = e.source();
    }
    TextError::Render(describe(error))
}

fn describe(error: &Error) -> String {
    match error.line() {
        Some(line) => {
            format!("line {line}: {}{}", error.kind(), error.detail().map_or(String::new(), |d| format!(": {d}")))
        }
        None => error.to_string(),
    }
}

/// Keeps at most [`OUTPUT`] bytes; more is an error.
struct Capped {
    bytes: Vec<u8>,
    full: bool,
}

impl io::Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > OUTPUT {
            self.full = true;
            return Err(io::Error::other("output too long"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Python's `json.dumps` with the arguments that transformers gives its filter; nothing is escaped for HTML.
fn tojson(value: &Jinja, ensure_ascii: Option<bool>, kwargs: Kwargs) -> Result<String, Error> {
    if value.is_undefined() {
        return Err(Error::new(ErrorKind::UndefinedError, "tojson of an undefined value"));
    }
    python::bounded(value)?;
    let failed = |e: serde_json::Error| Error::new(ErrorKind::BadSerialization, e.to_string());
    let indent = match kwargs.get::<Option<Jinja>>("indent")? {
        Some(v) if v.is_none() || v.is_undefined() => None,
        Some(v) => match v.as_str() {
            Some(text) => Some(text.to_owned()),
            None => Some(" ".repeat(usize::try_from(v)?.min(32))),
        },
        None => None,
    };
    let item = if indent.is_some() { "," } else { ", " };
    let separators = match kwargs.get::<Option<Vec<String>>>("separators")?.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "separators are two strings")),
        None => (item.to_owned(), ": ".to_owned()),
    };
    let style = Style {
        ensure_ascii: ensure_ascii.or(kwargs.get("ensure_ascii")?).unwrap_or(false),
        indent,
        separators,
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    Ok(dumps(&serde_json::to_value(value).map_err(failed)?, &style))
}
