//! The member keys (dcs.md 3.3).

use regent_core::cluster::{Member, MemberTags};
use regent_core::units::{MemberName, Timeline};
use serde_json::{Map, Value};

use super::lenient;

/// Reads a member's JSON object. Fields of a wrong type count as missing.
pub(super) fn from_object(object: &Map<String, Value>) -> Member {
    let text = |field: &str| object.get(field).and_then(lenient::text);
    let lsn = |field: &str| object.get(field).and_then(lenient::lsn);
    let timeline = object.get("timeline").and_then(lenient::unsigned).and_then(|number| u32::try_from(number).ok());
    Member {
        conn_url: text("conn_url").or_else(|| url_of_kwargs(object.get("conn_kwargs")?.as_object()?)),
        api_url: text("api_url"),
        state: text("state").unwrap_or_default(),
        role: text("role").unwrap_or_default(),
        version: text("version").unwrap_or_default(),
        regent: object.contains_key("regent"),
        replication_state: text("replication_state"),
        timeline: timeline.filter(|number| *number > 0).map(Timeline),
        xlog_location: lsn("xlog_location"),
        receive_lsn: lsn("receive_lsn"),
        replay_lsn: lsn("replay_lsn"),
        // Published as `false` until the checkpoint is done, then not at all.
        checkpoint_pending: object.get("checkpoint_after_promote").and_then(lenient::boolean) == Some(false),
        tags: object.get("tags").and_then(Value::as_object).map(tags).unwrap_or_default(),
    }
}

fn tags(tags: &Map<String, Value>) -> MemberTags {
    let flag = |name: &str| tags.get(name).and_then(lenient::boolean);
    let sync_priority = tags.get("sync_priority").and_then(lenient::signed);
    let failover_priority = tags.get("failover_priority").and_then(lenient::signed);
    MemberTags {
        // With the boolean present the boolean wins.
        nofailover: flag("nofailover").unwrap_or(failover_priority.is_some_and(|priority| priority <= 0)),
        failover_priority,
        nosync: flag("nosync").unwrap_or(sync_priority.is_some_and(|priority| priority <= 0)),
        sync_priority,
        clonefrom: flag("clonefrom") == Some(true),
        nostream: flag("nostream") == Some(true),
        replicatefrom: tags.get("replicatefrom").and_then(lenient::text).map(MemberName),
    }
}

fn url_of_kwargs(kwargs: &Map<String, Value>) -> Option<String> {
    let text = |field: &str| kwargs.get(field).and_then(lenient::text);
    let host = text("host")?;
    let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host };
    let port = text("port").unwrap_or_else(|| "5432".to_owned());
    Some(format!("postgres://{host}:{port}/{}", text("dbname").unwrap_or_else(|| "postgres".to_owned())))
}

/// Reads the legacy form: a URL whose `application_name` parameter is the REST address.
pub(super) fn from_url(url: &str) -> Member {
    let (conn_url, query) = url.split_once('?').unwrap_or((url, ""));
    let api_url = query.split('&').find_map(|pair| pair.strip_prefix("application_name=")).map(percent_decoded);
    Member { conn_url: Some(conn_url.to_owned()), api_url, ..Member::default() }
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = after.first_chunk::<2>().and_then(|hex| u8::from_str_radix(str::from_utf8(hex).ok()?, 16).ok());
        match (first, escaped) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            (other, _) => {
                bytes.push(other);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use regent_core::units::Lsn;

    use super::*;

    fn read(json: &str) -> Member {
        from_object(serde_json::from_str::<Value>(json).unwrap().as_object().unwrap())
    }

    #[test]
    fn a_captured_replica_reads() {
        let member = read(
            r#"{"conn_url":"postgres://127.0.0.1:5433/postgres","api_url":"http://127.0.0.1:8003/patroni","state":"running","role":"replica","version":"4.1.5","tags":{"failover_priority":2,"mytag":"abc","clonefrom":true},"pending_restart":true,"pending_restart_reason":{"max_connections":{"old_value":"100","new_value":"90"}},"xlog_location":67706680,"replay_lsn":67706680,"receive_lsn":67706680,"replication_state":"streaming","timeline":10,"scheduled_restart":{"schedule":"2026-11-21T01:48:32+00:00","restart_pending":true,"postmaster_start_time":"2026-11-21 00:42:30.800160+00:00"}}"#,
        );
        let lsn = Some(Lsn(67_706_680));
        let expected = Member {
            conn_url: Some("postgres://127.0.0.1:5433/postgres".to_owned()),
            api_url: Some("http://127.0.0.1:8003/patroni".to_owned()),
            state: "running".to_owned(),
            role: "replica".to_owned(),
            version: "4.1.5".to_owned(),
            regent: false,
            replication_state: Some("streaming".to_owned()),
            timeline: Some(Timeline(10)),
            xlog_location: lsn,
            receive_lsn: lsn,
            replay_lsn: lsn,
            checkpoint_pending: false,
            tags: MemberTags { failover_priority: Some(2), clonefrom: true, ..MemberTags::default() },
        };
        assert_eq!(member, expected);
    }

    #[test]
    fn a_promoted_member_has_its_checkpoint_pending() {
        let member = read(
            r#"{"conn_url":"postgres://127.0.0.1:5432/postgres","api_url":"http://127.0.0.1:8002/patroni","state":"running","role":"promoted","version":"4.1.5","checkpoint_after_promote":false,"xlog_location":67109304,"timeline":2}"#,
        );
        assert!(member.checkpoint_pending);
        assert_eq!((member.role.as_str(), member.timeline), ("promoted", Some(Timeline(2))));
        assert!(!read(r#"{"role":"primary"}"#).checkpoint_pending);
    }

    #[test]
    fn numbers_may_be_strings_and_wrong_types_are_missing() {
        let member = read(r#"{"timeline":"7","xlog_location":"67109304","replay_lsn":-1,"receive_lsn":[],"state":{}}"#);
        assert_eq!(member.timeline, Some(Timeline(7)));
        assert_eq!(member.xlog_location, Some(Lsn(67_109_304)));
        assert_eq!((member.replay_lsn, member.receive_lsn, member.state.as_str()), (None, None, ""));
        assert_eq!(read(r#"{"timeline":4294967296}"#).timeline, None);
    }

    #[test]
    fn nofailover_comes_from_the_boolean_or_else_the_priority() {
        for (json, nofailover, priority) in [
            (r#"{}"#, false, None),
            (r#"{"nofailover":true}"#, true, None),
            (r#"{"nofailover":"true"}"#, true, None),
            (r#"{"failover_priority":0}"#, true, Some(0)),
            (r#"{"failover_priority":"-1"}"#, true, Some(-1)),
            (r#"{"failover_priority":3}"#, false, Some(3)),
            (r#"{"nofailover":false,"failover_priority":0}"#, false, Some(0)),
            (r#"{"nofailover":true,"failover_priority":2}"#, true, Some(2)),
        ] {
            let tags = read(&format!(r#"{{"tags":{json}}}"#)).tags;
            assert_eq!((tags.nofailover, tags.failover_priority), (nofailover, priority), "{json}");
        }
    }

    #[test]
    fn kwargs_stand_in_for_a_missing_url() {
        for (kwargs, url) in [
            (r#"{"host":"10.0.0.1","port":5433,"dbname":"app"}"#, Some("postgres://10.0.0.1:5433/app")),
            (r#"{"host":"fe80::1"}"#, Some("postgres://[fe80::1]:5432/postgres")),
            (r#"{"port":5433}"#, None),
        ] {
            assert_eq!(read(&format!(r#"{{"conn_kwargs":{kwargs}}}"#)).conn_url.as_deref(), url, "{kwargs}");
        }
    }

    #[test]
    fn the_legacy_url_carries_the_rest_address() {
        let member = from_url("postgres://10.0.0.1:5432/postgres?application_name=http%3A//10.0.0.1:8008/patroni");
        assert_eq!(member.conn_url.as_deref(), Some("postgres://10.0.0.1:5432/postgres"));
        assert_eq!(member.api_url.as_deref(), Some("http://10.0.0.1:8008/patroni"));
        assert_eq!(from_url("postgres://h/d?a=%&application_name=%zz%").api_url.as_deref(), Some("%zz%"));
    }
}
