//! Observe mode: requests that enforce mode would reject are sent and marked.
//! [`RejectionCode::observed`](crate::reply::RejectionCode::observed) decides for each code whether it only marks.

use bytes::Bytes;
use http::header::HeaderName;
use http::{HeaderValue, Response};

use super::request::CreateRequest;

/// Response header: the limit, or the code of another rejection, that would have rejected a create.
pub(super) const WOULD_REFUSE: HeaderName = HeaderName::from_static("x-ringfence-would-refuse");
/// Response header: the part of a create that named a business and was not read.
const IGNORED: HeaderName = HeaderName::from_static("x-ringfence-ignored");

/// Marks a response with what would have rejected its request, unless it is marked already, and with what was not read.
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
