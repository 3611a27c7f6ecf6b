use std::fmt;

/// What can go wrong between text and ids.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TextError {
    /// `tokenizer.json` cannot be read or uses something that is not supported.
    Tokenizer(String),
    /// A text could not be encoded.
    Encode(String),
    /// The model has no chat template, or none of the wanted name.
    NoTemplate(String),
    /// The chat template does not parse.
    TemplateSyntax(String),
    /// The template itself refused the conversation: the message of its `raise_exception`.
    Raised(String),
    /// The template failed while rendering.
    Render(String),
    /// The template did more than this many steps.
    TooMuchWork { limit: u64 },
    /// The rendered text is longer than this many bytes.
    TooLong { limit: usize },
    /// What is to be generated cannot be: the schema, pattern or grammar is broken, contradicts itself, uses what is not
    /// supported, or is too large.
    Grammar(String),
    /// A request is not a conversation: the field (`messages[2].content`) and what is wrong with it.
    Invalid { field: String, message: String },
}

impl TextError {
    pub(crate) fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        TextError::Invalid { field: field.into(), message: message.into() }
    }

    /// Whether another request could be served by the same model: the fault is in what the client sent or asked for.
    pub fn is_clients(&self) -> bool {
        !matches!(self, TextError::Tokenizer(_) | TextError::TemplateSyntax(_))
    }
}

impl fmt::Display for TextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TextError::Tokenizer(what) => write!(f, "tokenizer: {what}"),
            TextError::Encode(what) => write!(f, "the text cannot be tokenised: {what}"),
            TextError::NoTemplate(what) => write!(f, "no chat template: {what}"),
            TextError::TemplateSyntax(what) => write!(f, "the chat template does not parse: {what}"),
            TextError::Raised(what) => write!(f, "the chat template refuses the conversation: {what}"),
            TextError::Render(what) => write!(f, "the chat template failed: {what}"),
            TextError::TooMuchWork { limit } => write!(f, "the chat template did more than {limit} steps"),
            TextError::TooLong { limit } => write!(f, "the rendered conversation is longer than {limit} bytes"),
            TextError::Grammar(what) => f.write_str(what),
            TextError::Invalid { field, message } => write!(f, "{field}: {message}"),
        }
    }
}

impl std::error::Error for TextError {}
