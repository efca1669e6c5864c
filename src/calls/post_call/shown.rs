//! A post-call record as JSON.

use serde_json::{Value, json};

use crate::ids::{mask_number, mask_numbers_in};
use crate::store::StoredPostCall;

/// The form in which telephone numbers are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbers {
    /// Only the first and last digits.
    Masked,
    /// All digits.
    Whole,
}

/// Masks telephone numbers anywhere in a provider's report.
fn mask_numbers(value: &mut Value) {
    match value {
        Value::String(text) => *text = mask_numbers_in(text),
        Value::Array(list) => list.iter_mut().for_each(mask_numbers),
        Value::Object(map) => map.iter_mut().for_each(|(key, value)| match value {
            Value::String(text) if names_a_number(key) && has_number(text) => *text = mask_number(text),
            Value::Number(number) if names_a_number(key) && has_number(&number.to_string()) => {
                *value = mask_number(&number.to_string()).into();
            }
            other => mask_numbers(other),
        }),
        _ => {}
    }
}

/// Whether a field of this name may hold a number without a plus.
fn names_a_number(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let is_word = ["from", "to", "caller", "called"].contains(&key.as_str());
    is_word || ["number", "phone", "caller_id", "msisdn"].iter().any(|part| key.contains(part))
}

fn has_number(text: &str) -> bool {
    text.bytes().filter(u8::is_ascii_digit).count() >= 7
}

/// A record as JSON.
pub fn shown(kept: &StoredPostCall, numbers: Numbers) -> Value {
    let mut shown = serde_json::to_value(&kept.found).unwrap_or_default();
    if numbers == Numbers::Masked {
        for part in ["metadata_json", "analysis_data"] {
            mask_numbers(&mut shown[part]);
        }
    }
    let times = [("recorded_at", kept.recorded_at), ("asked_again_at", kept.due_at)];
    for (name, at) in times {
        shown[name] = json!(at.map(crate::clock::rfc3339));
    }
    shown["complete"] = json!(kept.recorded_at.is_some());
    shown["recorded_by"] = json!(kept.recorded_by);
    shown["last_error"] = json!(kept.last_error);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_masked_wherever_a_provider_tells_them() {
        let mut told = json!({
            "phone_call": {"external_number": "15550001111", "agent_number": "+15550002222", "call_sid": "CA1234567890"},
            "from": "+1 555 000 3333", "caller": 15_550_004_444_i64, "to": "sip:agent@x",
            "notes": ["was called from +15550005555"], "start_time_unix_secs": 1_760_000_000, "phone_number_id": "phnum_1",
        });
        mask_numbers(&mut told);
        let shown = told.to_string();
        assert!(
            !["15550001111", "555000", "000 3333", "0004444", "0005555"].iter().any(|n| shown.contains(n)),
            "{shown}"
        );
        for kept in ["CA1234567890", "1760000000", "phnum_1", "sip:agent@x", "was called from +155"] {
            assert!(shown.contains(kept), "{kept} is not in {shown}");
        }
    }
}
