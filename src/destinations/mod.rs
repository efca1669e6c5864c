//! The destinations that the app may call: number validation, prefixes and types of numbers, do-not-call lists, quiet hours, and the
//! test numbers of a trial. Pure: the time and the lists are arguments.

mod lists;
mod number;
mod rules;

pub use lists::{DoNotCall, Listed, NumberSet};
pub use number::{Country, Destination, Kind, Number, Validate, key_of};
pub use rules::{Blocked, Prefix, Rules, Settings, Test, When};
