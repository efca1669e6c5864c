//! A run as it is dialled, and the creates that are made of its jobs. Pure.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT};
use http::{HeaderMap, Request, Uri};
use serde_json::{Map, Value};

use super::spec::{Spec, reports_who_answered};
use super::template::{document, field, fill, form, names};
use crate::call::Outcome;
use crate::calls::Calls;
use crate::calls::outbound::CreateRequest;
use crate::calls::rejection::RequestKind;
use crate::destinations::Hours;
use crate::policy::{CallAttributes, Rate};
use crate::provider::account::{Account, join_url};
use crate::provider::description::{Dial, Operation};
use crate::provider::render::{Target, render};
use crate::provider::select::{Document, Message};

/// Outcomes after which a lead may be called again.
const RETRIED: [Outcome; 4] = [Outcome::Busy, Outcome::NoAnswer, Outcome::Failed, Outcome::Voicemail];

/// Numbers in a pool at most.
const POOL_MAX: usize = 1_000;

/// The source that decides an attribute of a run's calls.
#[derive(Debug, Clone, PartialEq, Eq)]
enum DecidedBy {
    /// The request itself. `None`: it has no such attribute, or one that is not known before the call.
    Request(Option<String>),
    /// The number that is chosen from the pool.
    Pool,
    /// The lead.
    Lead,
}

impl DecidedBy {
    /// `attribute`: as the template has it.
    fn of(attribute: Option<String>) -> Self {
        let mut found = BTreeSet::new();
        let text = Value::from(attribute.as_deref().unwrap_or_default());
        // What cannot be read was reported when the run was created.
        let _ = names(&text, &mut found);
        match found {
            found if found.is_empty() => Self::Request(attribute),
            found if found.iter().any(|name| name.starts_with("lead.")) => Self::Lead,
            found if found.contains("own_number") => Self::Pool,
            _ => Self::Request(None),
        }
    }

    fn known(&self) -> Option<&str> {
        match self {
            Self::Request(attribute) => attribute.as_deref(),
            Self::Pool | Self::Lead => None,
        }
    }
}

/// The reason why no create can be made of a job, with a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildError {
    /// The lead's own data does not fit; others do.
    Lead(String),
    /// The number of the pool may not be used; another one may.
    Number(String),
    /// The account cannot be used, or the request may not be sent for any lead.
    Run(String),
}

/// A run as it is dialled: what it asks for, joined with the account and the operation that it names.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The run's specification.
    pub spec: Spec,
    /// The run's account.
    pub account: Arc<Account>,
    /// The run's operation.
    pub operation: Arc<Operation>,
    /// The request of that operation.
    pub dial: Dial,
    /// The run's pace.
    pub rate: Option<Rate>,
    /// Fields that every lead must have.
    pub fields: BTreeSet<String>,
    /// Whether the provider has to be able to call us.
    pub needs_public_url: bool,
    /// The source that decides the agent, and our number, of the run's calls.
    agent: DecidedBy,
    own_number: DecidedBy,
}

impl Plan {
    /// Joins and checks it.
    ///
    /// # Errors
    /// A sentence about the first mistake.
    pub fn new(spec: Spec, calls: &Calls) -> Result<Self, String> {
        let account =
            calls.account(&spec.account).ok_or_else(|| format!("there is no account {}", spec.account))?.clone();
        let can = || {
            let can = account.provider.operations.iter().filter(|o| o.dial.is_some()).map(|o| o.name.as_str());
            can.collect::<Vec<_>>().join(", ")
        };
        let operation = account.provider.operations.iter().find(|o| o.name == spec.operation && o.dial.is_some());
        let operation = operation
            .ok_or_else(|| {
                format!("operation must be one of those that {} has for runs: {}", account.provider.name, can())
            })?
            .clone();
        let Some(dial) = operation.dial.clone() else { return Err("the operation makes no single calls".to_owned()) };
        let mut found = BTreeSet::new();
        names(&Value::Object(spec.request.clone()), &mut found)?;
        let fields: BTreeSet<String> =
            found.iter().filter_map(|name| name.strip_prefix("lead.")).map(str::to_owned).collect();
        if spec.request.contains_key(&dial.to) {
            return Err(format!("request must not have {}: it is the lead's {}", dial.to, spec.number_field));
        }
        if !spec.own_numbers.is_empty() && spec.request.contains_key(&dial.from) {
            return Err(format!("request must not have {}: it comes from own_numbers", dial.from));
        }
        if spec.own_numbers.is_empty() && found.contains("own_number") {
            return Err("{{own_number}} needs own_numbers".to_owned());
        }
        if spec.own_numbers.len() > POOL_MAX || spec.own_numbers.iter().any(String::is_empty) {
            return Err(format!("own_numbers must be at most {POOL_MAX}, none of them empty"));
        }
        if dial.form {
            form(&spec.request)?;
        }
        if !(1..=1000).contains(&spec.weight) {
            return Err("weight must be 1 to 1000".to_owned());
        }
        if spec.concurrency == Some(0) {
            return Err("concurrency must be 1 or more".to_owned());
        }
        if let Some(outcome) = spec.retry.keys().find(|outcome| !RETRIED.contains(outcome)) {
            return Err(format!("retry has {outcome}; it may have busy, no_answer, failed, voicemail"));
        }
        if spec.retry.contains_key(&Outcome::Voicemail) && !reports_who_answered(&spec, &operation) {
            return Err(format!(
                "retry has voicemail, but {} does not report who answered such a request; Twilio does with MachineDetection",
                account.provider.name
            ));
        }
        if spec.retry.values().any(|again| !(1..=20).contains(&again.attempts) || again.after_secs > 30 * 86_400) {
            return Err("retry: attempts must be 1 to 20, after_secs at most 30 days".to_owned());
        }
        if !(1..=1000).contains(&spec.breaker.window) || spec.breaker.failures > spec.breaker.window {
            return Err("breaker: window must be 1 to 1000, failures at most window".to_owned());
        }
        if spec.windows.as_ref().is_some_and(Hours::is_empty) {
            return Err("windows must have at least one, as in \"mon-fri 09:00-20:00\"".to_owned());
        }
        let rate = spec.rate.as_deref().map(Rate::parse).transpose().map_err(|why| format!("rate: {why}"))?;
        let needs_public_url = operation.callback.is_some() || found.contains("public_url");
        let mut template = spec.request.clone();
        if !spec.own_numbers.is_empty() {
            template.insert(dial.from.clone(), Value::from("{{own_number}}"));
        }
        let template = document(&template, dial.form);
        let message = Message { body: &template, query: &[], path: &BTreeMap::new(), headers: &HeaderMap::new() };
        let read = operation.attributes.read(&message, operation.direction);
        let (agent, own_number) = (DecidedBy::of(read.agent), DecidedBy::of(read.own_number));
        Ok(Self { spec, account, operation, dial, rate, fields, needs_public_url, agent, own_number })
    }

    /// The fields of a lead that its requests need and that it lacks.
    pub fn missing(&self, lead: &Map<String, Value>) -> Vec<&str> {
        self.fields.iter().map(String::as_str).filter(|path| field(lead, path).is_none()).collect()
    }

    /// The number of a lead, as it stands there.
    pub fn number<'l>(&self, lead: &'l Map<String, Value>) -> Option<Cow<'l, str>> {
        match field(lead, &self.spec.number_field)? {
            Value::String(text) => Some(text.into()),
            Value::Number(number) => Some(number.to_string().into()),
            _ => None,
        }
    }

    /// The pool's number of a turn.
    fn own_number(&self, turn: u64) -> Option<&str> {
        let pool = &self.spec.own_numbers;
        pool.get(usize::try_from(turn).unwrap_or(0) % pool.len().max(1)).map(String::as_str)
    }

    /// The body of a job's request, as a document and as bytes.
    ///
    /// # Errors
    /// A sentence.
    pub fn body(
        &self,
        run: &str,
        turn: u64,
        number: &str,
        lead: &Map<String, Value>,
        public_url: Option<&Uri>,
    ) -> Result<(Document, Bytes), String> {
        let own_number = self.own_number(turn).map(Value::from);
        let public = public_url.map(|url| Value::from(url.to_string().trim_end_matches('/')));
        let (business, run) = (Value::from(self.spec.business.as_str()), Value::from(run));
        let value = |name: &str| match name {
            "own_number" => own_number.as_ref(),
            "public_url" => public.as_ref(),
            "business" => Some(&business),
            "run" => Some(&run),
            other => field(lead, other.strip_prefix("lead.")?),
        };
        let Value::Object(mut body) = fill(&Value::Object(self.spec.request.clone()), &value)? else {
            return Err("the request is no object".to_owned());
        };
        body.insert(self.dial.to.clone(), number.into());
        if let Some(own) = &own_number {
            body.insert(self.dial.from.clone(), own.clone());
        }
        if self.dial.form {
            let pairs = form(&body)?;
            let bytes = form_urlencoded::Serializer::new(String::new()).extend_pairs(&pairs).finish();
            return Ok((Document::Form(pairs), bytes.into()));
        }
        let body = Value::Object(body);
        let bytes = Bytes::from(body.to_string());
        Ok((Document::Json(body), bytes))
    }

    /// Returns the attributes that policy selects by, as far as they are the same for every job.
    pub fn attributes(&self, calls: &Calls) -> CallAttributes {
        let policy = calls.lifecycle.policy.load();
        CallAttributes {
            plan: policy.plan_of(&self.spec.business),
            business: self.spec.business.clone(),
            account: self.account.name.clone(),
            provider: self.account.provider.name.clone(),
            carrier: self.account.carrier.clone().filter(|_| self.operation.carried),
            direction: self.operation.direction,
            operation: self.operation.name.clone(),
            agent: None,
            own_number: None,
            other_number: None,
        }
    }

    /// Returns the attributes that policy selects by for one job: the parts that its request has, too.
    pub fn attributes_of(&self, calls: &Calls, body: &Document, headers: &HeaderMap) -> CallAttributes {
        let message = Message { body, query: &[], path: &BTreeMap::new(), headers };
        let read = self.operation.attributes.read(&message, self.operation.direction);
        CallAttributes {
            agent: read.agent,
            own_number: read.own_number,
            other_number: read.other_number,
            ..self.attributes(calls)
        }
    }

    /// Checks that its business is known, where unknown ones are rejected, and that a call uses nothing of another business.
    ///
    /// # Errors
    /// A sentence.
    pub fn check_business(&self, calls: &Calls, attributes: &CallAttributes) -> Result<(), String> {
        match self.denial_reason(calls, attributes.agent.as_deref(), attributes.own_number.as_deref()) {
            Some(why) => Err(why),
            None => Ok(()),
        }
    }

    fn denial_reason(&self, calls: &Calls, agent: Option<&str>, number: Option<&str>) -> Option<String> {
        calls.lifecycle.policy.load().denial_reason(&self.spec.business, agent, number)
    }

    /// Checks that calls can be made under the settings in force, as far as that does not depend on a lead.
    ///
    /// # Errors
    /// A sentence.
    pub fn check(&self, calls: &Calls) -> Result<(), String> {
        self.target()?;
        if let Some(why) = self.denial_reason(calls, self.agent.known(), self.own_number.known()) {
            return Err(why);
        }
        let turns = 0..self.spec.own_numbers.len() as u64;
        let mut denied = turns.map(|turn| self.number_denied(calls, turn));
        // One number of the pool is enough.
        match denied.next() {
            Some(Some(why)) if denied.all(|one| one.is_some()) => Err(why),
            _ => Ok(()),
        }
    }

    /// The reason why the pool's number of a turn may not be used, if so: it belongs to another business.
    pub fn number_denied(&self, calls: &Calls, turn: u64) -> Option<String> {
        match self.own_number {
            DecidedBy::Pool => self.denial_reason(calls, None, self.own_number(turn)),
            DecidedBy::Request(_) | DecidedBy::Lead => None,
        }
    }

    /// The address of its requests, and the header with the account's credentials.
    fn target(&self) -> Result<(Uri, HeaderName, HeaderValue), String> {
        let of_account = |error: &dyn std::fmt::Display| format!("account {}: {error}", self.account.name);
        let path = render(&self.dial.path, Target::Url, |name| self.account.value(name));
        let path = path.map_err(|error| of_account(&error))?;
        let uri = join_url(self.account.upstream_of(&path), &path).parse();
        let uri = uri.map_err(|_| of_account(&"the operation's URL cannot be read"))?;
        let (name, value) = self.account.credentials().map_err(|error| of_account(&error))?;
        Ok((uri, name, value))
    }

    /// Returns the error of a call that may not be made with these attributes, by the part at fault: run, number or lead.
    fn blame(&self, calls: &Calls, attributes: &CallAttributes, why: String) -> BuildError {
        let agent = attributes.agent.as_deref();
        if self.denial_reason(calls, None, None).is_some() {
            return BuildError::Run(why);
        }
        let is_agent = self.denial_reason(calls, agent, None).is_some();
        match if is_agent { &self.agent } else { &self.own_number } {
            DecidedBy::Request(_) => BuildError::Run(why),
            DecidedBy::Pool => BuildError::Number(why),
            DecidedBy::Lead => BuildError::Lead(why),
        }
    }

    /// The create of a job.
    ///
    /// # Errors
    /// Whose fault it is that there is none.
    pub fn create_request(
        &self,
        calls: &Calls,
        run: &str,
        turn: u64,
        number: &str,
        lead: &Map<String, Value>,
    ) -> Result<CreateRequest, BuildError> {
        let body = self.body(run, turn, number, lead, calls.settings.app.public_url.as_ref());
        let (body, bytes) = body.map_err(BuildError::Lead)?;
        let (uri, name, value) = self.target().map_err(BuildError::Run)?;
        let mut request = Request::new(bytes);
        *request.method_mut() = self.operation.method.clone();
        *request.uri_mut() = uri;
        let kind = if self.dial.form { "application/x-www-form-urlencoded" } else { "application/json" };
        let headers = request.headers_mut();
        headers.insert(name, value);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("ringfence/", env!("CARGO_PKG_VERSION"))));
        let attributes = self.attributes_of(calls, &body, request.headers());
        self.check_business(calls, &attributes).map_err(|why| self.blame(calls, &attributes, why))?;
        let mut request = CreateRequest::new(self.account.clone(), self.operation.clone(), attributes, request, body);
        request.kind = RequestKind::Job;
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_known_who_decides_an_attribute() {
        for (attribute, decided_by) in [
            (None, DecidedBy::Request(None)),
            (Some("agent_a"), DecidedBy::Request(Some("agent_a".to_owned()))),
            (Some("{{own_number}}"), DecidedBy::Pool),
            (Some("{{ lead.agent }}"), DecidedBy::Lead),
            (Some("{{business}}-{{lead.agent}}"), DecidedBy::Lead),
            (Some("agent-of-{{business}}"), DecidedBy::Request(None)),
        ] {
            assert_eq!(DecidedBy::of(attribute.map(str::to_owned)), decided_by, "{attribute:?}");
        }
    }
}
