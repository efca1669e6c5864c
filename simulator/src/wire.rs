//! A request and an answer, free of any server.

use bytes::Bytes;
use http::HeaderMap;
use serde_json::Value;

/// A request as the providers' logic sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub query: &'a str,
    pub headers: &'a HeaderMap,
    pub body: &'a [u8],
}

impl Ask<'_> {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The first value of a query parameter.
    pub(crate) fn param(&self, name: &str) -> Option<String> {
        self.params().into_iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    pub(crate) fn params(&self) -> Vec<(String, String)> {
        form_urlencoded::parse(self.query.as_bytes()).into_owned().collect()
    }

    pub(crate) fn json(&self) -> Option<Value> {
        serde_json::from_slice(self.body).ok()
    }

    pub(crate) fn form(&self) -> Form {
        Form(form_urlencoded::parse(self.body).into_owned().collect())
    }

    /// The path's segments, decoded.
    pub(crate) fn segments(&self) -> Vec<String> {
        self.path.split('/').filter(|part| !part.is_empty()).map(decoded).collect()
    }
}

/// `%2B` and the like; a plus sign in a path is a plus sign.
fn decoded(part: &str) -> String {
    if !part.contains('%') {
        return part.to_owned();
    }
    let guarded = part.replace('+', "%2B");
    form_urlencoded::parse(guarded.as_bytes()).next().map_or_else(String::new, |(key, _)| key.into_owned())
}

/// A decoded form with repeated names kept.
#[derive(Clone, Debug, Default)]
pub(crate) struct Form(pub Vec<(String, String)>);

impl Form {
    /// The first value that is not empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, value)| key == name && !value.is_empty()).map(|(_, value)| value.as_str())
    }

    pub(crate) fn all(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(key, _)| key == name).map(|(_, value)| value.clone()).collect()
    }
}

/// An answer, with what the server has to do besides sending it.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub status: u16,
    pub content: &'static str,
    pub body: Bytes,
    /// Wait this long before answering.
    pub wait_ms: u64,
    /// Close the connection without an answer.
    pub drop: bool,
    /// `Retry-After`, in seconds.
    pub retry_after: Option<u64>,
}

impl Reply {
    pub(crate) fn json(status: u16, body: &Value) -> Reply {
        Reply::text(status, "application/json", body.to_string())
    }

    pub(crate) fn text(status: u16, content: &'static str, body: String) -> Reply {
        Reply { status, content, body: Bytes::from(body), wait_ms: 0, drop: false, retry_after: None }
    }

    pub(crate) fn empty(status: u16) -> Reply {
        Reply::text(status, "", String::new())
    }
}
