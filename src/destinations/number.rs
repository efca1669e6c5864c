//! Destinations: telephone numbers, and addresses that are none.

use std::borrow::Cow;

use phonenumber::metadata::DATABASE;
use phonenumber::{Mode, PhoneNumber, Type};
use serde::{Deserialize, Serialize};

use crate::ids::number_key;

/// Digits of a number with its country code (ITU-T E.164 §6). No country has shorter numbers.
const DIGITS: std::ops::RangeInclusive<usize> = 7..=15;
/// The maximum length of a destination that is parsed, in bytes; no provider accepts more.
const BYTES_MAX: usize = 256;
/// Types of numbers that can be called from abroad.
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
/// Prefixes of addresses that are a telephone number only.
const NUMBER_SCHEMES: [&str; 2] = ["tel:", "whatsapp:"];

/// The strictness with which a number is validated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Validate {
    /// Not at all: malformed numbers are passed to the provider too.
    #[default]
    Off,
    /// The number's country code exists, and its length is possible there.
    Possible,
    /// The number also lies in a range that its country has assigned, as far as libphonenumber knows.
    Valid,
}

impl Validate {
    /// All variants with their names in the config.
    pub const WORDS: [(&'static str, Validate); 3] =
        [("off", Validate::Off), ("possible", Validate::Possible), ("valid", Validate::Valid)];
}

/// The type of a number, as libphonenumber distinguishes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A fixed line.
    FixedLine,
    /// A mobile phone.
    Mobile,
    /// Either of the two: numbers in the United States and Canada do not tell.
    FixedLineOrMobile,
    /// Free for the caller.
    TollFree,
    /// Expensive for the caller.
    PremiumRate,
    /// Paid by both parties.
    SharedCost,
    /// A personal number, forwarded anywhere.
    PersonalNumber,
    /// Voice over IP.
    Voip,
    /// A pager.
    Pager,
    /// A universal access number of a company.
    Uan,
    /// A voice mailbox.
    Voicemail,
    /// In no range that libphonenumber knows.
    Unknown,
}

impl Kind {
    /// All types with their names in the config.
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

    /// The name.
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

/// A country, by its ISO 3166 code of two letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Country(phonenumber::country::Id);

impl Country {
    /// Parses the two letters.
    ///
    /// # Errors
    /// A sentence for an operator.
    pub fn parse(text: &str) -> Result<Self, String> {
        let id = text.trim().to_ascii_uppercase().parse::<phonenumber::country::Id>();
        id.map(Self).map_err(|_| format!("{text:?} is not a country; write its two letters, as in \"TR\""))
    }
}

/// A telephone number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Number {
    digits: String,
    key: u64,
}

impl Number {
    /// The E.164 form, with its plus.
    pub fn e164(&self) -> String {
        format!("+{}", self.digits)
    }

    /// The E.164 form without its plus.
    pub fn digits(&self) -> &str {
        &self.digits
    }

    /// The key in do-not-call lists: see [`key_of`].
    pub fn key(&self) -> u64 {
        self.key
    }

    /// The parsed form of libphonenumber. Slow, so it is only made where it is needed.
    fn parsed(&self) -> Option<PhoneNumber> {
        phonenumber::parse(None, self.e164()).ok()
    }

    /// The type of the number.
    pub fn kind(&self) -> Kind {
        self.parsed().map_or(Kind::Unknown, |number| Kind::of(number.number_type(&DATABASE)))
    }

    /// Whether the number passes a validation.
    pub fn passes(&self, check: Validate) -> bool {
        let fits = |right: fn(&PhoneNumber) -> bool| self.parsed().is_some_and(|number| right(&number));
        match check {
            Validate::Off => true,
            Validate::Possible => fits(is_possible),
            // `is_valid` checks the range, but not that the length is possible in it.
            Validate::Valid => fits(|number| is_possible(number) && number.is_valid()),
        }
    }
}

/// Whether numbers of the country, of any type, may have this many digits.
fn is_possible(number: &PhoneNumber) -> bool {
    let code = number.code().value();
    let digits = u16::try_from(number.national().to_string().len()).unwrap_or(u16::MAX);
    let regions = DATABASE.region(&code).unwrap_or_default();
    let of_regions = regions.iter().filter_map(|region| DATABASE.by_id(*region));
    // Non-geographic numbers, such as international freephone.
    let mut all = of_regions.chain(DATABASE.by_code(&code).unwrap_or_default());
    all.any(|country| {
        let mut kinds = KINDS.iter().filter_map(|kind| country.descriptors().get(*kind));
        kinds.any(|kind| kind.possible_length().contains(&digits))
    })
}

/// A destination as an app names it.
#[derive(Debug, Clone)]
pub enum Destination<'a> {
    /// A telephone number.
    Number(Number),
    /// An address without a telephone number, such as a SIP address or a client of the provider, or one that contains more than a
    /// number; with the number that it contains, if any.
    Address(&'a str, Option<Number>),
    /// Neither: a short code, an extension, or a number without its country.
    Bad {
        /// Whether the text has enough digits to be a telephone number all the same.
        may_be_number: bool,
    },
}

impl<'a> Destination<'a> {
    /// Parses a destination. A number without plus, `00`, `011` or `tel:` is national in `country`, if that is given; otherwise it starts
    /// with its country code.
    pub fn read(text: &'a str, country: Option<Country>) -> Self {
        let text = text.trim();
        if text.len() > BYTES_MAX {
            return Self::Bad { may_be_number: true };
        }
        let of_number = NUMBER_SCHEMES.iter().find_map(|scheme| {
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

    /// The number that it contains.
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

/// Whether it is a URI scheme (RFC 3986 §3.1).
fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
}

/// Whether it has its country code. `011` is what is dialled before one in the countries of code 1; elsewhere national numbers begin
/// so, as in Leeds.
fn is_international(text: &str, country: Option<Country>) -> bool {
    let metadata = |country: Country| phonenumber::metadata::DATABASE.by_id(country.0.as_ref());
    let is_code_1 = country.is_none_or(|country| metadata(country).is_some_and(|one| one.country_code() == 1));
    text.starts_with(['+', '\u{ff0b}']) || text.starts_with("00") || (is_code_1 && text.starts_with("011"))
}

fn read_number(text: &str, country: Option<Country>) -> Option<Number> {
    let text = text.trim();
    // A number that is impossible in that country may still start with its country code.
    let national = country.filter(|_| !is_international(text, country)).and_then(|country| {
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

/// The key of a number in do-not-call lists: the digits of its E.164 form as an integer. `None`: it has no country code.
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
        assert_eq!(read("0113 496 0123", "GB"), "+441134960123", "of Leeds");
        assert_eq!(read("011 44 113 496 0123", "US"), "+441134960123");
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
                (number.passes(Validate::Possible), number.passes(Validate::Valid)),
                (possible, valid),
                "{text}"
            );
            assert!(number.passes(Validate::Off));
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
