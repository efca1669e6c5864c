//! Reads `[plans]`, `[businesses]`, `[[limits]]` and the limits at the top level.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::matches::{self, Accounts};
use super::table::{Table, Word};
use crate::call::Direction;
use crate::destinations::Rules;
use crate::ids::{BusinessId, number_key, prefix_key};
use crate::policy::{
    AccountLimits, Bound, Business, Contradictions, DEFAULT_PLAN, DEMO_BUSINESS, Limit, LimitMatch, Mode, OnOutage,
    OnUnknownBusiness, Per, Plan, PolicySettings, Privacy, RESERVE_MAX, RETENTION_DAYS, Rule, Scope, WhenFull,
    default_plans,
};
use crate::provider::sign::sha256_hex;

const CALLS_MAX: u32 = 1_000_000;

pub(super) fn read(root: &Table<'_>, limits_of: Vec<AccountLimits>, accounts: &Accounts) -> Option<PolicySettings> {
    let mode = root.word("mode", &[("observe", Mode::Observe), ("enforce", Mode::Enforce)]).unwrap_or(Mode::Enforce);
    let concurrent = root.count("concurrent", 0..=CALLS_MAX);
    let rate = root.rate();
    let per_business = root.count("per_business", 0..=CALLS_MAX);
    let (mut plans, mistaken) = plans(root);
    if let Some(n) = per_business {
        let default = plans.entry(DEFAULT_PLAN.to_owned()).or_default();
        if default.concurrent.is_some() {
            let title = "`per_business` and `plans.default.concurrent` set the same limit";
            root.report().error("E030", root.span("per_business"), title, "keep one of them");
        }
        default.concurrent = Some(n);
    }
    let named = businesses(root, &plans, &mistaken);
    let limits = limits(root, accounts, &plans);
    warn(root, named.rules.as_deref(), &named.unknown, &named.list, &limits);
    Some(PolicySettings {
        mode,
        concurrent,
        rate,
        accounts: limits_of,
        plans,
        limits,
        businesses: named.list,
        rules: named.rules,
        unknown: named.unknown,
        contradictions: named.contradictions,
        demo: named.demo,
        when_full: WhenFull::Busy,
        on_outage: OnOutage::default(),
        transcripts: Privacy::default(),
        destinations: Arc::default(),
    })
}

/// The plans, and the names of those with mistakes, whose missing settings prove nothing.
fn plans(root: &Table<'_>) -> (BTreeMap<String, Plan>, BTreeSet<String>) {
    let table = root.table("plans");
    let (mut plans, mut mistaken) = (default_plans(), BTreeSet::new());
    for (name, one) in table.named_tables(&[]) {
        let before = root.report().errors();
        let plan = Plan {
            concurrent: one.count("concurrent", 0..=CALLS_MAX),
            rate: one.rate(),
            when_full: read_when_full(&one, "when_full"),
            destinations: destinations(&one),
        };
        one.finish();
        if root.report().errors() > before {
            mistaken.insert(name.clone());
        }
        plans.insert(name, plan);
    }
    table.finish();
    (plans, mistaken)
}

/// Reads `[plans.NAME.destinations]` and the like. Skipped without such a table, because there may be very many businesses.
fn destinations(one: &Table<'_>) -> Rules {
    let table = one.table("destinations");
    if table.is_absent() {
        return Rules::default();
    }
    let rules = super::destinations::rules(&table);
    table.finish();
    rules
}

/// The result of `[businesses]`.
struct BusinessesSection {
    list: Vec<Business>,
    rules: Option<Vec<Rule>>,
    unknown: OnUnknownBusiness,
    contradictions: Contradictions,
    demo: bool,
}

fn businesses(root: &Table<'_>, plans: &BTreeMap<String, Plan>, mistaken: &BTreeSet<String>) -> BusinessesSection {
    let table = root.table("businesses");
    let contradictions = table.word("contradictions", &Contradictions::WORDS).unwrap_or_default();
    let demo = table.flag("demo").unwrap_or(false);
    let rules = table.texts("identify_by").map(|words| identify_by(&table, &words));
    let unknown = match table.text("unknown") {
        None => OnUnknownBusiness::default(),
        Some(word) if word == "reject" => OnUnknownBusiness::Reject,
        Some(plan) => {
            check_plan(&table, "unknown", &plan, plans);
            OnUnknownBusiness::Plan(plan)
        }
    };
    let (mut list, mut owners) = (Vec::new(), BTreeMap::<String, String>::new());
    for (name, one) in table.named_tables(&["identify_by", "unknown", "contradictions", "demo"]) {
        let before = root.report().errors();
        let Some(business) = business(&one, &name) else { continue };
        if let Some(plan) = &business.plan {
            check_plan(&one, "plan", plan, plans);
        }
        for key in business.agent_ids.iter().chain(&business.phone_numbers) {
            if let Some(other) =
                owners.insert(number_key(key).into_owned(), name.clone()).filter(|other| *other != name)
            {
                let title = format!("{key} belongs to both {other} and {name}");
                root.report().error("E023", one.span("agent_ids"), title, "an agent or number belongs to one business");
            }
        }
        one.finish();
        // A misspelt key has been reported; do not report the missing one too.
        if lacks_max_calls(&business, plans, mistaken) && root.report().errors() == before {
            let title = format!("business {name} needs max_calls: its plan leaves the number to each business");
            root.report().error("E004", one.span("plan"), title, "");
        }
        list.push(business);
    }
    table.finish();
    BusinessesSection { list, rules, unknown, contradictions, demo }
}

/// The rules of `identify_by`. Unknown words are reported and left out.
fn identify_by(table: &Table<'_>, words: &[String]) -> Vec<Rule> {
    let rule = |word: &String| {
        let rule = Rule::WORDS.iter().find(|(known, _)| known == word).map(|(_, rule)| *rule);
        if rule.is_none() {
            let known: Vec<&str> = Rule::WORDS.iter().map(|(word, _)| *word).collect();
            let (title, help) =
                (format!("`businesses.identify_by` names {word:?}"), format!("known: {}", known.join(", ")));
            table.report().error("E005", table.span("identify_by"), title, &help);
        }
        rule
    };
    words.iter().filter_map(rule).collect()
}

/// Reports a key that names a plan that does not exist.
fn check_plan(table: &Table<'_>, key: &str, plan: &str, plans: &BTreeMap<String, Plan>) {
    if !plans.contains_key(plan) && plan != DEFAULT_PLAN {
        let known: Vec<&str> = plans.keys().map(String::as_str).collect();
        let title = format!("`{}` is {plan:?}, which is not a plan", table.path_of(key));
        table.report().error("E021", table.span(key), title, &format!("known: {}", known.join(", ")));
    }
}

/// Reads `[businesses.NAME]`. `None`: its name cannot be an id, which is reported.
fn business(table: &Table<'_>, name: &str) -> Option<Business> {
    Some(Business {
        plan: table.text("plan"),
        max_calls: table.count("max_calls", 0..=CALLS_MAX),
        agent_ids: table.texts("agent_ids").unwrap_or_default(),
        phone_numbers: table.texts("phone_numbers").unwrap_or_default(),
        api_key_sha256: table.secrets("api_keys").iter().map(|s| sha256_hex(s.expose().as_bytes())).collect(),
        when_full: read_when_full(table, "when_full"),
        retention_days: table.count("retention_days", RETENTION_DAYS),
        transcripts: table.word("transcripts", &Privacy::WORDS),
        reserve_for_direct: table.count("reserve_for_direct", 0..=RESERVE_MAX),
        destinations: Some(destinations(table)).filter(|rules| !rules.is_empty()),
        id: match BusinessId::parse(name) {
            Ok(id) => id,
            Err(error) => {
                table.report().error("E003", table.span(""), format!("`businesses.{name}`: {error}"), "");
                return None;
            }
        },
    })
}

/// Whether neither a business nor its plan says how many calls it may have.
fn lacks_max_calls(business: &Business, plans: &BTreeMap<String, Plan>, mistaken: &BTreeSet<String>) -> bool {
    let named = business.plan.as_ref().filter(|plan| *plan != DEFAULT_PLAN && !mistaken.contains(*plan));
    let plan = named.and_then(|plan| plans.get(plan));
    business.max_calls.is_none() && plan.is_some_and(|plan| plan.concurrent.is_none())
}

/// Warns of ignored settings, and of their consequences.
fn warn(
    root: &Table<'_>,
    rules: Option<&[Rule]>,
    unknown: &OnUnknownBusiness,
    businesses: &[Business],
    limits: &[Limit],
) {
    let (report, table) = (root.report(), root.table("businesses"));
    if let Some(rules) = rules
        && !rules.contains(&Rule::Header)
    {
        let title = "X-Business-Id is ignored: `businesses.identify_by` does not include \"header\"";
        report.warning(
            "W020",
            table.span("identify_by"),
            title,
            "add \"header\", if your app names its customers that way",
        );
    }
    if *unknown == OnUnknownBusiness::Reject && businesses.is_empty() {
        let title = "`businesses.unknown` is \"reject\", and this file has no business: only those that were imported, or created over HTTP, may call";
        report.warning("W021", table.span("unknown"), title, "write unknown = \"default\" to accept them");
    }
    if *unknown == OnUnknownBusiness::Reject && !businesses.is_empty() {
        for limit in limits {
            let strangers =
                limit.selects.business.iter().filter(|id| !businesses.iter().any(|b| b.id.as_str() == id.as_str()));
            for id in strangers.filter(|id| id.as_str() != DEMO_BUSINESS) {
                let title =
                    format!("limit {:?} matches business {id:?}, which is not in this file", limit.name.as_ref());
                report.warning("W022", None, title, "it matches nothing until that business is created over HTTP");
            }
        }
    }
}

fn limits(root: &Table<'_>, accounts: &Accounts, plans: &BTreeMap<String, Plan>) -> Vec<Limit> {
    let report = root.report();
    let mut limits = Vec::<Limit>::new();
    for table in &root.tables("limits") {
        let Some(limit) = limit(table) else { continue };
        let name = limit.name.as_ref();
        // Limits of equal names would share one count, also with ringfence's own ones.
        let kind = std::mem::discriminant(&limit.bound);
        if limits.iter().any(|l| l.name == limit.name && std::mem::discriminant(&l.bound) == kind) {
            report.error(
                "E030",
                table.span("name"),
                format!("two limits have the name {name:?}"),
                "they would share one count",
            );
        }
        if ["global", "business"].contains(&name)
            || ["account.", "business.", "plan."].iter().any(|p| name.starts_with(p))
        {
            let title = format!("a limit has the name {name:?}, which is one of ringfence's own");
            report.error("E030", table.span("name"), title, "choose another");
        }
        matches::check(table, &limit, accounts, plans);
        limits.push(limit);
    }
    limits
}

/// The values of [`OnOutage`].
pub(super) const ON_OUTAGE: [(&str, OnOutage); 3] =
    [("database", OnOutage::Database), ("open", OnOutage::Open), ("closed", OnOutage::Closed)];

fn limit(table: &Table<'_>) -> Option<Limit> {
    let report = table.report();
    let name = table.text("name");
    if name.is_none() {
        report.error(
            "E004",
            table.span("name"),
            "a limit needs a name",
            "write name = \"…\": refusals and metrics show it",
        );
    }
    let pers = [
        ("all", Per::All),
        ("business", Per::Business),
        ("plan", Per::Plan),
        ("account", Per::Account),
        ("agent", Per::Agent),
        ("own_number", Per::OwnNumber),
        ("destination", Per::Destination),
    ];
    let per = table.word("per", &pers).unwrap_or(Per::All);
    let on_outage = table.word("on_outage", &ON_OUTAGE);
    let concurrent = table.count("concurrent", 0..=CALLS_MAX).map(Bound::Concurrent);
    let rate = table.rate().map(Bound::Rate);
    let bound = match (concurrent, rate) {
        (Some(bound), None) | (None, Some(bound)) => Some(bound),
        _ => {
            let title = "a limit has either concurrent (concurrent calls) or rate (creates per interval)";
            report.error("E004", table.span("name"), title, "write two limits for both");
            None
        }
    };
    let on = table.table("match");
    let texts = |key: &str| {
        let list = on.texts(key);
        if list.as_ref().is_some_and(Vec::is_empty) {
            let title = format!("`{}` is empty", on.path_of(key));
            report.error("E004", on.span(key), title, "an empty list would match all: name some, or remove it");
        }
        list.unwrap_or_default()
    };
    let prefixes = texts("destination_prefix").into_iter().filter_map(|prefix| {
        let key = prefix_key(&prefix);
        if key.is_none() {
            let title =
                format!("`{}` has {prefix:?}, which is not the prefix of a number", on.path_of("destination_prefix"));
            report.error(
                "E003",
                on.span("destination_prefix"),
                title,
                "write the start of an international number, as in \"+90\"",
            );
        }
        key
    });
    let directions = [("inbound", Direction::Inbound), ("outbound", Direction::Outbound)];
    let selects = LimitMatch {
        business: texts("business"),
        plan: texts("plan"),
        account: texts("account"),
        direction: on.word("direction", &directions),
        agent: texts("agent"),
        own_number: texts("own_number").iter().map(|number| number_key(number).into_owned()).collect(),
        destination_prefix: prefixes.collect(),
        operation: texts("operation"),
    };
    on.finish();
    table.finish();
    Some(Limit { name: name?.into(), scope: Scope::Named, selects, per, bound: bound?, on_outage })
}

/// `when_full = "busy"`, `{ say = "…", language = "en-US" }` or `{ forward = "+1…" }`. In the environment: `…_WHEN_FULL=busy`,
/// or `…_WHEN_FULL_SAY` with `…_LANGUAGE`, or `…_WHEN_FULL_FORWARD`.
pub(super) fn read_when_full(table: &Table<'_>, key: &str) -> Option<WhenFull> {
    let (word, inner) = table.word_or_table(key);
    let (say, language, forward) = (inner.text("say"), inner.text("language"), inner.text("forward"));
    inner.finish();
    let span = word.as_ref().and_then(|word| word.place.clone()).or_else(|| inner.place());
    // The environment overrides a word in the file.
    let word = word.filter(|word| word.place.is_none() || (say.is_none() && forward.is_none()));
    let path = table.path_of(key);
    match (word, say, forward) {
        (None, None, None) if language.is_none() && inner.is_absent() => None,
        (Some(Word { text, .. }), None, None) if text == "busy" => Some(WhenFull::Busy),
        (Some(Word { text: word, place }), None, None) => {
            let (title, help) = match place {
                Some(_) => (format!("`{path}` is {word:?}"), FORMS.to_owned()),
                None => {
                    let name = table.env_name(key);
                    let help = format!("write busy, or set {name}_SAY or {name}_FORWARD");
                    (format!("environment variable {name} is {word:?}"), help)
                }
            };
            table.report().error("E005", span, title, &help);
            None
        }
        (None, Some(text), None) => {
            Some(WhenFull::Say { text, language: language.unwrap_or_else(|| "en-US".to_owned()) })
        }
        (None, None, Some(number)) => Some(WhenFull::Forward { number }),
        _ => {
            table.report().error("E004", span, format!("`{path}` is one of busy, say or forward"), FORMS);
            None
        }
    }
}

const FORMS: &str = "write \"busy\", { say = \"…\" } or { forward = \"+15550001111\" }";
