//! The kernel's watchdog, and no guardian, in whole agents (contract: ha-rules section 21). The device is a plain file: see its
//! C source.

use std::path::PathBuf;
use std::process::Command;

use regent_tests::rig::{Rig, Trouble, stray};
use serde_json::Value;

use crate::support::{PATIENCE, one_node, reconfigure, says, turn};

const DEVICE: &str = include_str!("../../../agent/tests/device/watchdog.c");

/// A library to be loaded before libc, and the device that it makes of a file.
fn device(rig: &Rig) -> Result<(PathBuf, PathBuf), Trouble> {
    let (source, library) = (rig.dir().join("watchdog.c"), rig.dir().join("watchdog.so"));
    rig.write(&source, DEVICE)?;
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status()?;
    assert!(built.success(), "the C compiler that also links Rust");
    let device = rig.dir().join("watchdog");
    rig.write(&device, "")?;
    Ok((library, device))
}

fn restart_with(rig: &Rig, section: &str, environment: &[(&str, &str)]) -> Result<(), Trouble> {
    let node = &rig.nodes()[0];
    node.signal_agent(nix::sys::signal::Signal::SIGTERM);
    node.agent_ended(PATIENCE)?;
    reconfigure(rig, node, |text| {
        let kept = text.split("\n# of this test\n").next().unwrap_or_default().to_owned();
        format!("{kept}\n# of this test\n{section}")
    })?;
    node.start_with(environment)
}

fn status(rig: &Rig) -> Result<Value, Trouble> {
    let body = rig.nodes()[0].get("/patroni")?.body;
    serde_json::from_str(&body).map_err(|e| Trouble::new(format!("{e}: {body}")))
}

#[test]
fn a_required_watchdog_is_fed_by_a_primary_and_without_one_nobody_leads() -> Result<(), Trouble> {
    let _turn = turn();
    let rig = one_node()?;
    rig.start_all()?;
    rig.wait_primary(PATIENCE)?;
    let (library, device) = device(&rig)?;
    let section =
        |device: &str, mode: &str| format!("watchdog:\n  mode: {mode}\n  device: {device}\n  safety_margin: 5\n");

    restart_with(&rig, &section("/nowhere/watchdog", "required"), &[])?;
    says(&rig, &rig.nodes()[0], &["rule=wait_for_watchdog", "/nowhere/watchdog: No such file"])?;
    assert!(rig.primaries().is_empty(), "no leadership without the device\n{}", rig.tails());

    restart_with(&rig, &section("/nowhere/watchdog", "automatic"), &[])?;
    rig.wait_primary(PATIENCE)?;
    assert_eq!(status(&rig)?["regent"]["watchdog"]["state"], "unusable");

    let preload = library.to_string_lossy().into_owned();
    let environment = [("LD_PRELOAD", preload.as_str()), ("WATCHDOG_TAKES", "5")];
    restart_with(&rig, &section(&device.to_string_lossy(), "required"), &environment)?;
    rig.wait_primary(PATIENCE)?;
    assert_eq!(status(&rig)?["regent"]["watchdog"]["state"], "active");
    let written = || std::fs::read_to_string(&device).unwrap_or_default();
    rig.wait(PATIENCE, "renewals feed the device", |_| {
        let fed = written();
        if fed.starts_with("set 5 111") { Ok(()) } else { Err(fed) }
    })?;
    rig.nodes()[0].signal_agent(nix::sys::signal::Signal::SIGTERM);
    rig.nodes()[0].agent_ended(PATIENCE)?;
    assert!(written().ends_with('V'), "disarmed when the server was down: {}", written());
    Ok(())
}

#[test]
fn an_agent_can_be_told_to_do_without_a_guardian() -> Result<(), Trouble> {
    let _turn = turn();
    for (section, guardians, state) in [("", 1, Some("armed")), ("regent:\n  guardian: off\n", 0, None)] {
        let rig = one_node()?;
        let node = &rig.nodes()[0];
        reconfigure(&rig, node, |text| format!("{text}\n{section}"))?;
        rig.start_all()?;
        rig.wait_primary(PATIENCE)?;
        let there = stray::of(&node.data()).iter().filter(|p| p.program == "regent-guardian").count();
        assert_eq!((there, status(&rig)?["regent"]["guardian"]["state"].as_str()), (guardians, state));
    }
    Ok(())
}
