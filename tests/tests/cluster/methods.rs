//! Other ways to fill a data directory: methods for copies, a method for the first cluster (ha-rules B3, B4, B13).

use regent_tests::rig::programs::peer;
use regent_tests::rig::settings::REPLICATION_PASSWORD;
use regent_tests::rig::{Node, Rig, Settings, Trouble};

use crate::callbacks::{configured, script};
use crate::support::{PATIENCE, loudly, turn};

/// Notes its arguments and the passfile, and fails or makes a copy.
fn method(rig: &Rig, node: &Node, name: &str, then: &str) -> Result<String, Trouble> {
    let out = node.dir().join("methods").display().to_string();
    let text = format!(
        "{{ printf '{name}'; for a in \"$@\"; do printf '|%s' \"$a\"; done; echo; }} >> {out}
         env | grep '^PG' >> {out}-env; cat \"$PGPASSFILE\" >> {out}-env; env | grep -c '^PATRONI_' >> {out}-own
         for a in \"$@\"; do case $a in --datadir=*) D=${{a#*=}};; --connstring=*) C=${{a#*=}};; esac; done
         {then}"
    );
    script(rig, node.dir().join(format!("{name}.sh")), &text)
}

fn noted(node: &Node) -> String {
    std::fs::read_to_string(node.dir().join("methods")).unwrap_or_default()
}

/// One method that fails, one that leaves rubbish, one that works, and one that is not needed.
fn copies(rig: &Rig) -> Result<(), Trouble> {
    let [n1, n2] = rig.nodes() else { return Err(Trouble::new("two nodes, please")) };
    let fails = method(rig, n2, "fails", "exit 7")?;
    let rubbish = method(rig, n2, "rubbish", "mkdir -p $D; chmod 700 $D; touch $D/rubbish; exit 1")?;
    let bin = rig.programs().pg_bin.display().to_string();
    let works = method(rig, n2, "works", &format!("{bin}/pg_basebackup -D $D -X stream -c fast -d \"$C\""))?;
    configured(
        rig,
        n2,
        &format!(
            "  create_replica_methods: [fails, rubbish, works, basebackup]
  fails: {{command: '{fails} word', no_params: true, extra: 1}}
  rubbish: {{command: '{rubbish}'}}
  works: {{command: '{works}', stanza: main, keep: 'a b', keep_data: false, flag: yes, none: ~, mode: 0640}}
"
        ),
    )?;
    n1.start()?;
    rig.wait_primary(PATIENCE)?;
    n2.start()?;
    rig.wait_whole(PATIENCE)?;
    let (data, port) = (n2.data().display().to_string(), n1.ports().postgres);
    let noted = noted(n2);
    let environment = std::fs::read_to_string(n2.dir().join("methods-env")).unwrap_or_default();
    let variables = std::fs::read_to_string(n2.dir().join("methods-own")).unwrap_or_default();
    let common = format!(
        "|--scope=demo|--role=replica|--datadir={data}|--connstring=dbname=postgres user=replicator host=127.0.0.1 port={port}"
    );
    let own = "|--stanza=main|--keep=a b|--keep_data=False|--flag=True|--none=None|--mode=416";
    let wanted = format!("fails|word|--extra=1\nrubbish{common}\nworks{own}{common}\n");
    assert_eq!(noted, wanted, "{environment}");
    assert!(!n2.data().join("rubbish").exists());
    assert!(environment.contains(&format!("127.0.0.1:{port}:*:replicator:{REPLICATION_PASSWORD}")), "{environment}");
    assert!(variables.lines().all(|count| count == "0"), "{variables}");
    Ok(())
}

#[test]
fn copies_are_made_by_the_first_method_that_works() -> Result<(), Trouble> {
    let _turn = turn();
    copies(&Rig::new(Settings { haproxy: false, nodes: 2, ..Settings::default() })?)
}

#[test]
fn the_peer_calls_methods_alike() -> Result<(), Trouble> {
    if let Err(why) = peer() {
        loudly(&format!("SKIPPED the_peer_calls_methods_alike: {why}"));
        return Ok(());
    }
    let _turn = turn();
    copies(&Rig::new(Settings { haproxy: false, nodes: 2, peer: true, ttl: 20, loop_wait: 2, ..Settings::default() })?)
}
