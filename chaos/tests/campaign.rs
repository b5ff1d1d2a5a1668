//! The three-minute form of `make chaos`, and what a campaign needs to be believed.

use std::path::PathBuf;
use std::time::Duration;

use regent_chaos::cluster::{Mode, Shape};
use regent_chaos::report::{Report, markdown, page};
use regent_chaos::run::{Campaign, run};
use regent_tests::rig::{Settings, Trouble};

#[test]
fn faults_break_nothing() -> Result<(), Trouble> {
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("chaos");
    let settings = Settings { etcd: 3, ttl: 5, loop_wait: 1, retry_timeout: 2, ..Settings::default() };
    let campaign = Campaign {
        shape: Shape { settings, mode: Mode::Quorum, agent: None, planted: None },
        seed: 20_261_122,
        only: Vec::new(),
        faults: 15,
        time: Duration::from_secs(180),
        fail_fast: false,
        out,
    };
    let report = run(&campaign, &|text| println!("{text}"))?;
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
    // Nothing is not much of a proof.
    assert!(report.hits().count() >= 8, "only {} faults in {:?}", report.hits().count(), campaign.time);
    assert!(report.acknowledged > 500 && report.transactions > 50, "{}", markdown(&report));
    can_be_read_again(&report)
}

fn can_be_read_again(report: &Report) -> Result<(), Trouble> {
    let bad = |e: serde_json::Error| Trouble::new(e.to_string());
    let again: Report = serde_json::from_str(&serde_json::to_string(report).map_err(bad)?).map_err(bad)?;
    assert_eq!(markdown(&again), markdown(report));
    let page = page(report);
    assert!(
        page.contains("</svg>") && !page.contains("http://") || page.matches("http").count() == 1,
        "only the namespace"
    );
    Ok(())
}
