//! The time zones of a telephone number, by libphonenumber's table.

use std::collections::HashMap;
use std::fmt;
use std::sync::LazyLock;

use jiff::tz::TimeZone;

/// The table: one `prefix|Zone&Zone` per line.
const TABLE: &str = include_str!("zones.txt");

/// A time zone of the IANA database, as in `Europe/Istanbul`.
#[derive(Clone, PartialEq, Eq)]
pub struct Zone(TimeZone);

impl Zone {
    /// The zone of this name.
    ///
    /// # Errors
    /// A sentence for an operator: there is no such zone.
    pub fn parse(name: &str) -> Result<Self, String> {
        // Zones of the machine's own data, unknown to the bundled data, would differ between replicas.
        let zone = TimeZone::get(name.trim()).map_err(|_| unknown(name))?;
        zone.iana_name().map(|_| ()).ok_or_else(|| unknown(name))?;
        Ok(Self(zone))
    }

    /// The zone's name.
    pub fn name(&self) -> &str {
        self.0.iana_name().unwrap_or("UTC")
    }

    /// The local date at a time in milliseconds since 1970-01-01 UTC, as in `2026-11-30`.
    pub fn date_of(&self, at_ms: i64) -> String {
        let at = jiff::Timestamp::from_millisecond(at_ms);
        at.map(|at| self.0.to_datetime(at).date().to_string()).unwrap_or_default()
    }

    pub(crate) fn rules(&self) -> &TimeZone {
        &self.0
    }
}

fn unknown(name: &str) -> String {
    format!("{name:?} is not a time zone; write one of the IANA database, as in \"Europe/Istanbul\"")
}

impl fmt::Debug for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The table, parsed once.
struct Table {
    /// Prefixes, as integers, and the index of their zones in `lists`.
    by_beginning: HashMap<u64, usize>,
    lists: Vec<Vec<Zone>>,
    digits_max: usize,
}

static ZONE_TABLE: LazyLock<Table> = LazyLock::new(|| {
    let (mut by_beginning, mut lists, mut digits_max) = (HashMap::new(), Vec::new(), 0);
    let mut slots = HashMap::<&str, usize>::new();
    for line in TABLE.lines() {
        let Some((beginning, names)) = line.split_once('|') else { continue };
        let Ok(key) = beginning.parse::<u64>() else { continue };
        let place = *slots.entry(names).or_insert_with(|| {
            lists.push(names.split('&').filter_map(|name| Zone::parse(name).ok()).collect());
            lists.len() - 1
        });
        digits_max = digits_max.max(beginning.len());
        by_beginning.insert(key, place);
    }
    Table { by_beginning, lists, digits_max }
});

/// The zones in which a number, in E.164 without its plus (`905321234567`), may lie: those of its longest prefix in libphonenumber's
/// table. Several where the prefix is shared: for `+1800…` all zones of the numbering plan. Empty where the table has none, as for
/// satellite phones.
///
/// A mobile or ported number may be elsewhere.
pub fn zones_of(digits: &str) -> &'static [Zone] {
    let table = &*ZONE_TABLE;
    let longest = digits.len().min(table.digits_max);
    let place = (1..=longest).rev().find_map(|len| table.by_beginning.get(&digits.get(..len)?.parse::<u64>().ok()?));
    place.and_then(|place| table.lists.get(*place)).map(Vec::as_slice).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(digits: &str) -> Vec<&'static str> {
        zones_of(digits).iter().map(Zone::name).collect()
    }

    #[test]
    fn the_longest_beginning_counts() {
        for (digits, zones) in [
            ("905321234567", &["Europe/Istanbul"][..]),
            ("12125550100", &["America/New_York"]),
            ("13105550100", &["America/Los_Angeles"]),
            ("12082415550", &["America/Denver"]),
            ("4930123456", &["Europe/Berlin"]),
            ("390212345678", &["Europe/Rome"]),
            ("819012345678", &["Asia/Tokyo"]),
            ("88213000", &[]),
            ("", &[]),
            ("x", &[]),
        ] {
            assert_eq!(names(digits), zones, "{digits}");
        }
        assert!(names("18005550100").len() > 30, "a toll-free number may ring anywhere in the plan");
        assert!(names("74951234567").contains(&"Europe/Moscow"));
    }

    #[test]
    fn every_zone_of_the_table_is_known() {
        let lines = TABLE.lines().filter_map(|line| line.split_once('|'));
        for (beginning, wanted) in lines {
            assert_eq!(zones_of(beginning).len(), wanted.split('&').count(), "{beginning}: {wanted}");
        }
    }

    #[test]
    fn zones_have_names_of_the_database() {
        let istanbul = Zone::parse("Europe/Istanbul").unwrap();
        assert_eq!(istanbul.name(), "Europe/Istanbul");
        let at = "2026-11-29T21:30:00Z".parse::<jiff::Timestamp>().unwrap();
        assert_eq!(istanbul.date_of(at.as_millisecond()), "2026-11-30");
        for bad in ["", "Mars/Olympus", "+03:00", "Local", "../etc/passwd"] {
            assert!(Zone::parse(bad).is_err(), "{bad}");
        }
    }
}
