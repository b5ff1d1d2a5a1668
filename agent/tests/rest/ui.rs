//! The status page, without a browser: it needs nothing but this agent, and reads nothing that is not described.

use std::collections::BTreeSet;

use super::described::document;
use super::support::*;

fn page() -> Answer {
    let answer = Node::with(replica()).get("/ui");
    assert_eq!((answer.code, answer.header("Content-Type")), (200, Some("text/html; charset=utf-8")));
    answer
}

/// What follows each `before`, up to the first of `ends`.
fn all<'a>(text: &'a str, before: &str, ends: &[char]) -> BTreeSet<&'a str> {
    text.split(before).skip(1).filter_map(|rest| rest.split(ends).next()).collect()
}

#[test]
fn the_page_needs_nothing_but_this_agent() {
    let answer = page();
    let policy = answer.header("Content-Security-Policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; ") && policy.contains("connect-src 'self'; "), "{policy}");
    let page = &answer.body;
    // The name of a namespace is no address.
    let addresses: Vec<_> = page.match_indices("://").collect();
    let namespaces = page.matches("\"http://www.w3.org/2000/svg\"").count();
    assert_eq!(addresses.len(), namespaces, "{addresses:?}");
    for fetched in ["src=", "@import", "url(", "XMLHttpRequest", "sendBeacon", "import(", "<iframe", "<form"] {
        assert!(!page.contains(fetched), "{fetched}");
    }
    assert_eq!(page.matches("fetch(").count(), 1, "through `get` alone");
    assert!(page.contains("fetch(base + path,") && page.contains("new EventSource(base + \"events\")"));
    // It only reads.
    for method in ["method:", "POST", "PATCH", "DELETE", "PUT"] {
        assert!(!page.contains(method), "{method}");
    }
    assert!(page.len() < 32 << 10, "{} bytes", page.len());
}

#[test]
fn it_can_be_read_without_eyes_and_used_without_a_mouse() {
    let page = page().body;
    let ids: Vec<_> = page.split(" id=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    let once: BTreeSet<_> = ids.iter().copied().collect();
    assert_eq!(once.len(), ids.len(), "{ids:?}");
    for id in all(&page, "$(\"", &['"']).union(&all(&page, "aria-labelledby=\"", &['"'])) {
        assert!(once.contains(id), "{id} is nowhere");
    }
    assert!(page.contains("<html lang=\"en\">") && page.contains("role=\"status\" aria-live=\"polite\""));
    let tables = page.matches("<table").count();
    assert_eq!(page.matches("<table aria-labelledby=").count(), tables);
    assert!(page.contains("<th scope=\"col\"") && !page.contains("<th>"));
    assert!(page.contains("prefers-color-scheme: dark") && page.contains(":focus-visible"));
    // Nothing is clicked on but links and what unfolds, which keys reach by themselves.
    assert!(!page.contains("onclick") && !page.contains("\"click\"") && !page.contains("tabindex"));
}

#[test]
fn what_it_reads_is_what_is_answered() {
    let page = page().body;
    let lists = all(&page, "Promise.all([", &[']']);
    let words = lists.iter().flat_map(|list| list.split('"')).filter(|word| word.starts_with(char::is_alphabetic));
    let paths: BTreeSet<_> = words.filter_map(|word| word.split('?').next()).collect();
    let known = document()["paths"].as_object().unwrap();
    assert!(paths.len() >= 6, "{paths:?}");
    for path in paths {
        assert!(known.contains_key(&format!("/{path}")), "{path}");
    }
    // A variable has the name of what it holds, and its properties are those of the schema.
    let schema = |path: &str| document().pointer(&format!("/components/schemas/{path}/properties")).unwrap();
    for (variable, schema, least) in [
        ("cluster", schema("Cluster"), 3),
        ("member", schema("Member"), 9),
        ("explained", schema("Explanation"), 4),
        ("fit", schema("Explanation/properties/without_leader/items"), 4),
        ("planned", schema("Cluster/properties/scheduled_switchover"), 2),
        ("decision", schema("Decision"), 1),
    ] {
        let plain = all(&page, &format!("{variable}."), &[' ', ',', ')', ']', ';', '?', '.', '}', '(', '\n']);
        let optional = all(&page, &format!("{variable}?."), &[' ', ',', ')', ']', ';', '?', '.', '}', '(', '\n']);
        let read: BTreeSet<_> = plain.union(&optional).copied().collect();
        let strange: Vec<_> = read.iter().filter(|name| schema.get(**name).is_none()).collect();
        assert!(strange.is_empty() && read.len() >= least, "{variable}: {strange:?} of {read:?}");
    }
    for (part, schema) in [("decisionPart = ({ ", schema("Decision")), ("operationPart = ({ ", schema("Operation"))] {
        let names = page.split_once(part).and_then(|(_, rest)| rest.split_once(" })")).unwrap().0;
        let strange: Vec<_> = names.split(", ").filter(|name| schema.get(*name).is_none()).collect();
        assert!(strange.is_empty(), "{part}{strange:?}");
    }
    // What it waits for is what happens.
    let told = &document()["paths"]["/events"]["get"]["responses"]["200"]["description"];
    let kinds = page.split_once("for (const kind of [\"").and_then(|(_, rest)| rest.split_once("\"]")).unwrap().0;
    let kinds: Vec<_> = kinds.split("\", \"").collect();
    let described: BTreeSet<&str> =
        told.as_str().and_then(|told| told.split_once("named ")?.1.split_once(';')).unwrap().0.split(", ").collect();
    assert_eq!(kinds.into_iter().collect::<BTreeSet<_>>(), described);
}
