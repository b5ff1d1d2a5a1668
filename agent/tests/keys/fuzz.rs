//! No configuration, however mangled, makes the reader panic: files of the field, cut up and put together anew for a minute.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use regent::config::{LocalConfig, Secrets, Sources, effective, parse_yaml, print_config, sample};

use crate::MINIMAL;

/// Pieces that mean something to somebody.
const WORDS: &[&str] = &[
    "&a",
    "*a",
    "<<: *a",
    "!!int ",
    "!!binary |",
    "? ",
    "- ",
    ": ",
    "|\n",
    ">-\n",
    "{",
    "}",
    "[",
    "]",
    "---\n",
    "...\n",
    "%YAML 1.1\n",
    "#",
    "'",
    "\"",
    "\\",
    "\t",
    "\r\n",
    "\u{feff}",
    "\0",
    "\u{85}",
    "é",
    "${X}",
    "${X:-y}",
    "$${",
    "0640",
    "0o17",
    "1_000",
    "1:30",
    "-0",
    "+.inf",
    ".nan",
    "9223372036854775808",
    "1e999",
    "on",
    "Off",
    "~",
    "null",
    "=",
    "2024-01-02",
    "*:5432",
    "[::1]:1",
    ":",
    "10.0.0.1:99999",
    "1MB",
    "0.5GB",
    "-1",
    "30s",
    "ttl",
    "postgresql",
    "parameters",
    "bootstrap",
    "dcs",
    "tags",
    "slots",
    "log",
    "format",
    "%(",
    "%(message)s",
    "loggers",
];

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        // xorshift64* (Vigna, 2016).
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33).unwrap() % limit.max(1)
    }
}

fn mangled(dice: &mut Dice, files: &[Vec<u8>]) -> Vec<u8> {
    let mut text = files[dice.below(files.len())].clone();
    for _ in 0..=dice.below(6) {
        let (at, other) = (dice.below(text.len() + 1), &files[dice.below(files.len())]);
        let until = (at + dice.below(40)).min(text.len());
        match dice.below(6) {
            0 => drop(text.drain(at..until)),
            1 => text.splice(at..at, WORDS[dice.below(WORDS.len())].bytes()).for_each(drop),
            2 => {
                let from = dice.below(other.len());
                text.splice(at..until, other[from..(from + dice.below(60)).min(other.len())].iter().copied())
                    .for_each(drop);
            }
            3 => text.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << dice.below(8)),
            // Whole lines go elsewhere, and to another depth.
            4 => {
                let mut lines: Vec<Vec<u8>> = text.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
                let line = lines.remove(dice.below(lines.len()));
                let mut moved = vec![b' '; 2 * dice.below(4)];
                moved.extend(line.trim_ascii_start());
                lines.insert(dice.below(lines.len() + 1), moved);
                text = lines.join(&b'\n');
            }
            _ => text.splice(at..until, WORDS[dice.below(WORDS.len())].bytes()).for_each(drop),
        }
    }
    text
}

/// Everything that is ever made of a configuration. How far it came.
fn read(text: &str, other: &str) -> [bool; 3] {
    let parsed = parse_yaml("fuzz", text.as_bytes()).is_ok();
    let variables = [("PATRONI_CONFIGURATION", text), ("X", other), ("PATRONI_ETCD3_HOSTS", other)];
    let variables = variables.map(|(name, text)| (name.to_owned(), text.to_owned()));
    let Ok(local) = LocalConfig::load(&Sources::new(None, variables)) else { return [parsed, false, false] };
    let Ok(first) = local.bootstrap_dynamic() else { return [parsed, true, false] };
    let all = effective(&local, Some(&first));
    if let Ok(all) = &all {
        for secrets in [Secrets::Masked, Secrets::Shown] {
            let printed = print_config(&local, all, None, secrets);
            assert!(parse_yaml("printed", printed.as_bytes()).is_ok(), "what is printed cannot be read:\n{printed}");
        }
    }
    // Another file as the dynamic side.
    if let Ok(dynamic) = parse_yaml("dynamic", other.as_bytes()) {
        let _ = effective(&local, Some(&dynamic.to_json()));
    }
    [parsed, true, all.is_ok()]
}

#[test]
fn no_input_panics() {
    let seconds = std::env::var("REGENT_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/seeds");
    let mut files = vec![MINIMAL.as_bytes().to_vec(), sample(&Sources::new(None, [])).into_bytes()];
    let mut paths: Vec<_> = std::fs::read_dir(fixtures).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    files.extend(paths.iter().map(|path| std::fs::read(path).unwrap()));
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut dice = Dice(0x9E37_79B9_7F4A_7C15);
    let (mut tried, mut far) = (0_u64, [0_u64; 3]);
    while Instant::now() < end {
        let texts = [mangled(&mut dice, &files), mangled(&mut dice, &files)]
            .map(|text| String::from_utf8_lossy(&text).into_owned());
        let reached = catch_unwind(AssertUnwindSafe(|| read(&texts[0], &texts[1])));
        let reached = reached.unwrap_or_else(|_| panic!("input {tried} panics:\n{}\n=====\n{}", texts[0], texts[1]));
        tried += 1;
        far.iter_mut().zip(reached).for_each(|(count, reached)| *count += u64::from(reached));
    }
    println!(
        "{tried} inputs in {seconds} s: {} were YAML, {} could be started with, {} were effective",
        far[0], far[1], far[2]
    );
    assert!(far.iter().all(|count| *count > 20), "the inputs come no farther than the door: {tried} {far:?}");
}
