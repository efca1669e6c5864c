//! Destination rules.

use super::*;

#[test]
fn whom_the_app_may_call_is_read_and_nothing_is_asked_without_a_word() {
    use crate::destinations::{Kind, Validate};
    let of = |text: &str| read(&format!("{ACCOUNT}{text}")).config.expect("sound").policy;
    let bare = of("").destinations;
    assert!(bare.validate == Validate::Off && bare.rules.is_empty() && bare.only.is_none() && bare.file.is_empty());
    assert_eq!(of("[destinations]\n").destinations.validate, Validate::Possible);
    assert_eq!(
        of("[destinations]\nvalidate = \"off\"\ndenied_prefixes = [\"+1900\"]\n").destinations.validate,
        Validate::Off
    );
    let written = of(
        "[plans.SMALL]\nconcurrent = 1\n[plans.SMALL.destinations]\nallowed_prefixes = [\"90\"]\n[businesses.acme]\nplan = \"SMALL\"\n\
         [businesses.acme.destinations]\ndenied_types = [\"premium_rate\"]\n[businesses.other]\nplan = \"SMALL\"\n",
    );
    let policy = crate::policy::Policy::new(written, &[]);
    let rules = |id: &str| policy.destination_rules(&crate::ids::BusinessId::parse(id).unwrap(), "SMALL");
    assert_eq!((rules("acme").len(), rules("other").len()), (2, 1));
    assert_eq!(rules("acme")[1].denied_types, [Kind::PremiumRate]);
}

#[test]
fn mistakes_in_destinations_are_told_with_their_codes() {
    let folder = std::env::temp_dir().join(format!("ringfence-destinations-{}", crate::ids::CallId::new()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("bad.txt"), "+905321234567\nalice\n").unwrap();
    std::fs::write(folder.join("good.txt"), "+905321234567\n").unwrap();
    let codes = |section: &str| -> Vec<&'static str> {
        let text = format!("public_url = \"https://hooks.example.com\"\n{ACCOUNT}[destinations]\n{section}\n");
        let found = load(&text, &folder, &env).diagnostics;
        found.iter().filter(|d| !["W002", "W003", "W004", "W005"].contains(&d.code)).map(|d| d.code).collect()
    };
    for (section, code) in [
        ("validate = \"sometimes\"", "E005"),
        ("default_country = \"Turkey\"", "E003"),
        ("default_timezone = \"Mars\"", "E003"),
        ("allowed_prefixes = [\"abc\"]", "E003"),
        ("allowed_prefixes = []", "E004"),
        ("denied_types = [\"dear\"]", "E005"),
        ("quiet_hours = [\"at night\"]", "E003"),
        ("only_numbers = [\"alice\"]", "E003"),
        ("do_not_call_file = \"missing.txt\"", "E011"),
        ("do_not_call_file = \"bad.txt\"", "E011"),
        ("forbidden_prefixes = [\"+1\"]", "E014"),
        ("only_numbers = [\"+905321234567\"]", "W024"),
    ] {
        assert!(codes(section).contains(&code), "{section}: {:?}", codes(section));
    }
    assert_eq!(codes("do_not_call_file = \"good.txt\"\nquiet_hours = [\"daily 21:00-08:00\"]"), Vec::<&str>::new());
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn traces_go_where_the_config_or_the_fields_variables_say() {
    let endpoint = |text: &str, set: &[(&str, &str)]| {
        let lookup = |name: &str| {
            let own = set.iter().find(|(one, _)| *one == name).map(|(_, value)| (*value).to_owned());
            own.or_else(|| env(name))
        };
        let loaded = load(&format!("{ACCOUNT}{text}"), Path::new("/nowhere"), &lookup);
        let codes = codes(&loaded).join(" ");
        loaded.config.map(|config| config.traces.and_then(|to| Some(to.traces?.to_string()))).ok_or(codes)
    };
    let (all, alone) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
    let own = "[telemetry.otlp]\nendpoint = \"http://c:4318/\"\n";
    let to = |url: &str| Ok(Some(url.to_owned()));
    assert_eq!(endpoint("", &[]), Ok(None));
    assert_eq!(endpoint(own, &[]), to("http://c:4318/v1/traces"));
    assert_eq!(endpoint(own, &[(all, "http://other:4318")]), to("http://c:4318/v1/traces"));
    assert_eq!(endpoint("", &[(all, "https://c/otlp")]), to("https://c/otlp/v1/traces"));
    assert_eq!(endpoint("", &[(alone, "https://c/own/path"), (all, "https://other")]), to("https://c/own/path"));
    assert_eq!(endpoint("", &[(all, " ")]), Ok(None));
    let variable = "RINGFENCE_TELEMETRY_OTLP_ENDPOINT";
    assert_eq!(endpoint("", &[(variable, "http://c/v1/traces")]), to("http://c/v1/traces"));
    assert_eq!(endpoint("", &[(all, "collector:4318")]), Err("E003".to_owned()));
    assert_eq!(endpoint("[telemetry.otlp]\nendpoint = \"collector\"\n", &[]), Err("E003".to_owned()));
    assert_eq!(endpoint("[telemetry.otlp]\nendpont = \"http://c\"\n", &[]), Err("E014".to_owned()));
}

#[test]
fn log_lines_go_to_the_same_collector_if_they_are_asked_for() {
    let logs = |text: &str, set: &[(&str, &str)]| {
        let lookup = |name: &str| {
            let own = set.iter().find(|(one, _)| *one == name).map(|(_, value)| (*value).to_owned());
            own.or_else(|| env(name))
        };
        let loaded = load(&format!("{ACCOUNT}{text}"), Path::new("/nowhere"), &lookup);
        let codes = codes(&loaded).join(" ");
        loaded.config.map(|config| config.traces.and_then(|to| Some(to.logs?.to_string()))).ok_or(codes)
    };
    let (all, alone) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT");
    let asked = "[telemetry.otlp]\nlogs = true\n";
    let to = |url: &str| Ok(Some(url.to_owned()));
    assert_eq!(logs("", &[(all, "http://c:4318"), (alone, "http://c/logs")]), Ok(None));
    assert_eq!(logs(asked, &[(all, "http://c:4318")]), to("http://c:4318/v1/logs"));
    assert_eq!(logs(asked, &[(all, "http://c:4318"), (alone, "http://c/logs")]), to("http://c/logs"));
    let own = format!("{asked}endpoint = \"http://c:4318/v1/traces\"\n");
    assert_eq!(logs(&own, &[(alone, "http://other")]), to("http://c:4318/v1/logs"));
    assert_eq!(logs(asked, &[]), Err("E004".to_owned()));
}

#[test]
fn error_reports_go_where_the_dsn_says_and_nobody_sees_it() {
    let of = |text: &str| read(&format!("{ACCOUNT}[telemetry.sentry]\n{text}\n"));
    assert!(read(ACCOUNT).config.unwrap().reports.is_none());
    let good = of("dsn = { env = \"SENTRY_DSN\" }").config.unwrap();
    assert!(good.reports.is_some() && !format!("{:?}", good.reports).contains("key@"));
    let bad = of("dsn = \"planted\"");
    assert_eq!(codes(&bad), ["E003"]);
    assert!(!format!("{:?}", bad.diagnostics).contains("planted"));
    assert_eq!(codes(&of("dns = \"x\"")), ["E014"]);
}
