//! Vouchers: which accounts signed news of a call, and whether the call is theirs. Pure: every back end checks here, in the
//! transaction that would apply the news.

use super::message::EventOutcome;
use serde::{Deserialize, Serialize};

use crate::call::{Event, stronger};
use crate::ids::{AccountName, Alias};
use crate::policy::CallAttributes;
use crate::provider::description::SUBACCOUNT_KIND;

/// Vouchers whose news of an unknown call is stored, at most.
const EARLY_MAX: usize = 8;

/// The signers of news. They may report only on their own calls.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Voucher {
    /// The accounts whose signature it is: several, if they share a secret.
    pub accounts: Vec<AccountName>,
    /// The signers' providers.
    pub providers: Vec<String>,
    /// The signers' carrier accounts.
    pub carriers: Vec<AccountName>,
    /// The subaccount that signed it.
    pub subaccount: Option<String>,
    /// The kinds of id that distinguish calls at their providers.
    pub kinds: Vec<String>,
    /// The operations by which their carrier announces inbound calls. Such a call ends when the carrier says so.
    pub brought_by: Vec<String>,
}

/// The reason why news was not applied to the call that it points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contradiction {
    /// The call belongs to another account.
    OtherAccount,
    /// The call does not belong to this subaccount.
    OtherSubaccount,
    /// The call has another id of the distinguishing kind: the news is about another call.
    OtherCall,
}

impl Contradiction {
    /// The outcome of the webhook that brought it.
    pub const fn outcome(self) -> EventOutcome {
        match self {
            Self::OtherAccount | Self::OtherSubaccount => EventOutcome::Contradicted,
            Self::OtherCall => EventOutcome::OtherCall,
        }
    }

    /// A sentence for the log.
    pub const fn why(self) -> &'static str {
        match self {
            Self::OtherAccount => "it is signed by an account that does not own the call",
            Self::OtherSubaccount => "it is signed by a subaccount that does not own the call",
            Self::OtherCall => "its conversation or leg is not that of the call",
        }
    }
}

impl Voucher {
    /// Whether news with these ids contradicts the call with these attributes and known ids.
    pub fn contradicts(&self, attributes: &CallAttributes, known: &[Alias], named: &[Alias]) -> Option<Contradiction> {
        let of_kind = |list: &[Alias], kind: &String| {
            list.iter().filter(|a| a.kind == *kind).map(|a| a.id.clone()).collect::<Vec<_>>()
        };
        let (mut one, mut other) = (false, false);
        for kind in &self.kinds {
            let (has, says) = (of_kind(known, kind), of_kind(named, kind));
            if !has.is_empty() && !says.is_empty() {
                let meets = says.iter().any(|id| has.contains(id));
                (one, other) = (one || meets, other || !meets);
            }
        }
        let carrier = attributes.carrier.as_ref();
        let is_theirs = self.accounts.contains(&attributes.account)
            || carrier.is_some_and(|carrier| self.accounts.contains(carrier))
            || self.carriers.contains(&attributes.account)
            // Which account of that provider has a part in it is unknown; one has, as it is known by an id of theirs.
            || (carrier.is_none() && one && !self.providers.contains(&attributes.provider));
        if !is_theirs {
            return Some(Contradiction::OtherAccount);
        }
        if let Some(subaccount) = &self.subaccount {
            let mut of = known.iter().filter(|alias| alias.kind == SUBACCOUNT_KIND);
            let is_its = |alias: &Alias| alias.id.split_once('/').is_some_and(|(id, _)| id == subaccount);
            if !of.any(is_its) {
                return Some(Contradiction::OtherSubaccount);
            }
        }
        (other && !one).then_some(Contradiction::OtherCall)
    }

    /// Whether the reported end is that of a leg only: the carrier brought the call, and still has it.
    pub fn ends_leg_only(&self, attributes: &CallAttributes, event: Event) -> bool {
        let brought = attributes.carrier.as_ref().is_some_and(|carrier| !self.accounts.contains(carrier))
            && self.brought_by.contains(&attributes.operation);
        // Placed at their carrier itself, which can be queried: only its connection has ended.
        let placed = !self.brought_by.is_empty()
            && !self.accounts.contains(&attributes.account)
            && self.carriers.contains(&attributes.account);
        matches!(event, Event::Ended(..)) && (brought || placed)
    }
}

/// News that waits for its call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Early {
    event: Event,
    by: Option<Voucher>,
}

/// Adds news to waiting news: keeps the strongest of each voucher.
pub(super) fn remember(mut waiting: Vec<Early>, event: Event, by: Option<&Voucher>) -> Vec<Early> {
    if let Some(early) = waiting.iter_mut().find(|early| early.by.as_ref() == by) {
        early.event = stronger(early.event, event);
    } else if waiting.len() < EARLY_MAX {
        waiting.push(Early { event, by: by.cloned() });
    }
    waiting
}

/// The waiting news that may be applied to a call.
pub(super) fn applicable_news(waiting: &[Early], attributes: &CallAttributes, known: &[Alias]) -> Option<Event> {
    let about = |early: &&Early| {
        early.by.as_ref().is_none_or(|by| {
            by.contradicts(attributes, known, &[]).is_none() && !by.ends_leg_only(attributes, early.event)
        })
    };
    waiting.iter().filter(about).map(|early| early.event).reduce(stronger)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::{Direction, EndProof, Outcome, Phase};
    use crate::ids::BusinessId;

    fn name(text: &str) -> AccountName {
        AccountName::parse(text).unwrap()
    }

    fn attributes(account: &str, provider: &str, carrier: Option<&str>, operation: &str) -> CallAttributes {
        CallAttributes {
            business: BusinessId::default_business(),
            plan: "default".to_owned(),
            account: name(account),
            provider: provider.to_owned(),
            carrier: carrier.map(name),
            direction: Direction::Inbound,
            operation: operation.to_owned(),
            agent: None,
            own_number: None,
            other_number: None,
        }
    }

    fn ids(list: &[(&str, &str)]) -> Vec<Alias> {
        list.iter().filter_map(|(kind, id)| Alias::new(kind, id)).collect()
    }

    fn elevenlabs(account: &str, carrier: Option<&str>) -> Voucher {
        Voucher {
            accounts: vec![name(account)],
            providers: vec!["elevenlabs".to_owned()],
            carriers: carrier.map(name).into_iter().collect(),
            kinds: vec!["conversation_id".to_owned()],
            brought_by: vec!["incoming_call".to_owned()],
            ..Voucher::default()
        }
    }

    #[test]
    fn a_call_is_theirs_who_place_or_carry_it() {
        let known = ids(&[("conversation_id", "conv_1"), ("call_sid", "CA1")]);
        let both = attributes("el", "elevenlabs", Some("tw"), "twilio_outbound_call");
        let at_carrier = attributes("tw", "twilio", None, "incoming_call");
        let tw = |account: &str| Voucher {
            accounts: vec![name(account)],
            providers: vec!["twilio".to_owned()],
            kinds: vec!["call_sid".to_owned()],
            ..Voucher::default()
        };
        let other_account = Some(Contradiction::OtherAccount);
        let other_call = Some(Contradiction::OtherCall);
        for (by, attributes, named, expected) in [
            (elevenlabs("el", Some("tw")), &both, ids(&[("conversation_id", "conv_1")]), None),
            (elevenlabs("el2", Some("tw")), &both, ids(&[("conversation_id", "conv_1")]), other_account),
            (
                elevenlabs("el", Some("tw")),
                &both,
                ids(&[("conversation_id", "conv_2"), ("call_sid", "CA1")]),
                other_call,
            ),
            (elevenlabs("el", Some("tw")), &both, ids(&[("call_sid", "CA1")]), None),
            (tw("tw"), &both, ids(&[("call_sid", "CA1")]), None),
            (tw("tw2"), &both, ids(&[("call_sid", "CA1")]), other_account),
            (tw("tw"), &both, ids(&[("call_sid", "CA2")]), other_call),
            // A call that is counted at its carrier: news of accounts that use it, and of the one connected.
            (elevenlabs("el", Some("tw")), &at_carrier, ids(&[("call_sid", "CA1")]), None),
            (elevenlabs("el", None), &at_carrier, ids(&[("conversation_id", "conv_1")]), None),
            (elevenlabs("el", None), &at_carrier, ids(&[("call_sid", "CA1")]), other_account),
            (tw("tw2"), &at_carrier, ids(&[("call_sid", "CA1")]), other_account),
        ] {
            assert_eq!(by.contradicts(attributes, &known, &named), expected, "{by:?} {named:?}");
        }
    }

    #[test]
    fn a_subaccount_has_its_own_calls() {
        let of = attributes("tw", "twilio", None, "calls");
        let by = Voucher { accounts: vec![name("tw")], subaccount: Some("AC1".to_owned()), ..Voucher::default() };
        for (known, expected) in [
            (ids(&[("subaccount_call", "AC1/CA1")]), None),
            (ids(&[("subaccount_call", "AC1/call_x"), ("subaccount_call", "AC1/CA1")]), None),
            (ids(&[("subaccount_call", "AC12/CA1")]), Some(Contradiction::OtherSubaccount)),
            (ids(&[("call_sid", "CA1")]), Some(Contradiction::OtherSubaccount)),
        ] {
            assert_eq!(by.contradicts(&of, &known, &[]), expected, "{known:?}");
        }
    }

    #[test]
    fn a_conversation_that_ends_is_no_end_of_a_call_that_its_carrier_brought() {
        let end = Event::Ended(Outcome::Completed, EndProof::Webhook);
        let brought = attributes("el", "elevenlabs", Some("tw"), "incoming_call");
        assert!(elevenlabs("el", Some("tw")).ends_leg_only(&brought, end));
        assert!(!elevenlabs("el", Some("tw")).ends_leg_only(&brought, Event::Reached(Phase::Live)));
        assert!(
            !elevenlabs("el", Some("tw"))
                .ends_leg_only(&attributes("el", "elevenlabs", Some("tw"), "conversation_started"), end)
        );
        let carrier = Voucher { accounts: vec![name("tw")], ..elevenlabs("el", None) };
        assert!(!carrier.ends_leg_only(&brought, end), "the carrier's word is the end");
    }

    #[test]
    fn what_waits_is_kept_by_who_vouches_for_it() {
        let end = Event::Ended(Outcome::Completed, EndProof::Webhook);
        let of = attributes("el", "elevenlabs", None, "conversation_started");
        let waiting = remember(vec![], end, Some(&elevenlabs("el2", None)));
        assert_eq!(applicable_news(&waiting, &of, &[]), None);
        let waiting = remember(waiting, Event::Reached(Phase::Ringing), Some(&elevenlabs("el", None)));
        let waiting = remember(waiting, Event::Reached(Phase::Live), Some(&elevenlabs("el", None)));
        assert_eq!((waiting.len(), applicable_news(&waiting, &of, &[])), (2, Some(Event::Reached(Phase::Live))));
        let many = (0..99).fold(vec![], |all, n| remember(all, end, Some(&elevenlabs(&format!("el{n}"), None))));
        assert_eq!(many.len(), EARLY_MAX);
    }
}
