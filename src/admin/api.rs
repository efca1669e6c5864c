//! The routes of `listen.admin` in one table, the source of the OpenAPI document ([`openapi`](super::openapi)), of the page in
//! `docs/reference`, and of the answer to a wrong method. `tests/it/openapi.rs` fails if a handler has a route that is missing here, or
//! an answer that differs.

use http::Method;

use super::auth::Scope;

/// A route.
#[derive(Debug, Clone, Copy)]
pub struct ApiRoute {
    /// HTTP method of the route.
    pub method: &'static str,
    /// Path of the route. `{id}` is one part of it, `{id+}` one or more.
    pub path: &'static str,
    /// The required access.
    pub needs: Needs,
    /// Summary of the route.
    pub about: &'static str,
    /// Query parameters of the route: name, schema, meaning.
    pub query: &'static [(&'static str, &'static str, &'static str)],
    /// The body: media types, schema, whether it is required.
    pub body: Option<Body>,
    /// Answers of the route, except errors that every route has.
    pub answers: &'static [(u16, Shape)],
}

/// The body of a request.
#[derive(Debug, Clone, Copy)]
pub struct Body {
    /// Media types.
    pub kinds: &'static [&'static str],
    /// Schema of the body, if it is JSON.
    pub schema: &'static str,
    /// Whether it is required.
    pub required: bool,
}

/// The access that a route requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// None.
    Nothing,
    /// The access of a scraper: none for requests whose Host is an IP address or localhost, unless `admin.metrics_token` is set.
    Scrape,
    /// A token of this scope or higher.
    Scope(Scope),
    /// A token with that scope that is not restricted to some businesses.
    AllBusinesses(Scope),
}

/// The content of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// JSON: the name of a schema of `schemas.rs`.
    Json(&'static str),
    /// Nothing.
    Empty,
    /// Content of another kind, by its media types.
    Other(&'static [&'static str]),
}

use Needs::{AllBusinesses, Nothing, Scope as Of, Scrape};
use Scope::{Metrics, Operate, Read};
use Shape::{Empty, Json, Other};

const METRICS: &[&str] = &["text/plain", "application/openmetrics-text"];
const EVENTS: &[&str] = &["text/event-stream"];
const LEADS: &[&str] = &["application/json", "text/csv", "application/x-ndjson"];
const LIMIT: (&str, &str, &str) = ("limit", "integer", "maximum number, 1 to 1000; default 100");
const ACCOUNT: (&str, &str, &str) = ("account", "string", "of this account");
const SINCE: (&str, &str, &str) = ("since_secs", "integer", "begun in the last N seconds");
const OLDER: (&str, &str, &str) = ("older_secs", "integer", "begun more than N seconds ago");
const BUSINESS: (&str, &str, &str) = ("business", "string", "of this business");
const AFTER: (&str, &str, &str) = ("after", "string", "`next` of the previous page");
const EVENT: (&str, &str, &str) = ("event", "string", "with this name");
const CALL: (&str, &str, &str) = ("call", "string", "of this call");
const OF_CALLS_OF: (&str, &str, &str) = ("business", "string", "of calls of this business");
const CAME: (&str, &str, &str) = ("since_secs", "integer", "received in the last N seconds");
const CAME_BEFORE: (&str, &str, &str) = ("older_secs", "integer", "received more than N seconds ago");
const TO_REPLAY: &[(&str, &str, &str)] = &[
    ("state", "string", "failed (parked, or with an abandoned delivery), parked, given_up or settled; default failed"),
    ACCOUNT,
    EVENT,
    CALL,
    OF_CALLS_OF,
    CAME,
    CAME_BEFORE,
    AFTER,
];
const REASON: Body = Body { kinds: &["application/json"], schema: "#Reason", required: false };

const fn json(schema: &'static str) -> Option<Body> {
    Some(Body { kinds: &["application/json"], schema, required: true })
}

const fn get(path: &'static str, needs: Needs, about: &'static str, answers: &'static [(u16, Shape)]) -> ApiRoute {
    ApiRoute { method: "GET", path, needs, about, query: &[], body: None, answers }
}

const fn post(path: &'static str, needs: Needs, about: &'static str, answers: &'static [(u16, Shape)]) -> ApiRoute {
    ApiRoute { method: "POST", ..get(path, needs, about, answers) }
}

const fn put(path: &'static str, needs: Needs, about: &'static str, answers: &'static [(u16, Shape)]) -> ApiRoute {
    ApiRoute { method: "PUT", ..get(path, needs, about, answers) }
}

const fn delete(path: &'static str, needs: Needs, about: &'static str, answers: &'static [(u16, Shape)]) -> ApiRoute {
    ApiRoute { method: "DELETE", ..get(path, needs, about, answers) }
}

impl ApiRoute {
    const fn asked(self, query: &'static [(&'static str, &'static str, &'static str)]) -> Self {
        Self { query, ..self }
    }

    const fn with(self, body: Option<Body>) -> Self {
        Self { body, ..self }
    }

    /// Whether it matches a path, split at slashes.
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

/// The methods of a path, if the given one is not among them. `None`: the route exists, or the path is unknown.
pub(super) fn other_methods(method: &Method, segments: &[&str]) -> Option<String> {
    let fitting: Vec<&ApiRoute> = ROUTES.iter().filter(|route| route.fits(segments)).collect();
    if fitting.iter().any(|route| route.method == method.as_str()) {
        return None;
    }
    // An id of several parts matches more paths: the most specific one applies.
    let nearest = fitting.iter().max_by_key(|route| route.path.len())?.path;
    let methods: Vec<&str> = fitting.iter().filter(|route| route.path == nearest).map(|route| route.method).collect();
    Some(methods.join(", "))
}

/// Every route.
pub const ROUTES: &[ApiRoute] = &[
    get("/health", Nothing, "Whether the process answers.", &[(200, Json("Health"))]),
    get(
        "/ready",
        Nothing,
        "Whether it can serve: its database answers, and it is not draining.",
        &[(200, Json("Word"))],
    ),
    get("/openapi.json", Nothing, "This document.", &[(200, Json("Any"))]),
    get("/metrics", Scrape, "Metrics, in the Prometheus text format or in OpenMetrics.", &[(200, Other(METRICS))]),
    get(
        "/status",
        AllBusinesses(Read),
        "Status: limits, accounts, limiter, database, replicas.",
        &[(200, Json("Status"))],
    ),
    get("/api/stream", Of(Read), "The data of the operator's page, as server-sent events.", &[(200, Other(EVENTS))]),
    // === figures of earlier systems ===
    get(
        "/api/concurrent-metrics",
        AllBusinesses(Metrics),
        "Calls, rejections and limits in short.",
        &[(200, Json("Figures"))],
    ),
    get(
        "/api/concurrent-metrics/status",
        AllBusinesses(Metrics),
        "Calls in use in total; with the scope `read` also each call.",
        &[(200, Json("GlobalStatus"))],
    ),
    get(
        "/api/concurrent-metrics/prometheus",
        AllBusinesses(Metrics),
        "The same as /metrics, with all gauges at every replica.",
        &[(200, Other(METRICS))],
    ),
    get(
        "/api/concurrent-metrics/events",
        Of(Read),
        "The latest admissions, refusals and releases.",
        &[(200, Json("Happenings"))],
    )
    .asked(&[("limit", "integer", "this many, oldest first; without it 100, newest first")]),
    // === calls ===
    get(
        "/api/calls",
        Of(Read),
        "Open calls, up to 1000 a page; with `all=true` the latest of all.",
        &[(200, Json("Calls"))],
    )
    .asked(&[
        BUSINESS,
        ACCOUNT,
        ("phase", "string", "in one of these phases, separated by commas"),
        SINCE,
        OLDER,
        ("all", "boolean", "include ended calls"),
        ("limit", "integer", "maximum number, 1 to 1000; default 1000, with `all` 100"),
        AFTER,
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
        "A call with its transcript, as server-sent events.",
        &[(200, Other(EVENTS))],
    ),
    post("/api/calls/{id+}/hangup", Of(Operate), "Ends a call at its provider.", &[(200, Json("HungUp"))])
        .with(Some(REASON)),
    post(
        "/api/calls/{id+}/release",
        Of(Operate),
        "Frees a call's slot. The call may continue.",
        &[(200, Json("Released"))],
    )
    .with(json("force:boolean, reason:string")),
    post(
        "/conversations/{id}/fetch",
        Of(Operate),
        "Fetches a post-call record from its provider, if its webhook was lost.",
        &[(200, Json("Any")), (202, Json("Any")), (429, Json("Error")), (502, Json("Error"))],
    ),
    // === refusals ===
    get("/api/refusals", Of(Read), "The latest refusals.", &[(200, Json("Refusals"))]).asked(&[
        BUSINESS,
        ACCOUNT,
        ("code", "string", "with this code"),
        ("since_secs", "integer", "in the last N seconds"),
        ("older_secs", "integer", "more than N seconds ago"),
        LIMIT,
        AFTER,
    ]),
    get("/api/refusals/{id}", Of(Read), "A refusal.", &[(200, Json("Refusal"))]),
    get("/api/explain", Of(Read), "Why a create was refused, or would be.", &[(200, Json("Any"))]).asked(&[
        ("id", "string", "of a refusal or a call; without it the other parameters describe a create"),
        ("business", "string", "business"),
        ("account", "string", "account"),
        ("to", "string", "the called number"),
        ("number", "string", "the own number"),
        ("agent", "string", "the agent"),
        ("direction", "string", "`outbound` or `inbound`"),
    ]),
    // === bypass ===
    get("/api/bypass", AllBusinesses(Read), "The bypass in force.", &[(200, Json("Bypass"))]),
    put(
        "/api/bypass",
        AllBusinesses(Operate),
        "Starts a bypass: limits reject nothing until it ends.",
        &[(200, Json("Bypass"))],
    )
    .with(json("#BypassToPut")),
    delete("/api/bypass", AllBusinesses(Operate), "Ends the bypass.", &[(200, Json("Bypass"))]),
    // === businesses ===
    get("/api/businesses", Of(Read), "All known businesses: of the config, or stored.", &[(200, Json("Businesses"))]),
    put(
        "/api/businesses",
        AllBusinesses(Operate),
        "Creates or replaces businesses, all or none.",
        &[(200, Json("Any")), (422, Json("BadRows"))],
    )
    .with(json("businesses:#BusinessToPut[]")),
    get("/api/businesses/{id}", Of(Read), "A business.", &[(200, Json("Business"))]),
    put(
        "/api/businesses/{id}",
        AllBusinesses(Operate),
        "Creates or replaces a business.",
        &[(200, Json("Business")), (201, Json("Business")), (422, Json("Error"))],
    )
    .with(json("#BusinessToPut")),
    delete("/api/businesses/{id}", AllBusinesses(Operate), "Deletes a stored business.", &[(204, Empty)]),
    post(
        "/api/businesses/{id}/purge",
        AllBusinesses(Operate),
        "Purges a business's data. Open calls are kept.",
        &[(200, Json("Purged"))],
    )
    .with(Some(REASON)),
    // === do-not-call lists ===
    get(
        "/api/do-not-call",
        Of(Read),
        "Do-not-call numbers: the global list, or that of `business`.",
        &[(200, Json("Numbers"))],
    )
    .asked(&[BUSINESS, LIMIT, ("after", "integer", "`next` of the previous page")]),
    put(
        "/api/do-not-call",
        Of(Operate),
        "Adds numbers to a list, all or none.",
        &[(200, Json("NumbersPut")), (422, Json("BadRows"))],
    )
    .asked(&[BUSINESS])
    .with(json("numbers:string[], reason~:string")),
    delete(
        "/api/do-not-call",
        Of(Operate),
        "Removes numbers from a list.",
        &[(200, Json("NumbersDeleted")), (422, Json("BadRows"))],
    )
    .asked(&[BUSINESS])
    .with(json("numbers:string[], reason~:string")),
    get(
        "/api/do-not-call/{number}",
        Of(Read),
        "The lists that contain a number.",
        &[(200, Json("Listed")), (422, Json("Error"))],
    )
    .asked(&[BUSINESS]),
    put(
        "/api/do-not-call/{number}",
        Of(Operate),
        "Adds a number to a list.",
        &[(200, Json("NumberPut")), (201, Json("NumberPut")), (422, Json("Error"))],
    )
    .asked(&[BUSINESS])
    .with(Some(REASON)),
    delete(
        "/api/do-not-call/{number}",
        Of(Operate),
        "Removes a number from a list.",
        &[(204, Empty), (422, Json("Error"))],
    )
    .asked(&[BUSINESS])
    .with(Some(REASON)),
    // === bulk runs ===
    get("/api/runs", Of(Read), "The latest bulk runs.", &[(200, Json("Runs"))]).asked(&[BUSINESS, LIMIT]),
    post(
        "/api/runs",
        Of(Operate),
        "Creates a run, with or without leads.",
        &[(200, Json("Run")), (201, Json("Run")), (409, Json("Error")), (422, Json("BadLeads"))],
    )
    .with(json("#RunToMake")),
    get("/api/runs/{id}", Of(Read), "A run with the counts of its leads by result.", &[(200, Json("RunWithCounts"))]),
    post(
        "/api/runs/{id}/leads",
        Of(Operate),
        "Adds the leads of a run that was created without.",
        &[(200, Json("Run")), (201, Json("Run")), (409, Json("Error")), (422, Json("BadLeads"))],
    )
    .with(Some(Body { kinds: LEADS, schema: "any", required: true })),
    get("/api/runs/{id}/results", Of(Read), "The result of each lead.", &[(200, Json("Results"))]).asked(&[
        ("after", "integer", "`next` of the previous page"),
        ("limit", "integer", "1 to 10000; default 1000"),
        ("format", "string", "json, ndjson or csv"),
    ]),
    post("/api/runs/{id}/pause", Of(Operate), "Pauses a run.", &[(200, Json("RunWithCounts")), (409, Json("Error"))])
        .with(Some(REASON)),
    post("/api/runs/{id}/resume", Of(Operate), "Resumes a run.", &[(200, Json("RunWithCounts")), (409, Json("Error"))])
        .with(Some(REASON)),
    post(
        "/api/runs/{id}/cancel",
        Of(Operate),
        "Cancels a run. Live calls continue.",
        &[(200, Json("RunWithCounts")), (409, Json("Error"))],
    )
    .with(Some(REASON)),
    post(
        "/api/runs/{id}/retry",
        Of(Operate),
        "Requeues leads that were not reached.",
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
        "Creates a recurring run.",
        &[(200, Json("ScheduleWithRun")), (201, Json("ScheduleWithRun")), (409, Json("Error"))],
    )
    .with(json(
        "name:string, schedule:string, timezone:string, source:string, missed~:any, bad_leads~:string, run:#RunToMake",
    )),
    get("/api/schedules/{id}", Of(Read), "A recurring run.", &[(200, Json("ScheduleWithRun"))]),
    delete(
        "/api/schedules/{id}",
        Of(Operate),
        "Deletes a recurring run. Its runs are kept.",
        &[(200, Json("ScheduleDeleted"))],
    ),
    post(
        "/api/schedules/{id}/fire",
        Of(Operate),
        "Creates a run now.",
        &[(200, Json("Fired")), (201, Json("Fired")), (409, Json("Error")), (502, Json("Error"))],
    ),
    post(
        "/api/schedules/{id}/pause",
        Of(Operate),
        "Pauses a schedule.",
        &[(200, Json("ScheduleWithRun")), (409, Json("Error"))],
    ),
    post(
        "/api/schedules/{id}/resume",
        Of(Operate),
        "Resumes a schedule.",
        &[(200, Json("ScheduleWithRun")), (409, Json("Error"))],
    ),
    // === webhooks, audit, config ===
    get(
        "/api/events",
        AllBusinesses(Read),
        "Recorded webhooks and deliveries, the latest first.",
        &[(200, Json("Inbox"))],
    )
    .asked(&[
        ("state", "string", "of webhooks: all, unsettled, open (unsettled or parked), settled or parked"),
        ACCOUNT,
        EVENT,
        CALL,
        OF_CALLS_OF,
        CAME,
        CAME_BEFORE,
        LIMIT,
        AFTER,
    ]),
    get(
        "/api/events/replay",
        AllBusinesses(Read),
        "Webhooks that match a filter and can be replayed, the oldest first, up to 1000 a page.",
        &[(200, Json("Replayable"))],
    )
    .asked(TO_REPLAY),
    post(
        "/api/events/replay",
        AllBusinesses(Operate),
        "Replays webhooks that match a filter, the oldest first, 100 at once.",
        &[(200, Json("ReplayedAll"))],
    )
    .asked(TO_REPLAY)
    .with(Some(REASON)),
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
    )
    .with(Some(REASON)),
    get("/api/audit", AllBusinesses(Read), "The audit log.", &[(200, Json("Audit"))]).asked(&[LIMIT]),
    post(
        "/api/reload",
        AllBusinesses(Operate),
        "Reloads the config.",
        &[(200, Json("Reloaded")), (422, Json("Reloaded")), (503, Json("Reloaded"))],
    ),
    post(
        "/api/reconcile",
        AllBusinesses(Operate),
        "Compares calls with the providers, and leases with calls.",
        &[(200, Json("Reconciled"))],
    ),
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
