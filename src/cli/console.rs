//! What every command about a running sidecar has: where its `listen.admin` is, and a token.

use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, StatusCode};
use serde_json::Value;

use crate::net::{Upstream, UpstreamSettings};

/// Where to ask.
#[derive(Debug, Args)]
pub(super) struct Console {
    /// listen.admin of the sidecar
    #[arg(
        long,
        env = "RINGFENCE_ADMIN_URL",
        default_value = "http://127.0.0.1:9900",
        value_name = "URL",
        global = true
    )]
    admin: String,
    /// A token of it; none is needed on the same machine
    #[arg(long, env = "RINGFENCE_TOKEN", hide_env_values = true, value_name = "TOKEN", global = true)]
    token: Option<String>,
}

impl Console {
    /// Asks, and gives the answer whatever its status. Fails only if nobody answers.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> anyhow::Result<(StatusCode, Value)> {
        crate::net::install_crypto_provider();
        let upstream = Upstream::new(UpstreamSettings::default())?;
        let mut request = Request::new(body.map(|b| Bytes::from(b.to_string())).unwrap_or_default());
        *request.method_mut() = method;
        *request.uri_mut() = format!("{}{path}", self.admin.trim_end_matches('/')).parse()?;
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(token) = &self.token {
            request.headers_mut().insert(AUTHORIZATION, HeaderValue::try_from(format!("Bearer {token}"))?);
        }
        let response = upstream.fetch(request, 16 * 1024 * 1024, Duration::from_secs(30)).await.map_err(|error| {
            anyhow::anyhow!("no sidecar answers at {}: {error}\nName it with --admin URL", self.admin)
        })?;
        Ok((response.status(), serde_json::from_slice(response.body()).unwrap_or_default()))
    }

    /// Asks, and gives the answer if it is a success.
    pub(super) async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> anyhow::Result<Value> {
        let (status, answer) = self.send(method, path, body).await?;
        if !status.is_success() {
            return Err(refused(status, &answer));
        }
        Ok(answer)
    }
}

/// The path of one thing below another, whatever its id holds.
pub(super) fn path_of(below: &str, id: &str) -> String {
    let escaped: String = form_urlencoded::byte_serialize(id.as_bytes()).collect();
    format!("{below}/{escaped}")
}

/// What the sidecar said that is no success.
pub(super) fn refused(status: StatusCode, answer: &Value) -> anyhow::Error {
    anyhow::anyhow!("{} ({status})", answer["message"].as_str().unwrap_or("no reason given"))
}
