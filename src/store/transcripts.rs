//! Transcripts: the utterances of calls.
//!
//! * The numbers of a call's utterances start at 1 and have no gaps, with any number of writers: the readable utterances of a
//!   call are always those from 1 to the last.
//! * An utterance is stored once for each webhook that brought it.

use async_trait::async_trait;

use super::{CallRecord, Delivery, NewEvent, ReceiveOutcome, Result, Voucher};
use crate::call::{EndProof, Phase, Speaker};
use crate::clock::UnixMs;
use crate::ids::{Alias, CallId};

/// An utterance to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewUtterance {
    /// The webhook that brought it, by its first id in the inbox.
    pub event_id: String,
    /// The speaker.
    pub speaker: Speaker,
    /// The text.
    pub text: String,
    /// The time, as its sender wrote it.
    pub said_at: String,
    /// The provider's number of it.
    pub source_sequence: Option<i64>,
    /// The sequence of that number.
    pub source: Option<String>,
    /// Now.
    pub at_ms: UnixMs,
}

impl NewUtterance {
    /// The stored utterance.
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

/// The position of a stored utterance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UtteranceRef {
    /// The utterance's id among all.
    pub id: i64,
    /// The utterance's number in its call.
    pub sequence: i64,
}

/// A webhook with an utterance.
#[derive(Debug, Clone)]
pub struct UtteranceIngest {
    /// The webhook. Its id and the utterance's [`NewUtterance::event_id`] are one.
    pub event: NewEvent,
    /// The ids of its call.
    pub aliases: Vec<Alias>,
    /// The webhook's voucher.
    pub by: Voucher,
    /// The webhook's utterance.
    pub said: NewUtterance,
    /// The webhook's delivery to the app.
    pub delivery: Option<Delivery>,
}

/// The outcome of ingesting a webhook with an utterance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IngestOutcome {
    /// The webhook is settled, with its utterance stored there.
    Whole(CallId, UtteranceRef),
    /// The webhook was settled before, with its utterance stored there.
    Before(CallId, UtteranceRef),
    /// The webhook is only in the inbox: its call is unknown, or it has other news of the call ([`tells_more`]), or it is not
    /// about the call that it points to, or it was left unfinished before.
    Inbox(ReceiveOutcome),
}

/// Whether an utterance is also news of the call: a speaker is connected, and may introduce a new id.
pub fn tells_more(record: &CallRecord, aliases: &[Alias]) -> bool {
    record.phase < Phase::Live
        // It was given up, or is about to be.
        || record.proof == Some(EndProof::Deadline)
        || record.absent_at.is_some()
        || aliases.iter().any(|alias| !record.aliases.contains(alias))
}

/// A stored utterance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Utterance {
    /// The utterance's id among all.
    pub id: i64,
    /// The utterance's number in its call.
    pub sequence: i64,
    /// The webhook that brought it.
    pub event_id: String,
    /// The speaker.
    pub speaker: Speaker,
    /// The text.
    pub text: String,
    /// The time, as its sender wrote it.
    pub said_at: String,
    /// The provider's number of it.
    pub source_sequence: Option<i64>,
    /// The sequence of that number.
    pub source: Option<String>,
}

/// The position of a call: shows whether anything is new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UtterancePosition {
    /// The call.
    pub call: CallId,
    /// The number of its last utterance; 0: none.
    pub last_sequence: i64,
    /// The time at which the last news of the call arrived.
    pub seen_at: UnixMs,
    /// Whether it has ended.
    pub ended: bool,
    /// The time at which its post-call record was complete.
    pub recorded_at: Option<UnixMs>,
}

/// A notification from another process that shares the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaSignal<'b> {
    /// The other process stored something of this call.
    Call(&'b CallId),
    /// Jobs may be dialled: slots are free, or a run has due jobs.
    Dial,
}

/// Called with each notification.
pub type OnSignal = Box<dyn Fn(ReplicaSignal<'_>) + Send + Sync>;

/// Stores and reads the utterances of calls. A part of [`super::Store`].
#[async_trait]
pub trait Transcripts {
    /// Stores an utterance under the next number of its call. If its webhook is repeated, returns the stored one. `None`: no such
    /// call.
    async fn add_utterance(&self, call: &CallId, said: NewUtterance) -> Result<Option<UtteranceRef>>;

    /// Stores a webhook and its utterance, and settles it, in one transaction; or only stores the webhook.
    async fn ingest(&self, ingested: UtteranceIngest) -> Result<IngestOutcome>;

    /// Utterances of a call after a number, in order, at most `limit`.
    async fn utterances(&self, call: &CallId, after: i64, limit: u32) -> Result<Vec<Utterance>>;

    /// The number of a call's last utterance; 0: none.
    async fn last_sequence(&self, call: &CallId) -> Result<i64>;

    /// Listens to other processes that share the database: `on_signal` is called with each call in which one of them stored something, and
    /// when one of them has called [`Transcripts::wake_remote_diallers`]. Returns when listening fails. [`Transcripts::positions`] finds what was missed.
    async fn listen(&self, on_signal: OnSignal) {
        drop(on_signal);
    }

    /// Notifies the processes that listen that something may be dialled. Nothing is sent where this process does not listen itself: then
    /// none does. Nothing relies on it: diallers look for free slots anyway.
    async fn wake_remote_diallers(&self) -> Result<()> {
        Ok(())
    }

    /// The open calls of these businesses; and of the `latest` of all calls those that ended since. Each with its business.
    async fn calls_of(
        &self,
        businesses: &[String],
        ended_since_ms: UnixMs,
        latest: u32,
    ) -> Result<Vec<(String, CallId)>>;

    /// The positions of these calls; unrecorded ones are left out.
    async fn positions(&self, calls: &[CallId]) -> Result<Vec<UtterancePosition>>;
}
