//! Twilio's side of the API: calls made, changed and read.

use crate::call::{Call, Callback, Leg, Phase};
use crate::elevenlabs::disturb;
use crate::fault::{Fault, FaultKind, Operation, Provider};
use crate::subaccounts;
use crate::transcription;
use crate::twilio_list::list;
use crate::wire::{Ask, Form, Reply};
use crate::world::{Step, World};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value, json};
use tokio::time::Instant;

/// Answers a request to api.twilio.com.
pub(crate) fn respond(world: &mut World, ask: &Ask<'_>, now: Instant) -> Reply {
    let account = world.settings.account_sid.clone();
    let segments = ask.segments();
    let parts: Vec<&str> = segments.iter().map(String::as_str).collect();
    let (below, rest) = match parts.as_slice() {
        ["2010-04-01", "Accounts.json"] => (None, &[][..]),
        ["2010-04-01", "Accounts", whose, rest @ ..] => (Some(whose.trim_end_matches(".json")), rest),
        ["v1" | "v2", rest @ ..] => (None, rest),
        _ => return unknown(ask.path),
    };
    // Without an id: the accounts themselves.
    let is_list = parts == ["2010-04-01", "Accounts.json"];
    let subaccount = below.filter(|whose| *whose != account);
    if !authentic(world, ask) {
        return error(401, 20003, "Authenticate");
    }
    let fault = world.faults.take(Provider::Twilio, operation(ask, rest));
    let crowded = world.settings.tw_api_concurrency.is_some_and(|limit| world.api_now > limit);
    let refused = if crowded { Some(too_many()) } else { fault.as_ref().and_then(refusal) };
    if let Some(refused) = refused {
        world.counts.refused_429 += u64::from(refused.status == 429);
        return refused;
    }
    let mut reply = match subaccount {
        Some(sid) => subaccounts::respond(world, ask, sid, rest),
        None if is_list => subaccounts::list(world),
        None => route(world, ask, rest, now),
    };
    reply.wait_ms = world.rng.ms(world.settings.api_ms);
    match fault {
        Some(fault) if fault.kind == FaultKind::ServerErrorAfterCreate => {
            Reply { wait_ms: fault.ms, ..error(500, 20500, "Internal Server Error") }
        }
        Some(fault) if fault.kind != FaultKind::NullIds => disturb(reply, &fault),
        _ => reply,
    }
}

fn authentic(world: &World, ask: &Ask<'_>) -> bool {
    let pair = format!("{}:{}", world.settings.account_sid, world.settings.auth_token);
    let Some((scheme, given)) = ask.header("authorization").and_then(|value| value.split_once(' ')) else {
        return false;
    };
    scheme.eq_ignore_ascii_case("basic") && given.trim() == STANDARD.encode(pair)
}

fn operation(ask: &Ask<'_>, rest: &[&str]) -> Operation {
    match (ask.method, rest) {
        ("POST", ["Calls.json"] | ["Conferences", _, "Participants.json"] | ["Flows", ..]) => Operation::Create,
        ("GET", ["Calls.json"]) => Operation::List,
        ("GET", _) => Operation::Get,
        _ => Operation::End,
    }
}

fn route(world: &mut World, ask: &Ask<'_>, rest: &[&str], now: Instant) -> Reply {
    match (ask.method, rest) {
        ("GET", []) => Reply::json(
            200,
            &json!({"sid": world.settings.account_sid, "friendly_name": "Simulated account", "status": world.settings.tw_state, "type": "Full"}),
        ),
        ("POST", ["Calls.json"]) => create(world, ask, now),
        ("GET", ["Calls.json"]) => list(world, ask),
        ("GET", ["IncomingPhoneNumbers.json"]) => numbers(world),
        ("POST", ["IncomingPhoneNumbers", file]) if *file == format!("{NUMBER_SID}.json") => set_number(world, ask),
        ("POST", ["Conferences", room, "Participants.json"]) => participant(world, ask, room, now),
        ("POST", ["Flows", flow, "Executions" | "Engagements"]) => execution(world, ask, flow, now),
        ("POST", ["Conferences", room]) => end_conference(world, ask, room.trim_end_matches(".json"), now),
        ("DELETE", ["Conferences", _, "Participants", sid]) => match known(world, sid) {
            Some(n) => {
                world.counts.hangups += u64::from(world.hang_up(n, "twilio", now));
                Reply::empty(204)
            }
            None => unknown(ask.path),
        },
        ("POST", ["Calls", sid, "Transcriptions.json"]) => match known(world, sid) {
            Some(n) => transcription::respond(world, ask, n, None, now),
            None => unknown(ask.path),
        },
        ("POST", ["Calls", sid, "Transcriptions", which]) => match known(world, sid) {
            Some(n) => transcription::respond(world, ask, n, Some(which), now),
            None => unknown(ask.path),
        },
        (method, ["Calls", sid]) => match (known(world, sid), method) {
            (Some(n), "GET") => {
                world.counts.get_requests += 1;
                shown(world, n, 200)
            }
            (Some(n), "POST") => update(world, ask, n, now),
            (Some(n), "DELETE") => delete(world, n),
            _ => {
                world.counts.get_requests += u64::from(method == "GET");
                unknown(ask.path)
            }
        },
        _ => unknown(ask.path),
    }
}

/// The one number of the account.
const NUMBER_SID: &str = "PN00000000000000000000000000000001";

fn number(world: &World) -> Value {
    let (settings, sid) = (&world.settings, NUMBER_SID);
    let base = format!("/2010-04-01/Accounts/{}/IncomingPhoneNumbers", settings.account_sid);
    json!({
        "sid": sid, "account_sid": settings.account_sid, "phone_number": settings.number, "friendly_name": "Simulated number",
        "voice_url": settings.number_voice_url.as_deref().unwrap_or_default(), "voice_method": "POST",
        "status_callback": settings.number_status_url.as_deref().unwrap_or_default(), "status_callback_method": "POST",
        "voice_fallback_url": settings.number_fallback_url.as_deref().unwrap_or_default(),
        "voice_application_sid": "", "trunk_sid": null, "status": "in-use", "uri": format!("{base}/{sid}.json"),
    })
}

/// An update of the number: an empty text unsets a URL.
fn set_number(world: &mut World, ask: &Ask<'_>) -> Reply {
    let form = ask.form();
    let settings = &mut world.settings;
    for (param, setting) in [
        ("VoiceUrl", &mut settings.number_voice_url),
        ("StatusCallback", &mut settings.number_status_url),
        ("VoiceFallbackUrl", &mut settings.number_fallback_url),
    ] {
        if let Some(url) = form.get(param) {
            *setting = Some(url.to_owned()).filter(|url| !url.is_empty());
        }
    }
    Reply::json(200, &number(world))
}

/// The account's numbers: one, on a single page.
fn numbers(world: &World) -> Reply {
    let base = format!("/2010-04-01/Accounts/{}/IncomingPhoneNumbers", world.settings.account_sid);
    Reply::json(
        200,
        &json!({
            "incoming_phone_numbers": [number(world)], "page": 0, "page_size": 50, "start": 0, "end": 0, "uri": format!("{base}.json"),
            "first_page_uri": format!("{base}.json?Page=0&PageSize=50"), "next_page_uri": null, "previous_page_uri": null,
        }),
    )
}

/// Twilio's shape of an error.
pub(crate) fn error(status: u16, code: u32, message: &str) -> Reply {
    let more_info = format!("https://www.twilio.com/docs/errors/{code}");
    Reply::json(status, &json!({"code": code, "message": message, "more_info": more_info, "status": status}))
}

fn unknown(path: &str) -> Reply {
    error(404, 20404, &format!("The requested resource {path} was not found"))
}

fn too_many() -> Reply {
    error(429, 20429, "Too Many Requests")
}

fn refusal(fault: &Fault) -> Option<Reply> {
    let mut reply = match fault.kind {
        FaultKind::TooManyConcurrent | FaultKind::SystemBusy | FaultKind::RateLimited => too_many(),
        FaultKind::ServerError | FaultKind::SuccessFalse => error(500, 20500, "Internal Server Error"),
        FaultKind::Drop => Reply { drop: true, ..Reply::empty(500) },
        FaultKind::PaymentRequired | FaultKind::QuotaExceeded => error(401, 20003, "Authenticate"),
        FaultKind::Invalid => error(400, 21211, "Invalid 'To' Phone Number"),
        _ => return None,
    };
    reply.wait_ms = fault.ms;
    reply.retry_after = fault.retry_after.filter(|_| reply.status == 429);
    Some(reply)
}

fn known(world: &World, sid: &str) -> Option<u64> {
    let n = world.by_sid(sid.trim_end_matches(".json"))?;
    world.calls.get(&n)?.leg.as_ref().filter(|leg| !leg.deleted).map(|_| n)
}

fn shown(world: &World, n: u64, status: u16) -> Reply {
    match world.calls.get(&n) {
        Some(call) => Reply::json(status, &resource(call, &world.settings.account_sid)),
        None => Reply::empty(404),
    }
}

fn create(world: &mut World, ask: &Ask<'_>, now: Instant) -> Reply {
    let form = ask.form();
    let Some(to) = form.get("To") else {
        return error(400, 21201, "No 'To' number is specified");
    };
    let Some(from) = form.get("From") else {
        return error(400, 21213, "No 'From' number is specified");
    };
    if ["Url", "Twiml", "ApplicationSid"].iter().all(|name| form.get(name).is_none()) {
        return error(400, 21205, "Url parameter is required.");
    }
    let leg = Leg::new(world.ids.sid("CA"), "outbound-api");
    let n = place(world, &form, leg, from, to, now);
    shown(world, n, 201)
}

fn place(world: &mut World, form: &Form, mut leg: Leg, from: &str, to: &str, now: Instant) -> u64 {
    leg.callback = callback(form);
    leg.detects_machine = form.get("MachineDetection").is_some();
    let get = form.get("Method").is_some_and(|method| method.eq_ignore_ascii_case("GET"));
    leg.url = form.get("Url").map(|url| (url.to_owned(), get));
    leg.twiml = form.get("Twiml").map(str::to_owned);
    let queued = world.dial_turn(now);
    leg.queue_ms = u64::try_from(queued.as_millis()).unwrap_or(u64::MAX);
    let over_limit = world.tw_full();
    let n = world.admit_as(over_limit, from, to, Phase::Queued, Some(leg), None);
    let secs = |name: &str| form.get(name).and_then(|value| value.parse::<u64>().ok());
    if let Some(call) = world.calls.get_mut(&n) {
        // Twilio rings about five seconds longer than asked.
        call.ring_limit_ms = Some(secs("Timeout").unwrap_or(60).saturating_add(5).saturating_mul(1000));
        call.talk_limit_ms = secs("TimeLimit").map(|limit| limit.saturating_mul(1000));
    }
    world.counts.creates_tw += 1;
    world.plan(n, now + queued, Step::Dial);
    n
}

/// Status callbacks as asked for: only the end by default, none with an application.
fn callback(form: &Form) -> Option<Callback> {
    if form.get("ApplicationSid").is_some() {
        return None;
    }
    let mut events = form.all("StatusCallbackEvent");
    if events.is_empty() {
        events.push("completed".to_owned());
    }
    Some(Callback {
        url: form.get("StatusCallback")?.to_owned(),
        get: form.get("StatusCallbackMethod").is_some_and(|method| method.eq_ignore_ascii_case("GET")),
        events,
    })
}

fn participant(world: &mut World, ask: &Ask<'_>, room: &str, now: Instant) -> Reply {
    let form = ask.form();
    let Some(to) = form.get("To") else {
        return error(400, 21201, "No 'To' number is specified");
    };
    let Some(from) = form.get("From") else {
        return error(400, 21213, "No 'From' number is specified");
    };
    let open = world.calls.values().filter(|call| call.phase != Phase::Over);
    let same =
        open.filter_map(|call| call.leg.as_ref()?.conference.clone()).find(|(sid, name)| sid == room || name == room);
    let conference = same.unwrap_or_else(|| (world.ids.sid("CF"), room.to_owned()));
    let mut leg = Leg::new(world.ids.sid("CA"), "outbound-api");
    let sid = leg.sid.clone();
    leg.conference = Some(conference.clone());
    place(world, &form, leg, from, to, now);
    let account = &world.settings.account_sid;
    let made = rfc2822(Timestamp::now());
    let body = json!({
        "account_sid": account,
        "call_sid": sid,
        "conference_sid": conference.0,
        "label": form.get("Label"),
        "status": "queued",
        "muted": false,
        "hold": false,
        "coaching": false,
        "call_sid_to_coach": null,
        "start_conference_on_enter": true,
        "end_conference_on_exit": false,
        "date_created": made,
        "date_updated": made,
        "uri": format!("/2010-04-01/Accounts/{account}/Conferences/{}/Participants/{sid}.json", conference.0),
    });
    Reply::json(201, &body)
}

/// A Studio flow whose first widget calls the contact. Its answer knows nothing of the call.
fn execution(world: &mut World, ask: &Ask<'_>, flow: &str, now: Instant) -> Reply {
    let form = ask.form();
    let (Some(to), Some(from)) = (form.get("To"), form.get("From")) else {
        return error(400, 21201, "Both 'To' and 'From' are required");
    };
    if world.settings.studio_calls {
        let leg = Leg::new(world.ids.sid("CA"), "outbound-api");
        let n = place(world, &Form::default(), leg, from, to, now);
        // The flow talks, until somebody hangs up.
        if let Some(leg) = world.calls.get_mut(&n).and_then(|call| call.leg.as_mut()) {
            leg.twiml = Some("<Response><Say>Hello.</Say></Response>".to_owned());
        }
    }
    let made = Timestamp::now().to_string();
    let body = json!({
        "sid": world.ids.sid("FN"),
        "account_sid": world.settings.account_sid,
        "flow_sid": flow,
        "contact_channel_address": to,
        "context": {},
        "status": "active",
        "date_created": made,
        "date_updated": made,
    });
    Reply::json(201, &body)
}

fn end_conference(world: &mut World, ask: &Ask<'_>, room: &str, now: Instant) -> Reply {
    let inside = |call: &Call| {
        let conference = call.leg.as_ref().and_then(|leg| leg.conference.as_ref());
        conference.is_some_and(|(sid, name)| sid == room || name == room)
    };
    let members: Vec<u64> = world.calls.values().filter(|call| inside(call)).map(|call| call.n).collect();
    if members.is_empty() {
        return unknown(ask.path);
    }
    let over = ask.form().get("Status") == Some("completed");
    for n in members.iter().filter(|_| over) {
        world.counts.hangups += u64::from(world.hang_up(*n, "twilio", now));
    }
    let status = if over { "completed" } else { "in-progress" };
    Reply::json(200, &json!({"account_sid": world.settings.account_sid, "sid": room, "status": status}))
}

fn update(world: &mut World, ask: &Ask<'_>, n: u64, now: Instant) -> Reply {
    let form = ask.form();
    let Some(phase) = world.calls.get(&n).map(|call| call.phase) else {
        return unknown(ask.path);
    };
    let over = || error(400, 21220, "Call is not in-progress. Cannot redirect.");
    if phase == Phase::Over {
        return over();
    }
    match form.get("Status") {
        Some("completed") => world.counts.hangups += u64::from(world.hang_up(n, "twilio", now)),
        // An answered call is left alone.
        Some("canceled") if phase != Phase::Live => {
            world.counts.hangups += u64::from(world.hang_up(n, "twilio", now));
        }
        Some("canceled") | None => {}
        Some(_) => return error(400, 21218, "Invalid 'Status' parameter"),
    }
    let (url, twiml) = (form.get("Url"), form.get("Twiml"));
    if form.get("Status").is_none() && (url.is_some() || twiml.is_some()) {
        if phase != Phase::Live {
            return over();
        }
        if let Some(url) = url {
            let get = form.get("Method").is_some_and(|method| method.eq_ignore_ascii_case("GET"));
            world.ask_voice(n, url, get, true);
        } else if let Some(twiml) = twiml {
            world.redirect(n, twiml, now);
        }
    }
    if let Some(fresh) = callback(&form)
        && let Some(leg) = world.calls.get_mut(&n).and_then(|call| call.leg.as_mut())
    {
        leg.callback = Some(fresh);
    }
    shown(world, n, 200)
}

fn delete(world: &mut World, n: u64) -> Reply {
    let Some(call) = world.calls.get_mut(&n) else {
        return Reply::empty(404);
    };
    if call.phase != Phase::Over {
        return error(400, 21220, "Call is in progress and cannot be deleted.");
    }
    if let Some(leg) = &mut call.leg {
        leg.deleted = true;
    }
    world.counts.deletes += 1;
    Reply::empty(204)
}

/// The resource of a call.
pub(crate) fn resource(call: &Call, account: &str) -> Value {
    let Some(leg) = &call.leg else {
        return Value::Null;
    };
    let uri = format!("/2010-04-01/Accounts/{account}/Calls/{}", leg.sid);
    let over = call.phase == Phase::Over;
    let started = if over { call.answered.or(call.ended) } else { call.answered };
    let sub = ["notifications", "recordings", "payments", "events", "siprec", "streams", "transcriptions"];
    let subresources: serde_json::Map<String, Value> = sub
        .iter()
        .map(|name| {
            let mut title = (*name).to_owned();
            title[..1].make_ascii_uppercase();
            ((*name).to_owned(), json!(format!("{uri}/{title}.json")))
        })
        .collect();
    json!({
        "sid": leg.sid,
        "account_sid": account,
        "parent_call_sid": null,
        "to": call.to,
        "to_formatted": call.to,
        "from": call.from,
        "from_formatted": call.from,
        "phone_number_sid": null,
        "status": call.twilio_status(),
        "start_time": started.map(rfc2822),
        "end_time": call.ended.map(rfc2822),
        "duration": over.then(|| call.talked_secs().to_string()),
        "price": over.then_some("-0.00850"),
        "price_unit": "USD",
        "direction": leg.direction,
        "answered_by": call.answered_by(),
        "api_version": "2010-04-01",
        "forwarded_from": null,
        "group_sid": null,
        "caller_name": null,
        "queue_time": leg.queue_ms.to_string(),
        "trunk_sid": null,
        "annotation": null,
        "date_created": rfc2822(call.created),
        "date_updated": rfc2822(call.ended.or(call.answered).unwrap_or(call.created)),
        "uri": format!("{uri}.json"),
        "subresource_uris": subresources,
    })
}

/// The form fields that every webhook about a call has.
pub(crate) fn leg_form(call: &Call, account: &str, status: &str) -> Vec<(String, String)> {
    let (sid, direction) = call.leg.as_ref().map_or(("", ""), |leg| (leg.sid.as_str(), leg.direction));
    [
        ("CallSid", sid),
        ("AccountSid", account),
        ("From", &call.from),
        ("To", &call.to),
        ("Caller", &call.from),
        ("Called", &call.to),
        ("CallStatus", status),
        ("ApiVersion", "2010-04-01"),
        ("Direction", direction),
    ]
    .into_iter()
    .chain(call.answered_by().map(|word| ("AnsweredBy", word)))
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect()
}

/// Twilio's way to write a time.
pub(crate) fn rfc2822(at: Timestamp) -> String {
    jiff::fmt::rfc2822::to_string(&at.to_zoned(TimeZone::UTC)).unwrap_or_default()
}
