//! What a destination is: a telephone number, or an address that is none.

use std::borrow::Cow;

use phonenumber::metadata::DATABASE;
use phonenumber::{Mode, PhoneNumber, Type};
use serde::{Deserialize, Serialize};

use crate::ids::number_key;

/// Digits of a number with its country code (ITU-T E.164 §6); no country has numbers of fewer in all.
const DIGITS: std::ops::RangeInclusive<usize> = 7..=15;
/// The longest destination that is looked at, in bytes: no provider takes more.
const BYTES_MAX: usize = 256;
/// Kinds of numbers that can be called from abroad.
const KINDS: [Type; 11] = [
    Type::FixedLine,
    Type::Mobile,
    Type::TollFree,
    Type::PremiumRate,
    Type::SharedCost,
    Type::PersonalNumber,
    Type::Voip,
    Type::Pager,
    Type::Uan,
    Type::Voicemail,
    Type::StandardRate,
];
/// Beginnings of addresses that hold a telephone number and nothing else.
const OF_NUMBERS: [&str; 2] = ["tel:", "whatsapp:"];

/// How much of a number is checked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Validate {
    /// Nothing: what is no number goes on to the provider, too.
    #[default]
    Off,
    /// It has a country code that exists, and as many digits as numbers there have.
    Possible,
    /// And it lies in a range that its country has given out, as far as libphonenumber knows.
    Valid,
}

impl Validate {
    /// Every one with its word in the config.
    pub const WORDS: [(&'static str, Validate); 3] =
        [("off", Validate::Off), ("possible", Validate::Possible), ("valid", Validate::Valid)];
}

/// What kind of number it is, as libphonenumber tells kinds apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A line at a place.
    FixedLine,
    /// A mobile telephone.
    Mobile,
    /// One of the two: in the United States and Canada numbers do not say which.
    FixedLineOrMobile,
    /// Free for the caller.
    TollFree,
    /// Dear for the caller.
    PremiumRate,
    /// Paid by both.
    SharedCost,
    /// A person's, wherever it leads.
    PersonalNumber,
    /// Voice over IP.
    Voip,
    /// A pager.
    Pager,
    /// A company's, wherever it leads.
    Uan,
    /// A voice mailbox.
    Voicemail,
    /// In no range that libphonenumber knows.
    Unknown,
}

impl Kind {
    /// Every one with its word in the config.
    pub const WORDS: [(&'static str, Kind); 12] = [
        ("fixed_line", Kind::FixedLine),
        ("mobile", Kind::Mobile),
        ("fixed_line_or_mobile", Kind::FixedLineOrMobile),
        ("toll_free", Kind::TollFree),
        ("premium_rate", Kind::PremiumRate),
        ("shared_cost", Kind::SharedCost),
        ("personal_number", Kind::PersonalNumber),
        ("voip", Kind::Voip),
        ("pager", Kind::Pager),
        ("uan", Kind::Uan),
        ("voicemail", Kind::Voicemail),
        ("unknown", Kind::Unknown),
    ];

    /// The word.
    pub fn as_str(self) -> &'static str {
        Self::WORDS.iter().find(|(_, kind)| *kind == self).map_or("unknown", |(word, _)| word)
    }

    fn of(kind: Type) -> Self {
        match kind {
            Type::FixedLine => Self::FixedLine,
            Type::Mobile => Self::Mobile,
            Type::FixedLineOrMobile => Self::FixedLineOrMobile,
            Type::TollFree => Self::TollFree,
            Type::PremiumRate => Self::PremiumRate,
            Type::SharedCost => Self::SharedCost,
            Type::PersonalNumber => Self::PersonalNumber,
            Type::Voip => Self::Voip,
            Type::Pager => Self::Pager,
            Type::Uan => Self::Uan,
            Type::Voicemail => Self::Voicemail,
            _ => Self::Unknown,
        }
    }
}

/// A country, by its two letters (ISO 3166).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Country(phonenumber::country::Id);

impl Country {
    /// Reads two letters.
    ///
    /// # Errors
    /// A sentence for an operator.
    pub fn parse(text: &str) -> Result<Self, String> {
        let id = text.trim().to_ascii_uppercase().parse::<phonenumber::country::Id>();
        id.map(Self).map_err(|_| format!("{text:?} is no country; write its two letters, as in \"TR\""))
    }
}

/// A telephone number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Number {
    digits: String,
    key: u64,
}

impl Number {
    /// With its plus.
    pub fn e164(&self) -> String {
        format!("+{}", self.digits)
    }

    /// Without its plus.
    pub fn digits(&self) -> &str {
        &self.digits
    }

    /// As lists know it: see [`key_of`].
    pub fn key(&self) -> u64 {
        self.key
    }

    /// As the library has it. It takes its time, and is asked only where it matters.
    fn parsed(&self) -> Option<PhoneNumber> {
        phonenumber::parse(None, self.e164()).ok()
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        self.parsed().map_or(Kind::Unknown, |number| Kind::of(number.number_type(&DATABASE)))
    }

    /// Whether it stands a check.
    pub fn stands(&self, check: Validate) -> bool {
        let fits = |right: fn(&PhoneNumber) -> bool| self.parsed().is_some_and(|number| right(&number));
        match check {
            Validate::Off => true,
            Validate::Possible => fits(is_possible),
            // The library knows the ranges, and not that a number of a range may have a wrong length.
            Validate::Valid => fits(|number| is_possible(number) && number.is_valid()),
        }
    }
}

/// Whether numbers of its country, of any kind, may have as many digits.
fn is_possible(number: &PhoneNumber) -> bool {
    let code = number.code().value();
    let digits = u16::try_from(number.national().to_string().len()).unwrap_or(u16::MAX);
    let regions = DATABASE.region(&code).unwrap_or_default();
    let of_regions = regions.iter().filter_map(|region| DATABASE.by_id(*region));
    // What belongs to no country, as freephone numbers of all of them.
    let mut all = of_regions.chain(DATABASE.by_code(&code).unwrap_or_default());
    all.any(|country| {
        let mut kinds = KINDS.iter().filter_map(|kind| country.descriptors().get(*kind));
        kinds.any(|kind| kind.possible_length().contains(&digits))
    })
}

/// What an app wants to call.
#[derive(Debug, Clone)]
pub enum Destination<'a> {
    /// A telephone number.
    Number(Number),
    /// What has no telephone number, or more than that: a SIP address, a client of the provider's. With the number in it, where one is
    /// in it.
    Address(&'a str, Option<Number>),
    /// Neither: a short code, an extension, a number without its country.
    Bad {
        /// It has so many digits that it may be a telephone number all the same.
        may_be_number: bool,
    },
}

impl<'a> Destination<'a> {
    /// Reads what stands in a request. A number without plus, `00`, `011` or `tel:` is one of `country`, where that is given; else its country code
    /// comes first.
    pub fn read(text: &'a str, country: Option<Country>) -> Self {
        let text = text.trim();
        if text.len() > BYTES_MAX {
            return Self::Bad { may_be_number: true };
        }
        let of_number = OF_NUMBERS.iter().find_map(|scheme| {
            let (head, rest) = (text.get(..scheme.len())?, text.get(scheme.len()..)?);
            head.eq_ignore_ascii_case(scheme).then_some(rest)
        });
        if let Some(rest) = of_number {
            let plain = rest.split(';').next().unwrap_or_default();
            return read_number(plain, None).map_or_else(|| bad(text), Self::Number);
        }
        if let Some((scheme, rest)) = text.split_once(':').filter(|(scheme, _)| is_scheme(scheme)) {
            let user = rest.split(['@', ';', '?']).next().unwrap_or_default();
            let is_sip = scheme.eq_ignore_ascii_case("sip") || scheme.eq_ignore_ascii_case("sips");
            return Self::Address(text, read_number(user, None).filter(|_| is_sip));
        }
        if text.contains('@') {
            let user = text.split('@').next().unwrap_or_default();
            return Self::Address(text, read_number(user, None));
        }
        read_number(text, country).map_or_else(|| bad(text), Self::Number)
    }

    /// The number that it leads to, as far as it says.
    pub fn number(&self) -> Option<&Number> {
        match self {
            Self::Number(number) | Self::Address(_, Some(number)) => Some(number),
            Self::Address(_, None) | Self::Bad { .. } => None,
        }
    }
}

fn bad<'a>(text: &str) -> Destination<'a> {
    let digits = text.chars().filter(|c| c.is_numeric()).count();
    Destination::Bad { may_be_number: digits >= *DIGITS.start() }
}

/// RFC 3986 §3.1.
fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
}

fn is_international(text: &str) -> bool {
    text.starts_with(['+', '\u{ff0b}']) || text.starts_with("00") || text.starts_with("011")
}

fn read_number(text: &str, country: Option<Country>) -> Option<Number> {
    let text = text.trim();
    // What cannot be a number of that country may still have its country code before it.
    let national = country.filter(|_| !is_international(text)).and_then(|country| {
        let number = phonenumber::parse(Some(country.0), text).ok();
        number.filter(is_possible).map(|number| spelt(&number))
    });
    let e164 = national.map_or_else(|| number_key(text), Cow::Owned);
    let digits = e164.strip_prefix('+').filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))?;
    let key = digits.parse().ok().filter(|_| DIGITS.contains(&digits.len()))?;
    Some(Number { digits: digits.to_owned(), key })
}

fn spelt(number: &PhoneNumber) -> String {
    number.format().mode(Mode::E164).to_string()
}

/// A number as lists know it: the digits of its E.164 form, as one number. `None`: it is none, or has no country code.
pub fn key_of(text: &str) -> Option<u64> {
    read_number(text, None).map(|number| number.key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(text: &str) -> Number {
        match Destination::read(text, None) {
            Destination::Number(number) => number,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn numbers_are_read_however_they_are_spelt() {
        for (text, e164) in [
            ("+90 532 123 45 67", "+905321234567"),
            ("tel:+1-212-555-0100;ext=5", "+12125550100"),
            ("whatsapp:+905321234567", "+905321234567"),
            ("WhatsApp:905321234567", "+905321234567"),
            ("00 44 20 7946 0018", "+442079460018"),
            ("+44 (0)20 7946 0018", "+442079460018"),
            ("+39 06 698 12345", "+390669812345"),
            ("12125550100", "+12125550100"),
        ] {
            assert_eq!(number(text).e164(), e164, "{text}");
        }
        assert_eq!(key_of("+905321234567"), Some(905_321_234_567));
    }

    #[test]
    fn a_number_without_its_country_is_one_of_the_configured() {
        let read = |text, country| match Destination::read(text, Country::parse(country).ok()) {
            Destination::Number(number) => number.e164(),
            other => format!("{other:?}"),
        };
        assert_eq!(read("0532 123 45 67", "TR"), "+905321234567");
        assert_eq!(read("(212) 555-0100", "us"), "+12125550100");
        assert_eq!(read("4155550100", "US"), "+14155550100", "and not one of Switzerland");
        assert_eq!(read("+41 44 668 18 00", "US"), "+41446681800");
        assert_eq!(read("0041446681800", "TR"), "+41446681800");
        assert_eq!(read("905321234567", "US"), "+905321234567", "too long for one of the United States");
        assert!(Country::parse("Turkey").is_err() && Country::parse("XX").is_err());
    }

    #[test]
    fn what_is_no_number_is_an_address_or_bad() {
        for address in [
            "client:alice",
            "sip:alice@example.com",
            "sips:bob@example.com;transport=tls",
            "alice@example.com",
            "app:x",
        ] {
            assert!(matches!(Destination::read(address, None), Destination::Address(_, None)), "{address}");
        }
        for address in
            ["sip:+905321234567@carrier.example", "sips:+90 532 123 45 67@x", "+905321234567@carrier.example"]
        {
            let read = Destination::read(address, None);
            assert_eq!(read.number().map(Number::key), Some(905_321_234_567), "{address}");
            assert!(matches!(read, Destination::Address(..)), "{address}");
        }
        let long = "9".repeat(300);
        for (bad, may) in [
            ("", false),
            ("+", false),
            ("100", false),
            ("alice", false),
            ("+1", false),
            ("tel:", false),
            ("whatsapp:alice", false),
            ("+999999999999999999", true),
            ("0532 123 45 67", true),
            ("+1:2125550100", true),
            (long.as_str(), true),
        ] {
            let read = Destination::read(bad, None);
            assert!(matches!(read, Destination::Bad { may_be_number } if may_be_number == may), "{bad:?}: {read:?}");
        }
    }

    #[test]
    fn numbers_are_checked_by_length_and_by_range() {
        for (text, possible, valid) in [
            ("+905321234567", true, true),
            ("+12125550100", true, true),
            ("+15550001111", true, false),
            ("+90532123456", false, false),
            ("+9053212345678", false, false),
            ("+9992345678", false, false),
            ("+4930123456", true, true),
            ("+80012345678", true, true),
        ] {
            let number = number(text);
            assert_eq!(
                (number.stands(Validate::Possible), number.stands(Validate::Valid)),
                (possible, valid),
                "{text}"
            );
            assert!(number.stands(Validate::Off));
        }
    }

    #[test]
    fn kinds_are_told_apart() {
        for (text, kind) in [
            ("+905321234567", Kind::Mobile),
            ("+902121234567", Kind::FixedLine),
            ("+12125550100", Kind::FixedLineOrMobile),
            ("+18005550100", Kind::TollFree),
            ("+19002345678", Kind::PremiumRate),
            ("+15550001111", Kind::Unknown),
        ] {
            assert_eq!(number(text).kind(), kind, "{text}");
        }
        for (word, kind) in Kind::WORDS {
            assert_eq!(serde_json::to_value(kind).unwrap(), word);
            assert_eq!(kind.as_str(), word);
        }
    }
}
