//! A page in Chromium, steered by its DevTools protocol.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::stage::PATIENCE;

/// A headless Chromium with one page.
pub struct Browser {
    process: tokio::process::Child,
    page: WebSocketStream<MaybeTlsStream<TcpStream>>,
    profile: PathBuf,
    asked: u64,
}

impl Browser {
    /// Opens a page. `None`: there is no Chromium here, which fails in CI.
    pub async fn open(url: &str) -> Option<Self> {
        let places = ["/usr/bin/chromium", "/usr/bin/chromium-browser"];
        let Some(program) = places.into_iter().find(|path| Path::new(path).exists()) else {
            assert!(std::env::var_os("CI").is_none(), "there is no Chromium here: apt-get install chromium");
            eprintln!("skipped: there is no Chromium here (Debian: chromium)");
            return None;
        };
        let profile = std::env::temp_dir().join(format!("ringfence-page-{}", ringfence::ids::CallId::new()));
        let process = tokio::process::Command::new(program)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
            .args(["--window-size=375,812", "--remote-debugging-port=0"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .arg(url)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let started = std::time::Instant::now();
        let page = loop {
            assert!(started.elapsed() < PATIENCE, "the browser does not come up");
            tokio::time::sleep(Duration::from_millis(50)).await;
            let Ok(told) = std::fs::read_to_string(profile.join("DevToolsActivePort")) else { continue };
            let Some(port) = told.lines().next().and_then(|port| port.parse().ok()) else { continue };
            if let Some(address) = Self::target(port, url).await {
                break tokio_tungstenite::connect_async(address).await.unwrap().0;
            }
        };
        Some(Self { process, page, profile, asked: 0 })
    }

    /// The WebSocket by which the page of this URL is steered.
    async fn target(port: u16, url: &str) -> Option<String> {
        let mut from = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        from.write_all(format!("GET /json/list HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n").as_bytes()).await.ok()?;
        let (mut text, mut piece) = (String::new(), [0; 4096]);
        // It may keep the connection open.
        let list: Value = loop {
            if let Some(list) = text.split_once("\r\n\r\n").and_then(|(_, list)| serde_json::from_str(list).ok()) {
                break list;
            }
            let read =
                tokio::time::timeout(PATIENCE, from.read(&mut piece)).await.ok()?.ok().filter(|read| *read > 0)?;
            text.push_str(&String::from_utf8_lossy(&piece[..read]));
        };
        let page = list.as_array()?.iter().find(|page| page["url"].as_str().is_some_and(|at| at.starts_with(url)))?;
        Some(page["webSocketDebuggerUrl"].as_str()?.to_owned())
    }

    /// The value of an expression in the page.
    pub async fn is(&mut self, expression: &str) -> Value {
        self.asked += 1;
        let params =
            json!({"expression": expression, "returnByValue": true, "awaitPromise": true, "userGesture": true});
        let question = json!({"id": self.asked, "method": "Runtime.evaluate", "params": params});
        self.page.send(Message::text(question.to_string())).await.unwrap();
        loop {
            let Some(Ok(answer)) = self.page.next().await else { panic!("the browser has gone") };
            let Ok(answer) = serde_json::from_str::<Value>(answer.to_text().unwrap_or_default()) else { continue };
            if answer["id"] == self.asked {
                assert!(answer["result"]["exceptionDetails"].is_null(), "{expression}: {answer}");
                return answer["result"]["result"]["value"].clone();
            }
        }
    }

    pub async fn until(&mut self, expression: &str) {
        let started = std::time::Instant::now();
        // The page may be on its way.
        let safe = format!("(() => {{ try {{ return {expression} }} catch {{ return false }} }})()");
        while self.is(&safe).await != true {
            if started.elapsed() > PATIENCE {
                panic!("never so: {expression}\n{}", self.is("document.body.innerText").await);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// A key as a person presses it.
    pub async fn press(&mut self, key: &str, code: u32) {
        for kind in ["keyDown", "keyUp"] {
            self.asked += 1;
            let text = if key == "Enter" { "\r" } else { "" };
            let params = json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text});
            let event = json!({"id": self.asked, "method": "Input.dispatchKeyEvent", "params": params});
            self.page.send(Message::text(event.to_string())).await.unwrap();
        }
    }

    /// Makes the page as wide as a device: the window itself has a least width.
    pub async fn width(&mut self, px: u32) {
        self.asked += 1;
        let params = json!({"width": px, "height": 812, "deviceScaleFactor": 1, "mobile": false});
        let order = json!({"id": self.asked, "method": "Emulation.setDeviceMetricsOverride", "params": params});
        self.page.send(Message::text(order.to_string())).await.unwrap();
        self.until(&format!("innerWidth === {px}")).await;
    }

    pub async fn close(mut self) {
        self.process.kill().await.unwrap();
        let _ = std::fs::remove_dir_all(&self.profile);
    }

    /// Presses what a selector finds, as a person who sees it does.
    pub async fn click(&mut self, selector: &str) {
        self.until(&format!("!document.querySelector({selector:?}).closest('[hidden]')")).await;
        self.is(&format!("(() => {{ document.querySelector({selector:?}).click(); return true }})()")).await;
    }

    /// Puts a value into a field, as if it was typed or chosen.
    pub async fn fill(&mut self, selector: &str, value: &str) {
        self.is(&format!(
            "(() => {{ const field = document.querySelector({selector:?}); field.value = {value:?}; \
             field.dispatchEvent(new Event('input', {{ bubbles: true }})); return true }})()"
        ))
        .await;
    }

    /// Waits until what a selector finds says this.
    pub async fn says(&mut self, selector: &str, text: &str) {
        self.until(&format!("document.querySelector({selector:?}).textContent.includes({text:?})")).await;
    }

    /// Waits until a list has so many rows.
    pub async fn rows(&mut self, list: &str, count: usize) {
        self.until(&format!("document.querySelectorAll('#{list} tbody tr').length === {count}")).await;
    }

    /// Shows a view.
    pub async fn view(&mut self, name: &str) {
        self.is(&format!("(() => {{ location.hash = '#{name}'; return true }})()")).await;
        self.until(&format!("!document.querySelector('#view-{name}').hidden")).await;
    }

    /// Shows the page to whoever has this token.
    pub async fn sign_in(&mut self, token: &str) {
        self.until("document.querySelector('#token').open").await;
        self.is(&enter(token)).await;
        self.until("sessionStorage.length === 1 && document.querySelector('#link').textContent === 'Live'").await;
    }
}

/// Enters a token.
pub fn enter(token: &str) -> String {
    format!(
        "(() => {{ document.querySelector('#token-text').value = {token:?}; \
         document.querySelector('#token-form').requestSubmit(); return true }})()"
    )
}
