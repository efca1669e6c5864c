//! The operator's destination rules, and the decision.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::hours::{Allowed, Hours, Windows, next_allowed};
use super::lists::{DoNotCall, ListHit, NumberSet, Unreadable};
use super::number::{Country, Destination, Kind, Number, Validate};
use super::zones::{Zone, zones_of};
use crate::clock::rfc3339;
use crate::ids::prefix_key;
use crate::words::words;

/// A prefix of numbers, as in `+90`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix(String);

impl Prefix {
    /// Parses a prefix, in any spelling.
    ///
    /// # Errors
    /// A sentence for an operator.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bad = || {
            format!("{text:?} is not the prefix of a number; write the start of an international number, as in \"+90\"")
        };
        prefix_key(text).map(Self).ok_or_else(bad)
    }

    fn begins(&self, number: &Number) -> bool {
        self.0.strip_prefix('+').is_some_and(|prefix| number.digits().starts_with(prefix))
    }
}

impl TryFrom<String> for Prefix {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.0
    }
}

/// Global destination rules, or those of a plan or a business. A call must pass all that apply.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rules {
    /// The allowed prefixes; empty: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_prefixes: Vec<Prefix>,
    /// The denied prefixes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub denied_prefixes: Vec<Prefix>,
    /// The allowed types; empty: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_types: Vec<Kind>,
    /// The denied types.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub denied_types: Vec<Kind>,
    /// The hours without calls, by the destination's local time.
    #[serde(skip_serializing_if = "Hours::is_empty")]
    pub quiet_hours: Hours,
}

impl Rules {
    /// Whether there are no rules.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn judge(&self, number: &Number) -> Result<(), Blocked> {
        let begins = |prefixes: &[Prefix]| prefixes.iter().any(|prefix| prefix.begins(number));
        if begins(&self.denied_prefixes) || !(self.allowed_prefixes.is_empty() || begins(&self.allowed_prefixes)) {
            return Err(Blocked::Prefix);
        }
        if !(self.denied_types.is_empty() && self.allowed_types.is_empty()) {
            let kind = number.kind();
            let allowed = self.allowed_types.is_empty() || self.allowed_types.contains(&kind);
            if !allowed || self.denied_types.contains(&kind) {
                return Err(Blocked::Kind(kind));
            }
        }
        Ok(())
    }

    /// Whether the rules can only be passed by a number.
    fn require_number(&self) -> bool {
        !(self.allowed_prefixes.is_empty() && self.allowed_types.is_empty())
    }
}

/// The destinations allowed in a trial.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrialDestinations {
    numbers: BTreeSet<u64>,
    addresses: BTreeSet<String>,
}

impl TrialDestinations {
    /// Adds a number or an address, in any spelling.
    ///
    /// # Errors
    /// The text is neither; a sentence for an operator.
    pub fn add(&mut self, text: &str, country: Option<Country>) -> Result<(), String> {
        match Destination::read(text, country) {
            Destination::Number(number) => drop(self.numbers.insert(number.key())),
            Destination::Address(address, _) => drop(self.addresses.insert(address.to_owned())),
            Destination::Bad { .. } => {
                return Err(format!("{text:?} is neither a number with its country code nor an address"));
            }
        }
        Ok(())
    }

    fn has(&self, destination: &Destination<'_>) -> bool {
        match destination {
            Destination::Number(number) => self.numbers.contains(&number.key()),
            Destination::Address(address, _) => self.addresses.contains(*address),
            Destination::Bad { .. } => false,
        }
    }
}

/// The settings of `[destinations]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DestinationSettings {
    /// The strictness with which numbers are validated.
    pub validate: Validate,
    /// The country of numbers without a country code.
    pub country: Option<Country>,
    /// The global rules.
    pub rules: Rules,
    /// The only destinations allowed, in a trial.
    pub only: Option<TrialDestinations>,
    /// The time zone of numbers whose place is unknown.
    pub zone: Option<Zone>,
    /// The do-not-call list of the operator's file.
    pub file: Arc<NumberSet>,
}

/// The times that a decision depends on.
#[derive(Debug, Clone, Copy, Default)]
pub struct CallTime<'a> {
    /// Now, in milliseconds since 1970-01-01 UTC.
    pub now_ms: i64,
    /// The calling hours of the run; `None`: any time.
    pub open: Option<&'a Hours>,
    /// The zone of the called party, if it is known better than by the number.
    pub zone: Option<&'a Zone>,
}

/// The reason why a destination is blocked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blocked {
    /// The destination is not a telephone number that can be called.
    Invalid,
    /// The destination is on a do-not-call list.
    Listed(ListHit),
    /// A do-not-call list could not be read.
    Unreadable,
    /// The destination's prefix is denied, or not allowed.
    Prefix,
    /// The destination's type is denied, or not allowed.
    Kind(Kind),
    /// The destination is in quiet hours, or outside the hours of its run, until this time, in milliseconds since 1970-01-01 UTC.
    Quiet(i64),
    /// The destination is in quiet hours for ever, or its time zone is unknown.
    Never,
    /// The destination is not among those allowed in a trial.
    NotInTrial,
}

words!(
    /// The rule that blocks a destination, in answers and metrics.
    BlockRule {
        /// The destination is not a telephone number that can be called.
        Invalid = "invalid",
        /// A do-not-call list has it.
        DoNotCall = "do_not_call",
        /// A do-not-call list could not be read.
        ListUnreadable = "list_unreadable",
        /// The destination's prefix.
        Prefix = "prefix",
        /// The destination's type.
        Type = "type",
        /// The time of day there.
        QuietHours = "quiet_hours",
        /// The destination is not among those allowed in a trial.
        OnlyNumbers = "only_numbers",
    }
);

impl Blocked {
    /// The rule.
    pub const fn rule(self) -> BlockRule {
        match self {
            Blocked::Invalid => BlockRule::Invalid,
            Blocked::Listed(_) => BlockRule::DoNotCall,
            Blocked::Unreadable => BlockRule::ListUnreadable,
            Blocked::Prefix => BlockRule::Prefix,
            Blocked::Kind(_) => BlockRule::Type,
            Blocked::Quiet(_) | Blocked::Never => BlockRule::QuietHours,
            Blocked::NotInTrial => BlockRule::OnlyNumbers,
        }
    }
}

impl fmt::Display for Blocked {
    /// The predicate of a sentence about the number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Blocked::Invalid => f.write_str(
                "is not a telephone number that can be called: write it with its country code, as in +905321234567",
            ),
            Blocked::Listed(list) => write!(f, "is on a do-not-call list ({})", list.as_str()),
            Blocked::Unreadable => f.write_str("may be on a do-not-call list, which cannot be read at present"),
            Blocked::Prefix => f.write_str("has a prefix that may not be called"),
            Blocked::Kind(kind) => write!(f, "is a number of type {}, which may not be called", kind.as_str()),
            Blocked::Quiet(until) => write!(f, "is in its quiet hours until {}", rfc3339(*until)),
            Blocked::Never => f.write_str(
                "may only be called at certain hours, and its time zone is unknown or those hours never come",
            ),
            Blocked::NotInTrial => {
                f.write_str("is not one of the numbers that may be called (destinations.only_numbers)")
            }
        }
    }
}

impl DestinationSettings {
    /// The E.164 form of a valid number, whatever the rules. `None`: it is an address, or invalid.
    pub fn normalise(&self, text: &str) -> Option<String> {
        match Destination::read(text, self.country) {
            Destination::Number(number) if number.passes(self.validate.max(Validate::Possible)) => Some(number.e164()),
            _ => None,
        }
    }

    /// Whether these rules, and those of plan and business, allow everything.
    fn allow_everything(&self, more: &[&Rules]) -> bool {
        self.validate == Validate::Off
            && self.only.is_none()
            && self.file.is_empty()
            && self.rules.is_empty()
            && more.iter().all(|rules| rules.is_empty())
    }

    /// Decides whether a business may call a destination now. `more` are the rules of its plan and its own.
    ///
    /// # Errors
    /// The first reason against it, in this order: validity, trial, lists, prefixes, types, hours.
    pub fn judge(
        &self,
        text: &str,
        business: &str,
        more: &[&Rules],
        lists: &DoNotCall,
        when: CallTime<'_>,
    ) -> Result<(), Blocked> {
        if self.allow_everything(more) && when.open.is_none() && lists.is_empty() && lists.is_readable() {
            return Ok(());
        }
        let rules = || [&self.rules].into_iter().chain(more.iter().copied());
        let destination = Destination::read(text, self.country);
        let checked = match &destination {
            Destination::Number(number) => number.passes(self.validate),
            Destination::Address(..) => true,
            // Lists and hours work on numbers, so as soon as there are any rules, what may be a number must be a valid one.
            Destination::Bad { may_be_number } => {
                self.validate == Validate::Off && !may_be_number && !rules().any(Rules::require_number)
            }
        };
        if !checked {
            return Err(Blocked::Invalid);
        }
        if self.only.as_ref().is_some_and(|only| !only.has(&destination)) {
            return Err(Blocked::NotInTrial);
        }
        if let Some(number) = destination.number() {
            let listed = if self.file.contains(number.key()) {
                Ok(Some(ListHit::File))
            } else {
                lists.find(business, number.key())
            };
            match listed {
                Ok(None) => {}
                Ok(Some(listed)) => return Err(Blocked::Listed(listed)),
                Err(Unreadable) => return Err(Blocked::Unreadable),
            }
        }
        match &destination {
            Destination::Number(number) => {
                rules().try_for_each(|rules| rules.judge(number))?;
                let quiet: Vec<&Hours> = rules().map(|rules| &rules.quiet_hours).collect();
                let usual = self.zone.as_ref().filter(|_| zones_of(number.digits()).is_empty());
                let windows = Windows { open: when.open, quiet: &quiet };
                match next_allowed(when.now_ms, number.digits(), windows, when.zone.or(usual)) {
                    Allowed::Now => Ok(()),
                    Allowed::NotBefore(at_ms) => Err(Blocked::Quiet(at_ms)),
                    Allowed::Never => Err(Blocked::Never),
                }
            }
            // An address has no country, type or time zone; a number in it must still pass the prefixes.
            Destination::Address(_, Some(number)) => rules()
                .all(|rules| !rules.denied_prefixes.iter().any(|prefix| prefix.begins(number)))
                .then_some(())
                .ok_or(Blocked::Prefix),
            Destination::Address(_, None) | Destination::Bad { .. } => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: &str = "2026-11-27T12:00:00Z";

    fn rules(json: serde_json::Value) -> Rules {
        serde_json::from_value(json).unwrap()
    }

    struct Asked {
        settings: DestinationSettings,
        more: Vec<Rules>,
        lists: DoNotCall,
    }

    impl Asked {
        fn of(settings: DestinationSettings) -> Self {
            Self { settings, more: vec![], lists: DoNotCall::default() }
        }
        fn global(json: serde_json::Value) -> Self {
            Self::of(DestinationSettings { rules: rules(json), ..DestinationSettings::default() })
        }
        fn at(&self, text: &str, at: &str) -> Result<(), Blocked> {
            let more: Vec<&Rules> = self.more.iter().collect();
            let now_ms = at.parse::<jiff::Timestamp>().unwrap().as_millisecond();
            self.settings.judge(text, "acme", &more, &self.lists, CallTime { now_ms, ..CallTime::default() })
        }
        fn call(&self, text: &str) -> Result<(), Blocked> {
            self.at(text, NOON)
        }
    }

    #[test]
    fn without_a_word_of_the_operator_everything_goes() {
        let asked = Asked::of(DestinationSettings::default());
        for text in ["+905321234567", "100", "", "client:alice", "sip:x@y", "anonymous", "020 7946 0018"] {
            assert_eq!(asked.call(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn what_is_no_number_is_refused_and_addresses_are_not() {
        let asked = Asked::of(DestinationSettings { validate: Validate::Possible, ..DestinationSettings::default() });
        for text in ["100", "", "alice", "+90532", "0532 123 45 67"] {
            assert_eq!(asked.call(text), Err(Blocked::Invalid), "{text}");
        }
        for text in ["+905321234567", "client:alice", "sip:100@pbx.example", "whatsapp:+905321234567"] {
            assert_eq!(asked.call(text), Ok(()), "{text}");
        }
        let turkish = DestinationSettings { country: Country::parse("TR").ok(), ..asked.settings };
        assert_eq!(Asked::of(turkish).call("0532 123 45 67"), Ok(()));
    }

    #[test]
    fn prefixes_of_everybody_of_the_plan_and_of_the_business_all_hold() {
        let mut asked =
            Asked::global(serde_json::json!({"allowed_prefixes": ["+90", "1"], "denied_prefixes": ["+1 900"]}));
        assert_eq!(asked.call("+905321234567"), Ok(()));
        assert_eq!(asked.call("+12125550100"), Ok(()));
        for text in ["+19002345678", "+442079460018", "sip:+19002345678@x"] {
            assert_eq!(asked.call(text), Err(Blocked::Prefix), "{text}");
        }
        assert_eq!(asked.call("100"), Err(Blocked::Invalid), "where it leads is not known");
        asked.more = vec![rules(serde_json::json!({"allowed_prefixes": ["+90"]}))];
        assert_eq!(asked.call("+12125550100"), Err(Blocked::Prefix));
        asked.more.push(rules(serde_json::json!({"denied_prefixes": ["+90532"]})));
        assert_eq!(asked.call("+905321234567"), Err(Blocked::Prefix));
        assert_eq!(asked.call("+902121234567"), Ok(()));
    }

    #[test]
    fn kinds_are_allowed_or_denied() {
        let asked = Asked::global(serde_json::json!({"denied_types": ["premium_rate", "toll_free"]}));
        assert_eq!(asked.call("+19002345678"), Err(Blocked::Kind(Kind::PremiumRate)));
        assert_eq!(asked.call("+905321234567"), Ok(()));
        let asked = Asked::global(serde_json::json!({"allowed_types": ["mobile"]}));
        assert_eq!(asked.call("+905321234567"), Ok(()));
        assert_eq!(asked.call("+902121234567"), Err(Blocked::Kind(Kind::FixedLine)));
    }

    #[test]
    fn lists_block_numbers_and_addresses_that_hold_them() {
        let mut asked = Asked::of(DestinationSettings::default());
        asked.lists.apply([("acme", 905_321_234_567, true), ("other", 12_125_550_100, true)], 1);
        for text in
            ["+90 532 123 45 67", "905321234567", "sip:+905321234567@x", "whatsapp:+905321234567", "tel:+905321234567"]
        {
            assert_eq!(asked.call(text), Err(Blocked::Listed(ListHit::Business)), "{text}");
        }
        assert_eq!(asked.call("+12125550100"), Ok(()), "another's list");
        asked.settings.file = Arc::new(NumberSet::read("+12125550100".as_bytes()).unwrap());
        assert_eq!(asked.call("+12125550100"), Err(Blocked::Listed(ListHit::File)));
        asked.lists.set_readable(false);
        assert_eq!(asked.call("+13105550100"), Err(Blocked::Unreadable));
        for text in ["client:alice", "100"] {
            assert_eq!(asked.call(text), Ok(()), "{text} is on no list of numbers");
        }
        assert_eq!(asked.call("0532 123 45 67"), Err(Blocked::Invalid), "which number it is, is not known");
        assert_eq!(
            Asked { lists: asked.lists, ..Asked::of(DestinationSettings::default()) }.call("+13105550100"),
            Err(Blocked::Unreadable)
        );
    }

    #[test]
    fn quiet_hours_are_the_destinations() {
        let mut asked = Asked::global(serde_json::json!({"quiet_hours": ["daily 21:00-08:00"]}));
        assert_eq!(asked.at("+905321234567", "2026-11-27T17:59:00Z"), Ok(()));
        let until = "2026-11-28T05:00:00Z".parse::<jiff::Timestamp>().unwrap().as_millisecond();
        assert_eq!(asked.at("+905321234567", "2026-11-27T18:00:00Z"), Err(Blocked::Quiet(until)));
        assert_eq!(asked.at("sip:x@y", "2026-11-27T18:00:00Z"), Ok(()));
        assert_eq!(asked.call("+88213000000"), Err(Blocked::Never), "nobody knows where it is");
        asked.settings.zone = Zone::parse("Europe/Istanbul").ok();
        assert_eq!(asked.call("+88213000000"), Ok(()));
        asked.more = vec![rules(serde_json::json!({"quiet_hours": ["fri 00:00-24:00"]}))];
        assert!(matches!(asked.call("+905321234567"), Err(Blocked::Quiet(_))));
    }

    #[test]
    fn the_hours_of_a_run_and_a_known_zone_hold_too() {
        let asked = Asked::global(serde_json::json!({"quiet_hours": ["daily 21:00-08:00"]}));
        let open = Hours::try_from(vec!["daily 10:00-24:00".to_owned()]).unwrap();
        let berlin = Zone::parse("Europe/Berlin").unwrap();
        let ms = |at: &str| at.parse::<jiff::Timestamp>().unwrap().as_millisecond();
        let judge = |at: &str, zone| {
            let when = CallTime { now_ms: ms(at), open: Some(&open), zone };
            asked.settings.judge("+905321234567", "acme", &[], &asked.lists, when)
        };
        assert_eq!(judge("2026-11-27T06:30:00Z", None), Err(Blocked::Quiet(ms("2026-11-27T07:00:00Z"))));
        assert_eq!(judge("2026-11-27T07:00:00Z", None), Ok(()));
        assert_eq!(judge("2026-11-27T07:00:00Z", Some(&berlin)), Err(Blocked::Quiet(ms("2026-11-27T09:00:00Z"))));
        assert_eq!(judge("2026-11-27T18:30:00Z", None), Err(Blocked::Quiet(ms("2026-11-28T07:00:00Z"))));
        assert_eq!(judge("2026-11-27T18:30:00Z", Some(&berlin)), Ok(()));
        let windows = CallTime { now_ms: ms("2026-11-27T06:30:00Z"), open: Some(&open), zone: None };
        let nothing = DestinationSettings::default().judge("+905321234567", "acme", &[], &asked.lists, windows);
        assert!(matches!(nothing, Err(Blocked::Quiet(_))), "also where the operator says nothing");
    }

    #[test]
    fn numbers_of_a_list_are_normalised_once() {
        let settings = DestinationSettings { country: Country::parse("TR").ok(), ..DestinationSettings::default() };
        assert_eq!(settings.normalise("0532 123 45 67").as_deref(), Some("+905321234567"));
        assert_eq!(settings.normalise("+1 555 000 1101").as_deref(), Some("+15550001101"));
        for bad in ["100", "client:alice", "sip:+905321234567@x", "+90532", ""] {
            assert_eq!(settings.normalise(bad), None, "{bad}");
        }
        let strict = DestinationSettings { validate: Validate::Valid, ..DestinationSettings::default() };
        assert_eq!(strict.normalise("+15550001101"), None);
    }

    #[test]
    fn a_trial_calls_nobody_else() {
        let mut only = TrialDestinations::default();
        for text in ["+90 532 123 45 67", "client:alice"] {
            only.add(text, None).unwrap();
        }
        assert!(only.add("alice", None).is_err());
        let asked = Asked::of(DestinationSettings { only: Some(only), ..DestinationSettings::default() });
        for text in ["905321234567", "whatsapp:+905321234567", "client:alice"] {
            assert_eq!(asked.call(text), Ok(()), "{text}");
        }
        for text in ["+905321234568", "client:bob", "sip:+905321234567@elsewhere.example", "100", ""] {
            assert_eq!(asked.call(text), Err(Blocked::NotInTrial), "{text}");
        }
    }

    #[test]
    fn rules_of_a_business_are_read_and_written_alike() {
        let json = serde_json::json!({"allowed_prefixes": ["+90"], "denied_types": ["premium_rate"], "quiet_hours": ["daily 21:00-08:00"]});
        assert_eq!(serde_json::to_value(rules(json.clone())).unwrap(), json);
        for bad in [
            serde_json::json!({"allowed_prefixes": ["abc"]}),
            serde_json::json!({"denied_types": ["dear"]}),
            serde_json::json!({"quiet_hours": ["at night"]}),
            serde_json::json!({"allowed": ["+90"]}),
        ] {
            assert!(serde_json::from_value::<Rules>(bad.clone()).is_err(), "{bad}");
        }
    }
}
