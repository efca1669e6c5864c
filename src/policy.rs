//! Limits that bind a call, and the business that a request belongs to. Pure: no clock, no I/O.
//!
//! A [`Policy`] is immutable: every change builds a new one and swaps it in.

mod agent_bound;
mod business;
mod contradiction;
pub mod decision;
mod hash;
mod in_force;
mod published_limits;
mod rate;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::call::Direction;
use crate::destinations::{self, DestinationSettings};
use crate::ids::{AccountName, BusinessId, number_key};
pub use business::{
    Business, Identified, Ignored, OnUnknownBusiness, Privacy, RESERVE_MAX, RETENTION_DAYS, RequestAttributes, Rule,
    UnknownBusiness, WhenFull,
};
pub use contradiction::Contradictions;
pub use in_force::ShownLimit;
pub use published_limits::PublishedLimits;
pub use rate::Rate;

/// The demo business. It has a limit of its own and counts towards the global limit.
pub const DEMO_BUSINESS: &str = "999999";
/// Concurrent calls of [`DEMO_BUSINESS`].
const DEMO_CALLS_MAX: u32 = 999;
/// Concurrent calls of the whole platform where neither the operator nor an account sets a number.
const GLOBAL_CALLS_DEFAULT: u32 = 5;
/// The plan of businesses that have none.
pub const DEFAULT_PLAN: &str = "default";

/// The attributes of a call that limits select by. Stored with the call, so that a later policy applies to open calls too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallAttributes {
    /// The tenant.
    pub business: BusinessId,
    /// The tenant's plan at admission.
    pub plan: String,
    /// The account whose capacity the call uses.
    pub account: AccountName,
    /// The provider of `account`.
    pub provider: String,
    /// The account that carries the call, where it is another one and known: its limits bind the call too.
    #[serde(default)]
    pub carrier: Option<AccountName>,
    /// The side that placed the call.
    pub direction: Direction,
    /// The operation of the provider description, or the webhook, that created the call.
    pub operation: String,
    /// The agent's id at the provider.
    pub agent: Option<String>,
    /// Our number, or the provider's id for it.
    pub own_number: Option<String>,
    /// The other party's number.
    pub other_number: Option<String>,
}

/// The calls that a limit applies to; an empty list applies to all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LimitMatch {
    /// Business ids.
    pub business: Vec<String>,
    /// Plan names.
    pub plan: Vec<String>,
    /// Account names.
    pub account: Vec<String>,
    /// `inbound` or `outbound`.
    pub direction: Option<Direction>,
    /// Agent ids.
    pub agent: Vec<String>,
    /// Our numbers.
    pub own_number: Vec<String>,
    /// Prefixes of the other party's number, as in `+90`.
    pub destination_prefix: Vec<String>,
    /// Operations.
    pub operation: Vec<String>,
}

impl LimitMatch {
    fn matches(&self, attributes: &CallAttributes) -> bool {
        fn has(list: &[String], value: Option<&str>) -> bool {
            list.is_empty() || value.is_some_and(|v| list.iter().any(|one| one == v))
        }
        let prefix_fits = self.destination_prefix.is_empty()
            || attributes
                .other_number
                .as_deref()
                .is_some_and(|n| self.destination_prefix.iter().any(|p| n.starts_with(p.as_str())));
        has(&self.business, Some(attributes.business.as_str()))
            && has(&self.plan, Some(&attributes.plan))
            && (has(&self.account, Some(attributes.account.as_str()))
                || has(&self.account, attributes.carrier.as_ref().map(AccountName::as_str)))
            && self.direction.is_none_or(|d| d == attributes.direction)
            && has(&self.agent, attributes.agent.as_deref())
            && has(&self.own_number, attributes.own_number.as_deref())
            && has(&self.operation, Some(&attributes.operation))
            && prefix_fits
    }
}

/// The unit that a limit is counted per.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Per {
    /// One count for everything that matches.
    All,
    /// One count per business.
    Business,
    /// One count per plan.
    Plan,
    /// One count per account.
    Account,
    /// One count per agent.
    Agent,
    /// One count per number of ours.
    OwnNumber,
    /// One count per number of the other party.
    Destination,
}

/// The amount that a limit allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// Concurrent calls.
    Concurrent(u32),
    /// Creates per interval.
    Rate(Rate),
}

/// The owner of a limit; decides the code of a rejection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// A business: its plan's limit, or its override.
    Business,
    /// The operator: a named limit.
    Named,
    /// An account: the capacity bought at its provider.
    Account,
    /// The whole platform.
    Global,
}

/// A named rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// The name in rejections, metrics and `X-Ringfence-Limit`.
    pub name: Arc<str>,
    /// The owner.
    pub scope: Scope,
    /// The calls that the limit applies to.
    pub selects: LimitMatch,
    /// The unit that the limit is counted per.
    pub per: Per,
    /// The amount that it allows.
    pub bound: Bound,
    /// The fallback while Redis is away; [`PolicySettings::on_outage`] if `None`.
    pub on_outage: Option<OnOutage>,
}

/// The fallback while the limiter's own store is away. Of the limits that bind a call the strictest, which is the greatest,
/// applies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum OnOutage {
    /// Calls are admitted without a check, and counted.
    Open,
    /// The database, exactly.
    #[default]
    Database,
    /// Calls are rejected.
    Closed,
}

/// One limit as it binds one call: its count and its bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The limit's name.
    pub limit: Arc<str>,
    /// The owner of the limit.
    pub scope: Scope,
    /// The key of the count. Calls with equal keys share one count.
    pub key: String,
    /// The amount that it allows.
    pub bound: Bound,
}

/// A plan: a shorthand for limits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Concurrent calls of each business on the plan. `None`: each business sets its own.
    pub concurrent: Option<u32>,
    /// Creates per interval of each business on the plan.
    pub rate: Option<Rate>,
    /// The response that an inbound caller hears when the business is full.
    pub when_full: Option<WhenFull>,
    /// Destination rules for its businesses, in addition to the global ones.
    pub destinations: destinations::Rules,
}

/// Whether full limits reject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Everything is counted and nothing is rejected; what would have been rejected is reported.
    Observe,
    /// Full limits reject.
    Enforce,
}

impl Mode {
    /// The name in config and answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Mode::Observe => "observe",
            Mode::Enforce => "enforce",
        }
    }
}

/// An account as policy sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountLimits {
    /// The account's name.
    pub name: AccountName,
    /// Concurrent calls bought.
    pub concurrent: Option<u32>,
    /// Creates per interval bought.
    pub rate: Option<Rate>,
    /// The business that all of its requests belong to, for [`Rule::Account`].
    pub business: Option<BusinessId>,
}

/// The inputs of a [`Policy`].
#[derive(Debug, Clone)]
pub struct PolicySettings {
    /// Whether full limits reject.
    pub mode: Mode,
    /// Concurrent calls of the whole platform.
    pub concurrent: Option<u32>,
    /// Creates per interval of the whole platform.
    pub rate: Option<Rate>,
    /// Accounts.
    pub accounts: Vec<AccountLimits>,
    /// Plans by name.
    pub plans: BTreeMap<String, Plan>,
    /// The operator's named limits.
    pub limits: Vec<Limit>,
    /// The fallback while Redis is away, for limits without a setting of their own.
    pub on_outage: OnOutage,
    /// Businesses of the config file.
    pub businesses: Vec<Business>,
    /// The identification rules; `None` if the config has none.
    pub rules: Option<Vec<Rule>>,
    /// Treatment of requests of unknown businesses.
    pub unknown: OnUnknownBusiness,
    /// Treatment of a request that names one business and uses an agent or number of another.
    pub contradictions: Contradictions,
    /// Whether [`DEMO_BUSINESS`] exists.
    pub demo: bool,
    /// The response that an inbound caller hears when a limit is full, unless plan or business override it.
    pub when_full: WhenFull,
    /// The part of a call's transcript that is kept, unless the business overrides it.
    pub transcripts: Privacy,
    /// The global destination rules.
    pub destinations: Arc<DestinationSettings>,
}

/// The plans of the contract (§1): PAYG 1, STARTER 1, PRO 3, ENTERPRISE as each business sets.
pub fn default_plans() -> BTreeMap<String, Plan> {
    let plan = |concurrent| Plan { concurrent, ..Plan::default() };
    [("PAYG", Some(1)), ("STARTER", Some(1)), ("PRO", Some(3)), ("ENTERPRISE", None)]
        .into_iter()
        .map(|(name, concurrent)| (name.to_owned(), plan(concurrent)))
        .collect()
}

/// The policy in force: immutable, indexed for decisions.
#[derive(Debug)]
pub struct Policy {
    settings: PolicySettings,
    businesses: HashMap<BusinessId, Business>,
    by_agent: HashMap<String, BusinessId>,
    by_number: HashMap<String, BusinessId>,
    by_api_key: HashMap<String, BusinessId>,
    rules: Vec<Rule>,
    global: Vec<Limit>,
    privacies: Privacies,
    hash: String,
}

impl Policy {
    /// Builds the policy from the config and the businesses created over HTTP, which replace those of the config with the same
    /// id.
    pub fn new(settings: PolicySettings, put: &[Business]) -> Self {
        let mut businesses: HashMap<BusinessId, Business> = HashMap::new();
        if settings.demo
            && let Ok(id) = BusinessId::parse(DEMO_BUSINESS)
        {
            let demo = Business { max_calls: Some(DEMO_CALLS_MAX), ..Business::named(id.clone()) };
            businesses.insert(id, demo);
        }
        for business in settings.businesses.iter().chain(put) {
            businesses.insert(business.id.clone(), business.clone());
        }
        let index = |keys: fn(&Business) -> &[String], key: fn(&str) -> String| {
            businesses.values().flat_map(|b| keys(b).iter().map(|k| (key(k), b.id.clone()))).collect::<HashMap<_, _>>()
        };
        let rules = settings.rules.clone().unwrap_or_else(|| Rule::USUAL.to_vec());
        let global = global_limits(&settings);
        let privacy = |business: &Business| Some((business.id.clone(), business.transcripts?));
        let privacies =
            Privacies { usual: settings.transcripts, own: businesses.values().filter_map(privacy).collect() };
        Self {
            by_agent: index(|b| &b.agent_ids, str::to_owned),
            by_number: index(|b| &b.phone_numbers, |number| number_key(number).into_owned()),
            by_api_key: index(|b| &b.api_key_sha256, str::to_owned),
            businesses,
            rules,
            global,
            privacies,
            hash: hash::hash(&settings),
            settings,
        }
    }

    /// Whether full limits reject.
    pub fn mode(&self) -> Mode {
        self.settings.mode
    }

    /// The inputs that the policy was built from.
    pub fn settings(&self) -> &PolicySettings {
        &self.settings
    }

    /// The first digits of the settings' SHA-256.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Whether the policy includes this account.
    pub fn has_account(&self, name: &AccountName) -> bool {
        self.settings.accounts.iter().any(|account| account.name == *name)
    }

    /// The business with this id, if it is known.
    pub fn business(&self, id: &BusinessId) -> Option<&Business> {
        self.businesses.get(id)
    }

    /// All known businesses, unordered.
    pub fn businesses(&self) -> impl Iterator<Item = &Business> {
        self.businesses.values()
    }

    /// Whether any business besides the demo one is configured.
    pub fn has_named_businesses(&self) -> bool {
        self.businesses.keys().any(|id| id.as_str() != DEMO_BUSINESS)
    }

    /// The business that an agent belongs to.
    pub fn owner_of_agent(&self, agent: &str) -> Option<&BusinessId> {
        self.by_agent.get(agent)
    }

    /// The business that a number of ours, or a provider's id for one, belongs to.
    pub fn owner_of_number(&self, number: &str) -> Option<&BusinessId> {
        self.by_number.get(number_key(number).as_ref())
    }

    /// Identifies the business of a request by the ordered rules.
    pub fn identify(&self, attributes: &RequestAttributes<'_>) -> Identified {
        let parsed = |text: Option<&str>| text.and_then(|id| BusinessId::parse(id).ok());
        let (header, path) = (parsed(attributes.header), parsed(attributes.path));
        let reads = |rule| self.rules.contains(&rule);
        let ignored = match (attributes.header, attributes.path) {
            (Some(_), _) if !reads(Rule::Header) => Some(Ignored::Header),
            (Some(_), _) if header.is_none() => Some(Ignored::BadHeader),
            (_, Some(_)) if !reads(Rule::Path) => Some(Ignored::Path),
            (_, Some(_)) if path.is_none() => Some(Ignored::BadPath),
            _ => None,
        };
        let mut shown = None;
        for rule in &self.rules {
            let found = match rule {
                Rule::Header => header.clone(),
                Rule::Path => path.clone(),
                Rule::Agent => attributes.agent.and_then(|a| self.by_agent.get(a).cloned()),
                Rule::Number => attributes.number.and_then(|n| self.owner_of_number(n).cloned()),
                Rule::ApiKey => attributes.api_key_sha256.as_ref().and_then(|k| self.by_api_key.get(k).cloned()),
                Rule::Account => self.settings.accounts.iter().find_map(|account| {
                    (Some(account.name.as_str()) == attributes.account).then(|| account.business.clone()).flatten()
                }),
            };
            match found {
                Some(id) if self.businesses.contains_key(&id) => {
                    return Identified { business: id, unknown_business: None, ignored };
                }
                Some(id) => shown = shown.or(Some(id)),
                None => {}
            }
        }
        let unknown_business = match (&self.settings.unknown, &shown) {
            (OnUnknownBusiness::Plan(_), _) => None,
            // Without rules nothing tells businesses apart, so none is unknown.
            (OnUnknownBusiness::Reject, _) if self.rules.is_empty() => None,
            (OnUnknownBusiness::Reject, Some(id)) => Some(format!("{id} is not configured")),
            (OnUnknownBusiness::Reject, None) => {
                let tried: Vec<_> =
                    Rule::WORDS.iter().filter(|(_, r)| self.rules.contains(r)).map(|(w, _)| *w).collect();
                let ignored = ignored.map(|ignored| format!("; ignored: {ignored}")).unwrap_or_default();
                Some(format!("none of the rules {} found one{ignored}", tried.join(", ")))
            }
        };
        let business = shown.unwrap_or_else(BusinessId::default_business);
        Identified { business, unknown_business: unknown_business.map(UnknownBusiness), ignored }
    }

    /// The destination rules of a business on a plan: the plan's and its own, in addition to the global ones.
    pub fn destination_rules(&self, business: &BusinessId, plan: &str) -> Vec<&destinations::Rules> {
        let of_plan = self.settings.plans.get(plan).map(|plan| &plan.destinations);
        let own = self.businesses.get(business).and_then(|business| business.destinations.as_ref());
        of_plan.into_iter().chain(own).filter(|rules| !rules.is_empty()).collect()
    }

    /// The plan of a business.
    pub fn plan_of(&self, id: &BusinessId) -> String {
        match self.businesses.get(id) {
            Some(business) => business.plan.clone().unwrap_or_else(|| DEFAULT_PLAN.to_owned()),
            None => match &self.settings.unknown {
                OnUnknownBusiness::Plan(plan) if !self.rules.is_empty() => plan.clone(),
                _ => DEFAULT_PLAN.to_owned(),
            },
        }
    }

    /// Returns the response that an inbound caller of this business hears when it is full.
    pub fn when_full(&self, id: &BusinessId) -> &WhenFull {
        let business = self.businesses.get(id).and_then(|b| b.when_full.as_ref());
        let plan = || self.settings.plans.get(&self.plan_of(id)).and_then(|p| p.when_full.as_ref());
        business.or_else(plan).unwrap_or(&self.settings.when_full)
    }

    /// Businesses with a retention of their own, in days.
    pub fn own_retention_days(&self) -> impl Iterator<Item = (&BusinessId, u32)> {
        self.businesses.values().filter_map(|business| Some((&business.id, business.retention_days?)))
    }

    /// The part of a call's transcript that is kept.
    pub fn privacies(&self) -> &Privacies {
        &self.privacies
    }

    /// All limits that bind a call, the most specific first. A rejection names the first full one: freeing a slot of the business
    /// frees one of the account too, but not the other way round.
    pub fn bindings(&self, attributes: &CallAttributes) -> Vec<Binding> {
        let mut bindings = self.business_bindings(attributes);
        let matching = |limit: &&Limit| limit.selects.matches(attributes);
        bindings.extend(self.settings.limits.iter().chain(&self.global).filter(matching).filter_map(|limit| {
            let per = match limit.per {
                Per::All => Some(""),
                Per::Business => Some(attributes.business.as_str()),
                Per::Plan => Some(attributes.plan.as_str()),
                Per::Account => Some(attributes.account.as_str()),
                Per::Agent => attributes.agent.as_deref(),
                Per::OwnNumber => attributes.own_number.as_deref(),
                Per::Destination => attributes.other_number.as_deref(),
            }?;
            Some(binding(limit.name.clone(), limit.scope, per, limit.bound))
        }));
        bindings
    }

    /// The bounds of limits with a single count, by name; the lower one where two share a name.
    pub fn single_count_bounds(&self) -> Vec<(String, u32)> {
        let mut slots = BTreeMap::<String, u32>::new();
        for limit in self.settings.limits.iter().chain(&self.global).filter(|limit| limit.per == Per::All) {
            if let Bound::Concurrent(n) = limit.bound {
                let least = slots.entry(limit.name.to_string()).or_insert(n);
                *least = (*least).min(n);
            }
        }
        slots.into_iter().collect()
    }

    /// Returns the fallback for a call while Redis is away: the strictest setting of the limits that bind it.
    pub fn on_outage(&self, attributes: &CallAttributes) -> OnOutage {
        let own = self.settings.limits.iter().filter(|limit| limit.selects.matches(attributes));
        // Limits of businesses, accounts and the platform have no setting of their own.
        own.filter_map(|limit| limit.on_outage).fold(self.settings.on_outage, OnOutage::max)
    }

    fn business_bindings(&self, attributes: &CallAttributes) -> Vec<Binding> {
        let own = self.businesses.get(&attributes.business).and_then(|b| b.max_calls);
        // A known business is bound by its current plan, including calls admitted under an earlier one.
        let known = self.businesses.contains_key(&attributes.business).then(|| self.plan_of(&attributes.business));
        let plan_name = known.as_ref().unwrap_or(&attributes.plan);
        let plan = self.settings.plans.get(plan_name);
        let concurrent = own.or_else(|| plan.and_then(|p| p.concurrent));
        let name: Arc<str> = match own {
            Some(_) => format!("business.{}", attributes.business).into(),
            None => format!("plan.{plan_name}").into(),
        };
        // The key holds the business only, so that the count survives a change of plan.
        let bound_to = |bound| Binding {
            limit: name.clone(),
            scope: Scope::Business,
            key: format!("business{}|{}", kind(bound), attributes.business),
            bound,
        };
        let rate = plan.and_then(|p| p.rate).map(|rate| bound_to(Bound::Rate(rate)));
        concurrent.map(|n| bound_to(Bound::Concurrent(n))).into_iter().chain(rate).collect()
    }

    /// The longest window of all rates, in milliseconds; 0 without rates.
    pub fn longest_rate_ms(&self) -> i64 {
        let s = &self.settings;
        let named = s.limits.iter().filter_map(|limit| match limit.bound {
            Bound::Rate(rate) => Some(rate),
            Bound::Concurrent(_) => None,
        });
        let of_accounts = s.accounts.iter().filter_map(|account| account.rate);
        let of_plans = s.plans.values().filter_map(|plan| plan.rate);
        let all = named.chain(of_accounts).chain(of_plans).chain(s.rate);
        all.map(Rate::held_ms).max().unwrap_or(0)
    }

    /// Concurrent calls of the whole platform, as the contract's `globalLimit` shows it: the operator's number, or the sum
    /// that was bought.
    pub fn global_limit(&self) -> u32 {
        self.settings.concurrent.unwrap_or_else(|| {
            let bought: Vec<u32> = self.settings.accounts.iter().filter_map(|a| a.concurrent).collect();
            if bought.is_empty() { GLOBAL_CALLS_DEFAULT } else { bought.iter().fold(0, |a, b| a.saturating_add(*b)) }
        })
    }
}

/// The part of a call's transcript that is kept, by business.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Privacies {
    usual: Privacy,
    own: BTreeMap<BusinessId, Privacy>,
}

impl Privacies {
    /// The setting of a business.
    pub fn of(&self, business: &BusinessId) -> Privacy {
        self.own.get(business).copied().unwrap_or(self.usual)
    }

    /// The setting, if it is the same for all businesses.
    pub fn of_all(&self) -> Option<Privacy> {
        self.own.values().all(|own| *own == self.usual).then_some(self.usual)
    }

    /// The setting for calls of an unknown business: the strictest one.
    pub fn strictest(&self) -> Privacy {
        self.own.values().copied().fold(self.usual, Privacy::max)
    }
}

fn kind(bound: Bound) -> &'static str {
    match bound {
        Bound::Concurrent(_) => "",
        Bound::Rate(_) => ".rate",
    }
}

fn binding(limit: Arc<str>, scope: Scope, per: &str, bound: Bound) -> Binding {
    Binding { key: format!("{limit}{}|{per}", kind(bound)), limit, scope, bound }
}

fn global_limits(settings: &PolicySettings) -> Vec<Limit> {
    let limit = |name: String, scope, account: Option<&AccountName>, bound| Limit {
        name: name.into(),
        scope,
        selects: LimitMatch {
            account: account.map(|a| a.as_str().to_owned()).into_iter().collect(),
            ..LimitMatch::default()
        },
        per: Per::All,
        bound,
        on_outage: None,
    };
    let mut limits = Vec::new();
    for account in &settings.accounts {
        let bounds = account.concurrent.map(Bound::Concurrent).into_iter().chain(account.rate.map(Bound::Rate));
        limits
            .extend(bounds.map(|b| limit(format!("account.{}", account.name), Scope::Account, Some(&account.name), b)));
    }
    let nothing_bought = settings.accounts.iter().all(|a| a.concurrent.is_none());
    let concurrent = settings.concurrent.or(nothing_bought.then_some(GLOBAL_CALLS_DEFAULT));
    let bounds = concurrent.map(Bound::Concurrent).into_iter().chain(settings.rate.map(Bound::Rate));
    limits.extend(bounds.map(|b| limit("global".to_owned(), Scope::Global, None, b)));
    limits
}

#[cfg(test)]
mod tests;
