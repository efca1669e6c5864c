//! `ringfence smoke --live`: places one real call through the running sidecar, as an app would, follows it to its end, and reports
//! what works.

mod answer;
mod plan;
mod track;
mod verdict;

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use clap::Args;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue, USER_AGENT};
use http::{Method, Request, Response, Uri};
use serde_json::{Value, json};

use super::admin_client::{AdminClient, OnListener, on_listener, path_of, query};
use super::ask::agreed;
use super::outcome::{Failure, Outcome};
use super::text::{WIDTH, list, wrap};
use super::{explain, file};
use crate::config::{Config, ListenerName};
use crate::ids::Alias;
use answer::{Answer, fix_of_rejection};
use plan::{Plan, Reveal, Wanted};
use track::{Step, Track};
use verdict::{About, Check, check_call};

/// The maximum answer of a provider, in bytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// The interval at which the sidecar is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// The time that webhook, record and slot may take after the end.
const AFTER_END: Duration = Duration::from_secs(60);
/// The time that the record of a refusal, which is written in the background, may take.
const ON_RECORD_WITHIN: Duration = Duration::from_secs(5);
/// The number of webhooks, and of calls, that are searched.
const SEARCHED: &str = "200";

/// The longest part of a provider's answer that is shown, in characters.
const SHOWN_CHARS_MAX: usize = 400;
/// The advice before another test, if there may be a call.
const LOOK_FIRST: &str = "before another test: ringfence calls list --all shows whether there is a call";

/// The effect of `--live`, printed without it.
const WHY_LIVE: &str = "nothing was dialled: without --live no call is placed
--live places one real call to --to NUMBER through the running sidecar, with the account's own key, as an app would. It costs
money, and a telephone rings. It shows what it will do and asks before it dials; then it follows the call to its end.
For example: ringfence smoke --live --to +15551230001";

#[derive(Debug, Args)]
pub(super) struct Smoke {
    #[command(flatten)]
    admin: AdminClient,
    /// Place one real call, which costs money; without it nothing is dialled
    #[arg(long)]
    live: bool,
    /// The number to call, with its country code: answer the call, and hang up
    #[arg(long, value_name = "NUMBER")]
    to: Option<String>,
    /// The account that places the call [default: the only one that can, apart from those that carry another's calls]
    #[arg(long)]
    account: Option<String>,
    /// The operation of the provider's description [default: its first that calls one number]
    #[arg(long)]
    operation: Option<String>,
    /// The business that the call is for, sent as X-Business-Id [default: the one that the sidecar finds]
    #[arg(long)]
    business: Option<String>,
    /// The agent's id at the provider; at Twilio a TwiML application's [default: of the business; at Twilio a spoken sentence]
    #[arg(long)]
    agent: Option<String>,
    /// Your number to call from, or its id at the provider [default: of the business]
    #[arg(long, value_name = "NUMBER|ID")]
    from: Option<String>,
    /// Another field of the request; may be repeated
    #[arg(long = "field", value_name = "NAME=VALUE", value_parser = field)]
    fields: Vec<(String, String)>,
    /// The sidecar's listen.api, if it differs from the config
    #[arg(long, value_name = "URL")]
    api: Option<String>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// The time for the call and its follow-up, in seconds
    #[arg(long, default_value_t = 300, value_name = "SECS", value_parser = clap::value_parser!(u32).range(1..=7200))]
    within_secs: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn field(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    pair.map(|(name, value)| (name.to_owned(), value.to_owned())).ok_or_else(|| "write it as NAME=VALUE".to_owned())
}

/// A mistake in the command line: exit code 2.
fn mistake(why: &str) -> Failure {
    eprintln!("ringfence: {why}");
    Failure::Config
}

/// The result of the test.
struct Report {
    is_sound: bool,
    /// For people.
    text: String,
    /// For scripts.
    json: Value,
}

impl Smoke {
    pub(super) async fn run(self) -> Outcome {
        if !self.live {
            return Err(mistake(WHY_LIVE));
        }
        let Some(to) = self.to.as_deref() else {
            return Err(mistake("--to is missing: the number to call, as in --to +15551230001"));
        };
        let read = file::read(self.admin.config(), &[])?;
        let Some(config) = read.loaded.config.as_ref() else {
            read.print("cannot be used, so nothing is dialled");
            return Err(Failure::Config);
        };
        let wanted = Wanted {
            to,
            account: self.account.as_deref(),
            operation: self.operation.as_deref(),
            business: self.business.as_deref(),
            agent: self.agent.as_deref(),
            from: self.from.as_deref(),
            fields: &self.fields,
        };
        let plan = Plan::new(config, &wanted).map_err(|why| mistake(&why))?;
        let at = self.at(config).map_err(|why| mistake(&why))?;
        // The sidecar is checked before anything is dialled.
        self.admin.ask(Method::GET, "/status", None).await?;
        // Scripts read stdout.
        let mut out: Box<dyn Write> = if self.json { Box::new(std::io::stderr()) } else { Box::new(std::io::stdout()) };
        let reveal = if self.yes { Reveal::Masked } else { Reveal::Whole };
        writeln!(out, "{}\n", plan.render(&at.base, self.within_secs, reveal))?;
        if !self.yes && !agreed(&mut out, "Place this call?")? {
            writeln!(out, "Nothing was dialled.")?;
            return Ok(ExitCode::FAILURE);
        }
        let report = self.place(config, &plan, &at).await?;
        match self.json {
            true => println!("{}", report.json),
            false => print!("{}", report.text),
        }
        Ok(if report.is_sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// The address of `listen.api`.
    fn at(&self, config: &Config) -> Result<OnListener, String> {
        if self.api.is_none() && self.admin.is_named() {
            return Err("--admin names a sidecar: say with --api where its listen.api is".to_owned());
        }
        if let Some(api) = &self.api {
            let base = api.trim_end_matches('/');
            let base = if base.contains("://") { base.to_owned() } else { format!("http://{base}") };
            return Ok(OnListener { base, cert: config.listen.tls.as_ref().map(|tls| tls.cert.clone()) });
        }
        on_listener(config, ListenerName::Api, "--api")
    }

    async fn place(&self, config: &Config, plan: &Plan<'_>, at: &OnListener) -> anyhow::Result<Report> {
        let started = Instant::now();
        let deadline = started + Duration::from_secs(self.within_secs.into());
        let answer = self.send(config, plan, at).await?;
        let mut track = Track::default();
        let mut about = About {
            provider: plan.account.provider.name.clone(),
            expects_webhooks: config.webhooks.public_url.is_some(),
            within_secs: self.within_secs,
            would_refuse: header(&answer, "x-ringfence-would-refuse"),
            silence: None,
        };
        match Answer::read(plan.operation, &answer) {
            Answer::Placed(ids) => {
                let answered_ms = millis_since(started);
                if let Some(call) = self.recorded(plan, &ids, started).await {
                    track.see_admission(&call);
                }
                let ids: Vec<String> = ids.iter().map(|id| format!("{} {}", id.kind, id.id)).collect();
                let ids = if ids.is_empty() { "without ids".to_owned() } else { ids.join(", ") };
                track.note("placed", answered_ms, format!("{} answers {}: {ids}", about.provider, answer.status()));
                about.silence = self.follow(plan, &mut track, started, deadline, about.expects_webhooks).await;
                Ok(self.report(plan, &track, &about))
            }
            Answer::Refused { id, code, message, may_be_placed } => {
                let explained = self.explained(&id).await;
                let what = format!("ringfence refused the call: {code}: {}", plan.masked(&message));
                let fix = match may_be_placed {
                    true => LOOK_FIRST.to_owned(),
                    false => format!("nothing was dialled; what to do: ringfence explain {id}"),
                };
                Ok(self.refused(plan, &what, &fix, explained))
            }
            Answer::Rejected(body) => {
                let status = answer.status();
                let call = self.recorded(plan, &[], started).await;
                let explained = match call.as_ref().and_then(|call| call["callId"].as_str()) {
                    Some(call) => self.explained(call).await,
                    None => None,
                };
                let what = format!("{} rejects the call with {status}: {}", about.provider, shown(plan, &body));
                Ok(self.refused(plan, &what, fix_of_rejection(status.as_u16()), explained))
            }
            Answer::Unclear(body) => {
                let (status, body) = (answer.status(), shown(plan, &body));
                let what = format!("the answer is {status}, and does not say whether there is a call: {body}");
                Ok(self.refused(plan, &what, LOOK_FIRST, None))
            }
        }
    }

    /// Sends the create, as an app does.
    async fn send(&self, config: &Config, plan: &Plan<'_>, at: &OnListener) -> anyhow::Result<Response<Bytes>> {
        let base = &at.base;
        let (body, content_type) = plan.body();
        let mut request = Request::new(Bytes::from(body));
        request.method_mut().clone_from(&plan.operation.method);
        let path = plan.path().map_err(|why| anyhow!("failed to build the request: {why}"))?;
        *request.uri_mut() = format!("{base}{path}").parse::<Uri>().with_context(|| format!("{base} is not a URL"))?;
        let (name, key) = plan.account.credentials().context("failed to build the request")?;
        let headers = request.headers_mut();
        headers.insert(name, key);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("ringfence-smoke/", env!("CARGO_PKG_VERSION"))));
        // Two tests in a row are two calls, not duplicates.
        let key = format!("smoke-{}", ulid::Ulid::new().to_string().to_lowercase());
        headers.insert("idempotency-key", HeaderValue::try_from(key)?);
        if let Some(business) = &plan.business {
            headers.insert("x-business-id", HeaderValue::try_from(business).context("--business is not an id")?);
        }
        let client = self.admin.client(at.cert.clone(), config.extra_ca.clone())?;
        let within = Duration::from_secs(self.within_secs.into());
        match client.fetch(request, ANSWER_BYTES_MAX, within).await {
            Ok(answer) => Ok(answer),
            Err(error) => bail!(
                "failed to place the call through {base}: {error}\n--api URL says where listen.api is, if not where the config \
                 says; if the request may have arrived, see ringfence calls list --all"
            ),
        }
    }

    /// The recorded call: by one of its ids, else the only one to this masked number since the request.
    async fn recorded(&self, plan: &Plan<'_>, ids: &[Alias], started: Instant) -> Option<Value> {
        let until = Instant::now() + ON_RECORD_WITHIN;
        while !ids.is_empty() && Instant::now() < until {
            for id in ids {
                if let Ok(call) = self.admin.ask(Method::GET, &path_of("/api/calls", &id.id), None).await {
                    return Some(call);
                }
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        let since_secs = (started.elapsed().as_secs() + 1).to_string();
        let pairs = [
            ("all", Some("true")),
            ("account", Some(plan.account.name.as_str())),
            ("since_secs", Some(since_secs.as_str())),
            ("limit", Some(SEARCHED)),
        ];
        let listed = self.admin.ask(Method::GET, &query("/api/calls", &pairs), None).await.ok()?;
        let to = plan.masked_to();
        let is_of = |business: &str| plan.business.as_deref().is_none_or(|wanted| wanted == business);
        let may_be_it = |one: &&Value| {
            one["operation"] == plan.operation.name
                && one["otherNumber"] == to
                && is_of(one["businessId"].as_str().unwrap_or_default())
        };
        // Numbers are masked, so several calls cannot be distinguished.
        let mut found = list(&listed, "calls").iter().filter(may_be_it);
        found.next().filter(|_| found.next().is_none()).cloned()
    }

    /// The explanation of a refusal or a call. `None`: it is not recorded.
    async fn explained(&self, id: &str) -> Option<Value> {
        let asked = query("/api/explain", &[("id", Some(id))]);
        let until = Instant::now() + ON_RECORD_WITHIN;
        loop {
            match self.admin.ask(Method::GET, &asked, None).await {
                Ok(answer) => return Some(answer),
                Err(_) if Instant::now() < until => tokio::time::sleep(POLL_INTERVAL).await,
                Err(_) => return None,
            }
        }
    }

    /// Follows the call until everything was seen, or the time is over. Returns why the sidecar did not answer the last time.
    async fn follow(
        &self,
        plan: &Plan<'_>,
        track: &mut Track,
        started: Instant,
        deadline: Instant,
        expects_webhooks: bool,
    ) -> Option<String> {
        let mut until = deadline;
        let mut is_over = false;
        loop {
            let silence = self.look(plan, track, started).await.err().map(|error| format!("{error:#}"));
            if !self.json {
                track.news().iter().for_each(|step| println!("{}", line(step)));
            }
            let now = Instant::now();
            if track.end.is_some() && !is_over {
                is_over = true;
                until = deadline.min(now + AFTER_END);
            }
            if track.call.is_none() || track.is_whole(expects_webhooks) || now >= until {
                return silence;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Polls the sidecar once.
    async fn look(&self, plan: &Plan<'_>, track: &mut Track, started: Instant) -> anyhow::Result<()> {
        let Some(call) = track.call.clone() else { return Ok(()) };
        let ask = async |path: &str| self.admin.ask(Method::GET, path, None).await;
        let call = ask(&path_of("/api/calls", &call)).await?;
        track.see_call(&call, millis_since(started));
        let events = ask(&query("/api/events", &[("limit", Some(SEARCHED))])).await?;
        track.see_webhooks(&events, plan.account.name.as_str(), millis_since(started));
        if track.end.is_some() && !track.is_slot_free {
            let status = ask("/status").await?;
            let open = ask("/api/calls").await?;
            track.see_slots(&status, &open, millis_since(started));
        }
        Ok(())
    }

    /// The result of a placed call.
    fn report(&self, plan: &Plan<'_>, track: &Track, about: &About) -> Report {
        let checks = check_call(track, about);
        let failed = checks.iter().filter(|one| !one.ok).count();
        let json = json!({
            "ok": failed == 0, "callId": track.call, "account": plan.account.name, "operation": plan.operation.name,
            "to": plan.masked_to(), "steps": track.steps, "checks": checks,
        });
        let summary = match failed {
            0 => format!("\nAll {} checks passed.\n", checks.len()),
            n => format!("\n{n} of {} checks failed.\n", checks.len()),
        };
        let text = format!("\n{}{summary}", checks.iter().map(render).collect::<String>());
        Report { is_sound: failed == 0, text, json }
    }

    /// The result of a call that was not placed.
    fn refused(&self, plan: &Plan<'_>, what: &str, fix: &str, explained: Option<Value>) -> Report {
        let check = Check { ok: false, what: what.to_owned(), fix: fix.to_owned() };
        let text = explained.as_ref().map(|answer| format!("\n{}", explain::render(answer))).unwrap_or_default();
        let text = format!("{}{text}", render(&check));
        let json = json!({
            "ok": false, "callId": null, "account": plan.account.name, "operation": plan.operation.name,
            "to": plan.masked_to(), "steps": [], "checks": [check], "explained": explained,
        });
        Report { is_sound: false, text, json }
    }
}

/// A provider's message, shortened.
fn shown(plan: &Plan<'_>, words: &str) -> String {
    plan.masked(words).chars().take(SHOWN_CHARS_MAX).collect()
}

fn header(answer: &Response<Bytes>, name: &str) -> Option<String> {
    Some(answer.headers().get(name)?.to_str().ok()?.to_owned())
}

fn millis_since(started: Instant) -> i64 {
    i64::try_from(started.elapsed().as_millis()).unwrap_or(i64::MAX)
}

/// A step as text.
fn line(step: &Step) -> String {
    // The cast is exact below centuries.
    let head = format!("{:>8.2} s  {:<9}  ", step.after_ms as f64 / 1000.0, step.step);
    wrap(&head, &step.detail, WIDTH).trim_end().to_owned()
}

/// A check as text.
fn render(check: &Check) -> String {
    if check.ok {
        return format!("{}\n", wrap("ok       ", &check.what, WIDTH));
    }
    format!("{}\n{}\n", wrap("FAILED   ", &check.what, WIDTH), wrap("  fix    ", &check.fix, WIDTH))
}
