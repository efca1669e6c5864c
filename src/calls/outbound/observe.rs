//! Observe mode: what enforce mode would have rejected is sent and marked. What it marks, and what not even this mode can send, is
//! decided for every code in [`RejectionCode::observed`](crate::reply::RejectionCode::observed).

use bytes::Bytes;
use http::header::HeaderName;
use http::{HeaderValue, Response};

use super::request::CreateRequest;

/// The header that names what would have rejected a create: a limit, or the code of another rejection.
pub(super) const WOULD_REFUSE: HeaderName = HeaderName::from_static("x-ringfence-would-refuse");
/// The header that says what of a create named a business and was not read.
const IGNORED: HeaderName = HeaderName::from_static("x-ringfence-ignored");

/// Marks an answer with what would have rejected its request, unless something does already, and with what was not read.
pub(super) fn mark(request: &CreateRequest, response: &mut Response<Bytes>) {
    if let Some(rejection) = request.would_reject.get()
        && !response.headers().contains_key(&WOULD_REFUSE)
        && let Ok(code) = HeaderValue::try_from(rejection.code.as_str(&request.account.provider.refusal))
    {
        response.headers_mut().insert(WOULD_REFUSE, code);
    }
    if let Some(ignored) = request.ignored
        && let Ok(ignored) = HeaderValue::try_from(ignored.to_string().replace('…', "ID"))
    {
        response.headers_mut().insert(IGNORED, ignored);
    }
}
