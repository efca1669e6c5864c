//! `ringfence demo`: the sidecar against simulated providers, on free ports, without a network. Exits 0 only if everything
//! that it shows happened.

mod bulk_run;

use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response};
use ringfence_simulator::{Control, Fault, FaultKind, Inbound, Millis, Provider, SimSettings, Simulator, Via};
use serde_json::{Value, json};
use tokio::io::AsyncBufReadExt as _;

use super::logs;
use super::outcome::{Outcome, stop_signal};
use crate::app::App;
use crate::clock::Clock;
use crate::config;
use crate::ids::CallId;
use crate::net::{Upstream, UpstreamSettings, spare_port};

/// Concurrent calls of the demo's account.
const CAP: u32 = 5;
/// The timeout of each step of the demo.
const PATIENCE: Duration = Duration::from_secs(15);
const NUMBER: &str = "+15550001101";

#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Keep everything running, and print commands to try
    #[arg(long)]
    stay: bool,
}

/// The result of a step; `Err` says what was expected and what was seen.
type Seen = Result<Vec<String>, String>;

struct Stage {
    app: App,
    simulator: Simulator,
    control: Control,
    client: Upstream,
    log_file: PathBuf,
    folder: PathBuf,
}

impl Demo {
    pub(super) async fn run(self) -> Outcome {
        let stage = Stage::set().await?;
        println!(
            "ringfence {} demo: simulated ElevenLabs + Twilio on {}, ringfence on {}, no network, ~15 s\n",
            env!("CARGO_PKG_VERSION"),
            stage.simulator.addr(),
            stage.app.api()
        );
        let steps: [(&str, &str); 7] = [
            ("Burst", "10 concurrent calls, cap 5"),
            ("Inbound, full", "two more callers while 5 of 5 are in use"),
            ("Provider 429", "the provider rejects an admitted call"),
            ("Retry", "the app retries an unanswered create"),
            ("Lost webhook", "a call ends without a webhook"),
            ("kill -9", "a process dies while 4 calls are live"),
            ("Bulk run", "20 leads through the 3 slots of a business"),
        ];
        let mut good = 0;
        for (n, (name, about)) in steps.iter().enumerate() {
            println!(" {}  {name:<16}{about}", n + 1);
            let started = Instant::now();
            let seen = match n {
                0 => stage.burst().await,
                1 => stage.inbound().await,
                2 => stage.provider_429().await,
                3 => stage.repost().await,
                4 => stage.lost_webhook().await,
                5 => stage.kill_9().await,
                _ => stage.bulk_run().await,
            };
            let secs = started.elapsed().as_secs_f64();
            match seen {
                Ok(lines) => {
                    good += 1;
                    let last = lines.len().saturating_sub(1);
                    for (i, line) in lines.iter().enumerate() {
                        if i == last {
                            println!("      {line:<78} ok {secs:>5.1} s");
                        } else {
                            println!("      {line}");
                        }
                    }
                }
                Err(what) => {
                    println!("      FAILED after {secs:.1} s: {what}");
                    println!("      log: {}", stage.log_file.display());
                }
            }
        }
        let counts = stage.control.counts();
        println!(
            "\n {good} of {} ok, {} calls. At most {CAP} admitted calls were live. The native call of step 2 is answered\n \
             before ringfence is asked, so ringfence can only hang it up.\n",
            steps.len(),
            counts.creates_el + counts.inbound,
        );
        let all_good = good == steps.len() && counts.el_live_max <= CAP + 1;
        if self.stay && all_good {
            stage.invite();
            stop_signal().await?;
        } else if all_good {
            let ringfence = std::env::args().next().unwrap_or_else(|| "ringfence".to_owned());
            println!(
                " Next:  {ringfence} init           writes ringfence.toml from your keys (observe mode: rejects nothing)"
            );
            println!("        {ringfence} demo --stay    leaves this running, with curl and SDK lines to try");
        }
        stage.tear_down(all_good).await;
        Ok(if all_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

impl Stage {
    async fn set() -> anyhow::Result<Self> {
        crate::net::install_crypto_provider();
        let folder = std::env::temp_dir().join(format!("ringfence-demo-{}", CallId::new()));
        std::fs::create_dir_all(&folder).map_err(|error| {
            anyhow::anyhow!(
                "failed to make the demo's folder {}: {error}; TMPDIR names another place",
                folder.display()
            )
        })?;
        let log_file = folder.join("ringfence.log");
        logs::start_file(&log_file)?;
        let simulator = Simulator::start(SimSettings {
            talk_ms: Millis::exactly(600_000),
            el_seed_events: true,
            ..SimSettings::default()
        })
        .await?;
        let control = simulator.control();
        // The provider must know the sidecar's address before it starts: a free port is chosen, and bound a
        // moment later. If another process is faster, another port is chosen.
        let mut tries = 0;
        let app = loop {
            let port = spare_port();
            let text = config_text(&simulator.base_url(), port, &control.settings());
            let loaded = config::load(&text, &folder, &|_| None);
            let config = loaded.config.ok_or_else(|| anyhow::anyhow!("the demo's config: {:?}", loaded.diagnostics))?;
            match App::start(config, Clock::system()).await {
                Ok(app) => break app,
                Err(error) if tries >= 3 => return Err(error.into()),
                Err(_) => tries += 1,
            }
        };
        let webhooks = format!("http://{}", app.webhooks());
        control.configure(|s| {
            s.el_events_url = Some(format!("{webhooks}/api/webhooks/elevenlabs"));
            s.number_voice_url = Some(format!("{webhooks}/webhooks/twilio/voice"));
            s.number_status_url = Some(format!("{webhooks}/webhooks/twilio/status"));
        });
        Ok(Self { app, simulator, control, client: Upstream::new(UpstreamSettings::default())?, log_file, folder })
    }

    async fn tear_down(self, tidy: bool) {
        self.app.drain().await;
        self.simulator.stop().await;
        if tidy {
            // The log of a failed demo is kept.
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }

    async fn dial(&self, business: &str, to: u32) -> Result<(Response<Bytes>, Value), String> {
        self.dial_at(&self.app.api().to_string(), business, to).await
    }

    async fn dial_at(&self, api: &str, business: &str, to: u32) -> Result<(Response<Bytes>, Value), String> {
        let request = self.create(api, business, to)?;
        let response = self.client.fetch(request, 1 << 20, PATIENCE).await.map_err(|e| e.to_string())?;
        let body = serde_json::from_slice(response.body()).unwrap_or_default();
        Ok((response, body))
    }

    fn create(&self, api: &str, business: &str, to: u32) -> Result<Request<Bytes>, String> {
        let body = json!({
            "agent_id": format!("agent_{business}"), "agent_phone_number_id": "phnum_demo", "to_number": format!("+1555000{to:04}"),
        });
        let mut request = Request::new(Bytes::from(body.to_string()));
        *request.method_mut() = Method::POST;
        let url = format!("http://{api}/elevenlabs/v1/convai/twilio/outbound-call");
        *request.uri_mut() = url.parse().map_err(|e| format!("{e}"))?;
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(
            "xi-api-key",
            HeaderValue::try_from(self.control.settings().el_api_key).map_err(|e| e.to_string())?,
        );
        headers.insert("x-business-id", HeaderValue::try_from(business).map_err(|e| e.to_string())?);
        Ok(request)
    }

    async fn in_use(&self) -> u32 {
        self.app.calls().lifecycle.admission.counts().await.map_or(u32::MAX, |c| c.calls)
    }

    async fn wait(&self, what: &str, done: impl AsyncFnMut() -> bool) -> Result<Duration, String> {
        self.wait_for(what, PATIENCE, done).await
    }

    async fn wait_for(
        &self,
        what: &str,
        patience: Duration,
        mut done: impl AsyncFnMut() -> bool,
    ) -> Result<Duration, String> {
        let started = Instant::now();
        while started.elapsed() < patience {
            if done().await {
                return Ok(started.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(format!("expected {what} within {} s; it did not happen", patience.as_secs()))
    }

    // === the steps ===

    async fn burst(&self) -> Seen {
        let tries = [("acme", 6), ("birch", 4)];
        let all = tries.iter().flat_map(|(business, n)| (0..*n).map(move |i| (*business, i)));
        let dialled = futures_util::future::join_all(
            all.map(|(business, i)| async move { (business, self.dial(business, 1000 + i).await) }),
        )
        .await;
        let (mut lines, mut placed, mut refused) = (Vec::new(), 0, 0);
        for (business, n) in tries {
            let (mut ok, mut no, mut limit) = (0, 0, String::new());
            for (_, answer) in dialled.iter().filter(|(b, _)| *b == business) {
                let (response, body) = answer.as_ref().map_err(Clone::clone)?;
                match (response.status().as_u16(), response.headers().get("retry-after")) {
                    (200, _) => ok += 1,
                    (503, Some(secs)) => {
                        no += 1;
                        let name = body["limitName"].as_str().unwrap_or_default();
                        limit = format!("Retry-After {} s   limit \"{name}\"", secs.to_str().unwrap_or_default());
                    }
                    (status, _) => {
                        return Err(format!("expected 200, or 503 with Retry-After; {business} saw {status}"));
                    }
                }
            }
            let dots = format!("{}{}", "●".repeat(ok), "○".repeat(no));
            lines.push(format!("{business:<7} {dots:<7} {ok} of {n} placed, {no} × 503   {limit}"));
            placed += ok;
            refused += no;
        }
        let most = self.control.counts().el_live_max;
        if (placed, refused) != (5, 5) || most > CAP {
            return Err(format!(
                "expected 5 placed and 5 refused, the provider at most {CAP}; saw {placed}, {refused}, {most}"
            ));
        }
        lines.push(format!("the provider counted at most {most} at once"));
        Ok(lines)
    }

    async fn inbound(&self) -> Seen {
        let from = "+15550003301".to_owned();
        let call =
            |via| Inbound { to: NUMBER.to_owned(), from: from.clone(), via, agent_id: Some("agent_acme".to_owned()) };
        let twilio = self.control.inbound(&call(Via::Twilio)).ok_or("the simulator took no inbound call")?;
        let sid = twilio.call_sid.clone().ok_or("a Twilio call without a sid")?;
        let ended = async || self.control.call(&sid).is_some_and(|c| c.outcome.is_some());
        self.wait("the call to be refused", ended).await?;
        let refused = self.control.call(&sid).ok_or("the refused call is gone")?;
        if refused.answered || refused.billed {
            return Err("expected a refusal before answer; the call was answered".to_owned());
        }
        let mut lines = vec![format!(
            "by Twilio        {} → <Reject reason=\"busy\"/> before answer, not billed",
            crate::ids::mask_number(NUMBER)
        )];
        let native = self.control.inbound(&call(Via::Native)).ok_or("the simulator took no native call")?;
        let conversation = native.conversation_id.clone().ok_or("a native call without a conversation")?;
        let over = async || self.control.call(&conversation).is_some_and(|c| !c.live && c.outcome.is_some());
        let took = self.wait("the native call to be hung up", over).await?;
        let terminated = async || {
            let latest = self.app.calls().lifecycle.store.latest_calls(20).await.unwrap_or_default();
            latest.iter().any(|c| {
                c.alias("conversation_id") == Some(&conversation)
                    && crate::call::session_status(c.phase, c.outcome) == "terminated_capacity"
            })
        };
        self.wait("its session to read terminated_capacity", terminated).await?;
        lines.push(format!(
            "by ElevenLabs    hung up through Twilio, over after {:.1} s, terminated_capacity",
            took.as_secs_f64()
        ));
        Ok(lines)
    }

    async fn provider_429(&self) -> Seen {
        for call in self.control.calls().iter().filter(|c| c.live) {
            self.control.end_call(call.call_sid.as_deref().or(call.conversation_id.as_deref()).unwrap_or_default());
        }
        self.wait("every slot to be free again", async || self.in_use().await == 0).await?;
        let mut lines = Vec::new();
        for (kind, word, wanted_secs) in [
            (FaultKind::TooManyConcurrent, "429 too_many_concurrent_requests", "60"),
            (FaultKind::SystemBusy, "429 system_busy", "5"),
        ] {
            self.control.fault(Fault::next(Provider::ElevenLabs, kind, 1));
            let (response, body) = self.dial("acme", 2000).await?;
            let secs = response.headers().get("retry-after").and_then(|v| v.to_str().ok()).unwrap_or("none");
            let code = body["error"].as_str().unwrap_or_default();
            if response.status().as_u16() != 503 || code != "ELEVENLABS_429_RATE_LIMIT" || secs != wanted_secs {
                return Err(format!(
                    "expected 503 with Retry-After {wanted_secs}; saw {} with {secs}, {code}",
                    response.status()
                ));
            }
            lines.push(format!("{word} → 503 Retry-After {secs} s"));
        }
        match self.in_use().await {
            0 => lines.push("distinguished; slots released".to_owned()),
            n => return Err(format!("expected every slot back; {n} are held")),
        }
        Ok(lines)
    }

    /// Sends the request again, as an SDK does after a timeout, and a worker after an error.
    async fn repost(&self) -> Seen {
        let before = self.control.counts().creates_el;
        let dialled = || self.control.counts().creates_el - before;
        self.control.fault(Fault::next(Provider::ElevenLabs, FaultKind::AcceptThenDrop, 1));
        let (lost, _) = self.dial("acme", 2500).await?;
        let started = Instant::now();
        let (found, body) = self.dial("acme", 2500).await?;
        let (took, told) = (started.elapsed().as_secs_f64(), body["conversation_id"].as_str().unwrap_or_default());
        if (lost.status().as_u16(), found.status().as_u16(), dialled()) != (424, 200, 1) || told.is_empty() {
            let seen = format!("{}, {} and {} calls", lost.status(), found.status(), dialled());
            return Err(format!("expected 424, then 200 and one call; saw {seen}"));
        }
        let line =
            format!("reset after send: 424, which no SDK repeats; posted again: the call's ids after {took:.1} s");
        let mut lines = vec![line];
        self.control.fault(Fault { ms: 1_500, ..Fault::next(Provider::ElevenLabs, FaultKind::Slow, 1) });
        let (api, patience) = (self.app.api().to_string(), Duration::from_millis(300));
        for _ in 0..2 {
            // The client gives up, and waits a moment before it retries, as SDKs do.
            if self.client.fetch(self.create(&api, "birch", 2600)?, 1 << 20, patience).await.is_ok() {
                return Err("expected no answer within 0.3 s; there was one".to_owned());
            }
            tokio::time::sleep(patience).await;
        }
        let (answer, _) = self.dial("birch", 2600).await?;
        let earlier = answer.headers().get("x-ringfence-duplicate-of").and_then(|v| v.to_str().ok());
        if answer.status().as_u16() != 200 || earlier.is_none() || dialled() != 2 {
            return Err(format!("expected the first order's answer; saw {} and {} calls", answer.status(), dialled()));
        }
        lines.push("the client gave up twice: posted 3 times, the provider dialled once".to_owned());
        for call in self.control.calls().iter().filter(|c| c.live) {
            self.control.end_call(call.conversation_id.as_deref().unwrap_or_default());
        }
        self.wait("every slot to be free again", async || self.in_use().await == 0).await?;
        Ok(lines)
    }

    async fn lost_webhook(&self) -> Seen {
        self.control.set_webhook_loss(1.0);
        let (response, body) = self.dial("acme", 3000).await?;
        let sid =
            body["callSid"].as_str().ok_or_else(|| format!("expected a call; saw {}", response.status()))?.to_owned();
        // Polling ignores a call in its first seconds, because providers' lists lag.
        self.wait("the call to be answered", async || self.control.call(&sid).is_some_and(|c| c.answered)).await?;
        tokio::time::sleep(self.app.calls().settings.list_lag).await;
        self.control.end_call(&sid);
        let took = self.wait("the sweep to notice the end", async || self.in_use().await == 0).await?;
        self.control.set_webhook_loss(0.0);
        let latest = self.app.calls().lifecycle.store.latest_calls(1).await.map_err(|e| e.to_string())?;
        let proof = latest.first().and_then(|c| c.proof).map_or("none", |p| p.as_str());
        if proof != "provider" {
            return Err(format!("expected the proof \"provider\"; saw {proof:?}"));
        }
        Ok(vec![format!("the sweep noticed after {:.1} s, proof \"{proof}\", slot free", took.as_secs_f64())])
    }

    /// Runs a process with a database of its own: it is killed, and another one takes over its database.
    async fn kill_9(&self) -> Seen {
        let mut child = Child::start(self).await?;
        let mut calls = Vec::new();
        for n in 0..4 {
            let (response, body) = self.dial_at(&child.at("api")?, ["acme", "birch"][n % 2], 4000 + n as u32).await?;
            let sid = body["callSid"].as_str().ok_or_else(|| format!("expected a call; saw {}", response.status()))?;
            calls.push(sid.to_owned());
        }
        let up = |sid: &String| self.control.call(sid).is_some_and(|c| c.answered);
        self.wait("4 calls to be answered", async || calls.iter().all(up)).await?;
        child.kill().await?;
        self.control.end_call(&calls[0]);

        let begun = Instant::now();
        let child = Child::start(self).await?;
        let (took, rebuilt) = (begun.elapsed(), child.ready["rebuilt"].as_u64().unwrap_or_default());
        let (api, admin) = (child.at("api")?, child.at("admin")?);
        let held =
            async || self.status(&admin).await.map_or(u64::MAX, |s| s["gate"]["calls"].as_u64().unwrap_or(u64::MAX));
        self.wait("the end in between to be noticed", async || held().await == 3).await?;
        let ended = self.get(&admin, &format!("/api/calls/{}", calls[0])).await?;
        if (rebuilt, ended["proof"].as_str()) != (4, Some("provider")) {
            return Err(format!("expected 4 leases, and an end by \"provider\"; saw {rebuilt}, {}", ended["proof"]));
        }
        let mut placed = 0;
        for n in 0..4 {
            placed +=
                u32::from(self.dial_at(&api, ["acme", "birch"][n % 2], 5000 + n as u32).await?.0.status().is_success());
        }
        let over = self.control.counts().el_live_now.saturating_sub(CAP);
        for call in self.control.calls().iter().filter(|c| c.live) {
            self.control.end_call(call.call_sid.as_deref().unwrap_or_default());
        }
        self.wait("every slot to be free", async || held().await == 0).await?;
        if over > 0 {
            return Err(format!("expected at most {CAP} calls at the provider; {over} were over"));
        }
        Ok(vec![
            format!("ready again in {} ms, {rebuilt} leases rebuilt from SQLite", took.as_millis()),
            "1 had ended meanwhile (asked the provider); 3 went on and were counted".to_owned(),
            format!("{placed} of 4 more placed; 0 leaked, {over} over cap"),
        ])
    }

    async fn get(&self, host: &str, path: &str) -> Result<Value, String> {
        let mut request = Request::new(Bytes::new());
        *request.uri_mut() = format!("http://{host}{path}").parse().map_err(|e| format!("{e}"))?;
        let response = self.client.fetch(request, 1 << 20, PATIENCE).await.map_err(|e| e.to_string())?;
        serde_json::from_slice(response.body()).map_err(|e| e.to_string())
    }

    async fn status(&self, admin: &str) -> Result<Value, String> {
        self.get(admin, "/status").await
    }

    fn invite(&self) {
        let (api, admin, url) = (self.app.api(), self.app.admin(), self.simulator.base_url());
        let s = self.control.settings();
        println!(" Running until Ctrl-C.");
        println!("   ringfence   api http://{api}   webhooks http://{}   admin http://{admin}", self.app.webhooks());
        println!("   simulator   {url}   (control: {url}/_sim/state)\n");
        println!(
            " curl -H 'xi-api-key: {}' -H 'X-Business-Id: acme' -H 'Content-Type: application/json' \\",
            s.el_api_key
        );
        println!(
            "   -d '{{\"agent_id\":\"agent_acme\",\"agent_phone_number_id\":\"phnum_demo\",\"to_number\":\"+15550002222\"}}' \\"
        );
        println!("   http://{api}/elevenlabs/v1/convai/twilio/outbound-call");
        // As this program was called, because it may not be on the PATH.
        let ringfence = std::env::args().next().unwrap_or_else(|| "ringfence".to_owned());
        println!(" {ringfence} calls list --admin http://{admin}\n");
        println!(" Python  ElevenLabs(base_url=\"http://{api}/b/acme/elevenlabs\", api_key=\"{}\")", s.el_api_key);
        println!(
            "         client = Client(\"{}\", \"{}\"); client.api.base_url = \"http://{api}/b/acme/twilio\"",
            s.account_sid, s.auth_token
        );
        println!(
            " Node    new ElevenLabsClient({{ baseUrl: \"http://{api}/b/acme/elevenlabs\", apiKey: \"{}\" }})\n",
            s.el_api_key
        );
    }
}

/// A process `ringfence serve`, with a database in the demo's folder. Killed when dropped.
struct Child {
    process: tokio::process::Child,
    ready: Value,
}

impl Child {
    async fn start(stage: &Stage) -> Result<Self, String> {
        let folder = stage.folder.join("killed");
        let failed =
            |what: &str, e: &dyn std::fmt::Display| format!("{what}: {e}; log: {}", folder.join("log").display());
        std::fs::create_dir_all(&folder).map_err(|e| failed("no folder", &e))?;
        let port = spare_port();
        let text = config_text(&stage.simulator.base_url(), port, &stage.control.settings());
        // Providers are not asked about calls of the last seconds, because their lists lag; simulated ones do not.
        let text = format!("{text}\n[reconcile]\nlist_lag_ms = 200\n");
        std::fs::write(folder.join("ringfence.toml"), text).map_err(|e| failed("no config", &e))?;
        let log = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("log"));
        let own = std::env::current_exe().map_err(|e| failed("this program is not found", &e))?;
        let mut process = tokio::process::Command::new(own)
            .args(["serve", "--ready-json", "--config", "ringfence.toml"])
            .current_dir(&folder)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log.map_err(|e| failed("no log", &e))?)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| failed("it does not start", &e))?;
        let stdout = process.stdout.take().ok_or("a child without an output")?;
        let mut lines = tokio::io::BufReader::new(stdout).lines();
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await;
        let line =
            line.ok().and_then(Result::ok).flatten().ok_or_else(|| failed("expected a ready line", &"saw none"))?;
        let ready = serde_json::from_str(&line).map_err(|e| failed("the ready line", &e))?;
        Ok(Self { process, ready })
    }

    fn at(&self, listener: &str) -> Result<String, String> {
        self.ready[listener].as_str().map(str::to_owned).ok_or_else(|| format!("no address of {listener}"))
    }

    /// Sends SIGKILL.
    async fn kill(&mut self) -> Result<(), String> {
        self.process.kill().await.map_err(|e| e.to_string())
    }
}

fn config_text(url: &str, webhooks_port: u16, sim: &SimSettings) -> String {
    format!(
        r#"
public_url = "http://127.0.0.1:{webhooks_port}"

[listen]
api      = "127.0.0.1:0"
webhooks = "127.0.0.1:{webhooks_port}"
admin    = "127.0.0.1:0"
client   = "127.0.0.1:0"

# An app that is tried with the demo lives on this machine.
[app]
allowed_callbacks = ["127.0.0.0/8", "::1", "localhost"]

[accounts.elevenlabs]
upstream        = "{url}"
api_key         = "{}"
webhook_secrets = ["{}"]
concurrent      = {CAP}

[accounts.twilio]
upstream    = "{url}"
account_sid = "{}"
auth_token  = "{}"

[businesses.acme]
plan          = "PRO"
agent_ids     = ["agent_acme"]
phone_numbers = ["{NUMBER}"]

[businesses.birch]
plan      = "PRO"
agent_ids = ["agent_birch"]

[businesses.cedar]
plan      = "PRO"
agent_ids = ["agent_cedar"]

[timeouts]
drain_secs = 1
"#,
        sim.el_api_key, sim.el_webhook_secret, sim.account_sid, sim.auth_token
    )
}

/// The demo's config, for a test of its validity.
#[cfg(test)]
pub(crate) fn sample_config(folder: &std::path::Path) -> config::Loaded {
    config::load(&config_text("http://127.0.0.1:1", 2, &SimSettings::default()), folder, &|_| None)
}
