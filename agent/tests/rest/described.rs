//! `/openapi.json` is true: every answer that any of these tests gets from a server is held against it.

use std::sync::OnceLock;

use serde_json::Value;

use super::support::*;

/// As a server serves it.
pub(crate) fn document() -> &'static Value {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    DOCUMENT.get_or_init(|| {
        let node = Node::with(replica());
        let answer = Answer::of(&exchange(node.address(), b"GET /openapi.json HTTP/1.0\r\n\r\n"));
        assert_eq!(answer.header("Content-Type"), Some("application/json"));
        serde_json::from_str(&answer.body).unwrap()
    })
}

/// Panics unless an answer to this request may look like this.
pub(crate) fn check(request: &[u8], answer: &str) {
    let text = String::from_utf8_lossy(request);
    let mut words = text.trim_start().lines().next().unwrap_or_default().split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    // What never got to the router (no HTTP, a limit) has no such header.
    if !answer.contains("\r\n\r\n") || Answer::of(answer).header("Server").is_none() {
        return;
    }
    let answer = Answer::of(answer);
    let (path, operation) = operation(method, path(target));
    let Some(operation) = operation else {
        let calls = !["GET", "HEAD", "OPTIONS"].contains(&method);
        assert!(calls && answer.code == 501, "{method} {target} is not described, and answered {}", answer.code);
        return;
    };
    let response = resolved(&operation["responses"][answer.code.to_string().as_str()]);
    assert!(response.is_object(), "{method} {path} is not said to answer {}: {}", answer.code, answer.body);
    let kind = answer.header("Content-Type").map(|kind| kind.split(';').next().unwrap_or_default());
    let Some(kinds) = response.get("content").and_then(Value::as_object) else {
        assert_eq!((kind, answer.body.as_str()), (None, ""), "{method} {path} {}", answer.code);
        return;
    };
    let kind = kind.unwrap_or_else(|| panic!("{method} {path}: no Content-Type"));
    let content = kinds.get(kind).unwrap_or_else(|| panic!("{method} {path} {}: {kind}", answer.code));
    let body = match kind {
        "application/json" => serde_json::from_str(&answer.body).unwrap(),
        _ => Value::from(answer.body.as_str()),
    };
    if let Err(why) = fits(&body, &content["schema"]) {
        panic!("{method} {path} {}: {why}", answer.code);
    }
}

/// The path of a request's target, as the contract takes it.
fn path(target: &str) -> &str {
    let path = target.split(['?', '#']).next().unwrap_or_default();
    match path.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("/", |slash| &rest[slash..]),
        None => path,
    }
}

/// What is described for it.
fn operation(method: &str, path: &str) -> (String, Option<&'static Value>) {
    let paths = document()["paths"].as_object().unwrap();
    let bare = path.trim_start_matches('/');
    let (segment, rest) = bare.split_once('/').unwrap_or((bare, ""));
    let one = if segment == "operations" && !rest.is_empty() { "/{id}" } else { "" };
    let named = format!("/{segment}{one}");
    let check = |path: &str| paths.get(path).is_some_and(|methods| methods["get"]["tags"][0] == "health");
    // A health check is one by its whole path.
    let whole = !check(&named) || path == named || matches!(segment, "liveness" | "readiness");
    // Names of methods are upper case, and no others.
    let method = if method.bytes().all(|b| b.is_ascii_uppercase()) { method.to_lowercase() } else { String::new() };
    let known = paths.get(&named).filter(|_| whole).and_then(|methods| methods.get(&method));
    match known {
        Some(operation) => (named, Some(operation)),
        None => ("/{path}".to_owned(), paths["/{path}"].get(&method)),
    }
}

fn resolved(value: &'static Value) -> &'static Value {
    let pointer = value.get("$ref").and_then(Value::as_str).and_then(|pointer| pointer.strip_prefix('#'));
    pointer.map_or(value, |pointer| document().pointer(pointer).unwrap())
}

/// The words of JSON Schema that the description uses.
pub(crate) fn fits(value: &Value, schema: &'static Value) -> Result<(), String> {
    let schema = resolved(schema);
    let no = |why: String| Err(format!("{value}: {why}"));
    for (word, wanted) in schema.as_object().into_iter().flatten() {
        let children = match word.as_str() {
            "const" if value != wanted => return no(format!("is not {wanted}")),
            "enum" if !wanted.as_array().unwrap().contains(value) => return no(format!("is none of {wanted}")),
            "type" => {
                let kinds = wanted.as_array().map_or_else(|| vec![wanted], |kinds| kinds.iter().collect());
                let is = match value {
                    Value::Null => "null",
                    Value::Bool(_) => "boolean",
                    Value::Number(number) if number.is_f64() => "number",
                    Value::Number(_) => "integer",
                    Value::String(_) => "string",
                    Value::Array(_) => "array",
                    Value::Object(_) => "object",
                };
                if !kinds.iter().any(|kind| kind.as_str() == Some(is)) {
                    return no(format!("is not of type {wanted}"));
                }
                vec![]
            }
            "required" => {
                let missing = wanted.as_array().unwrap().iter().find(|key| value.get(key.as_str().unwrap()).is_none());
                if let Some(missing) = missing {
                    return no(format!("lacks {missing}"));
                }
                vec![]
            }
            "additionalProperties" => {
                let known = schema.get("properties").and_then(Value::as_object);
                let others = value.as_object().into_iter().flatten();
                let others = others.filter(|(key, _)| known.is_none_or(|known| !known.contains_key(*key)));
                others.map(|(key, child)| (key.clone(), child, wanted)).collect()
            }
            "properties" => {
                let known = wanted.as_object().unwrap().iter();
                known.filter_map(|(key, schema)| Some((key.clone(), value.get(key)?, schema))).collect()
            }
            "items" => value.as_array().into_iter().flatten().map(|child| (String::new(), child, wanted)).collect(),
            "minItems" | "maxItems" => {
                let (length, bound) = (value.as_array().unwrap().len() as u64, wanted.as_u64().unwrap());
                if if word == "minItems" { length < bound } else { length > bound } {
                    return no(format!("{word} is {bound}"));
                }
                vec![]
            }
            "const" | "enum" | "description" => vec![],
            other => panic!("the description uses {other}, which this test does not know"),
        };
        for (key, child, schema) in children {
            if *schema == Value::Bool(false) {
                return no(format!("{key} is not described"));
            }
            fits(child, schema)?;
        }
    }
    Ok(())
}

#[test]
fn what_is_not_described_is_found_out() {
    let schema = |name: &str| &document()["components"]["schemas"][name];
    let good = serde_json::json!({"number": 1, "time": "t", "rule": "lead", "why": "w", "plan": {}});
    assert_eq!(fits(&good, schema("Decision")), Ok(()));
    for (key, value) in [("number", Value::from("1")), ("more", Value::Null), ("plan", Value::from(1.5))] {
        let mut bad = good.clone();
        bad[key] = value;
        fits(&bad, schema("Decision")).unwrap_err();
    }
    let mut bad = good;
    bad.as_object_mut().unwrap().remove("rule");
    fits(&bad, schema("Decision")).unwrap_err();
    for (request, answer) in [
        ("GET /patroni HTTP/1.0", "HTTP/1.0 503 x\r\nServer: R\r\n\r\n"),
        ("GET /liveness HTTP/1.0", "HTTP/1.0 200 x\r\nServer: R\r\n\r\nbody"),
        ("POST /reload HTTP/1.0", "HTTP/1.0 418 x\r\nServer: R\r\n\r\n"),
        ("POST /patroni HTTP/1.0", "HTTP/1.0 200 x\r\nServer: R\r\n\r\n"),
    ] {
        std::panic::catch_unwind(|| check(request.as_bytes(), answer)).unwrap_err();
    }
}
