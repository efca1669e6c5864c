//! What was said in calls.
//!
//! * The numbers of a call's utterances start at 1 and have no gaps, whoever writes at the same time: what can be read of a call are
//!   the numbers from 1 to the last, always.
//! * An utterance is put on record once for each webhook that brought it.

use async_trait::async_trait;

use super::{CallRecord, Delivery, NewEvent, ReceiveOutcome, Result, Voucher};
use crate::call::{EndProof, Phase, Speaker};
use crate::clock::UnixMs;
use crate::ids::{Alias, CallId};

/// The outcome of a webhook whose utterance stands on record.
pub const RECORDED: &str = "recorded";

/// Something that was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewUtterance {
    /// The webhook that brought it, by the id under which the inbox took it first.
    pub event_id: String,
    /// Who said it.
    pub speaker: Speaker,
    /// What.
    pub text: String,
    /// When, as its sender wrote it.
    pub said_at: String,
    /// Its number at the provider.
    pub source_sequence: Option<i64>,
    /// What that number is counted in.
    pub source: Option<String>,
    /// Now.
    pub at_ms: UnixMs,
}

impl NewUtterance {
    /// The same on record.
    pub fn at(self, said: UtteranceRef) -> Utterance {
        Utterance {
            id: said.id,
            sequence: said.sequence,
            event_id: self.event_id,
            speaker: self.speaker,
            text: self.text,
            said_at: self.said_at,
            source_sequence: self.source_sequence,
            source: self.source,
        }
    }
}

/// Where an utterance stands on record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UtteranceRef {
    /// Its id among all.
    pub id: i64,
    /// Its number in its call.
    pub sequence: i64,
}

/// A webhook that says something in a call.
#[derive(Debug, Clone)]
pub struct UtteranceIngest {
    /// The webhook. Its id and the utterance's [`NewUtterance::event_id`] are one.
    pub event: NewEvent,
    /// The ids by which it names its call.
    pub aliases: Vec<Alias>,
    /// Who vouches for it.
    pub by: Voucher,
    /// What it says.
    pub said: NewUtterance,
    /// What the app has to be told of it.
    pub delivery: Option<Delivery>,
}

/// What became of a webhook that says something in a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IngestOutcome {
    /// It is settled: what it says stands there.
    Whole(CallId, UtteranceRef),
    /// It was before, and that stands there.
    Before(CallId, UtteranceRef),
    /// It is in the inbox and no more is done: nobody knows its call, or it tells more of it than what was said
    /// ([`tells_more`]), or it is not about the call that it points to, or it was left half-way before.
    Inbox(ReceiveOutcome),
}

/// Whether something that was said in a call is news of the call itself. Who speaks has been connected, and may be known by
/// another id from now on.
pub fn tells_more(record: &CallRecord, aliases: &[Alias]) -> bool {
    record.phase < Phase::Live
        // It was taken for over, or is about to be.
        || record.proof == Some(EndProof::Deadline)
        || record.absent_at.is_some()
        || aliases.iter().any(|alias| !record.aliases.contains(alias))
}

/// An utterance on record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Utterance {
    /// Its id among all.
    pub id: i64,
    /// Its number in its call.
    pub sequence: i64,
    /// What brought it.
    pub event_id: String,
    /// Who said it.
    pub speaker: Speaker,
    /// What.
    pub text: String,
    /// When, as its sender wrote it.
    pub said_at: String,
    /// Its number at the provider.
    pub source_sequence: Option<i64>,
    /// What that number is counted in.
    pub source: Option<String>,
}

/// What tells whether there is something new about a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UtterancePosition {
    /// The call.
    pub call: CallId,
    /// The number of its last utterance; 0: nothing was said.
    pub last_sequence: i64,
    /// When there was the last news of the call itself.
    pub seen_at: UnixMs,
    /// It is over.
    pub ended: bool,
    /// When its provider had told all of it.
    pub recorded_at: Option<UnixMs>,
}

/// Told of a call that has something new.
pub type Ring = Box<dyn Fn(&CallId) + Send + Sync>;

/// See the module. A part of [`super::Store`].
#[async_trait]
pub trait Transcripts {
    /// Puts an utterance on record under the next number of its call. The webhook that brought it may come again: then this is
    /// what stands already. `None`: there is no such call any more.
    async fn say(&self, call: &CallId, said: NewUtterance) -> Result<Option<UtteranceRef>>;

    /// Takes a webhook into the inbox, puts on record what it says, and settles it, in one transaction; or does the first alone.
    async fn ingest(&self, speech: UtteranceIngest) -> Result<IngestOutcome>;

    /// Utterances of a call after a number, in order, at most `limit`.
    async fn utterances(&self, call: &CallId, after: i64, limit: u32) -> Result<Vec<Utterance>>;

    /// The number of a call's last utterance; 0: nothing was said.
    async fn last_sequence(&self, call: &CallId) -> Result<i64>;

    /// Listens to other processes over this record: `ring` is told of each call in which one of them put something on record. Returns
    /// when that cannot be heard, or not any more. What is not heard is seen by [`Transcripts::standings`].
    async fn listen(&self, ring: Ring) {
        drop(ring);
    }

    /// The calls of these businesses that are open; and of the `latest` of all those that ended since. Each with its business.
    async fn calls_of(
        &self,
        businesses: &[String],
        ended_since_ms: UnixMs,
        latest: u32,
    ) -> Result<Vec<(String, CallId)>>;

    /// Where these calls stand; those that are not on record are left out.
    async fn standings(&self, calls: &[CallId]) -> Result<Vec<UtterancePosition>>;
}
