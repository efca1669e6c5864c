//! Webhooks, deliveries and rejections, as they are stored.

use serde::{Deserialize, Serialize};

use super::{AppNotice, Cursor};
use crate::call::Direction;
use crate::clock::UnixMs;
use crate::ids::RejectionId;
use crate::words::words;

/// A webhook as received.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewEvent {
    /// A fresh id.
    pub id: String,
    /// The account that it came from.
    pub account: String,
    /// The webhook's name in the description.
    pub webhook: String,
    /// The event's name in the description.
    pub event: String,
    /// Two deliveries with one key are one event.
    pub dedupe_key: Option<String>,
    /// The time at which it was received.
    pub received_at: UnixMs,
    /// The webhook's method.
    pub method: String,
    /// The webhook's path and query.
    pub path: String,
    /// The webhook's headers, credentials left out.
    pub headers: Vec<(String, String)>,
    /// The webhook's body; `None` if it is too large for the database.
    #[serde(skip)]
    pub body: Option<Vec<u8>>,
    /// The spool that has its body.
    pub spool: Option<String>,
}

/// The bodies that a process can read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// The name of the process's own spool, whose bodies it can read.
    pub spool: String,
    /// Whether the process can read the bodies in the database.
    pub database: bool,
}

/// Webhooks to be applied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnsettledEvents {
    /// Readable ones.
    pub events: Vec<NewEvent>,
    /// Unreadable ones, with the reason.
    pub damaged: Vec<(String, String)>,
    /// The position of the last of both; `None`: there are none.
    pub last: Option<Cursor>,
}

words!(
    /// The outcome of a webhook in one word, as in the inbox and in metrics.
    EventOutcome {
        /// The webhook changed a call, or reported what was known.
        Applied = "applied",
        /// The webhook's call was given a slot, or has one.
        Admitted = "admitted",
        /// The webhook's utterance is stored.
        Recorded = "recorded",
        /// The webhook's call is unknown: the webhook waits under the call's ids.
        Deferred = "deferred",
        /// The webhook has no news of a call.
        Ignored = "ignored",
        /// No slot was free for its call.
        CapacityInbound = "capacity_inbound",
        /// The webhook announces a call without an id.
        MissingId = "missing_id",
        /// The webhook cannot be parsed.
        Unreadable = "unreadable",
        /// The webhook's call has been deleted from the store.
        Forgotten = "forgotten",
        /// The process that received it died, and its sender does not wait for the reply any more.
        ReplyExpired = "reply_expired",
        /// The webhook's body is lost.
        BodyLost = "body_lost",
        /// The webhook waited for its call, and cannot be applied to it.
        Unusable = "unusable",
        /// The webhook's signer does not own the call.
        Contradicted = "contradicted",
        /// The webhook's signer owns the call, but the call's conversation or leg is another one.
        OtherCall = "other_call",
    }
);

/// The outcome of storing a webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReceiveOutcome {
    /// The webhook is new.
    New,
    /// The webhook was stored before; with its outcome, if it was applied.
    Before {
        /// The id under which it was stored.
        id: String,
        /// The webhook's outcome.
        outcome: Option<EventOutcome>,
    },
}

words!(
    /// The route of a delivery.
    #[derive(Default)]
    DeliveryRoute {
        /// To the app's configured address.
        #[default]
        App = "app",
        /// To a URL that an app chose, over the network.
        Callback = "callback",
        /// To a URL that an app chose, which is its own: it goes to the app's configured address.
        Forwarded = "forwarded",
        /// One of ringfence's own events: its URL and signature are set when it is sent. Its row has the flag `own`.
        OwnEvent = "own_event",
    }
);

impl DeliveryRoute {
    /// Whether an app chose the URL.
    pub const fn is_chosen_by_app(self) -> bool {
        matches!(self, DeliveryRoute::Callback | DeliveryRoute::Forwarded)
    }
}

/// A notification for the app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// A fresh id; the app sees it in `X-Ringfence-Delivery`.
    pub id: String,
    /// The webhook that it came from.
    pub event_id: String,
    /// The delivery's call: deliveries of one call are sent in order, as long as none fails.
    pub call: Option<String>,
    /// The delivery's route.
    pub route: DeliveryRoute,
    /// The delivery's URL; of a callback, as the app wrote it.
    pub url: String,
    /// The delivery's method.
    pub method: String,
    /// The delivery's headers.
    pub headers: Vec<(String, String)>,
    /// The delivery's body; empty if a spool has it.
    pub body: Vec<u8>,
    /// The spool that has its body.
    pub spool: Option<String>,
    /// Attempts so far.
    pub attempts: u32,
}

/// The order in which the deliveries of a call are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryOrder {
    /// A delivery is sent once the one before it is done or given up.
    Strict,
    /// A delivery is sent once the one before it was attempted: one that failed is sent again later.
    FailedStepAside,
}

/// The result of an attempt to deliver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeliveryResult {
    /// The app has it.
    Done,
    /// The delivery is due again.
    Retry {
        /// The reason why it failed.
        why: String,
        /// The time at which it is due.
        at: UnixMs,
    },
    /// The delivery is not retried.
    GivenUp {
        /// The reason why it failed.
        why: String,
    },
}

/// A recorded rejection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RejectionRecord {
    /// The rejection's id.
    pub id: RejectionId,
    /// The time at which it happened.
    pub at: UnixMs,
    /// The business.
    pub business: String,
    /// The account.
    pub account: String,
    /// The direction.
    pub direction: Direction,
    /// The code of the response. A provider's description may have its own.
    pub code: String,
    /// The limit.
    pub limit_name: Option<String>,
    /// Slots of it that were held.
    pub current: Option<u32>,
    /// Slots that it allows.
    pub limit: Option<u32>,
    /// Whether the request would have been rejected: the mode was observe.
    pub observed: bool,
    /// Attempts of the request: an SDK's attempts are one rejection.
    pub attempts: u32,
    /// Sends the app an event.
    #[serde(skip)]
    pub notice: AppNotice,
}
