//! `/openapi.json`: this API for programs (OpenAPI 3.1). The file beside says everything once. What is the same for many is
//! completed here: the health checks, HEAD and OPTIONS wherever there is GET, credentials wherever something changes.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use super::json;

/// The health checks that have a name (rest-api.md section 5), and what they ask.
const HEALTH: [(&str, &str); 19] = [
    ("/", "as /primary"),
    ("/primary", "the primary: it holds the leader key, and its server takes writes"),
    ("/read-write", "as /primary"),
    ("/master", "as /primary; deprecated"),
    ("/leader", "the primary, or the leader of a standby cluster"),
    ("/standby-leader", "the leader of a standby cluster"),
    ("/standby_leader", "as /standby-leader"),
    ("/replica", "a replica that runs, is not tagged noloadbalance, and is not behind by more than lag"),
    ("/read-only", "as /leader, or as /replica"),
    ("/health", "a server that runs"),
    ("/sync", "a synchronous standby"),
    ("/synchronous", "as /sync"),
    ("/quorum", "a member of the quorum"),
    ("/async", "a replica that is neither"),
    ("/asynchronous", "as /async"),
    ("/read-only-quorum", "as /leader, or as /quorum"),
    ("/read-only-sync", "as /leader, or as /sync"),
    ("/read-only-synchronous", "as /read-only-sync"),
    ("/{path}", "any other path: a check by the words in it (/haproxy/replica is as /replica), else 503"),
];

/// The description, as it is served.
pub(super) fn text() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| json::text(&document()));
    &TEXT
}

fn document() -> Value {
    let mut document: Value = serde_json::from_str(include_str!("openapi.json")).unwrap_or_default();
    document["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    let Some(Value::Object(paths)) = document.get_mut("paths") else { return document };
    paths.extend(HEALTH.iter().map(|(path, what)| ((*path).to_owned(), health(path, what))));
    for methods in paths.values_mut().filter_map(Value::as_object_mut) {
        for (method, operation) in methods.iter_mut().filter(|(method, _)| *method != "get") {
            debug_assert!(["post", "put", "patch", "delete"].contains(&method.as_str()), "{method}");
            operation["security"] = json!([{"basic": []}, {}]);
        }
        if let Some(get) = methods.get("get").cloned() {
            methods.insert("head".to_owned(), without_body(get.clone()));
            methods.insert("options".to_owned(), without_body(get));
        }
    }
    document
}

fn health(path: &str, what: &str) -> Value {
    let parameter = |name: &str| json!({"$ref": format!("#/components/parameters/{name}")});
    let mut parameters = vec![parameter("lag"), parameter("replication_state"), parameter("tags")];
    if path == "/{path}" {
        parameters.insert(0, json!({"name": "path", "in": "path", "required": true, "schema": {"type": "string"}}));
    }
    let answer = |name: &str| json!({"$ref": format!("#/components/responses/{name}")});
    let responses = json!({"200": answer("Status"), "503": answer("NotSo")});
    json!({"get": {"tags": ["health"], "summary": what, "parameters": parameters, "responses": responses}})
}

/// HEAD and OPTIONS have the codes of GET.
fn without_body(mut get: Value) -> Value {
    let codes = get["responses"].as_object().into_iter().flat_map(Map::keys);
    let bare = codes.map(|code| (code.clone(), json!({"description": "as GET, without a body"}))).collect();
    get["responses"] = Value::Object(bare);
    get
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use http::Method;

    use super::super::{health, routes};
    use super::*;

    /// Every method and path that is described.
    fn described() -> BTreeSet<(String, String)> {
        let document = document();
        let paths = document["paths"].as_object().expect("the file is JSON").clone();
        let of = |(path, methods): (String, Value)| {
            let methods: Vec<_> = methods.as_object().expect("methods").keys().cloned().collect();
            methods.into_iter().map(move |method| (method.to_uppercase(), path.clone()))
        };
        paths.into_iter().flat_map(of).collect()
    }

    #[test]
    fn what_the_router_knows_is_described_and_what_is_described_it_knows() {
        let reads = routes::READS.iter().map(|(name, _)| format!("/{name}"));
        let checks = HEALTH.iter().map(|(path, _)| (*path).to_owned());
        let one = ["/operations/{id}".to_owned()];
        let read = reads.chain(one).chain(checks).flat_map(|path| {
            [Method::GET, Method::HEAD, Method::OPTIONS].map(|method| (method.to_string(), path.clone()))
        });
        let calls = routes::CALLS.iter().map(|(method, name, _)| (method.to_string(), format!("/{name}")));
        assert_eq!(described(), read.chain(calls).collect());
    }

    #[test]
    fn each_named_check_is_one_and_each_check_has_a_name() {
        let rows: BTreeSet<_> = HEALTH.iter().filter_map(|(path, _)| health::row(path)).collect();
        assert_eq!(rows.len(), health::CHECKS.len());
        let nameless: Vec<_> = HEALTH.iter().filter(|(path, _)| health::row(path).is_none()).collect();
        assert_eq!(nameless.len(), 1, "{nameless:?}");
    }

    #[test]
    fn parameters_that_are_read_are_described_and_those_that_are_described_are_read() {
        let sources = [include_str!("health.rs"), include_str!("events.rs")].concat();
        // As the sources spell it: `params.get("lag")`, and `number("limit", …)` for a number.
        let read = ["params.get(\"", "number(\""].into_iter().flat_map(|before| sources.split(before).skip(1));
        let read: BTreeSet<_> = read.filter_map(|rest| rest.split('"').next()).collect();
        let document = document();
        let mut queried = BTreeSet::new();
        for (method, path) in described() {
            let operation = &document["paths"][path.as_str()][method.to_lowercase().as_str()];
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                let pointer = parameter["$ref"].as_str().and_then(|pointer| pointer.strip_prefix('#'));
                let parameter = pointer.map_or(parameter, |pointer| document.pointer(pointer).expect("it is there"));
                if parameter["in"] == "query" {
                    queried.insert(parameter["name"].as_str().expect("a name").to_owned());
                }
            }
        }
        assert!(queried.remove("tags"), "tag_NAME, read by its prefix");
        assert_eq!(queried, read.into_iter().map(str::to_owned).collect());
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = document();
        let text = document.to_string();
        let references = text.split("\"$ref\":\"#").skip(1).filter_map(|rest| rest.split('"').next());
        let broken: Vec<_> = references.filter(|pointer| document.pointer(pointer).is_none()).collect();
        assert_eq!(broken, [""; 0]);
    }

    #[test]
    fn what_changes_something_may_be_refused_to_strangers() {
        for (method, path) in described() {
            let responses = &document()["paths"][path.as_str()][method.to_lowercase().as_str()]["responses"];
            let guarded = responses.get("401").is_some() && responses.get("403").is_some();
            assert_eq!(guarded, !["GET", "HEAD", "OPTIONS"].contains(&method.as_str()), "{method} {path}");
        }
    }
}
