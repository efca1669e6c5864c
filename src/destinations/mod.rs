//! Whom the app may call: numbers that are none, prefixes and kinds of numbers, do-not-call lists, quiet hours, and the few numbers of
//! a trial. Pure: whoever judges is told what time it is and which lists there are.

mod lists;
mod number;
mod rules;

pub use lists::{DoNotCall, Listed, NumberSet};
pub use number::{Country, Destination, Kind, Number, Validate, key_of};
pub use rules::{Blocked, Prefix, Rules, Settings, Test, When};
