//! The diagnostics of a config, collected, each with a place and a hint.

use std::cell::RefCell;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

/// Whether a diagnostic stops the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// A likely mistake; the program runs.
    Warning,
    /// The config cannot be used.
    Error,
}

/// A mistake in a config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Whether it stops the program.
    pub severity: Severity,
    /// The code, as in `E014`: one of [`super::codes::CODES`].
    pub code: &'static str,
    /// The message, with the key path.
    pub title: String,
    /// The place in the text, in bytes; `None` for keys of the environment and missing keys.
    pub span: Option<Range<usize>>,
    /// A label at the place.
    pub label: String,
    /// A second place that explains the first.
    pub context: Option<(Range<usize>, String)>,
    /// Advice on what to do.
    pub help: Option<String>,
}

/// Collects diagnostics while a config is read.
#[derive(Debug, Default)]
pub struct Report {
    items: RefCell<Vec<Diagnostic>>,
}

impl Report {
    /// Adds a diagnostic.
    pub fn add(&self, diagnostic: Diagnostic) {
        self.items.borrow_mut().push(diagnostic);
    }

    /// Adds an error.
    pub fn error(&self, code: &'static str, span: Option<Range<usize>>, title: impl Into<String>, help: &str) {
        self.put(Severity::Error, code, span, title.into(), help);
    }

    /// Adds a warning.
    pub fn warning(&self, code: &'static str, span: Option<Range<usize>>, title: impl Into<String>, help: &str) {
        self.put(Severity::Warning, code, span, title.into(), help);
    }

    fn put(&self, severity: Severity, code: &'static str, span: Option<Range<usize>>, title: String, help: &str) {
        let help = (!help.is_empty()).then(|| help.to_owned());
        let title = without_password(&title);
        self.add(Diagnostic { severity, code, title, span, label: String::new(), context: None, help });
    }

    /// The number of errors.
    pub fn errors(&self) -> usize {
        self.items.borrow().iter().filter(|d| d.severity == Severity::Error).count()
    }

    /// Whether there is a diagnostic with this code.
    pub fn has(&self, code: &str) -> bool {
        self.items.borrow().iter().any(|d| d.code == code)
    }

    /// All diagnostics, errors first, then by place.
    pub fn finish(self) -> Vec<Diagnostic> {
        let mut items = self.items.into_inner();
        items.sort_by_key(|d| (std::cmp::Reverse(d.severity), d.span.as_ref().map(|s| s.start)));
        items
    }
}

/// The code of a warning at a secret, whose text is never shown.
pub const INLINE_SECRET: &str = "W001";

/// The code of an unknown key, whose value may be a secret under a misspelt name.
pub const UNKNOWN_KEY: &str = "E014";

/// The text with all secrets in it overwritten, byte for byte, so that places stay the same.
fn without_secrets(diagnostics: &[Diagnostic], text: &str) -> String {
    let mut bytes = text.as_bytes().to_vec();
    let places = |code: &'static str| diagnostics.iter().filter(move |d| d.code == code).filter_map(|d| d.span.clone());
    let mut secrets: Vec<Range<usize>> = places(INLINE_SECRET).collect();
    let unknown: Vec<usize> = places(UNKNOWN_KEY).map(|span| span.start).collect();
    let (mut start, mut holds_secrets) = (0, false);
    for line in text.split_inclusive('\n') {
        if let Some(table) = line.trim_start().strip_prefix('[') {
            let table = table.trim_start_matches(['[', ' ']);
            holds_secrets = ["accounts", "admin"].iter().any(|holder| table.starts_with(holder));
        }
        let is_unknown = unknown.iter().any(|at| (start..start + line.len()).contains(at));
        let named = is_unknown && (holds_secrets || line.starts_with("accounts.") || line.starts_with("admin."));
        secrets.extend(secrets_of(line, named).into_iter().map(|at| start + at.start..start + at.end));
        start += line.len();
    }
    for span in secrets {
        if let Some(secret) = bytes.get_mut(span) {
            secret.iter_mut().filter(|b| !b.is_ascii_whitespace()).for_each(|b| *b = b'*');
        }
    }
    String::from_utf8(bytes).unwrap_or_default()
}

/// The quoted texts of a line that may be secrets, by their key or their form. Works on lines, because text that is not TOML
/// is shown too. An unclosed quote extends to the end of the line.
fn secrets_of(line: &str, named: bool) -> Vec<Range<usize>> {
    let Some((key, value)) = line.split_once('=') else { return vec![] };
    let key_says = ["secret", "token", "password", "api_key", "apikey", "api-key"];
    let key = key.to_ascii_lowercase();
    let by_key = named || key_says.iter().any(|word| key.contains(word));
    let (mut found, mut at) = (Vec::new(), line.len() - value.len());
    while let Some((begin, quote)) =
        line.get(at..).and_then(|rest| rest.char_indices().find(|(_, c)| matches!(c, '"' | '\'')))
    {
        let begin = at + begin + 1;
        let rest = line.get(begin..).unwrap_or_default();
        let end = begin + rest.find(quote).unwrap_or(rest.trim_end().len());
        let text = line.get(begin..end).unwrap_or_default();
        // `{ env = "NAME" }` and `{ file = "/path" }` hold the place of a secret, not the secret.
        let before =
            line.get(..begin - 1).unwrap_or_default().trim_end().strip_suffix('=').unwrap_or_default().trim_end();
        let is_elsewhere = ["env", "file"]
            .iter()
            .any(|word| before.ends_with(&format!(" {word}")) || before.ends_with(&format!("{{{word}")));
        if !is_elsewhere && (by_key || looks_secret(text)) {
            found.push(begin..end);
        } else if let Some(password) = password_in(text) {
            found.push(begin + password.start..begin + password.end);
        }
        at = end + 1;
    }
    found
}

/// The place of the password in a URL, however malformed: from the colon after the user to the last `@`.
fn password_in(text: &str) -> Option<Range<usize>> {
    let end = text.rfind('@')?;
    let user = text.find("//").map_or(0, |at| at + 2);
    let colon = text.get(user..end)?.find(':')?;
    Some(user + colon + 1..end)
}

/// Removes the password of a URL in a sentence.
pub(crate) fn without_password(sentence: &str) -> String {
    let mut sentence = sentence.to_owned();
    if let Some(password) = password_in(&sentence) {
        sentence.replace_range(password, "***");
    }
    sentence
}

/// Whether a text looks like a key: long, without spaces or dots, letters and digits mixed. Ids of agents, numbers and
/// Twilio accounts look alike, but are excluded.
fn looks_secret(text: &str) -> bool {
    const IDS: [&str; 6] = ["agent_", "phnum_", "conv_", "AC", "CA", "PN"];
    let mixed = text.chars().any(|c| c.is_ascii_digit()) && text.chars().any(|c| c.is_ascii_alphabetic());
    let of_keys = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '+' | '=');
    text.len() >= 20 && mixed && text.chars().all(of_keys) && !IDS.iter().any(|id| text.starts_with(id))
}

/// Renders diagnostics in the style of rustc.
pub fn render(diagnostics: &[Diagnostic], path: &str, text: &str) -> String {
    render_with(&Renderer::plain(), diagnostics, path, text)
}

/// As [`render`], in colour.
pub fn render_coloured(diagnostics: &[Diagnostic], path: &str, text: &str) -> String {
    render_with(&Renderer::styled(), diagnostics, path, text)
}

fn render_with(renderer: &Renderer, diagnostics: &[Diagnostic], path: &str, text: &str) -> String {
    let text = &without_secrets(diagnostics, text);
    let mut out = String::new();
    for d in diagnostics {
        let level = match d.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let title = level.primary_title(&d.title).id(d.code);
        let mut group = match &d.span {
            Some(span) => {
                let primary = AnnotationKind::Primary.span(span.clone());
                let primary = if d.label.is_empty() { primary } else { primary.label(&d.label) };
                let mut snippet = Snippet::source(text).path(path).annotation(primary);
                if let Some((span, label)) = &d.context {
                    snippet = snippet.annotation(AnnotationKind::Context.span(span.clone()).label(label));
                }
                title.element(snippet)
            }
            None => Group::with_title(title),
        };
        if let Some(help) = &d.help {
            group = group.element(Level::HELP.message(help));
        }
        out.push_str(&renderer.render(&[group]));
        out.push_str("\n\n");
    }
    out
}

/// The line and column of a byte, in characters, both starting at 1.
pub fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.rsplit('\n').next().unwrap_or_default();
    (1 + before.matches('\n').count(), 1 + line.chars().count())
}

/// A summary such as `2 errors, 1 warning`; zeros are omitted.
pub fn summary(diagnostics: &[Diagnostic]) -> String {
    let words = |severity, word: &str| match diagnostics.iter().filter(|d| d.severity == severity).count() {
        0 => None,
        1 => Some(format!("1 {word}")),
        n => Some(format!("{n} {word}s")),
    };
    let all = [words(Severity::Error, "error"), words(Severity::Warning, "warning")];
    all.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(text: &str, at: &str) -> String {
        let report = Report::default();
        let start = text.find(at).unwrap();
        report.error("E014", Some(start..start + at.len()), "unknown key", "");
        render(&report.finish(), "ringfence.toml", text)
    }

    #[test]
    fn what_may_be_a_secret_is_never_drawn() {
        for text in [
            "[accounts.elevenlabs]\napi_ky = \"hunter2\"\n",
            "[accounts.elevenlabs]\napi_ky = 'hunter2'\n",
            "[accounts.elevenlabs]\napi_ky = [\"x\", \"hunter2\"]\n",
            "[accounts.elevenlabs.more]\napi_ky = \"hunter2\"\n",
            "accounts.elevenlabs = { api_ky = \"hunter2\" }\n",
            "[ admin ]\ntoken_secrt = \"hunter2\" # api_ky\n",
            "[listen]\napi_ky_token = \"hunter2\"\n",
            "api_ky = \"sk_hunter2aaaaaaaaaaaaaaaa\"\n",
            "[accounts.elevenlabs]\napi_ky = \"hunter2\n",
            "[accounts.elevenlabs]\napi_ky = \"é\" # \"hunter2",
        ] {
            let drawn = drawn(text, if text.contains("token_secrt") { "token_secrt" } else { "api_ky" });
            assert!(drawn.contains("E014") && drawn.contains('*') && !drawn.contains("hunter2"), "{drawn}");
        }
    }

    #[test]
    fn no_password_of_a_url_is_drawn_or_told() {
        for url in [
            "https://ops:hunter2@app.example.com",
            "https//ops:hunter2@app.example.com",
            "https:/ops:hunter2@app.example.com",
            "https://ops:hun@ter2@app.example.com/",
            "https://ops:hunter2@@app",
            "htps:ops:hunter2@app.example.com",
            "ops:hunter2@app.example.com",
            "http://ops:hunter2/x@app.example.com:80:80",
        ] {
            let drawn = drawn(&format!("[app]\nforward_url = \"{url}\"\n"), "forward_url");
            assert!(drawn.contains("E014") && !drawn.contains("hunter2") && !drawn.contains("ter2"), "{drawn}");
            let told = without_password(&format!("`app.forward_url`: {url:?} is not a URL"));
            assert!(!told.contains("hunter2") && !told.contains("ter2"), "{told}");
        }
    }

    #[test]
    fn what_is_no_secret_is_drawn() {
        for text in [
            "[listen]\napii = \"127.0.0.1:8080\"\n",
            "[accounts.elevenlabs]\napii = { env = \"ELEVENLABS_API_KEY\" }\n",
            "[inbound]\napii = \"agent_01jx7yw6de2mqrsq14010xgma5\"\n",
            "[accounts.elevenlabs]\napii = { env = \"ELEVENLABS_API_KEY_OF_2026\" }\n",
            "[accounts.elevenlabs]\napi_key = {env=\"ELEVENLABS_API_KEY_OF_2026\"} # apii\n",
            "[app]\napii = \"ops@example.com, https://app.example.com/@x\"\n",
        ] {
            let (drawn, line) = (drawn(text, "apii"), text.lines().nth(1).unwrap());
            assert!(drawn.contains(line), "{drawn}");
        }
    }
}
