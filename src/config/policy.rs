//! `[plans]`, `[businesses]`, `[[limits]]` and the numbers at the top.

use std::collections::BTreeMap;

use super::read::{Table, Word};
use crate::call::Direction;
use crate::ids::BusinessId;
use crate::policy::{
    AccountLimits, Bound, Business, Contradictions, DEFAULT_PLAN, Limit, Mode, OnOutage, Per, Plan, Privacy,
    RETENTION_DAYS, Rate, Rule, Scope, Selector, Settings, Unknown, WhenFull, default_plans,
};
use crate::provider::sign::sha256_hex;

const CALLS_MAX: u32 = 1_000_000;

pub(super) fn read(root: &Table<'_>, accounts: Vec<AccountLimits>) -> Option<Settings> {
    let mode = root.word("mode", &[("observe", Mode::Observe), ("enforce", Mode::Enforce)]).unwrap_or(Mode::Enforce);
    let concurrent = root.count("concurrent", 0..=CALLS_MAX);
    let rate = root.parsed("rate", Rate::parse);
    let per_business = root.count("per_business", 0..=CALLS_MAX);
    let mut plans = plans(root);
    if let Some(n) = per_business {
        let default = plans.entry(DEFAULT_PLAN.to_owned()).or_default();
        if default.concurrent.is_some() {
            let title = "`per_business` and `plans.default.concurrent` say the same thing";
            root.report().error("E030", root.span("per_business"), title, "keep one of them");
        }
        default.concurrent = Some(n);
    }
    let named = businesses(root, &plans);
    let limits = limits(root, &accounts, &plans);
    Some(Settings {
        mode,
        concurrent,
        rate,
        accounts,
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
    })
}

fn plans(root: &Table<'_>) -> BTreeMap<String, Plan> {
    let table = root.table("plans");
    let mut plans = default_plans();
    for (name, one) in table.named_tables(&[]) {
        let plan = Plan {
            concurrent: one.count("concurrent", 0..=CALLS_MAX),
            rate: one.parsed("rate", Rate::parse),
            when_full: instead(&one, "when_full"),
        };
        one.finish();
        plans.insert(name, plan);
    }
    table.finish();
    plans
}

/// `[businesses]`.
struct Named {
    list: Vec<Business>,
    rules: Option<Vec<Rule>>,
    unknown: Unknown,
    contradictions: Contradictions,
    demo: bool,
}

fn businesses(root: &Table<'_>, plans: &BTreeMap<String, Plan>) -> Named {
    let table = root.table("businesses");
    let contradictions = table.word("contradictions", &Contradictions::WORDS).unwrap_or_default();
    let demo = table.flag("demo").unwrap_or(false);
    let rules = table.texts("identify_by").map(|words| {
        let known: Vec<&str> = Rule::WORDS.iter().map(|(word, _)| *word).collect();
        words
            .iter()
            .filter_map(|word| {
                let rule = Rule::WORDS.iter().find(|(w, _)| w == word).map(|(_, rule)| *rule);
                if rule.is_none() {
                    let title = format!("`businesses.identify_by` names {word:?}");
                    root.report().error(
                        "E005",
                        table.span("identify_by"),
                        title,
                        &format!("known: {}", known.join(", ")),
                    );
                }
                rule
            })
            .collect()
    });
    let known_plan = |key: &str, at: &Table<'_>, plan: &str| {
        if !plans.contains_key(plan) {
            let known: Vec<&str> = plans.keys().map(String::as_str).collect();
            let title = format!("`{}` is {plan:?}, which is no plan", at.path_of(key));
            root.report().error("E021", at.span(key), title, &format!("known: {}", known.join(", ")));
        }
    };
    let unknown = match table.text("unknown") {
        None => Unknown::Reject,
        Some(word) if word == "reject" => Unknown::Reject,
        Some(plan) => {
            known_plan("unknown", &table, &plan);
            Unknown::Plan(plan)
        }
    };
    let (mut list, mut owners) = (Vec::new(), BTreeMap::<String, String>::new());
    for (name, one) in table.named_tables(&["identify_by", "unknown", "contradictions", "demo"]) {
        let business = Business {
            plan: one.text("plan"),
            max_calls: one.count("max_calls", 0..=CALLS_MAX),
            agent_ids: one.texts("agent_ids").unwrap_or_default(),
            phone_numbers: one.texts("phone_numbers").unwrap_or_default(),
            api_key_sha256: one.secrets("api_keys").iter().map(|s| sha256_hex(s.expose().as_bytes())).collect(),
            when_full: instead(&one, "when_full"),
            retention_days: one.count("retention_days", RETENTION_DAYS),
            transcripts: one.word("transcripts", &Privacy::WORDS),
            id: match BusinessId::parse(&name) {
                Ok(id) => id,
                Err(error) => {
                    root.report().error("E003", one.span(""), format!("`businesses.{name}`: {error}"), "");
                    continue;
                }
            },
        };
        if let Some(plan) = &business.plan {
            known_plan("plan", &one, plan);
        }
        let unlimited = business.max_calls.is_none()
            && business.plan.as_ref().and_then(|p| plans.get(p)).is_some_and(|p| p.concurrent.is_none());
        if unlimited {
            let title = format!("business {name} needs max_calls: its plan leaves the number to each business");
            root.report().error("E004", one.span("plan"), title, "");
        }
        for key in business.agent_ids.iter().chain(&business.phone_numbers) {
            if let Some(other) = owners.insert(key.clone(), name.clone()) {
                let title = format!("{key} belongs to both {other} and {name}");
                root.report().error("E023", one.span("agent_ids"), title, "an agent or number belongs to one business");
            }
        }
        one.finish();
        list.push(business);
    }
    table.finish();
    Named { list, rules, unknown, contradictions, demo }
}

fn limits(root: &Table<'_>, accounts: &[AccountLimits], plans: &BTreeMap<String, Plan>) -> Vec<Limit> {
    let report = root.report();
    let mut limits = Vec::<Limit>::new();
    for table in &root.tables("limits") {
        let Some(limit) = limit(table) else { continue };
        let name = limit.name.as_ref();
        // Limits of one name would share one count, and so would one that is named as ours are.
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
        // A limit that matches nothing because of a slip of the pen would be no limit at all.
        let on = table.span("match");
        for account in limit.selects.account.iter().filter(|a| !accounts.iter().any(|k| k.name.as_str() == a.as_str()))
        {
            let title = format!("limit {name:?} matches account {account:?}, but there is no [accounts.{account}]");
            report.error("E022", on.clone(), title, "");
        }
        for plan in limit.selects.plan.iter().filter(|p| !plans.contains_key(*p) && *p != DEFAULT_PLAN) {
            let known: Vec<&str> = plans.keys().map(String::as_str).collect();
            let title = format!("limit {name:?} matches plan {plan:?}, which is no plan");
            report.error("E021", on.clone(), title, &format!("known: {}", known.join(", ")));
        }
        limits.push(limit);
    }
    limits
}

/// The words for [`OnOutage`].
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
    let rate = table.parsed("rate", Rate::parse).map(Bound::Rate);
    let bound = match (concurrent, rate) {
        (Some(bound), None) | (None, Some(bound)) => Some(bound),
        _ => {
            let title = "a limit has either concurrent (calls at once) or rate (creates in a time)";
            report.error("E004", table.span("name"), title, "write two limits for both");
            None
        }
    };
    let on = table.table("match");
    let texts = |key: &str| on.texts(key).unwrap_or_default();
    let directions = [("inbound", Direction::Inbound), ("outbound", Direction::Outbound)];
    let selects = Selector {
        business: texts("business"),
        plan: texts("plan"),
        account: texts("account"),
        direction: on.word("direction", &directions),
        agent: texts("agent"),
        own_number: texts("own_number"),
        destination_prefix: texts("destination_prefix"),
        operation: texts("operation"),
    };
    on.finish();
    table.finish();
    Some(Limit { name: name?.into(), scope: Scope::Named, selects, per, bound: bound?, on_outage })
}

/// `when_full = "busy"`, `{ say = "…", language = "en-US" }` or `{ forward = "+1…" }`. In the environment: `…_WHEN_FULL=busy`,
/// or `…_WHEN_FULL_SAY` with `…_LANGUAGE`, or `…_WHEN_FULL_FORWARD`.
pub(super) fn instead(table: &Table<'_>, key: &str) -> Option<WhenFull> {
    let (word, inner) = table.word_or_table(key);
    let (say, language, forward) = (inner.text("say"), inner.text("language"), inner.text("forward"));
    inner.finish();
    let span = word.as_ref().and_then(|word| word.place.clone()).or_else(|| inner.place());
    // The environment wins over a word of the file.
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
