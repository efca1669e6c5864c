//! TwiML answers to voice webhooks. Pure.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Response, StatusCode};

use super::respond;
use crate::policy::WhenFull;
use crate::provider::render::{Target, render};

/// A TwiML answer.
pub fn twiml(body: String) -> Response<Bytes> {
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("text/xml; charset=utf-8"))]);
    respond(StatusCode::OK, headers, body.into())
}

/// The TwiML for an inbound caller when a limit is full. `<Reject>` must be the first verb: any verb before it answers the call,
/// which is then billed (<https://www.twilio.com/docs/voice/twiml/reject>).
pub fn when_full_twiml(when_full: &WhenFull) -> String {
    const HEAD: &str = r#"<?xml version="1.0" encoding="UTF-8"?>"#;
    let put = |template: &str, values: &[(&str, &str)]| {
        let value = |name: &str| values.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).into());
        render(template, Target::Xml, value).unwrap_or_default()
    };
    let verbs = match when_full {
        WhenFull::Busy => r#"<Reject reason="busy"/>"#.to_owned(),
        WhenFull::Say { text, language } => {
            put(r#"<Say language="{language}">{text}</Say><Hangup/>"#, &[("text", text), ("language", language)])
        }
        WhenFull::Forward { number } => put("<Dial>{number}</Dial>", &[("number", number)]),
    };
    format!("{HEAD}<Response>{verbs}</Response>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_meet_what_was_configured_and_nothing_is_injected() {
        let busy = when_full_twiml(&WhenFull::Busy);
        assert!(busy.contains(r#"<Response><Reject reason="busy"/></Response>"#), "{busy}");
        let say = WhenFull::Say { text: "</Say><Dial>+1900</Dial>".to_owned(), language: "en-US".to_owned() };
        let said = when_full_twiml(&say);
        assert!(!said.contains("<Dial>"), "{said}");
        let forward = when_full_twiml(&WhenFull::Forward { number: "+15550009999".to_owned() });
        assert!(forward.contains("<Dial>+15550009999</Dial>"), "{forward}");
    }
}
