//! The pool's channel.

use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use tokio::time::timeout;

use super::super::{Channel, OnMessage};
use super::{Fault, GateError, RedisGate, Result, connection};

/// The longest silence before the connection counts as lost: a message is published every few seconds.
const SILENT_MAX: Duration = Duration::from_secs(10);
/// The longest wait until the server has the messages.
const SAY_WITHIN: Duration = Duration::from_secs(1);

#[async_trait]
impl Channel for RedisGate {
    /// One round trip, beside decisions. After [`GateError::Away`] the messages may have been delivered nevertheless.
    async fn publish(&self, words: &[String]) -> Result<()> {
        let link = self.shared.link()?;
        let channel = self.shared.keys.channel();
        match timeout(SAY_WITHIN, link.publish(&channel, words)).await {
            Ok(said) => said.map_err(away),
            Err(_) => Err(away(Fault::Late(SAY_WITHIN))),
        }
    }

    /// Uses a connection of its own.
    async fn subscribe(&self, mut on_message: OnMessage) -> GateError {
        let (settings, keys) = (self.shared.newest(), &self.shared.keys);
        let opened = async {
            let at = connection::find(&settings, keys, connection::Purpose::Inspect).await?.info;
            connection::subscribe(&at, &settings, &keys.channel()).await
        };
        let mut heard = match opened.await {
            Ok(heard) => heard,
            Err(fault) => return away(fault),
        };
        loop {
            match timeout(SILENT_MAX, heard.next()).await {
                Ok(Some(message)) => {
                    if let Ok(word) = std::str::from_utf8(message.get_payload_bytes()) {
                        on_message(word);
                    }
                }
                Ok(None) => return GateError::Away("the connection ended".to_owned()),
                Err(_) => return away(Fault::Late(SILENT_MAX)),
            }
        }
    }
}

fn away(fault: Fault) -> GateError {
    GateError::Away(fault.to_string())
}
