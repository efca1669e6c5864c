//! The docs: every link leads somewhere, every page is in the contents, and commands, files, keys, metrics and codes that a page
//! names exist.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::reference::{read, root};

/// The pages that people read: those of the root, and all below `docs`.
fn pages() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![String::new(), "docs".to_owned(), "benches".to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(root(&folder)).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
            if entry.path().is_dir() && folder.starts_with("docs") {
                open.push(path);
            } else if Path::new(&name).extension().is_some_and(|ext| ext == "md") {
                let text = read(&path);
                found.insert(path, text);
            }
        }
    }
    assert!(found.len() > 25, "{:?}", found.keys());
    found
}

/// Lines with their number.
type Lines<'t> = Vec<(usize, &'t str)>;

/// The lines of a page that are prose, and those in fenced blocks.
fn parts(text: &str) -> (Lines<'_>, Lines<'_>) {
    let (mut prose, mut fenced, mut fence) = (Vec::new(), Vec::new(), false);
    for (n, line) in text.lines().enumerate() {
        match line.trim_start().starts_with("```") {
            true => fence = !fence,
            false if fence => fenced.push((n + 1, line)),
            false => prose.push((n + 1, line)),
        }
    }
    (prose, fenced)
}

/// What stands in backticks in a line.
fn code_spans(line: &str) -> Vec<&str> {
    line.split('`').skip(1).step_by(2).collect()
}

/// The anchor of a heading, as forges make it.
fn anchor(heading: &str) -> String {
    let text = heading.trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn anchors(text: &str) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for (_, line) in parts(text).0 {
        let Some(heading) = line.strip_prefix('#') else { continue };
        let heading = anchor(heading.trim_start_matches('#'));
        let mut numbered = (1..).map(|n| format!("{heading}-{n}"));
        let free = if all.contains(&heading) { numbered.find(|one| !all.contains(one)) } else { Some(heading) };
        all.extend(free);
    }
    all
}

/// The targets of `[text](target)` in a line of prose.
fn links(line: &str) -> Vec<&str> {
    line.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next()).collect()
}

/// A path relative to a page, without `..`.
fn resolve(page: &str, target: &str) -> String {
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            ".." => drop(parts.pop()),
            "." | "" => {}
            name => parts.push(name),
        }
    }
    parts.join("/")
}

#[test]
fn every_link_leads_somewhere() {
    let pages = pages();
    let (mut wrong, mut followed) = (Vec::new(), 0);
    for (page, text) in &pages {
        for (n, line) in parts(text).0 {
            for target in links(line) {
                if target.contains("://") || target.starts_with("mailto:") {
                    continue;
                }
                followed += 1;
                let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
                let to = if file.is_empty() { page.clone() } else { resolve(page, file) };
                let exists = root(&to).exists();
                let has = anchor.is_empty() || pages.get(&to).is_some_and(|text| anchors(text).contains(anchor));
                if !exists || !has {
                    wrong.push(format!("{page}:{n}: {target}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "links that lead nowhere:\n{}", wrong.join("\n"));
    assert!(followed > 100, "{followed}");
}

#[test]
fn every_page_is_in_the_contents_once() {
    let contents = read("docs/SUMMARY.md");
    let listed: Vec<String> =
        contents.lines().flat_map(links).map(|target| resolve("docs/SUMMARY.md", target)).collect();
    for page in pages().keys().filter(|page| page.starts_with("docs/") && *page != "docs/SUMMARY.md") {
        assert_eq!(listed.iter().filter(|one| *one == page).count(), 1, "docs/SUMMARY.md and {page}");
    }
}

#[test]
fn the_readme_is_short() {
    let lines = read("README.md").lines().count();
    assert!(lines <= 180, "README.md has {lines} lines: what is not needed to begin belongs to a page in docs");
}

/// A command line as a page shows it: whether ringfence knows the command, and its options.
fn wrong_command(line: &str) -> Option<String> {
    let line = line.split(['#', ';', '&', '|', '<', '>', '(']).next().unwrap_or_default();
    let words = line.split_whitespace().map(|word| word.trim_end_matches([',', '.', ':'])).skip(1);
    let mut command = ringfence::cli::command();
    command.build();
    let mut options: BTreeSet<String> = BTreeSet::from(["help".to_owned(), "version".to_owned()]);
    let mut at_command = true;
    for word in words {
        let word = word.trim_start_matches('[').trim_end_matches(']');
        options.extend(command.get_arguments().filter_map(|arg| arg.get_long().map(str::to_owned)));
        if let Some(option) = word.strip_prefix("--") {
            let name = option.split('=').next().unwrap_or_default().to_owned();
            if !name.is_empty() && !options.contains(&name) {
                return Some(format!("{} has no --{name}", command.get_name()));
            }
        } else if at_command && command.has_subcommands() && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'-') {
            match command.find_subcommand(word) {
                Some(found) => command = found.clone(),
                None => return Some(format!("{} has no command {word}", command.get_name())),
            }
            at_command = command.has_subcommands();
        }
    }
    None
}

#[test]
fn commands_that_are_shown_exist() {
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for (page, text) in pages() {
        let (prose, fenced) = parts(&text);
        let shown = fenced.into_iter().map(|(n, line)| (n, line.trim_start().trim_start_matches("$ ")));
        for (n, line) in
            shown.chain(prose.iter().flat_map(|(n, line)| code_spans(line).into_iter().map(|span| (*n, span))))
        {
            if line.starts_with("ringfence ") {
                seen += 1;
                wrong.extend(wrong_command(line).map(|why| format!("{page}:{n}: {line}: {why}")));
            }
            if let Some(script) = line.strip_prefix("bash ").and_then(|rest| rest.split_whitespace().next()) {
                seen += 1;
                if !root(script).exists() {
                    wrong.push(format!("{page}:{n}: {line}: there is no {script}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 40, "{seen}");
}

/// Keys of the config, as `table.key`; keys of an account or business stand for any.
fn config_keys() -> BTreeSet<String> {
    let (mut table, mut keys) = (String::new(), BTreeSet::new());
    for line in read("config/reference.toml").lines() {
        if let Some(header) = line.strip_prefix('[') {
            table = header.trim_start_matches('[').split(']').next().unwrap_or_default().to_owned();
            keys.insert(table.clone());
        } else if let Some((key, _)) =
            line.trim_start_matches("# ").split_once('=').filter(|(key, _)| !key.trim().contains(' '))
        {
            keys.insert(format!("{table}.{}", key.trim()).trim_start_matches('.').to_owned());
        }
    }
    keys
}

#[test]
fn keys_metrics_and_files_that_are_named_exist() {
    let keys = config_keys();
    let tables: BTreeSet<&str> = keys.iter().filter_map(|key| key.split('.').next()).collect();
    let metrics: BTreeSet<String> = {
        let all = ringfence::metrics::Metrics::new().unwrap();
        all.descriptions().iter().map(|one| one.name.clone()).collect()
    };
    let codes: BTreeSet<&str> = ringfence::config::codes::CODES.iter().map(|(code, _)| *code).collect();
    let word = |text: &str| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for (page, text) in pages() {
        // A page of changes names what is gone, a provider file has tables of its own.
        if page == "CHANGELOG.md" || page == "docs/reference/provider-file.md" || page == "docs/adding-a-provider.md" {
            continue;
        }
        for (n, line) in parts(&text).0 {
            for span in code_spans(line) {
                let key = span.split([' ', '=']).next().unwrap_or_default();
                let is_key = key.split_once('.').is_some_and(|(table, rest)| {
                    tables.contains(table)
                        && rest.split('.').all(word)
                        && !key.starts_with("businesses.")
                        && !key.starts_with("accounts.")
                });
                let is_file = ["rs", "toml", "db", "md", "py", "c"].iter().any(|ext| key.ends_with(&format!(".{ext}")));
                // A property of Twilio's SDK, not a key.
                if is_key && !is_file && key != "client.api.base_url" {
                    seen += 1;
                    if !keys.contains(key) {
                        wrong.push(format!("{page}:{n}: there is no config key {key}"));
                    }
                }
                let name = span.split(['{', ' ']).next().unwrap_or_default();
                if name.starts_with("ringfence_") && word(name) && !["ringfence_", "ringfence_call"].contains(&name) {
                    seen += 1;
                    if !metrics.contains(name) {
                        wrong.push(format!("{page}:{n}: there is no metric {name}"));
                    }
                }
                let is_code =
                    span.len() == 4 && span.starts_with(['E', 'W']) && span[1..].bytes().all(|b| b.is_ascii_digit());
                if is_code && !codes.contains(span) {
                    wrong.push(format!("{page}:{n}: there is no code {span}"));
                }
                let is_name = !span.contains(['{', '*', ' ', '…', ':', '<']) && !span.starts_with(['/', '.']);
                let is_path =
                    span.contains('/') && [".toml", ".py", ".sh", ".md"].iter().any(|ext| span.ends_with(ext));
                if is_name && (is_path || span.ends_with(".rs")) {
                    seen += 1;
                    let places =
                        [root(span), root("src").join(span), root("tests").join(span), root(&resolve(&page, span))];
                    if !places.iter().any(|path| path.exists()) {
                        wrong.push(format!("{page}:{n}: there is no file {span}"));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 150, "{seen}");
}

/// The page's example is a provider file that ringfence reads.
#[test]
fn the_example_of_a_provider_is_sound() {
    let page = read("docs/adding-a-provider.md");
    let example = page.split("```toml\n").find(|block| block.starts_with("name ")).expect("an example");
    let example = example.split("```").next().unwrap_or_default();
    let registry = ringfence::provider::Registry::new(&[("voicely.toml".to_owned(), example.to_owned())]).unwrap();
    assert!(registry.get("voicely").unwrap().looks_up("voicely_call"));
}

/// Presets of signatures that a page names exist, and each one is named.
#[test]
fn every_preset_of_a_signature_is_named() {
    let page = read("docs/webhooks.md");
    for preset in ringfence::provider::sign::Signature::presets() {
        assert!(page.contains(&format!("`{preset}`")), "docs/webhooks.md does not name the preset {preset}");
    }
}
