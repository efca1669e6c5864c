//! What was said in calls.
//!
//! * The numbers of a call's utterances start at 1 and have no gaps, whoever writes at the same time: what can be read of a call are
//!   the numbers from 1 to the last, always.
//! * An utterance is put on record once for each webhook that brought it.

use async_trait::async_trait;

use super::Result;
use crate::call::Speaker;
use crate::clock::UnixMs;
use crate::ids::CallId;

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

/// Where an utterance stands on record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Said {
    /// Its id among all.
    pub id: i64,
    /// Its number in its call.
    pub sequence: i64,
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
pub struct Standing {
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
    async fn say(&self, call: &CallId, said: NewUtterance) -> Result<Option<Said>>;

    /// Utterances of a call after a number, in order, at most `limit`.
    async fn utterances(&self, call: &CallId, after: i64, limit: u32) -> Result<Vec<Utterance>>;

    /// The number of a call's last utterance; 0: nothing was said.
    async fn last_sequence(&self, call: &CallId) -> Result<i64>;

    /// Listens to other processes over this record: `ring` is told of each call in which one of them put something on record. Returns
    /// when that cannot be heard, or not any more. What is not heard is seen by [`Transcripts::standings`].
    async fn listen(&self, ring: Ring) {
        drop(ring);
    }

    /// Where these calls stand; those that are not on record are left out.
    async fn standings(&self, calls: &[CallId]) -> Result<Vec<Standing>>;
}
