//! The message parts that derive from the URL, and those that need more than substitution: Twilio's parameters and Plivo's
//! base.

use std::collections::BTreeSet;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::super::select::FORM_PAIRS_MAX;
use super::common::{Request, equal, sha256_hex};

/// Removes the fragment of a URL: it is neither sent nor signed.
pub fn without_fragment(url: &str) -> &str {
    url.split('#').next().unwrap_or(url)
}

/// The forms of a URL that a provider may have signed: with and without port, as Twilio's SDKs also try, as `https` and
/// `wss`. The first is the URL unchanged.
pub(super) fn variants(url: &str) -> Vec<String> {
    let Some((scheme, rest)) = url.split_once("://") else { return vec![url.to_owned()] };
    let (authority, tail) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let port = match scheme {
        "https" | "wss" => ":443",
        _ => ":80",
    };
    let mut authorities = vec![authority.to_owned()];
    // The colon is not one within an IPv6 address.
    match authority.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())) {
        Some((bare, _)) if !bare.ends_with(':') => authorities.push(bare.to_owned()),
        _ => authorities.push(format!("{authority}{port}")),
    }
    let schemes: [&str; 2] = match scheme {
        "https" => ["https", "wss"],
        "wss" => ["wss", "https"],
        "ws" => ["ws", "http"],
        _ => ["http", "ws"],
    };
    schemes.iter().flat_map(|s| authorities.iter().map(move |a| format!("{s}://{a}{tail}"))).collect()
}

/// The characters that Node's `querystring` leaves unescaped.
const LEGACY: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The additional spellings of Twilio's official validator for Node (twilio 6.3.1, lib/webhooks/webhooks.js): the URL as serialised by
/// the WHATWG parser, which escapes a quote, and with its query as serialised by Node's `querystring`, which does not, and
/// writes a plus as `%20`; each with and without its port.
pub(super) fn node_spellings(url: &str) -> Vec<String> {
    let Ok(normal) = url::Url::parse(url) else { return vec![] };
    let with_legacy = |one: String| {
        let legacy = legacy_query(&one);
        [Some(one), legacy].into_iter().flatten()
    };
    variants(normal.as_str()).into_iter().flat_map(with_legacy).collect()
}

fn legacy_query(url: &str) -> Option<String> {
    let (path, query) = url.split_once('?').filter(|(_, query)| !query.is_empty())?;
    let mut names: Vec<(String, Vec<String>)> = Vec::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()).into_owned().take(FORM_PAIRS_MAX) {
        match names.iter_mut().find(|(known, _)| *known == name) {
            Some((_, values)) => values.push(value),
            None => names.push((name, vec![value])),
        }
    }
    // JavaScript objects list integer-like names first, in ascending order.
    let index = |name: &str| name.parse::<u32>().ok().filter(|n| *n < u32::MAX && n.to_string() == name);
    names.sort_by_key(|(name, _)| index(name).map_or((true, 0), |n| (false, n)));
    let escaped = |text: &str| utf8_percent_encode(text, LEGACY).to_string();
    let pairs = names
        .iter()
        .flat_map(|(name, values)| values.iter().map(move |value| format!("{}={}", escaped(name), escaped(value))));
    Some(format!("{path}?{}", pairs.collect::<Vec<_>>().join("&")))
}

/// Twilio's parameters: sorted names, each followed by its distinct values, sorted.
pub(super) fn twilio_params(form: Option<&[(String, String)]>) -> String {
    let sorted: BTreeSet<(&str, &str)> =
        form.unwrap_or_default().iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    sorted.into_iter().flat_map(|(name, value)| [name, value]).collect()
}

/// Whether the body matches `bodySHA256` in the query, by which Twilio covers bodies other than forms. An empty body needs none.
pub(super) fn body_hash_fits(request: &Request<'_>) -> bool {
    if request.form.is_some() {
        return true;
    }
    let query = request.url.split_once('?').map_or("", |(_, q)| q);
    let claimed = form_urlencoded::parse(query.as_bytes()).find(|(k, _)| k == "bodySHA256");
    claimed.map_or(request.body.is_empty(), |(_, hash)| {
        equal(hash.to_ascii_lowercase().as_bytes(), sha256_hex(request.body).as_bytes())
    })
}

/// Plivo's base of a URL, as its SDKs build it; and, for a form at a URL without a query, as its documentation describes it, which differs.
pub(super) fn plivo_v3_bases(request: &Request<'_>, url: &str) -> Vec<String> {
    let url = without_fragment(url);
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    let mut query: Vec<(String, String)> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    query.sort_unstable();
    let query = query.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&");
    let mut form: Vec<_> = request.form.unwrap_or_default().iter().collect();
    form.sort_unstable();
    let params: String = form.into_iter().flat_map(|(name, value)| [name.as_str(), value]).collect();
    match (query.is_empty(), params.is_empty()) {
        (true, true) => vec![path.to_owned()],
        (false, true) => vec![format!("{path}?{query}")],
        (true, false) => vec![format!("{path}?{params}"), format!("{path}.{params}")],
        (false, false) => vec![format!("{path}?{query}.{params}")],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_spelt_as_the_official_validator_spells_them() {
        let all = node_spellings("https://app.example/voice?name=O'Neil+x&b=%27&10=c&name=y&2=&e=%C3%A9!");
        for wanted in [
            "https://app.example/voice?name=O%27Neil+x&b=%27&10=c&name=y&2=&e=%C3%A9!",
            "https://app.example:443/voice?name=O%27Neil+x&b=%27&10=c&name=y&2=&e=%C3%A9!",
            "https://app.example/voice?2=&10=c&name=O'Neil%20x&name=y&b='&e=%C3%A9!",
            "https://app.example:443/voice?2=&10=c&name=O'Neil%20x&name=y&b='&e=%C3%A9!",
        ] {
            assert!(all.iter().any(|one| one == wanted), "{wanted}: {all:#?}");
        }
        assert_eq!(node_spellings("no url"), Vec::<String>::new());
        assert_eq!(legacy_query("https://a/b"), None);
    }
}
