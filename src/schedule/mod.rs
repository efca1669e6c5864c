//! When to call or to fire: the time zones of a number, the hours of the week in which it may be called, and the firings of a
//! recurring schedule. Pure: the time is an argument.
//!
//! Times are milliseconds since 1970-01-01 UTC. The time zone data is built in, so that all replicas of one version decide
//! alike.

mod cron;
mod hours;
mod zones;

pub use cron::{Cron, Due, Missed};
pub use hours::{Allowed, Hours, HoursError, Windows, next_allowed};
pub use zones::{Zone, zones_of};
