//! The values of labels. [`Metrics::create_series`](super::Metrics::create_series) creates a series for each where they are few.

use crate::words::words;

/// The provider whose 429s are counted by themselves, as the replaced systems did.
pub(super) const COUNTED_429: &str = "elevenlabs";

words!(
    /// The kind of a request at `listen.api`.
    ApiRequest {
        /// The request creates calls.
        Create = "create",
        /// The request is passed through.
        Relay = "relay",
        /// No account matches.
        Unknown = "unknown",
    }
);

words!(
    /// The kind of a request at `listen.webhooks`.
    WebhookRequest {
        /// A webhook.
        Webhook = "webhook",
        /// No webhook: forwarded to the app.
        Passed = "passed",
        /// Rejected before it was read.
        Refused = "refused",
    }
);

words!(
    /// The kind of a request at `listen.client`.
    ClientRequest {
        /// `/health`.
        Health = "health",
        /// A WebSocket.
        Socket = "socket",
        /// A transcript.
        Transcript = "transcript",
        /// A post-call record that is to be fetched.
        Fetch = "fetch",
        /// A list of calls.
        Calls = "calls",
        /// One call.
        Call = "call",
        /// A browser's preflight request.
        Preflight = "preflight",
        /// Nothing is served there.
        Unknown = "unknown",
    }
);

/// A request, by listener and kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// At `listen.api`.
    Api(ApiRequest),
    /// At `listen.webhooks`.
    Webhooks(WebhookRequest),
    /// At `listen.client`.
    Client(ClientRequest),
    /// At `listen.admin`.
    Admin,
}

impl Served {
    /// The labels `listener` and `kind`.
    pub(super) const fn labels(self) -> [&'static str; 2] {
        match self {
            Served::Api(kind) => ["api", kind.as_str()],
            Served::Webhooks(kind) => ["webhooks", kind.as_str()],
            Served::Client(kind) => ["client", kind.as_str()],
            Served::Admin => ["admin", "admin"],
        }
    }
}

words!(
    /// The outcome of a create, by which ringfence's own time is observed.
    CreateOutcome {
        /// The create was sent.
        Sent = "sent",
        /// A limit rejected it.
        Rejected = "rejected",
    }
);

words!(
    /// The outcome of a webhook that was not applied when it came. That of an applied one is the store's.
    NotApplied {
        /// The webhook was stored before.
        Duplicate = "duplicate",
        /// The webhook is stored; applying it is retried.
        Waiting = "waiting",
        /// The webhook is in the journal.
        Journaled = "journaled",
        /// The webhook could not be stored.
        Failed = "failed",
        /// No limiter could decide about the inbound call that it reports.
        Undecided = "undecided",
        /// An interim utterance, which is only shown.
        Partial = "partial",
        /// The webhook has no usable utterance.
        Invalid = "invalid",
        /// An id or a status occurs twice in it.
        Doubled = "doubled",
        /// The request is no webhook of a call, and has a call's id.
        Foreign = "foreign",
        /// The spool has no space for its body.
        SpoolFull = "spool_full",
        /// The spool failed.
        SpoolFailed = "spool_failed",
        /// The app rejected it.
        AppRefused = "app_refused",
        /// The webhook came at a path that is not configured.
        UnlistedPath = "unlisted_path",
    }
);

words!(
    /// The reason why the sender of a webhook is unknown.
    Unverified {
        /// The signature is invalid.
        Refused = "refused",
        /// The key could not be fetched.
        Failed = "failed",
    }
);

words!(
    /// The kind of a message that is read.
    MessageKind {
        /// A create request.
        Create = "create",
        /// A webhook.
        Webhook = "webhook",
        /// A provider's answer about one call or batch.
        Lookup = "lookup",
        /// A provider's list of live calls.
        List = "list",
        /// A provider's number of live calls.
        Count = "count",
        /// A provider's answer about a subaccount.
        Subaccount = "subaccount",
    }
);

words!(
    /// The result of an attempt to deliver a webhook to the app.
    Delivered {
        /// The app has it.
        Done = "done",
        /// The delivery is retried.
        Retry = "retry",
        /// The delivery is not retried any more.
        GivenUp = "given_up",
    }
);

words!(
    /// The source of a post-call record.
    RecordSource {
        /// A webhook.
        Webhook = "webhook",
        /// The provider was asked.
        Asked = "asked",
        /// None: it is given up.
        Missing = "missing",
    }
);

words!(
    /// The occasion at which a callback URL was found unfit.
    CallbackUse {
        /// At the create that names it.
        Create = "create",
        /// At a delivery.
        Delivery = "delivery",
    }
);

words!(
    /// The result of a poll of an account for its live calls.
    SweepResult {
        /// The provider answered.
        Ok = "ok",
        /// The provider did not answer.
        Failed = "failed",
    }
);

words!(
    /// The result of the reload of a changed certificate.
    CertificateReload {
        /// The new certificate is in use.
        Ok = "ok",
        /// The old one stays in use.
        Failed = "failed",
    }
);

words!(
    /// The result of a reload of the config.
    ReloadOutcome {
        /// The new config is in force.
        Loaded = "loaded",
        /// No file has changed.
        Unchanged = "unchanged",
        /// The new config is invalid; the old one stays in force.
        Kept = "kept",
        /// The reload could not be attempted: the store is unavailable, or the program was not started from a file. The old
        /// config stays in force.
        Failed = "failed",
    }
);

impl ReloadOutcome {
    /// Whether the config in the file is in force.
    pub const fn is_ok(self) -> bool {
        matches!(self, ReloadOutcome::Loaded | ReloadOutcome::Unchanged)
    }
}

words!(
    /// The result of a schedule's firing.
    Firing {
        /// The firing created a run.
        Fired = "fired",
        /// The firing found no leads.
        NoLeads = "no_leads",
        /// An attempt failed.
        Failed = "failed",
        /// The next firing superseded it.
        GivenUp = "given_up",
        /// No process was running.
        Missed = "missed",
    }
);

words!(
    /// The fallback that decided while Redis was away.
    Degraded {
        /// The database.
        Database = "database",
        /// The call was admitted without a check.
        Open = "open",
        /// The call was rejected.
        Closed = "closed",
    }
);

words!(
    /// The difference between a lease and its call's record.
    Repair {
        /// The lease's call has ended.
        Ended = "ended",
        /// No call was recorded.
        Orphan = "orphan",
        /// An open call had none.
        Uncounted = "uncounted",
    }
);

words!(
    /// The result of an attempt to dial a job of a bulk run.
    RunDial {
        /// The job's call is placed, or may be.
        Called = "called",
        /// The attempt was made before.
        Known = "known",
        /// A limit is full; the job waits.
        Full = "full",
        /// The provider's own limit is full.
        ProviderLimit = "provider_limit",
        /// The job was not sent.
        NotSent = "not_sent",
        /// The provider rejected it, or it cannot be sent as it is.
        Rejected = "rejected",
        /// No limiter can decide.
        Away = "away",
        /// No lead of the run can be called at present.
        Held = "held",
    }
);

words!(
    /// The type of a message on a WebSocket of `listen.client`.
    ClientMessage {
        /// A call or a run is followed.
        SubscriptionConfirmed = "subscription_confirmed",
        /// A call or a run is no longer followed.
        UnsubscribeConfirmed = "unsubscribe_confirmed",
        /// The transcript restarts.
        CannotResume = "cannot_resume",
        /// An utterance.
        Transcription = "transcription",
        /// An utterance that may still change.
        Partial = "partial",
        /// A call has ended.
        CallStatus = "call_status",
        /// The post-call record of a call.
        CallCompleted = "call_completed",
        /// All calls of a business are followed.
        BusinessSubscribed = "business_subscribed",
        /// The calls of a business are no longer followed.
        BusinessUnsubscribed = "business_unsubscribed",
        /// The state of a job of a followed run.
        RunJob = "run_job",
        /// The state of a followed run.
        RunProgress = "run_progress",
        /// Some `run_job` messages were skipped.
        RunJobsSkipped = "run_jobs_skipped",
        /// A newer token is in use.
        TokenRenewed = "token_renewed",
        /// A request of the client cannot be carried out.
        Error = "error",
    }
);
