//! The counters that exist at 0 from the start.

use prometheus::IntCounterVec;

use super::labels::*;
use super::{Metrics, PLAN_INBOUND, PLAN_UNKNOWN, UNVERIFIED};
use crate::call::Direction;
use crate::destinations::BlockRule;
use crate::ids::AccountName;
use crate::provider::description::LimitClass;
use crate::words::NamedEnum;

const PLANS_OF_NO_BUSINESS: [&str; 2] = [PLAN_UNKNOWN, PLAN_INBOUND];

/// The label values that may occur and that only the config knows, so that every counter exists at 0 before its first event: `rate()` and `increase()` ignore the
/// first value of a new series.
#[derive(Debug, Clone, Default)]
pub struct ExpectedLabels<'a> {
    /// All accounts.
    pub accounts: Vec<&'a AccountName>,
    /// The accounts that are polled for their live calls.
    pub polled: Vec<&'a AccountName>,
    /// All plans.
    pub plans: Vec<&'a str>,
    /// All rejection reasons.
    pub reasons: Vec<&'a str>,
    /// Maximum businesses with a label of their own.
    pub business_labels: u32,
}

/// Creates the series of all values of a counter's only label.
fn zero_all<W: NamedEnum>(counter: &IntCounterVec) {
    W::ALL.iter().for_each(|value| drop(counter.with_label_values(&[value.name()])));
}

impl Metrics {
    /// Creates every counter at 0.
    pub fn create_series(&self, may: &ExpectedLabels<'_>) {
        let m = &self.inner;
        let zero = |counter: &IntCounterVec, labels: &[&str]| drop(counter.with_label_values(labels));
        for account in may.accounts.iter().map(|name| name.as_str()) {
            for counter in [&m.calls.reposts, &m.calls.unknown, &m.hooks.unfenced] {
                zero(counter, &[account]);
            }
            m.calls.upstream_seconds.create_series(account);
            LimitClass::ALL.iter().for_each(|class| zero(&m.calls.provider_limit, &[account, class.as_str()]));
            RecordSource::ALL.iter().for_each(|source| zero(&m.hooks.records, &[account, source.as_str()]));
            Unverified::ALL.iter().for_each(|why| zero(&m.hooks.webhooks, &[account, UNVERIFIED, why.as_str()]));
            for plan in &may.plans {
                Direction::ALL
                    .iter()
                    .for_each(|direction| zero(&m.calls.admitted, &[account, direction.as_str(), plan]));
            }
        }
        for account in &may.polled {
            SweepResult::ALL.iter().for_each(|result| zero(&m.hooks.sweeps, &[account.as_str(), result.as_str()]));
        }
        for plan in may.plans.iter().chain(&PLANS_OF_NO_BUSINESS) {
            may.reasons.iter().for_each(|reason| zero(&m.calls.rejected, &[reason, plan]));
        }
        zero_all::<Delivered>(&m.hooks.deliveries);
        zero_all::<Degraded>(&m.gate.gate_degraded);
        zero_all::<Firing>(&m.runs.schedule_firings);
        zero_all::<Repair>(&m.gate.gate_repairs);
        zero_all::<RunDial>(&m.runs.run_dials);
        zero_all::<ClientMessage>(&m.clients.client_messages);
        zero_all::<BlockRule>(&m.checks.destinations_rejected);
        zero_all::<CertificateReload>(&m.checks.certificate_reloads);
        zero_all::<ReloadOutcome>(&m.config.config_reloads);
        for status in [200, 400, 500] {
            for served in [
                Served::Api(ApiRequest::Create),
                Served::Api(ApiRequest::Relay),
                Served::Webhooks(WebhookRequest::Webhook),
                Served::Webhooks(WebhookRequest::Passed),
            ] {
                let _created = m.calls.requests.of(served, status);
            }
        }
        CreateOutcome::ALL.iter().for_each(|outcome| m.calls.added_seconds.create_series(outcome.as_str()));
        m.of_business.create_series(may.business_labels as usize);
    }
}
