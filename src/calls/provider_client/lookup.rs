//! Look-ups and lists: the state of calls at their provider.

use std::borrow::Cow;
use std::collections::BTreeMap;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method, Response};

use super::ask::{AskError, ProviderClient, Unreadable};
use crate::call::{Direction, EndProof, Event, Phase};
use crate::clock::UnixMs;
use crate::ids::Alias;
use crate::metrics::MessageKind;
use crate::net::retry_after_secs;
use crate::provider::account::Account;
use crate::provider::description::{
    Completeness, DirectionWord, Group, List, Lookup, MessageAttributes, NextPage, OWN_ID_KIND, PostCall, StateWord,
};
use crate::provider::render::{Target, render};
use crate::provider::select::{Document, Flaw, Message, Selector};
use crate::store::{CallRecord, Change};

/// Pages of a list that are read at most: 100 pages of 100 conversations are more than any account can hold concurrently.
const PAGES_MAX: usize = 100;
/// The time before its admission at which a provider may say that a call was created, in milliseconds: providers' time stamps have a
/// resolution of one second, and clocks differ by as much as `doctor` tolerates.
pub(in crate::calls) const CREATED_BEFORE_MS: i64 = 1_000 + 5_000;

/// A call in a provider's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundCall {
    /// The state of the call.
    pub event: Option<Event>,
    /// The reason why the state cannot be read.
    pub unread: Option<Unreadable>,
    /// The call's ids.
    pub aliases: Vec<Alias>,
    /// The attributes that policy selects by.
    pub attributes: MessageAttributes,
    /// The side that placed the call, if the record says so.
    pub direction: Option<Direction>,
    /// Whether the call is a telephone call.
    pub phone: bool,
    /// Whether the call is a leg of another call.
    pub is_part: bool,
    /// The batch that it belongs to.
    pub member_of: Vec<Alias>,
}

impl FoundCall {
    /// The change that this record makes of a call in this phase: a lagging record reverts no phase, and the call's own id, which
    /// links a second record to it, is not bound to itself.
    pub(in crate::calls) fn change(self, phase: Phase, change: Change) -> Change {
        let event = self.event.map(|event| match event {
            Event::Reached(reached) => Event::Reached(reached.max(phase)),
            end @ Event::Ended(..) => end,
        });
        let bind = self.aliases.into_iter().filter(|alias| alias.kind != OWN_ID_KIND).collect();
        Change { event, bind, absent: Some(false), ..change }
    }
}

/// The outcome of a look-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LookedUp {
    /// The provider has a record.
    Found(FoundCall),
    /// The provider has no record.
    Absent,
}

/// The outcome of looking up a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LookedUpBatch {
    /// There is one.
    Found {
        /// Live while the batch may make calls, ended once it makes no more.
        event: Event,
        /// The batch's concurrent calls, if the record has them.
        slots: Option<u32>,
    },
    /// There is none.
    Absent,
}

/// The outcome of fetching a post-call record.
#[derive(Debug, Clone, PartialEq)]
pub enum LookedUpRecord {
    /// The provider has a record.
    Found {
        /// The record.
        record: Box<PostCall>,
        /// Whether it is complete.
        complete: Completeness,
        /// The state of the call.
        event: Option<Event>,
    },
    /// The provider has no record.
    Absent,
}

/// One call of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedCall {
    /// The call's id.
    pub alias: Alias,
    /// The call's state.
    pub event: Option<Event>,
    /// The attributes that policy selects by.
    pub attributes: MessageAttributes,
    /// The side that placed the call.
    pub direction: Direction,
    /// The time at which it was created.
    pub created_at: Option<UnixMs>,
}

pub(super) fn message<'a>(body: &'a Document, none: &'a (BTreeMap<String, String>, HeaderMap)) -> Message<'a> {
    Message { body, query: &[], path: &none.0, headers: &none.1 }
}

impl ProviderClient {
    /// The parsed body of a response. Unreadable parts are counted; a wholly unreadable body is an error.
    pub(super) fn understood(
        &self,
        account: &Account,
        kind: MessageKind,
        response: &Response<bytes::Bytes>,
    ) -> Result<Document, AskError> {
        let content_type = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
        let read = Document::read(content_type, response.body(), &[]);
        let flaw = match read.document {
            Document::Json(_) => read.flaw,
            // An HTML page is not a provider's XML.
            _ => Some(Flaw::Unreadable),
        };
        if let Some(flaw) = flaw {
            self.context.lifecycle.metrics.unreadable(&account.name, kind, flaw);
        }
        match flaw {
            Some(Flaw::Unreadable) => Err(AskError::Unreadable(Unreadable::NoDocument("JSON"))),
            _ => Ok(read.document),
        }
    }

    fn no_state(&self, account: &Account, state: &StateWord, message: &Message<'_>) -> Unreadable {
        self.context.lifecycle.metrics.unknown_state(&account.name);
        state.word(message).map_or(Unreadable::NoState, Unreadable::UnknownState)
    }

    /// Looks one call up, at each of its accounts that knows it by an id. The first readable record decides; the call is absent
    /// only if all accounts say so. A call that its carrier brought is looked up only there.
    pub async fn look_up(&self, record: &CallRecord) -> Result<LookedUp, AskError> {
        if let Some(holder) = self.context.holder_of(record)
            && let Some(lookup) = &holder.provider.lookup
        {
            return match self.look_up_at(holder, lookup, record).await? {
                LookedUp::Found(FoundCall { unread: Some(why), .. }) => Err(AskError::Unreadable(why)),
                looked => Ok(looked),
            };
        }
        let (mut failed, mut absent, mut record) = (None, false, Cow::Borrowed(record));
        for account in self.context.accounts_of(&record) {
            let Some(lookup) = &account.provider.lookup else { continue };
            if record.alias(&lookup.needs).is_none() {
                continue;
            }
            match self.look_up_at(account, lookup, &record).await {
                Ok(LookedUp::Found(FoundCall { unread: Some(why), aliases, .. })) => {
                    // The record may have the carrier's id of the call.
                    record.to_mut().aliases.extend(aliases);
                    failed = Some(AskError::Unreadable(why));
                }
                Ok(found @ LookedUp::Found(_)) => return Ok(found),
                // This account's record may be deleted while the carrier's call continues.
                Ok(LookedUp::Absent) => absent = true,
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) => Err(error),
            None if absent => Ok(LookedUp::Absent),
            None => Err(AskError::CannotQuery(
                record.attributes.account.clone(),
                "the call has no id usable at this provider",
            )),
        }
    }

    /// Looks a batch up.
    pub async fn look_up_batch(&self, account: &Account, group: &Group, id: &Alias) -> Result<LookedUpBatch, AskError> {
        let value = |name: &str| account.value(name).or_else(|| (name == id.kind).then(|| id.id.as_str().into()));
        let path = render(&group.path, Target::Url, value)?;
        let Some(body) = self.fetch_document(account, &path, &group.absent, MessageKind::Lookup).await? else {
            return Ok(LookedUpBatch::Absent);
        };
        let none = Default::default();
        let message = message(&body, &none);
        let number = |selector: &Selector| selector.text(&message)?.parse::<u32>().ok();
        let slots = group.slots.iter().filter_map(number).min().map(|n| n.max(1));
        let event = group.state.read(&message, EndProof::Provider);
        let event = event.ok_or_else(|| AskError::Unreadable(self.no_state(account, &group.state, &message)))?;
        Ok(LookedUpBatch::Found { event, slots })
    }

    async fn look_up_at(&self, account: &Account, lookup: &Lookup, record: &CallRecord) -> Result<LookedUp, AskError> {
        let path = self.path(account, Some(record), &lookup.path)?;
        self.read_record(account, lookup, &path).await
    }

    /// Looks up a call that is known by an id alone.
    pub async fn look_up_alias(&self, account: &Account, alias: &Alias) -> Result<LookedUp, AskError> {
        self.look_up_alias_of(account, alias, None).await
    }

    /// Looks a subaccount's call up by an alias.
    pub(in crate::calls) async fn look_up_alias_of(
        &self,
        account: &Account,
        alias: &Alias,
        subaccount: Option<&str>,
    ) -> Result<LookedUp, AskError> {
        let cannot_query = || AskError::CannotQuery(account.name.clone(), "its provider has no look-up by this id");
        let lookup = account.provider.lookup.as_ref().filter(|l| l.needs == alias.kind).ok_or_else(cannot_query)?;
        let own = account.provider.subaccounts.as_ref().map(|rule| format!("account.{}", rule.own));
        let value = |name: &str| {
            let other = subaccount.filter(|_| own.as_deref() == Some(name)).map(Into::into);
            other.or_else(|| account.value(name)).or_else(|| (name == alias.kind).then(|| alias.id.as_str().into()))
        };
        let path = render(&lookup.path, Target::Url, value)?;
        self.read_record(account, lookup, &path).await
    }

    /// Fetches a post-call record from an account.
    pub async fn look_up_record(&self, account: &Account, record: &CallRecord) -> Result<LookedUpRecord, AskError> {
        let cannot_query = || AskError::CannotQuery(account.name.clone(), "its provider has no look-up of ended calls");
        let lookup = account.provider.lookup.as_ref().ok_or_else(cannot_query)?;
        let rules = lookup.record.as_ref().ok_or_else(cannot_query)?;
        let path = self.path(account, Some(record), &lookup.path)?;
        let response = self.ask(account, Method::GET, &path, None).await?;
        let status = response.status().as_u16();
        if lookup.absent.contains(&status) {
            return Ok(LookedUpRecord::Absent);
        }
        if status == 429 {
            let retry_after_secs = retry_after_secs(response.headers(), self.context.lifecycle.clock.now_ms());
            return Err(AskError::Limited { retry_after_secs });
        }
        if !response.status().is_success() {
            return Err(AskError::Status(status));
        }
        let (body, none) = (self.understood(account, MessageKind::Lookup, &response)?, Default::default());
        let message = message(&body, &none);
        let (record, complete) = rules.read(&message);
        let event = lookup.state.read(&message, EndProof::Provider);
        Ok(LookedUpRecord::Found { record: Box::new(record), complete, event })
    }

    /// Fetches a document. `None`: the status is one of those that say that there is none.
    pub(super) async fn fetch_document(
        &self,
        account: &Account,
        path: &str,
        absent: &[u16],
        kind: MessageKind,
    ) -> Result<Option<Document>, AskError> {
        let response = self.ask(account, Method::GET, path, None).await?;
        let status = response.status();
        if absent.contains(&status.as_u16()) {
            return Ok(None);
        }
        if !status.is_success() {
            return Err(AskError::Status(status.as_u16()));
        }
        self.understood(account, kind, &response).map(Some)
    }

    async fn read_record(&self, account: &Account, lookup: &Lookup, path: &str) -> Result<LookedUp, AskError> {
        let Some(body) = self.fetch_document(account, path, &lookup.absent, MessageKind::Lookup).await? else {
            return Ok(LookedUp::Absent);
        };
        let none = Default::default();
        let message = message(&body, &none);
        let event = lookup.state.read(&message, EndProof::Provider);
        Ok(LookedUp::Found(FoundCall {
            event,
            unread: event.is_none().then(|| self.no_state(account, &lookup.state, &message)),
            aliases: lookup.ids.read(&message),
            attributes: lookup.attributes.read(&message, direction_of(lookup.direction.as_ref(), &message)),
            direction: lookup.direction.as_ref().map(|word| direction_of(Some(word), &message)),
            phone: lookup.phone.is_empty() || lookup.phone.holds(&message),
            is_part: !lookup.skip.is_empty() && lookup.skip.holds(&message),
            member_of: lookup.member_of.read(&message),
        }))
    }

    /// Lists the account's live calls.
    pub async fn list_live(&self, account: &Account) -> Result<Vec<ListedCall>, AskError> {
        let list = account.provider.list.as_ref();
        let list = list.ok_or_else(|| AskError::CannotQuery(account.name.clone(), "its provider lists no calls"))?;
        let mut all = Vec::new();
        for template in &list.paths {
            let path = self.path(account, None, template)?;
            all.extend(self.pages(account, list, path).await?);
        }
        Ok(all)
    }

    /// The account's number of live calls; `None` where its provider has no such query.
    pub async fn count_live(&self, account: &Account) -> Result<Option<usize>, AskError> {
        let Some(count) = &account.provider.count else { return Ok(None) };
        let path = self.path(account, None, &count.path)?;
        let response = self.ask(account, Method::GET, &path, None).await?;
        if !response.status().is_success() {
            return Err(AskError::Status(response.status().as_u16()));
        }
        let (body, none) = (self.understood(account, MessageKind::Count, &response)?, Default::default());
        let text = count.value.text(&message(&body, &none));
        let number = text.and_then(|t| t.parse().ok());
        number.map(Some).ok_or(AskError::Unreadable(Unreadable::NoDocument("number of calls")))
    }

    /// Calls that a create with a lost response may have made.
    pub async fn find(&self, account: &Account, record: &CallRecord) -> Result<Vec<ListedCall>, AskError> {
        let cannot_query =
            || AskError::CannotQuery(account.name.clone(), "its provider cannot search for lost creates");
        let group = self.context.group_of(record);
        let find = if group.is_some() { group.and_then(|g| g.find.as_ref()) } else { account.provider.find.as_ref() };
        let find = find.ok_or_else(cannot_query)?;
        let path = self.path(account, Some(record), find.path.as_deref().ok_or_else(cannot_query)?)?;
        let listed = self.pages(account, find, path).await?;
        let since_ms = record.admitted_at - CREATED_BEFORE_MS;
        let fits = |one: &ListedCall| one.attributes.agent.is_none() || one.attributes.agent == record.attributes.agent;
        Ok(listed.into_iter().filter(|one| one.created_at.is_none_or(|at| at >= since_ms) && fits(one)).collect())
    }

    async fn pages(&self, account: &Account, list: &List, first: String) -> Result<Vec<ListedCall>, AskError> {
        let (mut all, mut path) = (Vec::new(), first.clone());
        for _ in 0..PAGES_MAX {
            let response = self.ask(account, Method::GET, &path, None).await?;
            if !response.status().is_success() {
                return Err(AskError::Status(response.status().as_u16()));
            }
            let body = self.understood(account, MessageKind::List, &response)?;
            let no_list = AskError::Unreadable(Unreadable::NoDocument("list of calls"));
            let items = list.items.list(&body).ok_or(no_list)?;
            all.extend(items.iter().filter_map(|item| listed(list, item)));
            let none = Default::default();
            let whole = message(&body, &none);
            let next = match &list.next {
                Some(NextPage::Uri { uri }) => uri.text(&whole).map(|uri| path_of(&uri)),
                Some(NextPage::Cursor { cursor, param }) => cursor.text(&whole).map(|cursor| {
                    let escaped: String = form_urlencoded::byte_serialize(cursor.as_bytes()).collect();
                    format!("{first}&{param}={escaped}")
                }),
                None => None,
            };
            match next {
                Some(next) if !next.is_empty() && next != path => path = next,
                _ => return Ok(all),
            }
        }
        Ok(all)
    }
}

/// The path and query of a next-page link. Only these: a link must not send our credentials to another host.
fn path_of(uri: &str) -> String {
    match uri.parse::<http::Uri>() {
        Ok(parsed) => parsed.path_and_query().map(|p| p.as_str().to_owned()).unwrap_or_default(),
        Err(_) => String::new(),
    }
}

fn direction_of(word: Option<&DirectionWord>, message: &Message<'_>) -> Direction {
    word.and_then(|word| word.read(message)).unwrap_or(Direction::Outbound)
}

fn listed(list: &List, item: &serde_json::Value) -> Option<ListedCall> {
    let (body, none) = (Document::Json(item.clone()), Default::default());
    let message = message(&body, &none);
    if !list.skip.is_empty() && list.skip.holds(&message) {
        return None;
    }
    let created_at = list.created_at.as_ref().and_then(|s| s.text(&message)).and_then(|text| {
        if let Ok(secs) = text.parse::<i64>() {
            return secs.checked_mul(1000);
        }
        let time = jiff::fmt::rfc2822::parse(&text).ok()?;
        Some(time.timestamp().as_millisecond())
    });
    let direction = direction_of(list.direction.as_ref(), &message);
    Some(ListedCall {
        alias: Alias::new(&list.id.kind, &list.id.from.text(&message)?)?,
        event: list.state.read(&message, EndProof::Provider),
        attributes: list.attributes.read(&message, direction),
        direction,
        created_at,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::Registry;

    #[test]
    fn whose_a_number_is_follows_from_who_placed_the_call() {
        let registry = Registry::new(&[]).unwrap();
        let list = registry.get("twilio").unwrap().list.as_ref().unwrap();
        let item = |direction| {
            serde_json::json!({
                "sid": "CA1", "status": "ringing", "from": "+15550000001", "to": "+15550000002", "direction": direction,
            })
        };
        let own = |direction| listed(list, &item(direction)).unwrap().attributes.own_number.unwrap();
        assert_eq!(own("outbound-api"), "+15550000001");
        assert_eq!(own("inbound"), "+15550000002", "the caller's number is nobody's business");
    }
}
