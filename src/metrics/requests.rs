//! The counter of answered requests. Each series is looked up once, not with every request.

use std::sync::OnceLock;

use prometheus::{IntCounter, IntCounterVec};

use super::labels::{ApiRequest, ClientRequest, Served, WebhookRequest};

/// The classes of statuses.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

const WEBHOOKS_AT: usize = ApiRequest::ALL.len();
const CLIENT_AT: usize = WEBHOOKS_AT + WebhookRequest::ALL.len();
const ADMIN_AT: usize = CLIENT_AT + ClientRequest::ALL.len();

/// The counter of answered requests.
pub(super) struct RequestCounters {
    counters: IntCounterVec,
    /// By request, then by class.
    series: [[OnceLock<IntCounter>; CLASSES.len()]; ADMIN_AT + 1],
}

impl RequestCounters {
    /// `counters` has the labels `listener`, `kind` and `status`.
    pub(super) fn new(counters: IntCounterVec) -> Self {
        Self { counters, series: Default::default() }
    }

    /// The series of a request and its status; it is created if there is none.
    pub(super) fn of(&self, served: Served, status: u16) -> &IntCounter {
        let class = match status {
            100..500 => usize::from(status / 100) - 1,
            _ => CLASSES.len() - 1,
        };
        self.series[place(served)][class].get_or_init(|| {
            let [listener, kind] = served.labels();
            self.counters.with_label_values(&[listener, kind, CLASSES[class]])
        })
    }
}

/// The row of a request in `series`.
fn place(served: Served) -> usize {
    match served {
        Served::Api(kind) => kind as usize,
        Served::Webhooks(kind) => WEBHOOKS_AT + kind as usize,
        Served::Client(kind) => CLIENT_AT + kind as usize,
        Served::Admin => ADMIN_AT,
    }
}

#[cfg(test)]
mod tests {
    use prometheus::Opts;

    use super::*;

    #[test]
    fn each_request_and_class_has_its_series() {
        let counters = IntCounterVec::new(Opts::new("requests", "Requests."), &["listener", "kind", "status"]).unwrap();
        let requests = RequestCounters::new(counters.clone());
        let all = ApiRequest::ALL.iter().map(|kind| Served::Api(*kind));
        let all = all.chain(WebhookRequest::ALL.iter().map(|kind| Served::Webhooks(*kind)));
        let all = all.chain(ClientRequest::ALL.iter().map(|kind| Served::Client(*kind))).chain([Served::Admin]);
        for served in all {
            for (status, class) in [(101, "1xx"), (200, "2xx"), (302, "3xx"), (429, "4xx"), (503, "5xx"), (999, "5xx")]
            {
                let [listener, kind] = served.labels();
                let before = counters.with_label_values(&[listener, kind, class]).get();
                requests.of(served, status).inc();
                assert_eq!(
                    counters.with_label_values(&[listener, kind, class]).get(),
                    before + 1,
                    "{served:?} {class}"
                );
            }
        }
    }
}
