//! The layers of the house (`src/lib.rs`): a module imports only from layers below its own, and the pure ones stay pure.

use std::collections::BTreeMap;

use crate::support::source::{files, is_test};

/// Module → layer, as the crate's documentation draws it.
fn layers() -> BTreeMap<String, u32> {
    let text = include_str!("../../src/lib.rs");
    let (mut layer, mut found) = (0, BTreeMap::new());
    for line in text.lines().filter_map(|l| l.strip_prefix("//! ")) {
        let mut words = line.split_whitespace();
        let first = match line.strip_prefix('L').and_then(|l| l.split_whitespace().next()?.parse().ok()) {
            Some(n) => {
                layer = n;
                words.nth(1)
            }
            None if line.starts_with("    ") => words.next(),
            None => None,
        };
        if let Some(name) = first.filter(|n| text.contains(&format!("pub mod {n};"))) {
            found.insert(name.to_owned(), layer);
        }
    }
    found
}

/// (module, file:line, code without comments, whether it is a test).
fn lines() -> Vec<(String, String, String, bool)> {
    lines_below("src")
}

fn lines_below(folder: &str) -> Vec<(String, String, String, bool)> {
    let mut all = Vec::new();
    for (relative, text) in files(folder) {
        let module = relative.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs");
        let mut test = is_test(&relative);
        for (n, line) in text.lines().enumerate() {
            test |= line.contains("#[cfg(test)]");
            let code = line.split("//").next().unwrap_or_default().to_owned();
            all.push((module.to_owned(), format!("{folder}/{}:{}", relative.display(), n + 1), code, test));
        }
    }
    all
}

#[test]
fn every_module_has_its_place() {
    let drawn = layers();
    let declared =
        include_str!("../../src/lib.rs").lines().filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';'));
    for module in declared {
        assert!(drawn.contains_key(module), "src/lib.rs declares {module}, but its map does not show it");
    }
}

#[test]
fn imports_go_downwards() {
    let layers = layers();
    let mut wrong = Vec::new();
    for (module, place, code, test) in lines() {
        let Some(own) = layers.get(&module).filter(|_| !test) else { continue };
        for (at, _) in code.match_indices("crate::") {
            let used: String = code[at + 7..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            if let Some(other) = layers.get(&used)
                && used != module
                && other >= own
            {
                wrong.push(format!("{place}: {module} (L{own}) imports {used} (L{other})"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Layers 0 to 2 (the clock and the failpoints apart) do no I/O, read no clock, spawn nothing.
#[test]
fn the_decision_core_is_pure() {
    let layers = layers();
    let mut wrong = Vec::new();
    for (module, place, code, test) in lines() {
        let pure =
            layers.get(&module).is_some_and(|l| *l <= 2) && !["clock", "failpoint"].contains(&module.as_str()) && !test;
        for impure in ["std::fs", "std::net", "std::process", "tokio::", "SystemTime", "Instant::now", ".await"] {
            if pure && code.contains(impure) {
                wrong.push(format!("{place}: {impure}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A create goes out in one place, and only what is admitted there: an `Admitted` cannot be made elsewhere.
#[test]
fn creates_are_sent_in_one_place() {
    let sends: Vec<_> = lines()
        .into_iter()
        .filter(|(module, _, code, test)| code.contains("upstream.create(") && module != "net" && !test)
        .map(|(_, place, ..)| place)
        .collect();
    assert!(matches!(&sends[..], [one] if one.starts_with("src/calls/outbound/admit.rs")), "{sends:?}");
    let made: Vec<_> = lines()
        .into_iter()
        .map(|(module, place, code, test)| (module, place, code.replace("Admission::Admitted {", ""), test))
        .filter(|(_, _, code, test)| (code.contains("Lease::new(") || code.contains("Admitted {")) && !test)
        .map(|(_, place, ..)| place)
        .collect();
    let may = ["src/admission", "src/calls/outbound/admit.rs", "src/policy/decision.rs", "src/store/"];
    assert!(made.iter().all(|place| may.iter().any(|may| place.starts_with(may))), "{made:?}");
}

/// One caller of prometheus, one of pingora.
#[test]
fn engines_are_known_in_one_place() {
    for (module, place, code, _) in lines() {
        assert!(!code.contains("prometheus::") || module == "metrics", "{place}");
        assert!(!(code.contains("pingora_pool::")) || module == "net", "{place}");
        assert!(!code.contains("hyper_util::") || module == "net", "{place}");
        assert!(!code.contains("sqlx::") || module == "store", "{place}");
        assert!(!code.contains("opentelemetry::") || module == "telemetry", "{place}");
        assert!(!code.contains("sentry_types::") || module == "telemetry", "{place}");
    }
}

/// What judges ringfence has no part of it: a fault that both share would hide from its own tests.
#[test]
fn the_simulator_uses_nothing_of_the_product() {
    let manifest: toml::Table = toml::from_str(include_str!("../../simulator/Cargo.toml")).unwrap();
    for (kind, packages) in manifest.iter().filter(|(kind, _)| kind.ends_with("dependencies")) {
        for (name, package) in packages.as_table().unwrap() {
            // A path, or another package under this name, could be ringfence.
            let told = package.as_table().is_some_and(|told| told.contains_key("path") || told.contains_key("package"));
            assert!(name != "ringfence" && !told, "simulator/Cargo.toml: {kind}: {name} = {package}");
        }
    }
    let taken = ["ringfence::", "#[path", "include!", "../src", "../../src"];
    let places: Vec<_> = lines_below("simulator")
        .into_iter()
        .filter(|(_, _, code, _)| taken.iter().any(|taken| code.contains(taken)))
        .map(|(_, place, code, _)| format!("{place}: {code}"))
        .collect();
    assert!(places.is_empty(), "{}", places.join("\n"));
}

/// Of the product, only the commands `simulate` and `demo` start it.
#[test]
fn the_simulator_is_started_by_commands_alone() {
    for (module, place, code, test) in lines() {
        assert!(!code.contains("ringfence_simulator") || module == "cli" || test, "{place}");
    }
}
