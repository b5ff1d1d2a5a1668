//! What is printed is the configuration: it can be read again, and shows no secret.

use proptest::prelude::*;
use regent::config::{Effective, LocalConfig, Secrets, Sources, print_config, sample};

use crate::{File, findings, load};

fn printed(local: &LocalConfig, all: &Effective, secrets: Secrets) -> String {
    print_config(local, all, None, secrets)
}

/// Everything that counts, without places.
fn meaning(all: &Effective, local: &LocalConfig) -> String {
    let mut all = all.clone();
    all.warnings.clear();
    all.invalid.clear();
    format!("{all:?} {:?} {:?} {:?} {:?}", local.log, local.ctl, local.etcd, local.may_bootstrap)
}

const FULL: &str = "
scope: demo
name: pg1
restapi: {listen: '127.0.0.1:8008', authentication: {username: u, password: CANARY1}}
ctl: {keyfile_password: CANARY2}
etcd3: {url: 'https://me:CANARY3@h:2379'}
bootstrap:
  dcs:
    ttl: 12
    own: {api_token: CANARY9}
    postgresql:
      parameters: {max_connections: 50, work_mem: 4MB}
      pg_hba: [local all all peer]
  initdb: [data-checksums]
postgresql:
  listen: '127.0.0.1:5432'
  data_dir: /pg/data
  authentication:
    superuser: {username: postgres, password: CANARY4, sslpassword: CANARY5}
    replication: {username: r, password: 0123}
  parameters: {Work_Mem: 8MB, max_connections: 500, log_line_prefix: '%m # [%p] ', 'my.password': CANARY6}
  recovery_conf: {restore_command: 'PGPASSWORD=CANARY7 x'}
tags: {own: 'a, {b', password: CANARY8, count: 5}
";

#[test]
fn every_value_has_its_place_and_every_secret_is_masked() {
    let (local, all) = load(FULL).unwrap();
    let text = printed(&local, &all, Secrets::Masked);
    assert!(!text.contains("CANARY"), "{text}");
    let line =
        |part: &str| text.lines().find(|line| line.contains(part)).unwrap_or_else(|| panic!("{part} in\n{text}"));
    assert!(line("scope: demo").ends_with("patroni.yml:2:8"), "{text}");
    assert!(line("ttl:").contains("ttl: 12") && line("ttl:").contains("patroni.yml:9:"), "{text}");
    assert!(line("loop_wait:").ends_with("# default, adjusted from 10"), "{text}");
    assert!(line("work_mem").contains("8MB") && line("work_mem").contains("patroni.yml:21:"), "{text}");
    assert!(line("max_connections").contains("50") && line("max_connections").contains("patroni.yml:12:"), "{text}");
    assert!(line("wal_level").ends_with("# default"), "{text}");
    assert!(line("pg_hba").contains("patroni.yml:13:"), "{text}");
    assert!(line("password: ").contains("'***'"), "{text}");
}

#[test]
fn the_copy_of_the_dynamic_configuration_is_named() {
    let (local, _) = load(FULL).unwrap();
    let dynamic = serde_json::json!({"pause": true, "ttl": 60});
    let all = regent::config::effective(&local, Some(&dynamic)).unwrap();
    let text = print_config(&local, &all, Some((&dynamic, "/pg/data/patroni.dynamic.json")), Secrets::Masked);
    let line = text.lines().find(|line| line.contains("pause:")).unwrap();
    assert!(line.contains("pause: true") && line.ends_with("# /pg/data/patroni.dynamic.json"), "{line}");
    assert!(!text.contains("ttl: 12"), "{text}");
}

#[test]
fn the_sample_has_nothing_to_say_against_once_it_is_filled_in() {
    let variables = [("PATRONI_SCOPE".to_owned(), "from-env".to_owned())];
    let text = sample(&Sources::new(None, variables));
    assert!(text.contains("scope: from-env"), "{text}");
    let bin_dir = format!("bin_dir: {} #", crate::server::bin_dir().display());
    let filled = text.replace("'#FIXME'", "x").replace("data_dir: x", "data_dir: /pg/data");
    let filled = filled.replace("# bin_dir:", &bin_dir);
    assert!(filled.contains(&bin_dir), "{filled}");
    let found = findings(&filled);
    assert_eq!(found, Vec::<String>::new(), "{filled}");
    // Every comment that is a key can be taken out of its comment.
    let open: String = filled
        .lines()
        .map(|line| {
            line.replacen("# ", "", usize::from(line.contains("  # ") && line.trim_start().starts_with("# "))) + "\n"
        })
        .collect();
    assert!(regent::config::parse_yaml("sample", open.as_bytes()).is_ok(), "{open}");
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z][a-z0-9_/.-]{0,12}",
        "[ -~]{1,20}".prop_map(|text| text.replace("${", "")),
        Just("0123".to_owned()),
        Just("on".to_owned()),
        Just("é\n\u{7f}x".to_owned()),
    ]
}

/// Files with values of every kind, as text, number or word.
fn file() -> impl Strategy<Value = serde_json::Value> {
    let number =
        prop_oneof![(-5_i64..100_000).prop_map(|n| serde_json::json!(n)), text().prop_map(|t| serde_json::json!(t))];
    let word =
        prop_oneof![any::<bool>().prop_map(|on| serde_json::json!(on)), text().prop_map(|t| serde_json::json!(t))];
    let parameters = proptest::collection::btree_map("[a-zA-Z_]{1,12}(\\.[a-z]{1,5})?", number.clone(), 0..5);
    let parts = (
        proptest::collection::vec(text(), 9),
        proptest::collection::vec(number, 6),
        proptest::collection::vec(word, 5),
        (parameters.clone(), parameters),
        proptest::collection::vec(text(), 0..3),
        proptest::collection::btree_map("[a-z]{1,8}", text(), 0..4),
    );
    parts.prop_map(|(texts, numbers, words, (local, dynamic), lines, tags)| {
        serde_json::json!({
            "scope": texts[0], "name": texts[1], "namespace": texts[2],
            "log": {"level": texts[3], "dir": texts[4], "file_num": numbers[0], "mode": numbers[1]},
            "restapi": {"listen": "127.0.0.1:8008", "authentication": {"username": texts[5], "password": texts[6]}},
            "etcd3": {"hosts": ["a:1", "b"], "password": texts[7], "username": texts[8]},
            "bootstrap": {"dcs": {
                "ttl": 20, "pause": words[0], "failsafe_mode": words[1], "maximum_lag_on_failover": numbers[2],
                "synchronous_mode": words[2],
                "postgresql": {"parameters": dynamic, "use_pg_rewind": words[3], "pg_ctl_timeout": numbers[3]},
            }},
            "postgresql": {
                "listen": "127.0.0.1:5432", "data_dir": "/pg/data", "parameters": local, "pg_hba": lines,
                "use_unix_socket": words[4], "authentication": {"superuser": {"username": texts[0], "password": texts[6]}},
            },
            "tags": tags, "watchdog": {"safety_margin": numbers[4]},
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn reading_what_was_printed_gives_the_same(tree in file()) {
        if let Ok((local, all)) = load(&tree.to_string()) {
            let text = printed(&local, &all, Secrets::Shown);
            let (again, all_again) = load(&text).map_err(|error| TestCaseError::fail(format!("{error}\n{text}")))?;
            prop_assert_eq!(meaning(&all, &local), meaning(&all_again, &again), "{}", text);
            prop_assert_eq!(&all.postgres.superuser.password, &all_again.postgres.superuser.password);
        }
    }

    #[test]
    fn later_layers_win_key_by_key(
        layers in proptest::collection::vec(proptest::collection::btree_map("[abc]", prop_oneof![
            Just(serde_json::Value::Null), (0..3_i64).prop_map(|n| serde_json::json!(n)),
            proptest::collection::btree_map("[abc]", 0..3_i64, 0..3).prop_map(|m| serde_json::json!(m)),
        ], 0..3), 1..4)
    ) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("0.yml"), format!("{}tags: {{}}", crate::MINIMAL)).unwrap();
        let mut want = serde_json::Map::new();
        for (number, layer) in layers.iter().enumerate() {
            let text = serde_json::json!({"tags": layer}).to_string();
            std::fs::write(dir.path().join(format!("{}.yml", number + 1)), text).unwrap();
            for (key, value) in layer {
                match (value, want.get_mut(key)) {
                    (serde_json::Value::Null, _) => { want.remove(key); }
                    (serde_json::Value::Object(new), Some(serde_json::Value::Object(old))) => old.extend(new.clone()),
                    (new, _) => { want.insert(key.clone(), new.clone()); }
                }
            }
        }
        let local = LocalConfig::load(&Sources::new(Some(dir.path().to_owned()), [])).unwrap();
        let all = regent::config::effective(&local, None).unwrap();
        prop_assert_eq!(serde_json::Value::Object(all.tags) , serde_json::Value::Object(want));
    }

    #[test]
    fn no_file_panics_the_checks(
        text in r#"((scope|name|log|restapi|etcd3|postgresql|parameters|tags|watchdog|bootstrap|dcs|ttl|listen|level): |[a-z0-9'"${}\[\]:,-]{1,6}|\n|  ){0,40}"#
    ) {
        let file = File::new(&text);
        if let Ok(local) = LocalConfig::load(&file.sources())
            && let Ok(all) = regent::config::effective(&local, local.bootstrap_dynamic().ok().as_ref())
        {
            let _ = printed(&local, &all, Secrets::Masked);
        }
    }
}

#[test]
fn a_text_of_many_lines_is_printed_on_one() {
    for text in ["false\n\n\n  - b", "a\tb", "\u{85}x", "say \"it\"\n\\n", "\u{2028}", "\u{1b}[0m"] {
        let mut tree = crate::json(crate::MINIMAL);
        crate::put(&mut tree, "tags.x", text.into());
        let (local, all) = crate::load(&tree.to_string()).unwrap();
        let printed = regent::config::print_config(&local, &all, None, regent::config::Secrets::Shown);
        assert_eq!(crate::json(&printed)["tags"]["x"], text, "{printed}");
    }
}
