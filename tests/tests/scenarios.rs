//! Every scenario tells the story that its file says. `UPDATE=1` writes down what it tells now: read that diff like code.

use std::fs;
use std::path::{Path, PathBuf};

use regent_tests::script::{diff, join, play, scenarios, split};

/// `ONLY=bootstrap cargo test -p regent-tests --test scenarios` plays those whose name contains that.
#[test]
fn scenarios_tell_their_stories() {
    let (update, only) = (std::env::var_os("UPDATE").is_some(), std::env::var("ONLY").unwrap_or_default());
    let files: Vec<_> = scenarios().into_iter().filter(|path| path.to_string_lossy().contains(&only)).collect();
    assert!(!files.is_empty(), "no scenario is called {only}");
    let (one, other) = files.split_at(files.len() / 2);
    let problems: Vec<String> = std::thread::scope(|scope| {
        let check_all = |files: &[PathBuf]| files.iter().filter_map(|path| check(path, update)).collect::<Vec<_>>();
        let half = scope.spawn(move || check_all(one));
        let rest = check_all(other);
        half.join().expect("a scenario must not panic").into_iter().chain(rest).collect()
    });
    assert!(problems.is_empty(), "{}\nUPDATE=1 writes the new stories down.", problems.join("\n"));
}

fn check(path: &Path, update: bool) -> Option<String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let scenario = fs::read_to_string(path).expect("a scenario that can be read");
    let (script, told_before) = split(&scenario);
    let story = match play(&name, script) {
        Ok(story) => story,
        Err(error) => return Some(error.to_string()),
    };
    if update {
        fs::write(path, join(script, &story)).expect("a scenario that can be written");
        return None;
    }
    (story.text != told_before).then(|| format!("{name} tells another story:\n{}", diff(told_before, &story.text)))
}
