//! Broker URIs: what is accepted means what it says, by a second parser and by writing it down again; what is refused is
//! refused without the password.

use outboxd::config::uri::{BrokerEndpoint, Host};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use proptest::{prelude::*, test_runner::TestCaseResult};
use serde::{Deserialize, Serialize};

/// Part of every password, and of nothing else.
const CANARY: &str = "cAnArY";

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    uri: String,
    /// Only in the corpus: accepted, or refused with this in its words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expect: Option<String>,
}

fn inputs() -> impl Strategy<Value = Input> {
    let scheme = prop_oneof![
        8 => Just("amqp://".to_owned()),
        4 => Just("amqps://".to_owned()),
        1 => "[aAmqps:/]{0,8}",
    ];
    let special = "[a-z0-9%:/?#@,=&\\[\\]\u{1}é +-]{0,6}";
    let escape = prop::sample::select(vec![
        "%00", "%2f", "%2F", "%40", "%25", "%ff", "%zz", "%", "%c3%a9", "%0a",
    ]);
    let user = prop_oneof![
        Just("relay".to_owned()),
        special.prop_map(|s| s),
        escape.clone().prop_map(str::to_owned)
    ];
    let password = (special, escape.clone(), any::<bool>(), special).prop_map(
        |(before, escape, escaped, after)| {
            let escape = if escaped { escape } else { "" };
            format!(":{before}{CANARY}{escape}{after}")
        },
    );
    let userinfo = prop_oneof![
        6 => (user, password).prop_map(|(user, password)| format!("{user}{password}@")),
        1 => Just(String::new()),
        1 => Just("relay@".to_owned()),
    ];
    let host = prop_oneof![
        4 => "[a-z][a-z0-9.-]{0,12}",
        1 => any::<std::net::Ipv4Addr>().prop_map(|ip| ip.to_string()),
        1 => any::<std::net::Ipv6Addr>().prop_map(|ip| format!("[{ip}]")),
        1 => "[a-z0-9.:,\\[\\]%]{0,12}",
        1 => "[a-z]{250,256}",
    ];
    let port = prop_oneof![
        3 => Just(String::new()),
        3 => any::<u16>().prop_map(|port| format!(":{port}")),
        1 => ":[0-9+ a-z-]{0,7}",
    ];
    let vhost = prop_oneof![
        3 => Just(String::new()),
        2 => "/[a-z0-9._-]{1,8}",
        1 => "/[a-z0-9/%@:é]{0,8}",
        1 => escape.prop_map(|escape| format!("/{escape}")),
        1 => "/[a-z]{250,260}",
    ];
    let tail = prop_oneof![
        6 => Just(String::new()),
        1 => "[?#][a-z_=&0-9]{0,12}",
    ];
    let grammar = (scheme, userinfo, host, port, vhost, tail).prop_map(
        |(scheme, userinfo, host, port, vhost, tail)| {
            format!("{scheme}{userinfo}{host}{port}{vhost}{tail}")
        },
    );
    prop_oneof![
        8 => grammar,
        1 => ".{0,40}",
        1 => ".{0,40}".prop_map(|rest| format!("amqp://{rest}")),
    ]
    .prop_map(|uri| Input { uri, expect: None })
}

fn judge(input: &Input) -> TestCaseResult {
    let uri = &input.uri;
    let result = BrokerEndpoint::parse(uri);
    match &input.expect {
        None => {}
        Some(expect) if expect == "accepted" => {
            prop_assert!(result.is_ok(), "{:?}", result);
        }
        Some(words) => {
            let error = result.as_ref().expect_err("to be refused").to_string();
            prop_assert!(error.contains(words), "{}", error);
        }
    }
    let endpoint = match result {
        Ok(endpoint) => endpoint,
        Err(error) => {
            let shown = format!("{error} {error:?}");
            prop_assert!(!shown.contains(CANARY), "{}", shown);
            prop_assert!(!shown.contains(char::is_control), "{:?}", shown);
            return Ok(());
        }
    };
    let shown = format!("{endpoint:?} {}", endpoint.address());
    prop_assert!(!shown.contains(CANARY), "{}", shown);
    fits_amqp(&endpoint)?;

    let again = BrokerEndpoint::parse(&written(&endpoint));
    prop_assert_eq!(again.as_ref(), Ok(&endpoint));
    agrees_with_another_parser(uri, &endpoint)
}

/// Short strings of 255 bytes, and SASL PLAIN with its NULs.
fn fits_amqp(endpoint: &BrokerEndpoint) -> TestCaseResult {
    prop_assert!(endpoint.port > 0);
    prop_assert!(
        (1..=255).contains(&endpoint.vhost.len()),
        "virtual host of {} bytes",
        endpoint.vhost.len()
    );
    prop_assert!(!endpoint.vhost.contains('\0'));
    let user = endpoint.username.as_deref();
    prop_assert!(user.is_none_or(|user| !user.is_empty() && !user.contains('\0')));
    let password = endpoint.password.as_ref();
    prop_assert!(password.is_none_or(|p| !p.expose().contains('\0')));
    Ok(())
}

fn written(endpoint: &BrokerEndpoint) -> String {
    let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let user = endpoint.username.as_deref().map(encoded);
    let password = endpoint.password.as_ref().map(|p| encoded(p.expose()));
    let userinfo = match (user, password) {
        (None, None) => String::new(),
        (user, None) => format!("{}@", user.unwrap_or_default()),
        (user, Some(password)) => format!("{}:{password}@", user.unwrap_or_default()),
    };
    let scheme = if endpoint.tls { "amqps" } else { "amqp" };
    let vhost = encoded(&endpoint.vhost);
    format!("{scheme}://{userinfo}{}/{vhost}", endpoint.address())
}

/// The WHATWG parser, where its rules are ours: it drops white space and control characters, we do not.
fn agrees_with_another_parser(uri: &str, endpoint: &BrokerEndpoint) -> TestCaseResult {
    if uri.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return Ok(());
    }
    let other =
        url::Url::parse(uri).map_err(|e| TestCaseError::fail(format!("the other parser: {e}")))?;
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let user = Some(decoded(other.username())).filter(|user| !user.is_empty());
    prop_assert_eq!(&endpoint.username, &user);
    let password = endpoint
        .password
        .as_ref()
        .map(|p| p.expose())
        .unwrap_or_default();
    prop_assert_eq!(password, decoded(other.password().unwrap_or_default()));
    let default = if endpoint.tls { 5671 } else { 5672 };
    prop_assert_eq!(endpoint.port, other.port().unwrap_or(default));
    let host = other.host_str().unwrap_or_default();
    match &endpoint.host {
        Host::Name(name) => prop_assert_eq!(name, host),
        Host::Ip(ip) => {
            let bare = host.trim_start_matches('[').trim_end_matches(']');
            prop_assert_eq!(Ok(*ip), bare.parse());
        }
    }
    let path = other.path();
    let vhost = if path.is_empty() {
        "/".to_owned()
    } else {
        decoded(&path[1..])
    };
    // It also walks through "." and ".." of a path; here they are names.
    prop_assert!(endpoint.vhost == vhost || [".", ".."].contains(&endpoint.vhost.as_str()));
    Ok(())
}

#[test]
fn broker_uris() {
    crate::fuzz("uri", &inputs(), judge);
}
