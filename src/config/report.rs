//! Mistakes of a config, all at once, each with its place, and a hint.

use std::cell::RefCell;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

/// Whether a mistake stops the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth a look.
    Warning,
    /// The config cannot be used.
    Error,
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Whether it stops the program.
    pub severity: Severity,
    /// Its code, as in `E014`; stands in the README.
    pub code: &'static str,
    /// What is wrong, naming the key path.
    pub title: String,
    /// Where, in bytes of the text; `None` for keys from the environment and keys that are missing.
    pub span: Option<Range<usize>>,
    /// What stands there.
    pub label: String,
    /// Another place that explains it.
    pub context: Option<(Range<usize>, String)>,
    /// What to do.
    pub help: Option<String>,
}

/// Collects mistakes while a config is read.
#[derive(Debug, Default)]
pub struct Report {
    items: RefCell<Vec<Diagnostic>>,
}

impl Report {
    /// Adds a mistake.
    pub fn add(&self, diagnostic: Diagnostic) {
        self.items.borrow_mut().push(diagnostic);
    }

    /// An error at a place.
    pub fn error(&self, code: &'static str, span: Option<Range<usize>>, title: impl Into<String>, help: &str) {
        self.put(Severity::Error, code, span, title.into(), help);
    }

    /// A warning at a place.
    pub fn warning(&self, code: &'static str, span: Option<Range<usize>>, title: impl Into<String>, help: &str) {
        self.put(Severity::Warning, code, span, title.into(), help);
    }

    fn put(&self, severity: Severity, code: &'static str, span: Option<Range<usize>>, title: String, help: &str) {
        let help = (!help.is_empty()).then(|| help.to_owned());
        self.add(Diagnostic { severity, code, title, span, label: String::new(), context: None, help });
    }

    /// Whether there is one of this code.
    pub fn has(&self, code: &str) -> bool {
        self.items.borrow().iter().any(|d| d.code == code)
    }

    /// Everything, errors first, then by place.
    pub fn finish(self) -> Vec<Diagnostic> {
        let mut items = self.items.into_inner();
        items.sort_by_key(|d| (std::cmp::Reverse(d.severity), d.span.as_ref().map(|s| s.start)));
        items
    }
}

/// The code of a warning whose place is a secret: what stands there is never drawn.
pub const INLINE_SECRET: &str = "W001";

/// The text with every secret that stands in it painted over, byte for byte, so that places stay where they are.
fn without_secrets(diagnostics: &[Diagnostic], text: &str) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for span in diagnostics.iter().filter(|d| d.code == INLINE_SECRET).filter_map(|d| d.span.clone()) {
        if let Some(secret) = bytes.get_mut(span) {
            secret.iter_mut().filter(|b| !b.is_ascii_whitespace()).for_each(|b| *b = b'*');
        }
    }
    String::from_utf8(bytes).unwrap_or_default()
}

/// Draws mistakes as rustc draws them.
pub fn render(diagnostics: &[Diagnostic], path: &str, text: &str, colour: bool) -> String {
    let text = &without_secrets(diagnostics, text);
    let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
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

/// `2 errors, 1 warning`; what there is none of is not named.
pub fn summary(diagnostics: &[Diagnostic]) -> String {
    let words = |severity, word: &str| match diagnostics.iter().filter(|d| d.severity == severity).count() {
        0 => None,
        1 => Some(format!("1 {word}")),
        n => Some(format!("{n} {word}s")),
    };
    let all = [words(Severity::Error, "error"), words(Severity::Warning, "warning")];
    all.into_iter().flatten().collect::<Vec<_>>().join(", ")
}
