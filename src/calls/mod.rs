//! Calls at providers: placing, looking up and ending them; admission of inbound calls.
//!
//! Each part owns one concern and works with one small [`Context`]. [`outbound`] is the life of a create, [`inbound`] admits a
//! provider's inbound call (`front` connects it, `external` counts calls that were placed outside ringfence), [`provider_client`]
//! queries calls at providers and ends them, [`post_call`] keeps post-call records, [`rejection`] turns a rejection into a
//! response, [`destination`] checks who may be called. `vouch` decides which account's signature is valid for which call.

pub mod app_address;
pub mod arrival;
pub mod batch_members;
pub mod batches;
pub mod context;
pub mod destination;
pub mod external;
mod front;
mod front_cache;
pub mod inbound;
pub mod lifecycle;
pub mod notify;
pub mod outbound;
pub mod post_call;
pub mod provider_client;
pub mod reconcile;
pub mod rejection;
mod rejection_log;
mod sdk_retries;
pub mod sweep_requests;
mod vouch;

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use tokio_util::task::TaskTracker;

use crate::call::Deadlines;
use crate::calls::lifecycle::Lifecycle;
use crate::ids::{AccountName, CallId};
use crate::net::Upstream;
use crate::policy::Policy;
use crate::provider::account::Account;
pub use app_address::{AppAddress, ForwardPaths};
pub use batch_members::BatchMembers;
pub use context::{CallSettings, Context, OwnEvents, SEND_WITHIN};
pub use destination::Destinations;
use destination::Lists;
pub use inbound::Inbound;
use inbound::InboundState;
pub use outbound::Outbound;
use outbound::OutboundState;
use post_call::Fetches;
pub use post_call::PostCallRecords;
use provider_client::RecentHangUps;
pub use provider_client::{AskError, ProviderClient, Unreadable};
use rejection::RejectionState;
pub use rejection::Rejections;
use sweep_requests::SweepRequests;

/// The parts of this layer over one generation of the configuration, to which it dereferences. Cloning is cheap.
///
/// A reload makes the [`next`](Calls::next) generation, with the same `State`.
#[derive(Clone)]
pub struct Calls {
    context: Arc<Context>,
    /// ringfence's own requests to providers.
    pub provider: Arc<ProviderClient>,
    /// Places calls.
    pub outbound: Arc<Outbound>,
    /// Inbound and external calls.
    pub inbound: Arc<Inbound>,
    /// Post-call records.
    pub post_call: Arc<PostCallRecords>,
    /// Turns rejections into responses.
    pub rejections: Arc<Rejections>,
    /// Rules for the destinations that may be called.
    pub destinations: Arc<Destinations>,
    /// Live calls of open batches.
    pub batch_members: BatchMembers,
    state: State,
}

/// State that outlives a reload: everything in progress.
#[derive(Clone, Default)]
struct State {
    tasks: TaskTracker,
    sweep_requests: SweepRequests,
    rejections: RejectionState,
    outbound: OutboundState,
    inbound: InboundState,
    do_not_call: Arc<Lists>,
    batch_members: BatchMembers,
    hang_ups: RecentHangUps,
    fetches: Fetches,
}

impl Deref for Calls {
    type Target = Context;

    fn deref(&self) -> &Context {
        &self.context
    }
}

impl Calls {
    /// Builds the layer.
    pub fn new(
        lifecycle: Lifecycle,
        accounts: BTreeMap<AccountName, Arc<Account>>,
        upstream: Upstream,
        settings: CallSettings,
    ) -> Self {
        let state = State::default();
        let context = Context {
            policy: lifecycle.policy.load_full(),
            lifecycle,
            accounts: Arc::new(accounts),
            upstream,
            settings: Arc::new(settings),
            tasks: state.tasks.clone(),
            sweep_requests: state.sweep_requests.clone(),
        };
        Self::over(context, state)
    }

    /// Builds the parts for one generation.
    fn over(context: Context, state: State) -> Self {
        let context = Arc::new(context);
        let provider = Arc::new(ProviderClient::new(context.clone(), state.hang_ups.clone()));
        let rejections = Arc::new(Rejections::new(context.clone(), state.rejections.clone()));
        let destinations = Arc::new(Destinations::new(context.clone(), state.do_not_call.clone()));
        let (to, of) = (destinations.clone(), state.outbound.clone());
        let outbound = Outbound::new(context.clone(), provider.clone(), rejections.clone(), to, of);
        let inbound = Inbound::new(context.clone(), provider.clone(), rejections.clone(), state.inbound.clone());
        let post_call = PostCallRecords::new(context.clone(), provider.clone(), state.fetches.clone());
        Self {
            context,
            provider,
            outbound: Arc::new(outbound),
            inbound: Arc::new(inbound),
            post_call: Arc::new(post_call),
            rejections,
            destinations,
            batch_members: state.batch_members.clone(),
            state,
        }
    }

    /// The next generation, after a reload. It shares the state of this one.
    pub fn next(
        &self,
        policy: Arc<Policy>,
        accounts: BTreeMap<AccountName, Arc<Account>>,
        upstream: Upstream,
        settings: CallSettings,
        deadlines: Deadlines,
    ) -> Self {
        let lifecycle = Lifecycle { deadlines, notice: settings.notice(), ..self.lifecycle.clone() };
        let (accounts, settings) = (Arc::new(accounts), Arc::new(settings));
        let context = Context { lifecycle, policy, accounts, upstream, settings, ..Context::clone(&self.context) };
        Self::over(context, self.state.clone())
    }

    /// The next generation, after a change of businesses alone.
    pub fn with_policy(&self, policy: Arc<Policy>) -> Self {
        Self::over(Context { policy, ..Context::clone(&self.context) }, self.state.clone())
    }

    /// Whether a request is joining this open call: the call must not be ended meanwhile.
    pub fn is_joined(&self, call: &CallId) -> bool {
        self.state.outbound.joins.contains(call)
    }
}
