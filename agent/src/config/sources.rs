//! Where the local configuration comes from, and how its parts are laid over each other (config.md 1.1).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::node::{At, Node};
use super::{ConfigErrors, Problem, environment, fill, yaml};

/// The argument and the environment of the process, kept for reloads: variables are read once, files each time.
#[derive(Clone)]
pub struct Sources {
    path: Option<PathBuf>,
    variables: BTreeMap<String, String>,
}

/// The merged tree and what was noticed on the way.
pub(super) struct Merged {
    pub(super) tree: Node,
    pub(super) used: Vec<String>,
    pub(super) warnings: Vec<Problem>,
    /// What is wrong with values that stand elsewhere.
    pub(super) problems: Vec<Problem>,
}

impl Sources {
    /// `path` names a file or a directory; `variables` are those of the environment (others than `PATRONI_*` count only where a
    /// `${...}` names them).
    #[must_use]
    pub fn new(path: Option<PathBuf>, variables: impl IntoIterator<Item = (String, String)>) -> Sources {
        Sources { path, variables: variables.into_iter().collect() }
    }

    /// With the variables of this process; one whose name or text is not Unicode is left out.
    #[must_use]
    pub fn of_process(path: Option<PathBuf>) -> Sources {
        let unicode = |(name, text): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, text.into_string().ok()?))
        };
        Sources::new(path, std::env::vars_os().filter_map(unicode))
    }

    pub(super) fn variables(&self) -> &BTreeMap<String, String> {
        &self.variables
    }

    /// Whether there is a file or directory to read.
    pub(super) fn has_file(&self) -> bool {
        self.path.as_deref().is_some_and(Path::exists)
    }

    /// Reads and merges; says in the errors which file, line and column is not YAML or not a mapping.
    pub(super) fn merge(&self) -> Result<Merged, ConfigErrors> {
        let existing = self.path.as_deref().filter(|path| path.exists());
        let whole = self.variables.get(WHOLE).filter(|text| !text.trim().is_empty());
        if existing.is_none() && whole.is_some() {
            return self.whole(whole.map_or("", String::as_str));
        }
        let mut environment = environment::read(&self.variables);
        let (mut warnings, mut problems) = (environment.warnings, environment.problems);
        let mut tree = match (existing, &self.path) {
            (Some(path), _) => read_path(path)?,
            (None, missing) => {
                if let Some(path) = missing {
                    let what = format!("{} does not exist; going on with the environment alone", path.display());
                    warnings.push(Problem::general(&what));
                }
                Node::empty(At::whole("environment"))
            }
        };
        problems.extend(fill::fill(&mut tree, &self.variables, &mut environment.used));
        tree.patch(&environment.tree);
        if tree.entries().is_empty() {
            let missing = self.path.as_ref().filter(|path| !path.exists());
            let what = match missing {
                Some(path) => format!("Config is empty. {} does not exist", path.display()),
                None => "Config is empty.".to_owned(),
            };
            return Err(Problem::general(&what).into());
        }
        Ok(Merged { tree, used: environment.used, warnings, problems })
    }

    /// `PATRONI_CONFIGURATION` alone: no other variable counts.
    fn whole(&self, text: &str) -> Result<Merged, ConfigErrors> {
        let tree = yaml::parse(WHOLE, text.as_bytes())?;
        if tree.is_null() || tree.is_map() && tree.entries().is_empty() {
            return Err(Problem::general("Config is empty.").into());
        }
        if !tree.is_map() {
            return Err(not_a_mapping(WHOLE, &tree).into());
        }
        let ours = |name: &&String| name.starts_with("PATRONI_") && *name != WHOLE;
        let others = self.variables.keys().filter(ours).count();
        let note = format!("{WHOLE} is the whole configuration: {others} other PATRONI_* variables are not read");
        let mut tree = clean(tree);
        let mut used = vec![WHOLE.to_owned()];
        let problems = fill::fill(&mut tree, &self.variables, &mut used);
        let warnings = if others > 0 { vec![Problem::general(&note)] } else { Vec::new() };
        Ok(Merged { tree, used, warnings, problems })
    }
}

const WHOLE: &str = "PATRONI_CONFIGURATION";

fn not_a_mapping(source: &str, tree: &Node) -> Problem {
    Problem::at(&tree.at, "", format!("invalid config file {source}: it holds {}, not a mapping", tree.kind()))
}

/// Drops nulls of the top level, as a patch over nothing does.
fn clean(tree: Node) -> Node {
    let mut all = Node::empty(tree.at.clone());
    all.patch(&tree);
    all
}

fn read_path(path: &Path) -> Result<Node, ConfigErrors> {
    let unreadable = |path: &Path, error: std::io::Error| {
        Problem::general(&format!("cannot read {}: {error}; the agent's user needs read access", path.display()))
    };
    let mut files = Vec::new();
    if path.is_dir() {
        for entry in std::fs::read_dir(path).map_err(|error| unreadable(path, error))? {
            let file = entry.map_err(|error| unreadable(path, error))?.path();
            let named = file.extension().is_some_and(|end| end == "yml" || end == "yaml");
            if named && file.is_file() {
                files.push(file);
            }
        }
        files.sort_by(|a, b| a.as_os_str().as_encoded_bytes().cmp(b.as_os_str().as_encoded_bytes()));
    } else {
        files.push(path.to_owned());
    }
    let mut tree = Node::empty(At::whole(&path.display().to_string()));
    for file in files {
        let name = file.display().to_string();
        let bytes = std::fs::read(&file).map_err(|error| unreadable(&file, error))?;
        let part = yaml::parse(&name, &bytes)?;
        if !part.is_map() {
            return Err(not_a_mapping(&name, &part).into());
        }
        tree.patch(&part);
    }
    Ok(tree)
}
