//! Calls, the inbox, the outbox, rejections and businesses, for every back end.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::FutureExt as _;

use super::super::driver::{Backend, binds};
use super::super::listing::from_the_top;
use super::super::rows::{admitted, business, create_answer, readable, record, rejection, waiting};
use super::super::{
    AdmitOutcome, ApplyOutcome, CallRecord, Change, ConfirmOutcome, CreateAnswer, Cursor, Delivery, DeliveryOrder,
    DeliveryResult, EpochBump, EventOutcome, InFlightRow, InsertOutcome, ListFilter, Membership, NewCall, NewEvent,
    Owner, ParkReason, Reach, ReceiveOutcome, RejectionRecord, Replica, Result, Store, UnsettledEvents, Voucher,
};
use super::calls::calls;
use super::{bindings, calls, gate, messages, replicas};
use crate::call::Event;
use crate::clock::UnixMs;
use crate::ids::{AccountName, Alias, CallId, RejectionId};
use crate::policy::decision::{AdmissionRequest, GateMode, GateState, LeaseRow};
use crate::policy::{Business, CallAttributes, Policy};
use crate::provider::secret::Secret;

/// A call that began longer before is not looked for among those that were up at a time.
const UP_AT_MOST_MS: i64 = 24 * 3_600_000;

#[async_trait]
impl<B: Backend> Store for B {
    async fn insert_call(&self, call: NewCall, epoch: Option<i64>) -> Result<InsertOutcome> {
        let id = call.id.clone();
        let opened = self.write_under(epoch, &id, call, |c, call| calls::insert(c, call).boxed()).await?;
        Ok(opened.unwrap_or_else(InsertOutcome::Outdated))
    }

    async fn admit(&self, call: NewCall, request: AdmissionRequest, epoch: i64) -> Result<AdmitOutcome> {
        self.decide(call, request, epoch).await
    }

    async fn confirm(&self, call: &CallId, keys: Vec<String>, epoch: Option<i64>) -> Result<ConfirmOutcome> {
        let of = (call.clone(), keys);
        let confirmed = self.write_under(epoch, call, of, |c, (call, keys)| calls::confirm(c, call, keys).boxed());
        Ok(confirmed.await?.unwrap_or_else(ConfirmOutcome::Outdated))
    }

    fn renew_credential(&self, url: &Secret) {
        self.reconnect_with(url);
    }

    async fn gate_state(&self) -> Result<GateState> {
        self.read((), |c, ()| gate::state(c).boxed()).await
    }

    async fn identity(&self) -> Result<String> {
        self.read((), |c, ()| gate::identity(c).boxed()).await
    }

    async fn bump_epoch(
        &self,
        from: i64,
        min_epoch: i64,
        to: GateMode,
        policy: Arc<Policy>,
        now_ms: UnixMs,
    ) -> Result<Option<EpochBump>> {
        let args = (policy, self.transition_time(now_ms));
        self.write(args, move |c, (policy, at_ms)| gate::bump_epoch(c, from, min_epoch, to, policy, *at_ms).boxed())
            .await
    }

    async fn leases(&self) -> Result<Vec<LeaseRow>> {
        gate::leases(self).await
    }

    async fn find_in_flight(&self, fingerprint: &str, since_ms: UnixMs) -> Result<Vec<InFlightRow>> {
        replicas::find_in_flight(self, fingerprint, since_ms).await
    }

    async fn take_in_flight(&self, row: &InFlightRow, me: &str, owner: Owner) -> Result<bool> {
        replicas::take_in_flight(self, row, me, owner).await
    }

    async fn mark_undelivered(&self, call: &CallId, me: &str) -> Result<()> {
        let of = (call.clone(), me.to_owned());
        self.write(of, |c, (call, me)| calls::mark_undelivered(c, call, me).boxed()).await
    }

    async fn apply(&self, change: Change) -> Result<Option<ApplyOutcome>> {
        self.settle_doubt(&change.call).await?;
        self.write(change, |c, change| calls::apply(c, change).boxed()).await
    }

    async fn keep_early(
        &self,
        aliases: Vec<Alias>,
        event: Event,
        by: Option<Voucher>,
        at_ms: UnixMs,
    ) -> Result<Option<CallId>> {
        let keep = (aliases, by);
        self.write(keep, move |c, (aliases, by)| bindings::keep_early(c, aliases, event, by.as_ref(), at_ms).boxed())
            .await
    }

    async fn resolve(&self, aliases: &[Alias]) -> Result<Option<CallId>> {
        self.read(aliases.to_vec(), |c, aliases| bindings::resolve(c, aliases).boxed()).await
    }

    async fn create_answer(&self, call: &CallId, fingerprint: &str) -> Result<Option<CreateAnswer>> {
        let sql = "SELECT * FROM create_answers WHERE call_id = $1 AND fingerprint = $2";
        let kept = self.select(sql, binds![call.to_string(), fingerprint.to_owned()].into(), create_answer).await;
        kept.map(|mut kept| kept.pop())
    }

    async fn call(&self, id: &CallId) -> Result<Option<CallRecord>> {
        self.read(id.clone(), |c, id| calls::find(c, id).boxed()).await
    }

    async fn open_calls(&self) -> Result<Vec<CallRecord>> {
        let sql = calls!("/*+ INDEXED BY calls_open */ WHERE c.phase <> 'ended' ORDER BY c.admitted_at, c.id");
        self.select(sql, vec![], record).await
    }

    async fn unanswered_creates(&self, account: &AccountName, kind: &str) -> Result<Vec<CallRecord>> {
        let sql = calls!(
            "/*+ INDEXED BY calls_open */
             WHERE c.phase <> 'ended' AND c.account = $1 AND c.origin = 'order' AND c.direction = 'outbound'
             AND NOT EXISTS (SELECT 1 FROM call_aliases a WHERE a.call_id = c.id AND a.kind = $2)"
        );
        self.select(sql, binds![account.to_string(), kind.to_owned()].into(), record).await
    }

    async fn list_calls(&self, filter: &ListFilter, limit: u32) -> Result<Vec<CallRecord>> {
        let sql = calls!(
            "WHERE ($2 OR c.business = ANY($3)) AND ($4 = '' OR c.account = $4 OR c.carrier = $4)
             AND ($5 OR c.phase = ANY($6)) AND c.admitted_at >= $7 AND c.admitted_at < $8 AND (c.admitted_at, c.id) < ($9, $10)
             ORDER BY c.admitted_at DESC, c.id DESC LIMIT $1"
        );
        let f = filter.clone();
        let (any_phase, phases) = f.phase_words();
        let (from, before) = (f.from_ms.unwrap_or(UnixMs::MIN), f.before_ms.unwrap_or(UnixMs::MAX));
        let (any, businesses) = (f.businesses.is_none(), f.businesses.unwrap_or_default());
        let account = f.account.unwrap_or_default();
        let (at, id) = from_the_top(f.after);
        let binds = binds![limit, any, businesses, account, any_phase, phases, from, before, at, id];
        self.select(sql, binds.into(), |row| Ok(record(row))).await.map(readable)
    }

    async fn calls_at(&self, at_ms: UnixMs, limit: u32) -> Result<Vec<CallRecord>> {
        let sql = calls!(
            "WHERE c.admitted_at <= $1 AND c.admitted_at > $2 AND (c.ended_at IS NULL OR c.ended_at > $1)
             ORDER BY c.admitted_at, c.id LIMIT $3"
        );
        let binds = binds![at_ms, at_ms - UP_AT_MOST_MS, limit];
        self.select(sql, binds.into(), |row| Ok(record(row))).await.map(readable)
    }

    async fn admitted_since(&self, since_ms: UnixMs) -> Result<Vec<(UnixMs, CallAttributes)>> {
        self.select(gate::ADMITTED_SINCE, binds![since_ms].into(), |row| Ok(admitted(row))).await.map(readable)
    }

    async fn receive(&self, event: NewEvent) -> Result<ReceiveOutcome> {
        self.write(event, |c, event| messages::receive(c, event).boxed()).await
    }

    async fn settle(
        &self,
        event_id: &str,
        call: Option<&CallId>,
        outcome: EventOutcome,
        delivery: Option<Delivery>,
        at_ms: UnixMs,
    ) -> Result<bool> {
        let settled = (event_id.to_owned(), call.cloned(), delivery);
        self.write(settled, move |c, (event_id, call, delivery)| {
            let call = call.as_ref().map(CallId::as_str);
            messages::settle(c, event_id, call, outcome, delivery.as_ref(), at_ms).boxed()
        })
        .await
    }

    async fn unsettled_events(
        &self,
        before_ms: UnixMs,
        reach: &Reach,
        after: &Cursor,
        limit: u32,
    ) -> Result<UnsettledEvents> {
        let sql = "SELECT * FROM webhook_events WHERE outcome IS NULL AND parked_at IS NULL
             AND received_at >= $4 AND (received_at, id) > ($4, $5)
             AND coalesce(due_at, received_at) <= $1 AND (spool = $2 OR (spool IS NULL AND $3))
             ORDER BY received_at, id LIMIT $6";
        let binds = binds![before_ms, reach.spool.clone(), reach.database, after.0, after.1.clone(), limit];
        self.read(binds, move |c, binds| async move { waiting(&c.fetch(sql, binds).await?) }.boxed()).await
    }

    async fn take_deliveries(
        &self,
        at_ms: UnixMs,
        limit: u32,
        spool: &str,
        order: DeliveryOrder,
    ) -> Result<Vec<Delivery>> {
        if !self.any_due(at_ms, spool).await? {
            return Ok(vec![]);
        }
        self.write(spool.to_owned(), move |c, spool| messages::take(c, at_ms, limit, spool, order).boxed()).await
    }

    async fn record_delivery_result(&self, id: &str, at_ms: UnixMs, result: DeliveryResult) -> Result<()> {
        let failed = ParkReason::Failed.as_str();
        let (done_at, due_at, error, reason) = match result {
            DeliveryResult::Done => (Some(at_ms), None, None, None),
            DeliveryResult::Retry { why, at } => (None, Some(at), Some(why), None),
            DeliveryResult::GivenUp { why } => (None, None, Some(why), Some(failed)),
        };
        let sql = "UPDATE deliveries SET attempts = attempts + 1, done_at = $2, due_at = $3, last_error = $4, park_reason = $5,
                 taken_until = NULL
             WHERE id = $1 AND done_at IS NULL";
        self.run(sql, binds![id.to_owned(), done_at, due_at, error, reason].into()).await.map(drop)
    }

    async fn record_rejections(&self, rejections: Vec<RejectionRecord>) -> Result<()> {
        if rejections.is_empty() {
            return Ok(());
        }
        self.write(rejections, |c, rejections| messages::record_rejections(c, rejections).boxed()).await
    }

    async fn list_rejections(&self, filter: &ListFilter, limit: u32) -> Result<Vec<RejectionRecord>> {
        let sql = "SELECT * FROM refusals WHERE ($2 OR business = ANY($3)) AND ($4 = '' OR account = $4)
             AND at >= $5 AND at < $6 AND ($7 = '' OR code = $7) AND (at, id) < ($8, $9) ORDER BY at DESC, id DESC LIMIT $1";
        let f = filter.clone();
        let (from, before) = (f.from_ms.unwrap_or(UnixMs::MIN), f.before_ms.unwrap_or(UnixMs::MAX));
        let (any, businesses) = (f.businesses.is_none(), f.businesses.unwrap_or_default());
        let (account, code, (at, id)) =
            (f.account.unwrap_or_default(), f.code.unwrap_or_default(), from_the_top(f.after));
        let binds = binds![limit, any, businesses, account, from, before, code, at, id];
        self.select(sql, binds.into(), rejection).await
    }

    async fn rejection(&self, id: &RejectionId) -> Result<Option<RejectionRecord>> {
        let sql = "SELECT * FROM refusals WHERE id = $1";
        Ok(self.select(sql, binds![id.to_string()].into(), rejection).await?.pop())
    }

    async fn businesses(&self) -> Result<Vec<Business>> {
        self.select("SELECT body FROM businesses ORDER BY id", vec![], business).await
    }

    async fn put_business(&self, business: &Business, at_ms: UnixMs) -> Result<bool> {
        Ok(self.put_businesses(vec![business.clone()], at_ms).await? == 1)
    }

    async fn put_businesses(&self, businesses: Vec<Business>, at_ms: UnixMs) -> Result<usize> {
        self.write(businesses, move |c, businesses| messages::put_businesses(c, businesses, at_ms).boxed()).await
    }

    async fn delete_business(&self, id: &str) -> Result<bool> {
        Ok(self.run("DELETE FROM businesses WHERE id = $1", binds![id.to_owned()].into()).await? > 0)
    }

    async fn now_ms(&self) -> Result<UnixMs> {
        replicas::now_ms(self).await
    }

    async fn heartbeat(&self, me: &Replica, as_of: Option<UnixMs>) -> Result<Membership> {
        self.write(me.clone(), move |c, me| replicas::heartbeat(c, me, as_of).boxed()).await
    }

    async fn deregister(&self, id: &str) -> Result<()> {
        self.run("DELETE FROM replicas WHERE id = $1", binds![id.to_owned()].into()).await.map(drop)
    }

    async fn ping(&self) -> Result<()> {
        self.probe().await
    }

    fn failed_writes(&self) -> u64 {
        self.failures()
    }

    async fn close(&self) {
        self.shut().await;
    }
}
