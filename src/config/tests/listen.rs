//! Listeners, TLS, and the sources of webhooks.

use super::*;
use crate::provider::Registry;

#[test]
fn two_listeners_need_two_addresses() {
    let listen = |text: &str| codes(&read(&format!("[listen]\n{text}\n{ACCOUNT}")));
    assert_eq!(listen("api = \"127.0.0.1:7000\"\nadmin = \":7000\""), ["E043"]);
    assert_eq!(listen("api = \":0\"\nwebhooks = \":0\"\nadmin = \":0\""), Vec::<&str>::new());
    assert_eq!(listen("api = \"127.0.0.1:7000\"\nadmin = \"127.0.0.2:7000\""), Vec::<&str>::new());
}

#[test]
fn one_public_port_takes_the_place_of_webhooks() {
    let read = |listen: &str, port: Option<&'static str>| {
        let env = move |name: &str| if name == "PORT" { port.map(str::to_owned) } else { env(name) };
        load(&format!("[listen]\n{listen}\n{ACCOUNT}"), Path::new("/nowhere"), &env)
    };
    let public = read("public = \"0.0.0.0:$PORT\"", Some("3123")).config.unwrap();
    assert_eq!((public.listen.is_public, public.listen.webhooks.to_string()), (true, "0.0.0.0:3123".to_owned()));
    assert_eq!(public.strict, Strict::NotLoopback);
    assert!(public.listen.api.ip().is_loopback() && public.listen.admin.ip().is_loopback());
    let api = read("api = \"[::1]:$PORT\"", Some("3123")).config.unwrap();
    assert_eq!((api.listen.is_public, api.listen.api.to_string()), (false, "[::1]:3123".to_owned()));
    for (listen, port, code) in [
        ("public = \"0.0.0.0:$PORT\"", None, "E003"),
        ("public = \"0.0.0.0:$PORT\"", Some("no port"), "E003"),
        ("public = \":8085\"\nwebhooks = \":8081\"", None, "E004"),
        ("public = \":8085\"\napi = \":8085\"", None, "E043"),
    ] {
        assert!(codes(&read(listen, port)).contains(&code), "{listen}: {:?}", codes(&read(listen, port)));
        assert!(read(listen, port).has_errors(), "{listen}");
    }
}

#[test]
fn tls_is_for_listeners_that_are_named_and_clients_of_those() {
    let read = |more: &str| read(&format!("[listen]\ntls_cert = \"c\"\ntls_key = \"k\"\n{more}\n{ACCOUNT}"));
    let tls = |more: &str| read(more).config.unwrap().listen.tls.unwrap();
    let names = |of: &std::collections::BTreeSet<ListenerName>| of.iter().map(|one| one.as_str()).collect::<Vec<_>>();
    assert_eq!(names(&tls("").listeners), ["api", "webhooks", "client"]);
    assert_eq!(tls("").clients, None);
    let mutual = tls("tls_client_ca = \"ca\"");
    assert_eq!(names(&mutual.clients.unwrap().1), ["api"], "admin speaks no TLS");
    let mutual = tls("tls_listeners = [\"admin\", \"api\"]\ntls_client_ca = \"ca\"");
    assert_eq!(
        (names(&mutual.listeners), names(&mutual.clients.unwrap().1)),
        (vec!["api", "admin"], vec!["api", "admin"])
    );
    for (more, code) in [
        ("tls_listeners = [\"admn\"]", "E005"),
        ("tls_client_listeners = [\"api\"]", "E004"),
        ("tls_client_ca = \"ca\"\ntls_client_listeners = [\"admin\"]", "E004"),
        ("tls_client_ca = \"ca\"\ntls_listeners = [\"client\"]", "E004"),
    ] {
        assert_eq!(codes(&read(more)), [code], "{more}");
    }
    for key in ["tls_listeners = [\"api\"]", "tls_client_ca = \"ca\"", "tls_key = \"k\""] {
        assert_eq!(
            codes(&super::tests::read(&format!("[listen]\n{key}\n{ACCOUNT}"))),
            ["E004"],
            "{key} without a certificate"
        );
    }
}

#[test]
fn webhooks_may_come_from_addresses_and_providers_that_publish_theirs() {
    let read = |webhooks: &str| read(&format!("[webhooks]\n{webhooks}\n{ACCOUNT}"));
    let allowed =
        read("allow_from = [\"elevenlabs\", \"10.0.0.0/8\", \"2001:db8::/32\"]").config.unwrap().webhooks.allow_from;
    let allowed = allowed.unwrap();
    for (address, is_in) in [("34.67.146.145", true), ("10.9.9.9", true), ("2001:db8::1", true), ("11.0.0.1", false)] {
        assert_eq!(allowed.contain(address.parse().unwrap()), is_in, "{address}");
    }
    let open = read("rate_per_address = \"200/s\"").config.unwrap().webhooks;
    assert_eq!((open.allow_from, open.rate_per_address.map(|rate| rate.count)), (None, Some(200)));
    for wrong in ["allow_from = [\"twilio\"]", "allow_from = [\"everybody\"]", "rate_per_address = \"fast\""] {
        assert_eq!(codes(&read(wrong)), ["E003"], "{wrong}");
    }
}

/// Providers publish lists of addresses.
#[test]
fn published_addresses_can_be_read() {
    for provider in Registry::new(&[]).unwrap().all() {
        crate::net::TrustedPeers::parse(&provider.webhook_addresses).unwrap();
    }
}
