//! When something may, or is to, happen: in which time zones a number lies, the hours of a week in which it may be called, and the
//! times at which a recurring schedule fires. Pure: every function is told what time it is.
//!
//! Times are milliseconds since 1970-01-01 UTC. The rules of the zones are built in, so that every replica of one version judges by
//! the same ones.

mod cron;
mod hours;
mod zones;

pub use cron::{Cron, Due, Missed};
pub use hours::{Allowed, Hours, HoursError, Windows, next_allowed};
pub use zones::{Zone, zones_of};
