//! x
use regent_tests::rig::*;
use std::time::Duration;
#[test]
fn rig_alone() -> Result<(), Trouble> {
    let rig = Rig::new(Settings { etcd: 3, ..Settings::default() })?;
    rig.etcd.put("/service/demo/x", "-1\n2")?;
    assert_eq!(rig.etcd.get("/service/demo/x")?.as_deref(), Some("-1\n2"));
    assert_eq!(rig.etcd.get("/service/demo/y")?, None);
    assert_eq!(rig.etcd.keys("/service/demo")?, ["/service/demo/x"]);
    rig.etcd.stop();
    rig.wait(Duration::from_secs(3), "never", |r| r.etcd.health().map_err(|e| e.to_string()))?;
    Ok(())
}
