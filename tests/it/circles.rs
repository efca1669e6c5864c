//! No circles between files: two files that import each other can only be read together. Tests inside of them do not count.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::support::source::files;

/// The path of a module: `["calls", "outbound"]`.
type Module = Vec<String>;

/// Files that still import each other, with the reason. A circle of other files fails, and so does a line here without its circle.
const KNOWN: [(&[&str], &str); 2] = [
    (
        &["admin", "admin/listing", "admin/operator", "admin/reload"],
        "mod.rs has the handler; its parts implement methods of it, and mod.rs routes to them",
    ),
    (
        &["net/connection", "net/edge", "net/exchange"],
        "the listener's handler answers exchanges, and an exchange has the state of its listener",
    ),
];

/// A file's code, as far as imports are concerned.
#[derive(Default)]
struct Source {
    /// All paths that it names, apart from those that it passes on.
    used: BTreeSet<Module>,
    /// What it passes on (`pub use`): by the name under which it does.
    passed_on: BTreeMap<String, Module>,
    /// Modules of which it passes all on.
    globs: Vec<Module>,
    /// What it defines.
    defined: BTreeSet<String>,
}

fn module_of(path: &Path) -> Module {
    let parts = path.with_extension("");
    let mut module: Module = parts.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    if module.last().is_some_and(|last| last == "mod" || last == "lib") {
        module.pop();
    }
    module
}

/// The code without comments, visibilities, and tests at its end; and the test modules that it declares.
fn code(text: &str, module: &Module, tests: &mut BTreeSet<Module>) -> String {
    let (mut code, mut is_test) = (String::new(), false);
    for line in text.lines() {
        let mut line = line.split("//").next().unwrap_or_default().trim().to_owned();
        while let Some(from) = line.find("pub(") {
            let to = from + line[from..].find(')').unwrap();
            line.replace_range(from..=to, "pub");
        }
        let declared = line.strip_prefix("pub ").unwrap_or(&line);
        if let Some(name) = declared.strip_prefix("mod ").filter(|_| is_test) {
            match name.strip_suffix(';') {
                Some(name) => drop(tests.insert([&module[..], &[name.to_owned()]].concat())),
                None => break,
            }
            is_test = false;
            continue;
        }
        is_test = line == "#[cfg(test)]" || (is_test && line.starts_with("#["));
        code.push_str(&line);
        code.push('\n');
    }
    code
}

fn segments(path: &str) -> Module {
    path.split("::").map(|one| one.trim().to_owned()).filter(|one| !one.is_empty()).collect()
}

/// The paths of a `use`, each with the name that it gets.
fn flatten(tree: &str, prefix: &[String], all: &mut Vec<(Module, String)>) {
    if let Some((head, rest)) = tree.split_once('{') {
        let prefix = [prefix, &segments(head)].concat();
        let (mut depth, mut part) = (0, String::new());
        for c in rest[..rest.rfind('}').unwrap()].chars().chain([',']) {
            depth += i32::from(c == '{') - i32::from(c == '}');
            if c == ',' && depth == 0 {
                if !part.trim().is_empty() {
                    flatten(&part, &prefix, all);
                }
                part.clear();
            } else {
                part.push(c);
            }
        }
        return;
    }
    let (path, name) = tree.split_once(" as ").map_or((tree, None), |(path, name)| (path, Some(name.trim())));
    let mut path = [prefix, &segments(path)].concat();
    if path.last().is_some_and(|last| last == "self") {
        path.pop();
    }
    let name = name.map_or_else(|| path.last().cloned().unwrap_or_default(), str::to_owned);
    all.push((path, name));
}

/// A path from the root of the crate; none: it is another crate's.
fn absolute(path: &[String], module: &Module, modules: &BTreeSet<Module>) -> Option<Module> {
    match path.first()?.as_str() {
        "crate" => Some(path[1..].to_vec()),
        "self" => Some([&module[..], &path[1..]].concat()),
        "super" => {
            let ups = path.iter().take_while(|one| *one == "super").count();
            Some([&module[..module.len().checked_sub(ups)?], &path[ups..]].concat())
        }
        first => {
            let child = [&module[..], &[first.to_owned()]].concat();
            modules.contains(&child).then(|| [&module[..], path].concat())
        }
    }
}

fn read(code: &str, module: &Module, modules: &BTreeSet<Module>) -> Source {
    let mut source = Source::default();
    let mut rest = String::new();
    let mut statements = code.split_inclusive('\n').peekable();
    while let Some(line) = statements.next() {
        let public = line.strip_prefix("pub use ");
        let Some(used) = public.or(line.strip_prefix("use ")) else {
            rest.push_str(line);
            continue;
        };
        let mut tree = used.to_owned();
        while !tree.contains(';') {
            tree.push_str(statements.next().unwrap_or(";"));
        }
        let (mut all, tree) = (vec![], tree.replace([';', '\n'], " "));
        flatten(&tree, &[], &mut all);
        for (path, name) in all {
            let Some(path) = absolute(&path, module, modules) else { continue };
            match (public.is_some(), name.as_str()) {
                (true, "*") => source.globs.push(path[..path.len() - 1].to_vec()),
                (true, _) => drop(source.passed_on.insert(name, path)),
                (false, _) => drop(source.used.insert(path)),
            }
        }
    }
    for word in rest.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':')) {
        let path = segments(word);
        if word.contains("::") && path.len() > 1 && !word.starts_with(':') {
            source.used.extend(absolute(&path, module, modules));
        }
    }
    let mut words = rest.split_whitespace();
    while let Some(word) = words.next() {
        if ["struct", "enum", "fn", "trait", "type", "const", "static"].contains(&word) {
            let name = words.next().unwrap_or_default();
            let end = name.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(name.len());
            source.defined.insert(name[..end].to_owned());
        }
    }
    source
}

/// The file that a path leads to.
fn resolve(path: &[String], sources: &BTreeMap<Module, Source>, depth: u32) -> Option<Module> {
    for n in 0..path.len() {
        let at = sources.get(&path[..n]).and_then(|source| source.passed_on.get(&path[n]));
        if let Some(at) = at.filter(|_| depth < 8) {
            return resolve(&[&at[..], &path[n + 1..]].concat(), sources, depth + 1);
        }
    }
    let n = (0..=path.len()).rev().find(|n| sources.contains_key(&path[..*n]))?;
    let globs = path.get(n).map_or(&[][..], |_| &sources[&path[..n]].globs);
    let from_glob = globs.iter().find(|at| sources.get(*at).is_some_and(|of| of.defined.contains(&path[n])));
    Some(from_glob.cloned().unwrap_or_else(|| path[..n].to_vec()))
}

/// What each file imports of others.
fn imports() -> BTreeMap<Module, BTreeSet<Module>> {
    let mut tests = BTreeSet::new();
    let mut codes: BTreeMap<Module, String> = BTreeMap::new();
    for (path, text) in files("src") {
        let module = module_of(&path);
        let code = code(&text, &module, &mut tests);
        codes.insert(module, code);
    }
    codes.retain(|module, _| !tests.iter().any(|test| module.starts_with(test)));
    let modules: BTreeSet<Module> = codes.keys().cloned().collect();
    let sources: BTreeMap<Module, Source> =
        codes.iter().map(|(module, code)| (module.clone(), read(code, module, &modules))).collect();
    let mut imports = BTreeMap::new();
    for (module, source) in &sources {
        let used = source.used.iter().filter_map(|path| resolve(path, &sources, 0));
        let others = used.filter(|other| other != module && !other.is_empty()).collect();
        imports.insert(module.clone(), others);
    }
    imports
}

fn reached(from: &Module, imports: &BTreeMap<Module, BTreeSet<Module>>) -> BTreeSet<Module> {
    let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
    while let Some(module) = next.pop() {
        for other in &imports[module] {
            if seen.insert(other.clone()) {
                next.push(other);
            }
        }
    }
    seen
}

#[test]
fn files_do_not_import_each_other() {
    let imports = imports();
    assert!(imports.values().map(BTreeSet::len).sum::<usize>() > 1_000, "imports are read");
    let reached: BTreeMap<&Module, BTreeSet<Module>> =
        imports.keys().map(|module| (module, self::reached(module, &imports))).collect();
    let circle = |module: &Module| {
        let on_it = reached[module].iter().filter(|other| reached[*other].contains(module));
        on_it.map(|other| other.join("/")).collect::<BTreeSet<_>>()
    };
    let circles: BTreeSet<BTreeSet<String>> = imports.keys().map(circle).filter(|all| all.len() > 1).collect();
    let known: BTreeSet<BTreeSet<String>> =
        KNOWN.iter().map(|(files, _)| files.iter().map(|file| (*file).to_owned()).collect()).collect();
    let shown = |circles: Vec<&BTreeSet<String>>| {
        let lines = circles.into_iter().map(|files| files.iter().cloned().collect::<Vec<_>>().join(", "));
        lines.collect::<Vec<_>>().join("\n")
    };
    let (new, gone) = (shown(circles.difference(&known).collect()), shown(known.difference(&circles).collect()));
    assert!(new.is_empty(), "files import each other:\n{new}");
    assert!(gone.is_empty(), "excepted, but no longer a circle:\n{gone}");
}
