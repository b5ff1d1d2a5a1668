//! The status page in a real browser: Chromium, spoken to over its debugging pipe. `make ui-test` installs it; without it the test
//! says that it was skipped (what needs no browser is in `agent/tests/rest/ui.rs`).
//!
//! `REGENT_SCREENSHOTS=docs/ui` writes the pictures of the documentation.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use regent_tests::rig::process::{Process, clean};
use regent_tests::rig::{Node, Rig, Settings, Trouble};
use serde_json::{Value, json};

use crate::support::{PATIENCE, loudly, turn};

/// A browser with one page.
struct Browser {
    to: File,
    from: BufReader<File>,
    last: u64,
    session: Option<String>,
    /// What it told without being asked.
    told: Vec<Value>,
    _process: Process,
}

impl Browser {
    fn start(program: &Path, rig: &Rig) -> Result<Browser, Trouble> {
        let path = |name: &str| rig.dir().join(name);
        for pipe in ["browser.in", "browser.out"] {
            nix::unistd::mkfifo(&path(pipe), Mode::S_IRWXU).map_err(std::io::Error::from)?;
            std::fs::set_permissions(path(pipe), Permissions::from_mode(0o666))?;
        }
        let home = path("browser");
        std::fs::create_dir(&home)?;
        std::fs::set_permissions(&home, Permissions::from_mode(0o777))?;
        let mut command = clean("bash");
        command.args(["-c", "exec \"$@\" 3<browser.in 4>browser.out", "-", "timeout", "300"]).arg(program);
        command.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]);
        command.arg("--hide-scrollbars");
        command.arg("--remote-debugging-pipe").arg(format!("--user-data-dir={}", home.display())).arg("about:blank");
        command.current_dir(rig.dir()).env("HOME", &home);
        let process = Process::start("browser", rig.account(), &path("browser.log"), &mut command)?;
        // Either end of a pipe waits for the other.
        let to = OpenOptions::new().write(true).open(path("browser.in"))?;
        let from = BufReader::new(File::open(path("browser.out"))?);
        let mut browser = Browser { to, from, last: 0, session: None, told: Vec::new(), _process: process };
        let page = browser.call("Target.createTarget", &json!({"url": "about:blank"}))?["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", &json!({"targetId": page, "flatten": true}))?;
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), &json!({}))?;
        }
        Ok(browser)
    }

    fn call(&mut self, method: &str, params: &Value) -> Result<Value, Trouble> {
        self.last += 1;
        let mut message = json!({"id": self.last, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        self.to.write_all(format!("{message}\0").as_bytes())?;
        loop {
            let mut text = Vec::new();
            self.from.read_until(0, &mut text)?;
            let text = text.strip_suffix(b"\0").ok_or_else(|| Trouble::new(format!("{method}: the browser ended")))?;
            let said: Value = serde_json::from_slice(text).map_err(|error| Trouble::new(error.to_string()))?;
            if said["id"] != self.last {
                self.told.push(said);
            } else if let Some(error) = said.get("error") {
                return Err(Trouble::new(format!("{method}: {error}")));
            } else {
                return Ok(said["result"].clone());
            }
        }
    }

    /// What this expression comes to on the page.
    fn value(&mut self, expression: &str) -> Result<Value, Trouble> {
        let asked = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let came = self.call("Runtime.evaluate", &asked)?;
        match came.get("exceptionDetails") {
            Some(why) => Err(Trouble::new(format!("{expression}: {why}"))),
            None => Ok(came["result"]["value"].clone()),
        }
    }

    /// Until this expression is true on the page.
    fn wait(&mut self, rig: &Rig, expression: &str) -> Result<(), Trouble> {
        rig.wait(PATIENCE, expression, |_| match self.value(expression) {
            Ok(Value::Bool(true)) => Ok(()),
            Ok(other) => Err(format!("{other}: {}", self.value("document.body.innerText").unwrap_or_default())),
            Err(error) => Err(error.to_string()),
        })
    }

    fn press(&mut self, key: &str, code: u32) -> Result<(), Trouble> {
        let text = if key == "Enter" { "\r" } else { "" };
        for kind in ["keyDown", "keyUp"] {
            let event = json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text});
            self.call("Input.dispatchKeyEvent", &event)?;
        }
        Ok(())
    }

    /// Sets the size of the window, and whether it is dark around.
    fn look(&mut self, width: u32, dark: bool) -> Result<(), Trouble> {
        let size = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500});
        self.call("Emulation.setDeviceMetricsOverride", &size)?;
        let scheme = if dark { "dark" } else { "light" };
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", &media).map(drop)
    }

    /// A picture of the upper part of the page, where pictures are wanted.
    fn picture(&mut self, name: &str, width: u32, height: u32) -> Result<(), Trouble> {
        let Some(dir) = std::env::var_os("REGENT_SCREENSHOTS").map(PathBuf::from) else { return Ok(()) };
        let clip = json!({"x": 0, "y": 0, "width": width, "height": height, "scale": 1});
        let asked = json!({"format": "png", "captureBeyondViewport": true, "clip": clip});
        let taken = self.call("Page.captureScreenshot", &asked)?;
        let bytes = base64::engine::general_purpose::STANDARD.decode(taken["data"].as_str().unwrap_or_default());
        Ok(std::fs::write(dir.join(name), bytes.map_err(|error| Trouble::new(error.to_string()))?)?)
    }

    /// What the page did wrong so far, and where else than to this node it turned.
    fn complaints(&self, node: &Node) -> Vec<String> {
        let own = format!("http://{}/", node.rest());
        let wrong = |said: &&Value| match said["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Log.entryAdded") => said["params"]["entry"]["level"] == "error",
            Some("Network.requestWillBeSent") => {
                let url = said["params"]["request"]["url"].as_str().unwrap_or_default();
                !(url.starts_with(&own) || url.starts_with("data:") || url == "about:blank")
            }
            Some(_) | None => false,
        };
        self.told.iter().filter(wrong).map(ToString::to_string).collect()
    }
}

/// Where text stands out too little from what it stands on (WCAG 2, 4.5 to 1).
const FAINT: &str = r"(() => {
  const light = (rgb) => rgb.map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
  const numbers = (color) => color.match(/[\d.]+/g).map(Number);
  const ground = (part) => {
    for (; part; part = part.parentElement) {
      const color = numbers(getComputedStyle(part).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const faint = [];
  for (const part of document.querySelectorAll('body *')) {
    const own = [...part.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !part.offsetParent || part.closest('script')) continue;
    const [a, b] = [light(numbers(getComputedStyle(part).color).slice(0, 3)), light(ground(part))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) faint.push(`${part.textContent.trim().slice(0, 20)} ${ratio.toFixed(2)}`);
  }
  return faint.join(', ');
})()";

fn browser() -> Option<PathBuf> {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let dirs: Vec<_> = std::env::split_paths(&std::env::var_os("PATH")?).collect();
    names.iter().flat_map(|name| dirs.iter().map(move |dir| dir.join(name))).find(|path| path.is_file())
}

/// The row of a member, and the text of one of its cells.
fn cell(member: &str, label: &str) -> String {
    format!("document.querySelector('[data-is=\"{member}\"] [data-label=\"{label}\"]').innerText.trim()")
}

#[test]
fn the_status_page_is_good_to_look_at_and_to_use() -> Result<(), Trouble> {
    let Some(program) = browser() else {
        loudly("SKIPPED the_status_page_is_good_to_look_at_and_to_use: no Chromium; make ui-test installs it");
        return Ok(());
    };
    let _turn = turn();
    let rig = Rig::whole(Settings { haproxy: false, ..Settings::default() })?;
    let leader = rig.leader()?;
    let second = rig.others(leader).next().ok_or_else(|| Trouble::new("no standby"))?;
    let (first, other) = (leader.name(), second.name());
    let mut browser = Browser::start(&program, &rig)?;
    browser.look(1100, false)?;
    browser.call("Page.navigate", &json!({"url": format!("http://{}/ui", leader.rest())}))?;
    let browser = &mut browser;

    // Who is there, who leads, and what becomes of it without the leader.
    browser.wait(&rig, &format!("document.getElementById('state').textContent === '{first} leads'"))?;
    browser.wait(&rig, "document.querySelectorAll('#members tr').length === 3")?;
    browser.wait(&rig, &format!("{} === 'leader'", cell(first, "Role")))?;
    browser.wait(&rig, &format!("{} === 'streaming'", cell(other, "State")))?;
    browser.wait(&rig, &format!("{}.startsWith('candidate')", cell(other, "If the leader died now")))?;
    browser.wait(&rig, &format!("{}.includes('{other}')", cell(first, "If the leader died now")))?;
    browser.wait(&rig, "document.querySelectorAll('#decisions details').length > 0")?;
    browser.wait(&rig, "document.querySelectorAll('#history tr').length > 0")?;

    // Lag as it moves: the leader sees at once who hangs behind.
    second.signal_server(Signal::SIGSTOP);
    let written = leader.server().value(
        "create table heap as select repeat('x', 900) as t from generate_series(1, 6000); select 'written'",
        PATIENCE,
    );
    let seen = browser.wait(&rig, &format!("/MB$/.test({})", cell(other, "Lag")));
    let line = format!("document.querySelector('[data-is=\"{other}\"] polyline') !== null");
    let drawn = browser.wait(&rig, &line).and_then(|()| browser.picture("members.png", 1100, 640));
    second.signal_server(Signal::SIGCONT);
    written.and(seen.map(|()| String::new()))?;
    drawn?;
    browser.wait(&rig, &format!("/^\\d+ B$/.test({}.split('\\n')[0])", cell(other, "Lag")))?;

    // With keys alone: to a member's own page, and into a decision.
    browser.press("Tab", 9)?;
    browser.wait(&rig, "document.activeElement.matches('#members a[href$=\"/ui\"]')")?;
    browser.value("globalThis.before = document.activeElement, 0")?;
    std::thread::sleep(Duration::from_millis(2500));
    browser.wait(&rig, "document.activeElement === globalThis.before")?;
    let mut presses = 0;
    while browser.value("document.activeElement.matches('#decisions summary')")? != true {
        presses += 1;
        assert!(presses < 30, "no decision is reached");
        browser.press("Tab", 9)?;
    }
    browser.press("Enter", 13)?;
    browser
        .wait(&rig, "JSON.parse(document.querySelector('#decisions details[open] pre').textContent).plan !== null")?;
    browser.press("Enter", 13)?;

    // On a phone, by day and by night.
    for (width, dark) in [(1100, false), (1100, true), (390, false), (390, true)] {
        browser.look(width, dark)?;
        let fits = browser.value("document.documentElement.scrollWidth <= innerWidth")?;
        assert_eq!(fits, true, "something lies beyond the edge of {width}");
        assert_eq!(browser.value(FAINT)?, "", "at {width}, dark: {dark}");
    }
    browser.picture("phone.png", 390, 1000)?;
    browser.look(1100, false)?;

    // What an operator does shows, with its end.
    rig.wait_whole(PATIENCE)?;
    rig.regentctl(&["switchover", "--leader", first, "--candidate", other, "--force"])?;
    browser.wait(&rig, &format!("document.getElementById('state').textContent === '{other} leads'"))?;
    browser.wait(&rig, "/switchover\\s*done/.test(document.getElementById('operations').innerText)")?;
    browser.wait(&rig, &format!("document.querySelector('#history tr').innerText.includes('{other}')"))?;
    rig.wait_whole(PATIENCE)?;
    browser.wait(&rig, &format!("{}.startsWith('candidate')", cell(first, "If the leader died now")))?;
    browser.look(1100, true)?;
    browser.picture("dark.png", 1100, 780)?;
    assert_eq!(browser.complaints(leader), [""; 0]);

    // An agent that is gone is not taken for one that has nothing to say.
    leader.kill_agent();
    browser.wait(&rig, "/^no news since/.test(document.getElementById('state').textContent)")?;
    leader.start()?;
    browser.wait(&rig, &format!("document.getElementById('state').textContent === '{other} leads'"))
}
