//! Every route of `listen.admin`: one table, of which the OpenAPI document ([`openapi`](super::openapi)) and the page in `docs/reference`
//! are made, and by which a request at a known path with another method is answered. `tests/it/openapi.rs` fails where a handler has a
//! route that stands here nowhere, and where one answers otherwise than it says here.

use http::Method;

use super::auth::Scope;

/// A route.
#[derive(Debug, Clone, Copy)]
pub struct Route {
    /// Its method.
    pub method: &'static str,
    /// Its path. `{id}` is one part of it, `{id+}` one or more.
    pub path: &'static str,
    /// Who may.
    pub needs: Needs,
    /// What it does, in a sentence.
    pub about: &'static str,
    /// What may stand in the query: name, schema, meaning.
    pub query: &'static [(&'static str, &'static str, &'static str)],
    /// The body: its media types and schema, and whether it must be there.
    pub body: Option<Body>,
    /// Its answers but for errors that every route has.
    pub answers: &'static [(u16, Shape)],
}

/// The body of a request.
#[derive(Debug, Clone, Copy)]
pub struct Body {
    /// Media types.
    pub kinds: &'static [&'static str],
    /// Its schema, where it is JSON.
    pub schema: &'static str,
    /// It must be there.
    pub required: bool,
}

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Everybody.
    Nothing,
    /// Who scrapes: everybody who calls the listener by an address, unless `admin.metrics_token` is set.
    Scrape,
    /// A token of this scope, or of one that allows more.
    Scope(Scope),
    /// The same, and it is for all businesses.
    AllBusinesses(Scope),
}

/// What an answer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// JSON: the name of a schema of [`SCHEMAS`].
    Json(&'static str),
    /// Nothing.
    Empty,
    /// Something else, by its media types.
    Other(&'static [&'static str]),
}

use Needs::{AllBusinesses, Nothing, Scope as Of, Scrape};
use Scope::{Metrics, Operate, Read};
use Shape::{Empty, Json, Other};

const PLAIN: &[&str] = &["text/plain"];
const EVENTS: &[&str] = &["text/event-stream"];
const LEADS: &[&str] = &["application/json", "text/csv", "application/x-ndjson"];
const LIMIT: (&str, &str, &str) = ("limit", "integer", "how many at most, 1 to 1000; default 100");
const ACCOUNT: (&str, &str, &str) = ("account", "string", "of this account");
const SINCE: (&str, &str, &str) = ("since_secs", "integer", "begun within so many seconds");
const OLDER: (&str, &str, &str) = ("older_secs", "integer", "begun before so many seconds");
const BUSINESS: (&str, &str, &str) = ("business", "string", "of this business");
const REASON: Body = Body { kinds: &["application/json"], schema: "#Reason", required: false };

const fn json(schema: &'static str) -> Option<Body> {
    Some(Body { kinds: &["application/json"], schema, required: true })
}

const fn get(path: &'static str, needs: Needs, about: &'static str, answers: &'static [(u16, Shape)]) -> Route {
    Route { method: "GET", path, needs, about, query: &[], body: None, answers }
}

const fn post(path: &'static str, needs: Needs, about: &'static str, answers: &'static [(u16, Shape)]) -> Route {
    Route { method: "POST", ..get(path, needs, about, answers) }
}

const fn put(path: &'static str, needs: Needs, about: &'static str, answers: &'static [(u16, Shape)]) -> Route {
    Route { method: "PUT", ..get(path, needs, about, answers) }
}

const fn delete(path: &'static str, needs: Needs, about: &'static str, answers: &'static [(u16, Shape)]) -> Route {
    Route { method: "DELETE", ..get(path, needs, about, answers) }
}

impl Route {
    const fn asked(self, query: &'static [(&'static str, &'static str, &'static str)]) -> Self {
        Self { query, ..self }
    }

    const fn with(self, body: Option<Body>) -> Self {
        Self { body, ..self }
    }

    /// Whether a path is its own, taken apart at its slashes.
    fn fits(&self, segments: &[&str]) -> bool {
        let own: Vec<&str> = self.path.split('/').skip(1).collect();
        let Some(many) = own.iter().position(|part| part.ends_with("+}")) else {
            return own.len() == segments.len() && own.iter().zip(segments).all(|(own, part)| same(own, part));
        };
        let after = &own[many + 1..];
        segments.len() >= own.len()
            && own[..many].iter().zip(segments).all(|(own, part)| same(own, part))
            && after.iter().rev().zip(segments.iter().rev()).all(|(own, part)| same(own, part))
    }
}

fn same(own: &str, part: &str) -> bool {
    own.starts_with('{') || own == part
}

/// The methods that a path takes, where a request has another one. `None`: it has a route, or the path is unknown.
pub(super) fn other_methods(method: &Method, segments: &[&str]) -> Option<String> {
    let fitting: Vec<&Route> = ROUTES.iter().filter(|route| route.fits(segments)).collect();
    if fitting.iter().any(|route| route.method == method.as_str()) {
        return None;
    }
    // An id of several parts fits more: the path that says most is meant.
    let nearest = fitting.iter().max_by_key(|route| route.path.len())?.path;
    let methods: Vec<&str> = fitting.iter().filter(|route| route.path == nearest).map(|route| route.method).collect();
    Some(methods.join(", "))
}

/// Every route.
pub const ROUTES: &[Route] = &[
    get("/health", Nothing, "Whether the process answers.", &[(200, Json("Health"))]),
    get("/ready", Nothing, "Whether it can serve: its database answers, and it does not stop.", &[(200, Json("Word"))]),
    get("/openapi.json", Nothing, "This document.", &[(200, Json("Any"))]),
    get("/metrics", Scrape, "Metrics in the Prometheus text format.", &[(200, Other(PLAIN))]),
    get(
        "/status",
        AllBusinesses(Read),
        "How everything stands: limits, accounts, limiter, database, replicas.",
        &[(200, Json("Status"))],
    ),
    get(
        "/api/stream",
        Of(Read),
        "Everything that the operator's page shows, as server-sent events.",
        &[(200, Other(EVENTS))],
    ),
    // === figures of before ringfence ===
    get(
        "/api/concurrent-metrics",
        AllBusinesses(Metrics),
        "Calls, rejections and limits in short.",
        &[(200, Json("Figures"))],
    ),
    get(
        "/api/concurrent-metrics/status",
        AllBusinesses(Metrics),
        "Calls in use over all; with the scope `read` each of them, too.",
        &[(200, Json("GlobalStatus"))],
    ),
    get("/api/concurrent-metrics/prometheus", AllBusinesses(Metrics), "The same as /metrics.", &[(200, Other(PLAIN))]),
    get(
        "/api/concurrent-metrics/events",
        Of(Read),
        "The latest admissions, refusals and releases.",
        &[(200, Json("Happenings"))],
    )
    .asked(&[("limit", "integer", "so many, oldest first; without it 100, newest first")]),
    // === calls ===
    get("/api/calls", Of(Read), "Open calls; with `all=true` the latest of all.", &[(200, Json("Calls"))]).asked(&[
        BUSINESS,
        ACCOUNT,
        ("phase", "string", "in one of these phases, with commas between"),
        SINCE,
        OLDER,
        ("all", "boolean", "those that are over, too"),
        LIMIT,
    ]),
    get(
        "/api/calls/{id+}",
        Of(Read),
        "A call by ringfence's id or one of its provider's, with its post-call record.",
        &[(200, Json("CallWithRecord"))],
    ),
    get(
        "/api/calls/{id}/stream",
        Of(Read),
        "A call, and what is said in it, as server-sent events.",
        &[(200, Other(EVENTS))],
    ),
    post("/api/calls/{id+}/hangup", Of(Operate), "Ends a call at its provider.", &[(200, Json("HungUp"))])
        .with(Some(REASON)),
    post(
        "/api/calls/{id+}/release",
        Of(Operate),
        "Frees a call's slot. The call may go on.",
        &[(200, Json("Released"))],
    )
    .with(json("force:boolean, reason:string")),
    post(
        "/conversations/{id}/fetch",
        Of(Operate),
        "Fetches a post-call record from its provider whose webhook was lost.",
        &[(200, Json("Any")), (202, Json("Any")), (429, Json("Error")), (502, Json("Error"))],
    ),
    // === refusals ===
    get("/api/refusals", Of(Read), "The latest refusals.", &[(200, Json("Refusals"))])
        .asked(&[BUSINESS, ACCOUNT, SINCE, OLDER, LIMIT]),
    get("/api/refusals/{id}", Of(Read), "A refusal.", &[(200, Json("Refusal"))]),
    get("/api/explain", Of(Read), "Why a create was refused, or would be.", &[(200, Json("Any"))]).asked(&[
        ("id", "string", "of a refusal or a call; else a create is described by the rest"),
        ("business", "string", "whose create it is"),
        ("account", "string", "at which account"),
        ("to", "string", "the number that is called"),
        ("number", "string", "the own number"),
        ("agent", "string", "the agent"),
        ("direction", "string", "`outbound` or `inbound`"),
    ]),
    // === bypass ===
    get("/api/bypass", AllBusinesses(Read), "The bypass that is in force.", &[(200, Json("Bypass"))]),
    put("/api/bypass", AllBusinesses(Operate), "Lets limits refuse nothing for a while.", &[(200, Json("Bypass"))])
        .with(json("#BypassToPut")),
    delete("/api/bypass", AllBusinesses(Operate), "Ends the bypass.", &[(200, Json("Bypass"))]),
    // === businesses ===
    get(
        "/api/businesses",
        Of(Read),
        "Every business that is known: of the config, or put.",
        &[(200, Json("Businesses"))],
    ),
    put(
        "/api/businesses",
        AllBusinesses(Operate),
        "Puts many businesses, all or none.",
        &[(200, Json("Any")), (422, Json("BadRows"))],
    )
    .with(json("businesses:#BusinessToPut[]")),
    get("/api/businesses/{id}", Of(Read), "A business.", &[(200, Json("Business"))]),
    put(
        "/api/businesses/{id}",
        AllBusinesses(Operate),
        "Puts a business.",
        &[(200, Json("Business")), (201, Json("Business")), (422, Json("Error"))],
    )
    .with(json("#BusinessToPut")),
    delete("/api/businesses/{id}", AllBusinesses(Operate), "Forgets a business that was put.", &[(204, Empty)]),
    post(
        "/api/businesses/{id}/purge",
        AllBusinesses(Operate),
        "Deletes what a business's calls left behind. Open calls stay.",
        &[(200, Json("Purged"))],
    )
    .with(Some(REASON)),
    // === do-not-call lists ===
    get(
        "/api/do-not-call",
        Of(Read),
        "Numbers that nobody calls; with `business` those that it does not.",
        &[(200, Json("Numbers"))],
    )
    .asked(&[BUSINESS, LIMIT, ("after", "integer", "`next` of the page before")]),
    put(
        "/api/do-not-call",
        Of(Operate),
        "Puts numbers on a list, all or none.",
        &[(200, Json("NumbersPut")), (422, Json("BadRows"))],
    )
    .asked(&[BUSINESS])
    .with(json("numbers:string[], reason~:string")),
    delete(
        "/api/do-not-call",
        Of(Operate),
        "Takes numbers off a list.",
        &[(200, Json("NumbersDeleted")), (422, Json("BadRows"))],
    )
    .asked(&[BUSINESS])
    .with(json("numbers:string[], reason~:string")),
    get(
        "/api/do-not-call/{number}",
        Of(Read),
        "On which lists a number stands.",
        &[(200, Json("Listed")), (422, Json("Error"))],
    )
    .asked(&[BUSINESS]),
    put(
        "/api/do-not-call/{number}",
        Of(Operate),
        "Puts a number on a list.",
        &[(200, Json("NumberPut")), (201, Json("NumberPut")), (422, Json("Error"))],
    )
    .asked(&[BUSINESS])
    .with(Some(REASON)),
    delete(
        "/api/do-not-call/{number}",
        Of(Operate),
        "Takes a number off a list.",
        &[(204, Empty), (422, Json("Error"))],
    )
    .asked(&[BUSINESS])
    .with(Some(REASON)),
    // === bulk runs ===
    get("/api/runs", Of(Read), "The latest bulk runs.", &[(200, Json("Runs"))]).asked(&[BUSINESS, LIMIT]),
    post(
        "/api/runs",
        Of(Operate),
        "Makes a run, with its leads or without.",
        &[(200, Json("Run")), (201, Json("Run")), (409, Json("Error")), (422, Json("BadLeads"))],
    )
    .with(json("#RunToMake")),
    get("/api/runs/{id}", Of(Read), "A run with what became of its leads.", &[(200, Json("RunWithCounts"))]),
    post(
        "/api/runs/{id}/leads",
        Of(Operate),
        "Hands over the leads of a run that was made without.",
        &[(200, Json("Run")), (201, Json("Run")), (409, Json("Error")), (422, Json("BadLeads"))],
    )
    .with(Some(Body { kinds: LEADS, schema: "any", required: true })),
    get("/api/runs/{id}/results", Of(Read), "What became of each lead.", &[(200, Json("Results"))]).asked(&[
        ("after", "integer", "`next` of the page before"),
        ("limit", "integer", "1 to 10000; default 1000"),
        ("format", "string", "json, ndjson or csv"),
    ]),
    post(
        "/api/runs/{id}/pause",
        Of(Operate),
        "Dials no more of a run, until it is resumed.",
        &[(200, Json("RunWithCounts")), (409, Json("Error"))],
    )
    .with(Some(REASON)),
    post(
        "/api/runs/{id}/resume",
        Of(Operate),
        "Goes on with a run.",
        &[(200, Json("RunWithCounts")), (409, Json("Error"))],
    )
    .with(Some(REASON)),
    post(
        "/api/runs/{id}/cancel",
        Of(Operate),
        "Ends a run. Calls that are up go on.",
        &[(200, Json("RunWithCounts")), (409, Json("Error"))],
    )
    .with(Some(REASON)),
    post(
        "/api/runs/{id}/retry",
        Of(Operate),
        "Calls those once more that were not reached.",
        &[(200, Json("RunWithCounts")), (409, Json("Error"))],
    )
    .with(Some(Body {
        kinds: &["application/json"],
        schema: "outcomes~:string[], reason~:string",
        required: false,
    })),
    // === schedules ===
    get("/api/schedules", Of(Read), "Recurring runs.", &[(200, Json("Schedules"))]).asked(&[BUSINESS, LIMIT]),
    post(
        "/api/schedules",
        Of(Operate),
        "Makes a recurring run.",
        &[(200, Json("ScheduleWithRun")), (201, Json("ScheduleWithRun")), (409, Json("Error"))],
    )
    .with(json(
        "name:string, schedule:string, timezone:string, source:string, missed~:any, bad_leads~:string, run:#RunToMake",
    )),
    get("/api/schedules/{id}", Of(Read), "A recurring run.", &[(200, Json("ScheduleWithRun"))]),
    delete(
        "/api/schedules/{id}",
        Of(Operate),
        "Forgets a recurring run. Runs that it made stay.",
        &[(200, Json("ScheduleDeleted"))],
    ),
    post(
        "/api/schedules/{id}/fire",
        Of(Operate),
        "Makes the next run now.",
        &[(200, Json("Fired")), (201, Json("Fired")), (409, Json("Error")), (502, Json("Error"))],
    ),
    post(
        "/api/schedules/{id}/pause",
        Of(Operate),
        "Makes no runs, until it is resumed.",
        &[(200, Json("ScheduleWithRun")), (409, Json("Error"))],
    ),
    post(
        "/api/schedules/{id}/resume",
        Of(Operate),
        "Goes on with its runs.",
        &[(200, Json("ScheduleWithRun")), (409, Json("Error"))],
    ),
    // === webhooks, audit, config ===
    get(
        "/api/events",
        AllBusinesses(Read),
        "Webhooks and deliveries that are on record, the latest first.",
        &[(200, Json("Inbox"))],
    )
    .asked(&[("state", "string", "all, unsettled or parked"), ACCOUNT, LIMIT]),
    get(
        "/api/events/{id}",
        AllBusinesses(Read),
        "A webhook with its deliveries.",
        &[(200, Json("EventWithDeliveries"))],
    ),
    post(
        "/api/events/{id}/replay",
        AllBusinesses(Operate),
        "Applies a webhook again, and delivers it again.",
        &[(200, Json("Replayed"))],
    ),
    get("/api/audit", AllBusinesses(Read), "Who did what.", &[(200, Json("Audit"))]).asked(&[LIMIT]),
    post(
        "/api/reload",
        AllBusinesses(Operate),
        "Reads the config again.",
        &[(200, Json("Reloaded")), (422, Json("Reloaded")), (503, Json("Reloaded"))],
    ),
    post(
        "/api/reconcile",
        AllBusinesses(Operate),
        "Compares calls with what providers say, and leases with calls.",
        &[(200, Json("Reconciled"))],
    ),
];

/// Schemas by name: what it is, and its fields. A field is `name:type`; `~` behind its name: it may be absent; `?` behind its type: it may
/// be null; `[]`: a list of those; `{}`: those by name; `#Name`: another schema; `+Name` takes the fields of another one over.
pub const SCHEMAS: &[(&str, &str, &str)] = &[
    ("Any", "Any JSON.", "any"),
    ("Error", "An error: a code for programs, a sentence for people.", "error:string, message:string"),
    ("Health", "The process answers.", "status:string, service:string"),
    ("Word", "How it stands, in a word.", "status:string"),
    ("Reason", "Why somebody does it.", "reason~:string"),
    (
        "Status",
        "How everything stands.",
        "version:string, mode:string, bypass~:any, limits:#Limit[], unknownBusinesses:string, policy:object, policiesDiffer:boolean, replicas:object[], draining:boolean, gate:object, store:object, accounts:object[]",
    ),
    ("Limit", "A limit in force.", "name:string, per:string, allows:string, from:string"),
    (
        "GlobalStatus",
        "Calls in use over all.",
        "active:integer, limit:integer, available:integer, utilizationPercent:integer, byPlan:integer{}, calls~:#Call[], activeCallCount~:integer, activeCalls~:object[]",
    ),
    (
        "Figures",
        "Calls, rejections and limits in short.",
        "activeCalls:integer, totalRejections:integer, rejectionsByReason:integer{}, rejectionsByPlan:integer{}, elevenlabs429Count:integer, globalStatus:#GlobalStatus, timestamp:time",
    ),
    ("Happenings", "What happened.", "events:object[]"),
    (
        "Call",
        "A call. Telephone numbers are masked unless the token has the scope `numbers`.",
        "callId:string, businessId:string, plan:string, direction:string, status:string, provider:string, account:string, carrier:string?, operation:string, origin:string, slots:integer, phase:string, outcome:string?, proof:string?, overLimit:boolean, unsettled:boolean, agent:string?, ownNumber:string?, otherNumber:string?, startedAt:time, answeredAt:time?, endedAt:time?, lastSeenAt:time, lastSeenBy:string?, deadlineAt:time?, ids:string{}",
    ),
    ("CallWithRecord", "A call with its post-call record.", "+Call, record:object?"),
    ("Calls", "Calls, and how many are open.", "calls:#Call[], open:integer, now:time"),
    ("HungUp", "What became of a hang-up: over, or unproven yet.", "result:string, means~:string, call~:#Call"),
    ("Released", "The slot is free.", "result:string, call:#Call?"),
    (
        "Refusal",
        "A create or an inbound call that was not admitted.",
        "id:string, at:time, business:string, account:string, direction:string, code:string, limit_name:string?, current:integer?, limit:integer?, observed:boolean, attempts:integer",
    ),
    ("Bypass", "The bypass that is in force; null: none is.", "bypass:any, note~:string?"),
    ("BypassToPut", "For how long limits are bypassed, and why.", "for_secs:integer, reason:string"),
    ("Refusals", "Refusals.", "refusals:#Refusal[], now~:time"),
    (
        "BusinessToPut",
        "A business.",
        "id~:string, plan~:string?, max_calls~:integer?, agent_ids~:string[], phone_numbers~:string[], api_key_sha256~:string[], when_full~:any, retention_days~:integer?, transcripts~:string?, reserve_for_direct~:integer?, destinations~:any",
    ),
    ("Business", "A business as it is in force.", "+BusinessToPut, put~:boolean, note~:string"),
    ("Businesses", "Businesses.", "businesses:#Business[]"),
    ("BadRows", "Rows of a list that cannot be taken; none was.", "error:string, message:string, rows~:object[]"),
    (
        "Purged",
        "What was deleted, and the calls that are up.",
        "calls:integer, events:integer, deliveries:integer, refusals:integer, runs~:integer, schedules~:integer, open:string[]",
    ),
    ("Number", "A number on a list.", "number:string, reason:string?, addedAt:time"),
    ("Numbers", "A page of a list.", "numbers:#Number[], next:integer?"),
    ("NumbersPut", "Numbers put, and those that were not there.", "put:integer, new:integer"),
    ("NumbersDeleted", "Numbers taken off.", "deleted:integer"),
    ("NumberPut", "A number is on the list.", "number:string?, listed:boolean, new:boolean"),
    (
        "Listed",
        "On which lists a number stands.",
        "number:string, reason~:string?, addedAt~:time, listed:boolean, lists:string[]",
    ),
    (
        "RunToMake",
        "A bulk run: docs/runs.md.",
        "business:string, account:string, operation:string, request:object, leads~:object[], name~:string?, idempotency_key~:string?, number_field~:string, own_numbers~:string[], duplicates~:string, start_at~:string?, windows~:any, concurrency~:integer?, rate~:string?, weight~:integer, reserve_for_direct~:integer?, retry~:object, breaker~:object",
    ),
    (
        "Run",
        "A bulk run.",
        "runId:string, businessId:string, account:string, operation:any, name:string?, state:string, reason:string?, leads:integer, startAt:time, createdAt:time, updatedAt:time, finishedAt:time?, resumeAt:time?, idempotencyKey:string?, retries:integer",
    ),
    (
        "RunWithCounts",
        "A bulk run with what became of its leads.",
        "+Run, counts:integer{}, done:integer, now~:time, nextDialAt~:time?, jobs~:integer?",
    ),
    (
        "Schedule",
        "A recurring run.",
        "scheduleId:string, businessId:string, name:string, schedule:string, timezone:string, source:string, missed:any, badLeads:any, state:string, nextAt:time?, lastFiringAt:time?, lastRunId:string?, note:string?, failingFiringAt:time?, tries:integer, error:string?, createdAt:time, updatedAt:time",
    ),
    ("ScheduleWithRun", "A recurring run with what its runs ask for.", "+Schedule, run:object"),
    ("Schedules", "Recurring runs.", "schedules:#Schedule[]"),
    ("ScheduleDeleted", "It is gone.", "scheduleId:string, deleted:boolean"),
    ("Fired", "The run that was made, or why none was.", "scheduleId:string, run:#Run?, note:string?"),
    ("Runs", "Bulk runs.", "runs:#Run[]"),
    (
        "BadLeads",
        "Leads that cannot be taken; none was.",
        "error:string, message:string, count~:integer, mistakes~:object[]",
    ),
    ("Results", "What became of leads.", "results:object[], next:integer?"),
    (
        "Event",
        "A webhook as it is on record.",
        "id:string, account~:string, webhook~:string, event~:string, receivedAt~:time, path~:string, bodyKept~:boolean, spool~:string?, callId~:string?, outcome~:string?, tries~:integer, nextTryAt~:time?, parkedAt~:time?, error~:string?, own~:boolean",
    ),
    (
        "Delivery",
        "A request that is made to the app.",
        "id:string, eventId:string, callId:string?, url:string?, own:boolean, route:any, state:string, attempts:integer, nextTryAt:time?, doneAt:time?, lastError:string?",
    ),
    ("Inbox", "Webhooks and deliveries.", "events:#Event[], pending:#Delivery[], givenUp:#Delivery[]"),
    ("EventWithDeliveries", "A webhook with its deliveries.", "+Event, deliveries:#Delivery[]"),
    ("Replayed", "What was applied and delivered again.", "event:#Event?, deliveries:integer"),
    (
        "AuditEntry",
        "What somebody did.",
        "id:string, at:time, who:string, from:string, what:string, target:string, reason:string?, before:any, after:any",
    ),
    ("Audit", "Who did what, the latest first.", "audit:#AuditEntry[]"),
    (
        "Reloaded",
        "What came of a reload.",
        "result:string, policy:string?, generation:integer, message:string?, diagnostics:object[], drawn:string",
    ),
    ("Reconciled", "What a comparison found and did.", "accounts:object[], gate:object?, gateError:string?"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn others(method: Method, path: &str) -> Option<String> {
        other_methods(&method, &path.split('/').skip(1).collect::<Vec<_>>())
    }

    #[test]
    fn a_known_path_says_which_methods_it_takes() {
        for (method, path) in [
            (Method::GET, "/health"),
            (Method::GET, "/api/calls/abc"),
            (Method::GET, "/api/calls/a/b/c"),
            (Method::POST, "/api/calls/a/b/hangup"),
            (Method::DELETE, "/api/do-not-call/+905321234567"),
            // Nothing is known of these.
            (Method::POST, "/api"),
            (Method::POST, "/api/businesses/acme/more"),
            (Method::POST, "//status"),
        ] {
            assert_eq!(others(method, path), None, "{path}");
        }
        assert_eq!(others(Method::POST, "/api/audit").as_deref(), Some("GET"));
        assert_eq!(others(Method::PATCH, "/api/businesses/acme").as_deref(), Some("GET, PUT, DELETE"));
    }

    #[test]
    fn no_route_stands_there_twice() {
        let mut all: Vec<_> = ROUTES.iter().map(|route| (route.method, route.path)).collect();
        all.sort_unstable();
        let count = all.len();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
