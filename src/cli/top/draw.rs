//! Draws a frame of `top`.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Gauge, Paragraph, Row, Table};
use serde_json::Value;

use super::feed::State;
use crate::cli::alarms::{Level, alarms};
use crate::cli::calls::policy_line;
use crate::cli::text::{field, list, span, time};

/// Maximum alarms, accounts, businesses and refusals shown.
const ALARMS_MAX: usize = 3;
const ACCOUNTS_MAX: usize = 4;
const BUSINESSES_MAX: usize = 4;
const REFUSALS_MAX: usize = 3;

/// The order of the calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Sort {
    /// The oldest first.
    #[default]
    Age,
    /// By business, the oldest first.
    Business,
    /// By the time without news, the longest first.
    Silence,
}

impl Sort {
    pub(super) fn next(self) -> Self {
        match self {
            Sort::Age => Sort::Business,
            Sort::Business => Sort::Silence,
            Sort::Silence => Sort::Age,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Sort::Age => "age",
            Sort::Business => "business",
            Sort::Silence => "silence",
        }
    }
}

/// The settings of the viewer.
#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) business: Option<String>,
    pub(super) sort: Sort,
    /// The index of the first call shown.
    pub(super) from: usize,
    /// Whether the sidecar is unreachable.
    pub(super) is_lost: bool,
}

/// Draws it; returns the index of the first call shown.
pub(super) fn draw(frame: &mut Frame<'_>, state: &State, view: &View) -> usize {
    let status = state.parts.get("status").unwrap_or(&Value::Null);
    let part = |name: &str| state.parts.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let found = alarms(status);
    let accounts = list(status, "accounts");
    let (businesses, refusals) = (part("businesses"), part("refusals"));
    let rows = |n: usize, most: usize, head: usize| match n.min(most) {
        0 => Constraint::Length(0),
        n => Constraint::Length(u16::try_from(n + head).unwrap_or(u16::MAX)),
    };
    let [top, warnings, full, held, calls, refused, keys] = Layout::vertical([
        Constraint::Length(1),
        rows(found.len(), ALARMS_MAX, 0),
        rows(accounts.len(), ACCOUNTS_MAX, 0),
        rows(businesses.len(), BUSINESSES_MAX, 1),
        Constraint::Min(2),
        rows(refusals.len(), REFUSALS_MAX, 1),
        Constraint::Length(1),
    ])
    .areas(frame.area());

    let bold = Style::new().add_modifier(Modifier::BOLD);
    let open = match state.parts.get("calls") {
        Some(calls) if calls["known"] == false => "calls not known just now".to_owned(),
        calls => format!("{} calls", calls.and_then(|calls| calls["open"].as_u64()).unwrap_or(0)),
    };
    let version = status["version"].as_str().unwrap_or_default();
    let head = vec![
        Span::styled(format!("ringfence {version}"), bold),
        Span::raw(format!("  {open}  {}", policy_line(status))),
    ];
    frame.render_widget(Line::from(head), top);
    let lines: Vec<Line<'_>> = found
        .iter()
        .take(ALARMS_MAX)
        .map(|alarm| {
            let colour = if alarm.level == Level::Bad { Color::Red } else { Color::Yellow };
            Line::styled(format!("{:<4} {}", alarm.level.as_str(), alarm.what), Style::new().fg(colour))
        })
        .collect();
    frame.render_widget(Paragraph::new(lines), warnings);
    for (n, account) in accounts.iter().take(ACCOUNTS_MAX).enumerate() {
        let y = full.y.saturating_add(u16::try_from(n).unwrap_or(u16::MAX));
        if y < full.bottom() {
            draw_account(frame, account, Rect { y, height: 1, ..full });
        }
    }
    draw_businesses(frame, businesses, held);
    let shown_from = draw_calls(frame, state, view, calls);
    draw_refusals(frame, refusals, state.at, refused);
    let lost = if view.is_lost { "  the sidecar does not answer; retrying" } else { "" };
    let by = view.sort.as_str();
    let help = format!("q quit  ↑↓ scroll  s order: {by}{lost}");
    frame.render_widget(Line::styled(help, Style::new().add_modifier(Modifier::DIM)), keys);
    shown_from
}

fn draw_account(frame: &mut Frame<'_>, account: &Value, area: Rect) {
    let [name, gauge] = Layout::horizontal([Constraint::Length(18), Constraint::Min(10)]).areas(area);
    frame.render_widget(Line::raw(field(account, "name").to_owned()), name);
    // Null while the database cannot be read.
    let Some(in_use) = account["inUse"].as_u64() else {
        return frame.render_widget(Line::raw("not known just now"), gauge);
    };
    let live = account["providerLive"].as_u64().map(|live| format!(", provider says {live}")).unwrap_or_default();
    match account["limit"].as_u64().filter(|limit| *limit > 0) {
        Some(limit) => {
            let ratio = (in_use as f64 / limit as f64).clamp(0.0, 1.0);
            let colour = match ratio {
                _ if in_use >= limit => Color::Red,
                ratio if ratio >= 0.8 => Color::Yellow,
                _ => Color::Green,
            };
            let label = format!("{in_use} of {limit}{live}");
            frame.render_widget(Gauge::default().ratio(ratio).label(label).gauge_style(Style::new().fg(colour)), gauge);
        }
        None => frame.render_widget(Line::raw(format!("{in_use} calls, no limit of its own{live}")), gauge),
    }
}

fn head<'a>(titles: impl IntoIterator<Item = &'a str>) -> Row<'a> {
    Row::new(titles.into_iter().map(Span::raw)).style(Style::new().add_modifier(Modifier::BOLD))
}

fn draw_businesses(frame: &mut Frame<'_>, businesses: &[Value], area: Rect) {
    let rows = businesses.iter().take(BUSINESSES_MAX).map(|one| {
        let limit = one["limit"].as_u64().map_or("-".to_owned(), |n| n.to_string());
        let in_use = one["inUse"].as_u64().unwrap_or(0);
        let full = one["limit"].as_u64().is_some_and(|limit| in_use >= limit);
        let style = if full { Style::new().fg(Color::Yellow) } else { Style::new() };
        let text = |key: &str| field(one, key).to_owned();
        Row::new([text("id"), text("plan"), in_use.to_string(), limit]).style(style)
    });
    let widths = [Constraint::Min(20), Constraint::Length(14), Constraint::Length(8), Constraint::Length(8)];
    frame.render_widget(Table::new(rows, widths).header(head(["BUSINESS", "PLAN", "IN USE", "LIMIT"])), area);
}

fn draw_calls(frame: &mut Frame<'_>, state: &State, view: &View, area: Rect) -> usize {
    let at = |call: &Value, key: &str| time(&call[key]).unwrap_or(i64::MAX);
    let is_wanted = |call: &&Value| view.business.as_ref().is_none_or(|one| field(call, "businessId") == one);
    let mut calls: Vec<&Value> = state.calls.values().filter(is_wanted).collect();
    match view.sort {
        Sort::Age => calls.sort_by_key(|call| at(call, "startedAt")),
        Sort::Business => calls.sort_by_key(|call| (field(call, "businessId"), at(call, "startedAt"))),
        Sort::Silence => calls.sort_by_key(|call| at(call, "lastSeenAt")),
    }
    if calls.is_empty() {
        let is_known = state.parts.get("calls").is_none_or(|calls| calls["known"] != false);
        let none = if is_known { "no calls" } else { "not known just now: the database cannot be read" };
        frame.render_widget(Line::raw(none), area);
        return 0;
    }
    let room = usize::from(area.height.saturating_sub(1)).max(1);
    let from = view.from.min(calls.len().saturating_sub(room));
    let since = |value: &Value| time(value).zip(state.at).map_or("-".to_owned(), |(then, now)| span(now - then));
    let rows = calls.iter().skip(from).take(room).map(|call| {
        let text = |key: &str| field(call, key).to_owned();
        let way = if field(call, "direction") == "inbound" { "in" } else { "out" };
        let (phase, style) = match (call["unsettled"] == true, call["overLimit"] == true) {
            (true, _) => ("unknown".to_owned(), Style::new().fg(Color::Yellow)),
            (_, true) => ("over limit".to_owned(), Style::new().fg(Color::Yellow)),
            _ => (text("phase"), Style::new()),
        };
        let seen = format!("{} {}", since(&call["lastSeenAt"]), field(call, "lastSeenBy"));
        let cells = [
            text("callId"),
            text("businessId"),
            way.to_owned(),
            phase,
            since(&call["startedAt"]),
            seen,
            text("otherNumber"),
        ];
        Row::new(cells).style(style)
    });
    let widths = [
        Constraint::Length(29),
        Constraint::Min(8),
        Constraint::Length(3),
        Constraint::Length(8),
        Constraint::Length(6),
        Constraint::Length(9),
        Constraint::Length(12),
    ];
    let titles = ["CALL", "BUSINESS", "DIR", "PHASE", "AGE", "SEEN", "OTHER END"];
    frame.render_widget(Table::new(rows, widths).header(head(titles)), area);
    from
}

fn draw_refusals(frame: &mut Frame<'_>, refusals: &[Value], now: Option<i64>, area: Rect) {
    let rows = refusals.iter().take(REFUSALS_MAX).map(|one| {
        let text = |key: &str| field(one, key).to_owned();
        let age = time(&one["at"]).zip(now).map_or("-".to_owned(), |(at, now)| span(now - at));
        let why = one["limit_name"].as_str().map_or_else(|| text("code"), str::to_owned);
        Row::new([text("id"), text("business"), why, age])
    });
    let widths = [Constraint::Length(30), Constraint::Min(10), Constraint::Length(24), Constraint::Length(8)];
    frame.render_widget(Table::new(rows, widths).header(head(["REFUSED", "BUSINESS", "WHY", "AGE"])), area);
}
