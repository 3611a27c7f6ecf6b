use std::fmt;

/// Why the program stops: what is wrong and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub what: String,
    pub hint: String,
    /// 1 = it could not be done, 2 = it was asked for wrongly.
    pub code: u8,
}

pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    pub fn new(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Failure { what: what.into(), hint: hint.into(), code: 1 }
    }

    /// Everything has been said; only the exit code is left.
    pub fn said() -> Self {
        Failure::new("", "")
    }

    /// A wrong command line or configuration.
    pub fn usage(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Failure { code: 2, ..Failure::new(what, hint) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.what)?;
        if !self.hint.is_empty() {
            write!(f, "\nhint: {}", self.hint)?;
        }
        Ok(())
    }
}
