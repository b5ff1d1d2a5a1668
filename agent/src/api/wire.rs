//! The kinds of answers (rest-api.md 2.3), and what goes on every one of them.

use axum::body::Body;
use axum::response::Response;
use http::header::{CONNECTION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, SERVER};
use http::{HeaderValue, Method, StatusCode, Version};

use super::Policy;

/// `restapi.server_tokens` (rest-api.md 19.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServerTokens {
    /// `Server: Regent/<version>`
    #[default]
    Original,
    /// `Server: Regent/<version>`
    Minimal,
    /// `Server: Regent`
    ProductOnly,
}

impl ServerTokens {
    fn header(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            ServerTokens::Original | ServerTokens::Minimal => concat!("Regent/", env!("CARGO_PKG_VERSION")),
            ServerTokens::ProductOnly => "Regent",
        })
    }
}

/// A status line, no body.
pub(super) fn bare(status: StatusCode) -> Response {
    respond(status, None, String::new())
}

/// JSON text.
pub(super) fn json(status: StatusCode, text: String) -> Response {
    respond(status, Some("application/json"), text)
}

/// A sentence for people and tools, without a newline.
pub(super) fn message(status: StatusCode, text: impl Into<String>) -> Response {
    respond(status, Some("text/html"), text.into())
}

/// A page for a person with a browser: it fetches from here and from nowhere else, and nobody may frame it.
pub(super) fn page(html: &'static str) -> Response {
    let mut answer = respond(StatusCode::OK, Some("text/html; charset=utf-8"), html.to_owned());
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; frame-ancestors 'none'";
    answer.headers_mut().insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    answer
}

/// Prometheus' text format.
pub(super) fn metrics(text: String) -> Response {
    respond(StatusCode::OK, Some("text/plain; version=0.0.4; charset=utf-8"), text)
}

/// A small page that says what is wrong; it ends the connection, as the peer's do.
pub(super) fn error_page(status: StatusCode, why: &str) -> Response {
    let page = format!("<!DOCTYPE html>\n<title>{status}</title>\n<h1>{status}</h1>\n<p>{why}</p>\n");
    let mut answer = respond(status, Some("text/html;charset=utf-8"), page);
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}

fn respond(status: StatusCode, media_type: Option<&'static str>, body: String) -> Response {
    let mut answer = Response::new(Body::from(body));
    *answer.status_mut() = status;
    if let Some(media_type) = media_type {
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    }
    answer
}

/// Completes an answer for its request: no body for HEAD and OPTIONS, the headers that all share, and a close where the
/// client speaks HTTP/1.0 (also if it asked to keep the connection: rest-api.md 2.1).
pub(super) fn finish(answer: Response, method: &Method, version: Version, policy: &Policy) -> Response {
    let mut answer = match *method {
        Method::HEAD | Method::OPTIONS => bare(answer.status()),
        _ => answer,
    };
    let has_body = answer.headers().contains_key(CONTENT_TYPE);
    let headers = answer.headers_mut();
    headers.insert(SERVER, policy.server_tokens.header());
    if has_body {
        for (name, value) in &policy.extra_headers {
            headers.insert(name, value.clone());
        }
    }
    if version < Version::HTTP_11 {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}
