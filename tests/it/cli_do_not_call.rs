//! `ringfence do-not-call`, against a running sidecar.

use std::io::Write as _;
use std::process::Stdio;

use serde_json::Value;

use crate::cli::{Folder, command, run, sound, start, term};

#[test]
fn lists_are_changed_imported_and_asked_from_the_command_line() {
    let folder = Folder::new();
    let lines = "# asked on the phone\n+90 532 123 45 67\n\n+905329876543  # a repeat below\n00905329876543\n";
    folder.write("do-not-call.txt", "+12125550100\n");
    let text = format!(
        "{}[destinations]\ndo_not_call_file = \"do-not-call.txt\"\n[businesses.clinic]\n",
        sound("http://127.0.0.1:1")
    );
    let config = folder.write("ringfence.toml", &text);
    let (mut serve, _) = start(&["serve", "--config", &config, "--ready-json"]);
    let ask = |words: &[&str]| run(&[&["do-not-call", "--config", &config], words].concat());
    let ok = |words: &[&str]| {
        let (code, out, err) = ask(words);
        assert_eq!((code, err.as_str()), (Some(0), ""), "{words:?}: {out}");
        out
    };
    assert_eq!(ok(&["list"]), "no number is on the global list\n");
    assert_eq!(
        ok(&["add", "+905321234567", "+44 20 7946 0018", "--reason", "asked"]),
        "2 on the global list, 2 of them new\n"
    );
    assert_eq!(ok(&["add", "+905321234567"]), "1 on the global list, 0 of them new\n");
    assert_eq!(ok(&["add", "+905320000000", "--business", "clinic"]), "1 on the list of clinic, 1 of them new\n");
    let listed = ok(&["list"]);
    assert_eq!(listed.lines().count(), 2, "{listed}");
    assert!(
        listed.lines().all(|line| line.ends_with(" asked") && line.contains('•')),
        "masked, with the reason: {listed}"
    );
    assert_eq!(ok(&["check", "+90 532 123 45 67"]), "+905•••••••67 is blocked by: all\n");
    assert_eq!(ok(&["check", "+12125550100"]).lines().next().unwrap().split_once(": ").unwrap().1, "file");
    assert!(ok(&["check", "+905320000000"]).ends_with(" is on no list\n"), "it is another's list");
    let own: Value = serde_json::from_str(&ok(&["check", "+905320000000", "--business", "clinic", "--json"])).unwrap();
    assert_eq!((&own["listed"], &own["lists"][0]), (&true.into(), &"business".into()));
    assert_eq!(ok(&["remove", "+442079460018", "+442079460019"]), "1 of 2 removed from the global list\n");
    // A file is taken whole or not at all.
    let good = folder.write("good.txt", lines);
    assert_eq!(ok(&["import", &good]), "2 on the global list, 1 of them new\n");
    let bad = folder.write("bad.txt", "+905321111111\nalice\n12\n");
    let (code, out, err) = ask(&["import", &bad]);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(err.contains("nothing stored") && err.contains("line 2, 3"), "{err}");
    assert!(ok(&["check", "+905321111111"]).ends_with(" is on no list\n"));
    let mut piped = command(&["do-not-call", "--config", &config, "--business", "clinic", "import", "-"]);
    let mut piped = piped.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    piped.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let out = piped.wait_with_output().unwrap().stdout;
    assert_eq!(String::from_utf8(out).unwrap(), "2 on the list of clinic, 2 of them new\n");
    // What is wrong is said, and nothing is changed.
    let (code, _, err) = ask(&["add", "+905322222222", "alice"]);
    assert_eq!(code, Some(1));
    assert!(err.contains("number 2: ") && err.contains("nothing stored"), "{err}");
    let (code, _, err) = ask(&["check", "alice"]);
    assert!(code == Some(1) && err.contains("alice is not a telephone number"), "{err}");
    assert_eq!(ask(&["add"]).0, Some(2), "whom?");
    assert_eq!(term(&mut serve), Some(0));
}

/// More numbers than one request takes.
#[test]
fn a_long_list_is_imported_piece_by_piece() {
    let folder = Folder::new();
    let config = folder.write("ringfence.toml", &sound("http://127.0.0.1:1"));
    let (mut serve, _) = start(&["serve", "--config", &config, "--ready-json"]);
    let list: String = (0..60_000).map(|n| format!("+9053{:08}\n", 20_000_000 + n)).collect();
    let file = folder.write("list.txt", &list);
    let (code, out, err) = run(&["do-not-call", "--config", &config, "import", &file, "--json"]);
    assert_eq!(code, Some(0), "{err}");
    let said: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&said["put"], &said["new"]), (&60_000.into(), &60_000.into()));
    assert_eq!(term(&mut serve), Some(0));
}
