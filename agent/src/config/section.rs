//! Reading the keys of a mapping, noting on the way what is wrong with them.

use super::node::{At, Node};
use super::{Problem, values};

/// What was noticed while reading.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// Reasons not to start.
    pub(super) problems: Vec<Problem>,
    /// Reasons to look at the file.
    pub(super) warnings: Vec<Problem>,
    /// Those of them that are about a value which is not taken as it was written.
    pub(super) invalid: Vec<Problem>,
}

impl Report {
    pub(super) fn problem(&mut self, at: &At, key: &str, what: impl Into<String>) {
        self.problems.push(Problem::at(at, key, what));
    }

    /// A warning about a value that cannot be taken as it was written.
    pub(super) fn invalid(&mut self, at: &At, key: &str, what: impl Into<String>) {
        self.warn(at, key, what);
        self.invalid.extend(self.warnings.last().cloned());
    }

    pub(super) fn warn(&mut self, at: &At, key: &str, what: impl Into<String>) {
        self.warnings.push(Problem::at(at, key, what));
    }
}

/// A mapping and its path; an absent one reads as empty.
#[derive(Clone, Debug)]
pub(super) struct Section<'a> {
    node: Option<&'a Node>,
    path: String,
}

impl<'a> Section<'a> {
    /// The whole tree.
    pub(super) fn root(node: &'a Node) -> Section<'a> {
        Section { node: Some(node), path: String::new() }
    }

    /// Any node under a path of its own.
    pub(super) fn of(node: Option<&'a Node>, path: &str) -> Section<'a> {
        Section { node, path: path.to_owned() }
    }

    /// The sub-mapping at `key`. Something else that is not empty is a problem.
    pub(super) fn child(&self, key: &str, report: &mut Report) -> Section<'a> {
        let node = self.get(key);
        let path = self.path_of(key);
        if let Some(wrong) = node.filter(|node| !node.is_map() && node.is_truthy()) {
            report.problem(&wrong.at, &path, format!("this is {}, but must be a mapping", wrong.kind()));
        }
        Section { node: node.filter(|node| node.is_map()), path }
    }

    /// Where the section itself begins, for messages about what is missing in it.
    pub(super) fn at(&self) -> Option<&'a At> {
        self.node.map(|node| &node.at)
    }

    pub(super) fn is_present(&self) -> bool {
        self.node.is_some()
    }

    pub(super) fn node(&self) -> Option<&'a Node> {
        self.node
    }

    pub(super) fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The value of a key, if it is there and not null.
    pub(super) fn get(&self, key: &str) -> Option<&'a Node> {
        self.node.and_then(|node| node.get(key))
    }

    /// A scalar as text; empty text counts as not set. A list or mapping is a problem.
    pub(super) fn text(&self, key: &str, report: &mut Report) -> Option<String> {
        let node = self.get(key)?;
        let text = node.written();
        if text.is_none() {
            report.problem(&node.at, &self.path_of(key), format!("this is {}, but must be text", node.kind()));
        }
        text.filter(|text| !text.is_empty())
    }

    /// Like [`Section::text`]; not being there is a problem.
    pub(super) fn required(&self, key: &str, report: &mut Report) -> Option<String> {
        let before = report.problems.len();
        let text = self.text(key, report);
        if text.is_none() && report.problems.len() == before {
            let at = self.get(key).map(|node| &node.at).or(self.at()).cloned();
            let variable = format!("PATRONI_{}", self.path_of(key).replace('.', "_").to_ascii_uppercase());
            let what = format!("is not defined; set it in the file or as {variable}");
            report.problems.push(Problem { at, key: self.path_of(key), what });
        }
        text
    }

    /// A whole number of at least `least`; anything else is a warning, and counts as not set.
    pub(super) fn number(&self, key: &str, least: i64, report: &mut Report) -> Option<u64> {
        let node = self.get(key)?;
        let number = values::integer(node).filter(|number| *number >= least.max(0)).and_then(|n| u64::try_from(n).ok());
        if number.is_none() {
            let what = format!("this is not a whole number of {least} or more; the default applies");
            report.warn(&node.at, &self.path_of(key), what);
        }
        number
    }

    /// Python's truth of the value.
    pub(super) fn truthy(&self, key: &str) -> bool {
        self.get(key).is_some_and(Node::is_truthy)
    }
}
