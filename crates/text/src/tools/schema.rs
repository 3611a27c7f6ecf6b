//! Which calls a reply may consist of, as a grammar in the form that the model's template writes.

use serde_json::{Value, json};

use super::{Dialect, Thinking, ToolFormat};
use crate::Tokenizer;
use crate::grammar::{CallForm, Calls, Free, GrammarSource, Reasoning};
use crate::json::{Style, dumps};

/// A function that may be called.
#[derive(Clone, Debug, PartialEq)]
pub struct Function {
    pub name: String,
    /// JSON schema of the arguments; `None` for a function that takes none.
    pub parameters: Option<Value>,
    /// The arguments must follow the schema to the letter.
    pub strict: bool,
}

impl Dialect {
    /// The grammar of replies that call some of `functions`: with `demanded` nothing but calls, otherwise text, too.
    /// With `many` they may make several calls. `None` if calls are not read at all.
    pub fn calls(
        &self,
        tokenizer: &Tokenizer,
        functions: &[Function],
        demanded: bool,
        many: bool,
        thinking: Thinking,
    ) -> Option<GrammarSource> {
        let format = self.tools?;
        let reasoning = self.reasoning.filter(|_| thinking != Thinking::Done).map(|tags| Reasoning {
            open: (thinking == Thinking::NotBegun).then(|| tags.open.to_owned()),
            close: tags.close.to_owned(),
        });
        let words: Vec<&str> = format.tokens().iter().copied().chain(self.reasoning_marks()).collect();
        let (open, between, close) = match format {
            ToolFormat::Mistral if self.named_calls => ("", "", ""),
            ToolFormat::Mistral => ("[TOOL_CALLS] [", ", ", "]"),
            ToolFormat::Llama3 => ("", "; ", ""),
            ToolFormat::Hermes | ToolFormat::Generic => ("", "\n", ""),
        };
        let free = match format {
            _ if demanded => Free::No,
            ToolFormat::Hermes | ToolFormat::Mistral => Free::Until(format.mark().to_owned()),
            ToolFormat::Llama3 | ToolFormat::Generic => Free::Instead,
        };
        Some(GrammarSource::Calls(Calls {
            reasoning,
            free,
            forms: functions.iter().map(|function| self.form(format, function)).collect(),
            open: open.to_owned(),
            between: between.to_owned(),
            close: close.to_owned(),
            many,
            marks: Calls::marks(tokenizer, &words),
        }))
    }

    fn form(&self, format: ToolFormat, function: &Function) -> CallForm {
        let name = dumps(&function.name.as_str().into(), &Style::one_line());
        let object = |key: &str| (format!("{{\"name\": {name}, \"{key}\": "), "}".to_owned());
        let (begin, end) = match format {
            ToolFormat::Hermes => {
                let (begin, end) = object("arguments");
                (format!("<tool_call>\n{begin}"), format!("{end}\n</tool_call>"))
            }
            ToolFormat::Mistral if self.named_calls => (format!("[TOOL_CALLS]{}[ARGS]", function.name), String::new()),
            ToolFormat::Llama3 => object("parameters"),
            ToolFormat::Mistral | ToolFormat::Generic => object("arguments"),
        };
        CallForm { begin, schema: arguments(function), strict: function.strict, end }
    }
}

/// The schema of a function's arguments, which are an object whether it says so or not.
fn arguments(function: &Function) -> Value {
    match &function.parameters {
        None => json!({"type": "object", "properties": {}, "additionalProperties": false}),
        Some(Value::Object(schema)) if !schema.contains_key("type") => {
            let mut schema = schema.clone();
            schema.insert("type".into(), "object".into());
            Value::Object(schema)
        }
        Some(schema) => schema.clone(),
    }
}
