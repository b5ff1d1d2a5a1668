//! What is wrong with a configuration: everything at once, each with its place.

use std::fmt;

use super::node::At;
use super::yaml::YamlError;

/// One thing that is wrong. Never contains a value that may be secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where, if there is a place.
    pub at: Option<At>,
    /// Dotted path of the key (`postgresql.listen`); empty when it concerns no key.
    pub key: String,
    /// What is wrong, and what to do.
    pub what: String,
}

impl Problem {
    /// A problem with a place.
    #[must_use]
    pub fn at(at: &At, key: &str, what: impl Into<String>) -> Problem {
        Problem { at: Some(at.clone()), key: key.to_owned(), what: what.into() }
    }

    /// Whether it is about one place of a file, and not about a variable or a document as a whole.
    pub(super) fn has_line(&self) -> bool {
        self.at.as_ref().is_some_and(At::has_line)
    }

    /// A problem without key.
    #[must_use]
    pub fn general(what: &str) -> Problem {
        Problem { at: None, key: String::new(), what: what.to_owned() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(at) = &self.at {
            write!(f, "{at}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.what)
    }
}

/// Everything that is wrong; one line each in `Display`. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<Problem>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl From<Problem> for ConfigErrors {
    fn from(problem: Problem) -> Self {
        ConfigErrors(vec![problem])
    }
}

impl From<YamlError> for ConfigErrors {
    fn from(error: YamlError) -> Self {
        Problem::at(&error.at, "", error.what).into()
    }
}
