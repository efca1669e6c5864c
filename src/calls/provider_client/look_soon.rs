//! Early look-ups of a call that may end within seconds, before the next sweep.

use std::sync::Arc;
use std::time::Duration;

use tracing::debug;

use super::ask::ProviderClient;
use super::lookup::LookedUp;
use crate::call::{Event, Phase, Source};
use crate::ids::CallId;

/// Pauses before each look-up.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(300), Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];

impl ProviderClient {
    /// Looks a call up a few times within seconds, until it has ended or is live. After that the sweep takes over.
    pub fn look_soon(self: &Arc<Self>, call: &CallId) {
        let (this, call) = (self.clone(), call.clone());
        self.context.tasks.spawn(async move {
            for pause in PAUSES {
                tokio::time::sleep(pause).await;
                if Box::pin(this.look_once(&call)).await {
                    return;
                }
            }
        });
    }

    /// Looks a call up once. `true`: no further look-up is needed.
    async fn look_once(&self, call: &CallId) -> bool {
        let record = match self.context.lifecycle.store.call(call).await {
            Ok(Some(record)) if record.phase != Phase::Ended => record,
            Ok(_) => return true,
            Err(_) => return false,
        };
        let found = match self.look_up(&record).await {
            Ok(LookedUp::Found(found)) => found,
            Ok(LookedUp::Absent) => return false,
            Err(error) => {
                debug!(%call, %error, "failed to look up a call");
                return false;
            }
        };
        let change = found.change(record.phase, self.context.lifecycle.change(call, Source::Poll));
        let event = change.event;
        match self.context.lifecycle.apply(change).await {
            Ok(_) => matches!(event, Some(Event::Ended(..) | Event::Reached(Phase::Live))),
            Err(_) => false,
        }
    }
}
