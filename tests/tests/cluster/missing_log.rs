//! A standby whose primary has removed the log that it needs: PostgreSQL asks for it for ever; the agent says what is wrong.

use regent_tests::rig::{Rig, Settings, Trouble, http};
use serde_json::json;

use crate::support::{PATIENCE, configure, says};

#[test]
fn a_standby_that_lacks_log_says_so_and_can_be_copied_anew() -> Result<(), Trouble> {
    let _turn = crate::support::turn();
    let rig = Rig::whole(Settings { nodes: 2, haproxy: false, ..Settings::default() })?;
    let limits = json!({"max_wal_size": "64MB", "min_wal_size": "32MB", "max_slot_wal_keep_size": "16MB", "wal_keep_size": "16MB"});
    for (parameter, value) in limits.as_object().into_iter().flatten() {
        configure(&rig, &[(&format!("postgresql.parameters.{parameter}"), value.clone())])?;
    }
    let primary = rig.wait_whole(PATIENCE)?;
    let standby = rig.others(primary).next().ok_or_else(|| Trouble::new("a standby"))?;
    standby.kill();
    let segment = || primary.server().value("select pg_walfile_name(pg_current_wal_lsn())", PATIENCE);
    let first = segment()?;
    // Twelve segments of 16 MB, and two checkpoints to remove what is before them.
    for _ in 0..12 {
        let sql = "create table if not exists ballast (x int); insert into ballast values (1); select pg_switch_wal()";
        primary.server().rows(sql, PATIENCE)?;
    }
    rig.wait(PATIENCE, "the log is removed", |_| {
        primary.server().rows("checkpoint", PATIENCE).map_err(|e| e.to_string())?;
        if primary.data().join("pg_wal").join(&first).exists() { Err(format!("{first} is there")) } else { Ok(()) }
    })?;
    standby.start()?;
    says(&rig, standby, &["report_missing_log", "has removed its log", "reinit"])?;
    let body = r#"{"force": true}"#;
    let request = format!(
        "POST /reinitialize HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = http::raw(standby.rest(), &request, PATIENCE)?;
    assert_eq!(answer.status, 200, "{}", answer.body);
    rig.wait_whole(PATIENCE).map(|_| ())
}
