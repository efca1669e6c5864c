//! `ringfence simulate`: runs simulated providers.

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Args;
use ringfence_simulator::{Millis, SimSettings, Simulator};

use super::outcome::{Outcome, stop_signal};

/// Simulate both providers on one port: ElevenLabs' paths under /v1, Twilio's under /2010-04-01, the control endpoint under /_sim
#[derive(Debug, Args)]
pub(super) struct Simulate {
    /// The address to listen on; port 0 is a free one
    #[arg(long, default_value = "127.0.0.1:9901", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// ElevenLabs' own limit of concurrent calls; a further one is answered with 429
    #[arg(long, value_name = "CALLS")]
    concurrent: Option<u32>,
    /// The duration of calls, in milliseconds: N or MIN-MAX
    #[arg(long, value_parser = millis, value_name = "MS")]
    talk_ms: Option<Millis>,
    /// The URL for ElevenLabs' webhooks
    #[arg(long, value_parser = plain_http, value_name = "URL")]
    events_url: Option<String>,
    /// Also send conversation.started and conversation.ended, as older systems did
    #[arg(long)]
    seed_events: bool,
    /// The Twilio number's voice webhook
    #[arg(long, value_parser = plain_http, value_name = "URL")]
    voice_url: Option<String>,
    /// The Twilio number's status callback
    #[arg(long, value_parser = plain_http, value_name = "URL")]
    status_url: Option<String>,
    /// The fraction of webhooks that is lost, 0 to 1
    #[arg(long, default_value_t = 0.0, value_name = "PART")]
    webhook_loss: f64,
    /// Print a line of JSON with the address to stdout when ready
    #[arg(long)]
    ready_json: bool,
}

fn millis(text: &str) -> Result<Millis, String> {
    let number = |t: &str| t.trim().parse::<u64>().map_err(|_| format!("{text:?} is neither N nor MIN-MAX"));
    match text.split_once('-') {
        Some((min, max)) => Ok(Millis::between(number(min)?, number(max)?)),
        None => Ok(Millis::exactly(number(text)?)),
    }
}

/// Parses a URL. Only `http://` is allowed, because the simulated providers do not use TLS.
fn plain_http(text: &str) -> Result<String, String> {
    match text.parse::<http::Uri>() {
        Ok(url) if url.scheme_str() == Some("http") => Ok(text.to_owned()),
        _ => Err("not an http:// URL, and simulated webhooks go to no other".to_owned()),
    }
}

impl Simulate {
    pub(super) async fn run(self) -> Outcome {
        let default = SimSettings::default();
        let settings = SimSettings {
            listen: self.listen,
            el_concurrent: self.concurrent,
            talk_ms: self.talk_ms.unwrap_or(Millis::between(20_000, 60_000)),
            el_events_url: self.events_url,
            el_seed_events: self.seed_events,
            number_voice_url: self.voice_url,
            number_status_url: self.status_url,
            webhook_loss: self.webhook_loss,
            ..default
        };
        let (api_key, secret) = (settings.el_api_key.clone(), settings.el_webhook_secret.clone());
        let (sid, token) = (settings.account_sid.clone(), settings.auth_token.clone());
        let simulator = Simulator::start(settings).await?;
        let url = simulator.base_url();
        if self.ready_json {
            let ready = serde_json::json!({
                "ready": true, "url": url, "el_api_key": api_key, "el_webhook_secret": secret,
                "account_sid": sid, "auth_token": token,
            });
            println!("{ready}");
        } else {
            println!("simulated ElevenLabs and Twilio on {url}   (Ctrl-C stops)");
            println!("  ElevenLabs  xi-api-key {api_key}   webhook secret {secret}");
            println!("  Twilio      account {sid}   auth token {token}");
            println!("  control     curl {url}/_sim/state");
            println!(
                "              curl -d '{{\"provider\":\"elevenlabs\",\"kind\":\"429_concurrency\",\"n\":1}}' {url}/_sim/fault"
            );
            println!(
                "              curl -d '{{\"to\":\"+15550001111\",\"from\":\"+15550002222\",\"via\":\"twilio\"}}' {url}/_sim/inbound"
            );
        }
        stop_signal().await?;
        simulator.stop().await;
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::plain_http;

    #[test]
    fn webhooks_go_to_plain_http_alone() {
        assert_eq!(plain_http("http://127.0.0.1:8081/el?a=b#rc=2"), Ok("http://127.0.0.1:8081/el?a=b#rc=2".to_owned()));
        for url in ["https://example.com/el", "127.0.0.1:8081", "/el", "http://", ""] {
            assert!(plain_http(url).is_err(), "{url}");
        }
    }
}
