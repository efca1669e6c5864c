//! Bulk runs that a connection follows.

use tokio_tungstenite::tungstenite::protocol::Message;
use tracing::warn;

use super::super::message::{self, ErrorCode};
use super::super::runs::{FOLLOWED_RUNS_MAX, RunNews};
use super::{Connection, OrClosed};
use crate::store::{self, runs::Run};

const NO_ANSWER: &str = "The database does not answer; try again";

impl Connection {
    /// Sends new messages of followed runs.
    pub(super) async fn send_run_news(&mut self) -> OrClosed {
        let runs: Vec<String> = self.runs.keys().cloned().collect();
        for run in runs {
            let Some(followed) = self.runs.get_mut(&run) else { continue };
            let RunNews { messages, next, is_deleted } = followed.news();
            followed.next = next;
            if is_deleted {
                self.runs.remove(&run);
            }
            for message in messages {
                self.client.lifecycle.metrics.client_messages(message.kind, 1);
                self.queue(Message::Text(message.text)).await?;
            }
        }
        self.flush().await
    }

    /// A run that this client may see. One of another business is reported as not found.
    async fn find_run(&self, id: &str) -> store::Result<Option<Run>> {
        let run = self.client.lifecycle.store.run_of(id).await?;
        Ok(run.filter(|run| self.principal.sees(&run.business)))
    }

    pub(super) async fn subscribe_run(&mut self, id: &str) -> OrClosed {
        let unknown = format!("No run is known as {id}");
        let run = match self.find_run(id).await {
            Ok(Some(run)) => run,
            Ok(None) => return self.send_error(ErrorCode::RunNotFound, &unknown).await,
            Err(error) => {
                warn!(%error, "failed to subscribe to run");
                return self.send_error(ErrorCode::SubscriptionFailed, NO_ANSWER).await;
            }
        };
        let is_followed = self.runs.contains_key(id);
        let mut followed = match self.runs.remove(id) {
            Some(followed) => followed,
            None if self.runs.len() >= FOLLOWED_RUNS_MAX => {
                let why = format!("A connection follows at most {FOLLOWED_RUNS_MAX} runs");
                return self.send_error(ErrorCode::SubscriptionFailed, &why).await;
            }
            None => match self.client.feed.runs().follow(&run, self.number, &self.wake) {
                Some(followed) => followed,
                None => return self.send_error(ErrorCode::SubscriptionFailed, "Too many runs are followed").await,
            },
        };
        let unsent = followed.next;
        let progress = match followed.read().await {
            Ok(Some(progress)) => progress,
            Ok(None) => return self.send_error(ErrorCode::RunNotFound, &unknown).await,
            Err(error) => {
                warn!(%error, "failed to subscribe to run");
                // An earlier subscription is kept.
                if is_followed {
                    self.runs.insert(run.id.clone(), followed);
                }
                return self.send_error(ErrorCode::SubscriptionFailed, NO_ANSWER).await;
            }
        };
        if is_followed {
            // What it has not received of its earlier subscription comes first.
            followed.next = unsent;
        }
        self.runs.insert(run.id.clone(), followed);
        let mut progress = Some(progress);
        if is_followed {
            self.send_run_news().await?;
            // It may have been deleted meanwhile, or have got further.
            let Some(followed) = self.runs.get(&run.id) else { return Ok(()) };
            progress = followed.progress();
        }
        self.send(&message::run_confirmed(&run.id)).await?;
        let Some(progress) = progress else { return Ok(()) };
        self.client.lifecycle.metrics.client_messages(progress.kind, 1);
        self.write(Message::Text(progress.text)).await
    }

    pub(super) async fn unsubscribe_run(&mut self, id: &str) -> OrClosed {
        if self.runs.remove(id).is_some() {
            return self.send(&message::run_unsubscribed(id)).await;
        }
        match self.find_run(id).await {
            Ok(Some(run)) => self.send(&message::run_unsubscribed(&run.id)).await,
            Ok(None) => self.send_error(ErrorCode::RunNotFound, &format!("No run is known as {id}")).await,
            Err(error) => {
                warn!(%error, "failed to unsubscribe from run");
                self.send_error(ErrorCode::SubscriptionFailed, NO_ANSWER).await
            }
        }
    }
}
