//! The destinations that the app may call: number validation, prefixes and types of numbers, do-not-call lists, quiet hours, and the
//! test numbers of a trial; the time zones of a number, and the hours of the week in which it may be called. Pure: the time and the lists
//! are arguments.
//!
//! Times are milliseconds since 1970-01-01 UTC. The time zone data is built in, so that all replicas of one version decide alike.

mod hours;
mod lists;
mod number;
mod rules;
mod zones;

pub use hours::{Allowed, Hours, HoursError, Windows, next_allowed};
pub use lists::{DoNotCall, ListHit, NumberSet};
pub use number::{Country, Destination, Kind, Number, Validate, key_of};
pub use rules::{BlockRule, Blocked, CallTime, DestinationSettings, Prefix, Rules, TrialDestinations};
pub use zones::{Zone, zones_of};
