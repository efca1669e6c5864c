//! The operator's page: a few embedded files. They contain no data; they fetch it with the reader's token.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Response, StatusCode};

use crate::reply::respond;

/// Files of the page: path, media type, content.
const FILES: [(&str, &str, &str); 12] = [
    ("/", "text/html; charset=utf-8", include_str!("page/index.html")),
    ("/page/app.js", "text/javascript; charset=utf-8", include_str!("page/app.js")),
    ("/page/dom.js", "text/javascript; charset=utf-8", include_str!("page/dom.js")),
    ("/page/words.js", "text/javascript; charset=utf-8", include_str!("page/words.js")),
    ("/page/search.js", "text/javascript; charset=utf-8", include_str!("page/search.js")),
    ("/page/records.js", "text/javascript; charset=utf-8", include_str!("page/records.js")),
    ("/page/runs.js", "text/javascript; charset=utf-8", include_str!("page/runs.js")),
    ("/page/views.js", "text/javascript; charset=utf-8", include_str!("page/views.js")),
    ("/page/api.html", "text/html; charset=utf-8", include_str!("page/api.html")),
    ("/page/api.js", "text/javascript; charset=utf-8", include_str!("page/api.js")),
    ("/page/style.css", "text/css; charset=utf-8", include_str!("page/style.css")),
    ("/page/icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
];

/// The file at a path.
pub(super) fn file(path: &str) -> Option<Response<Bytes>> {
    let (_, kind, text) = FILES.iter().find(|(at, ..)| *at == path)?;
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]);
    Some(respond(StatusCode::OK, headers, Bytes::from_static(text.as_bytes())))
}
