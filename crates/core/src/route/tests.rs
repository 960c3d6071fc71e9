use super::*;
use crate::message::sample;

fn rules() -> RoutingRules {
    RoutingRules {
        exchange: "events".to_owned(),
        routing_key: "{aggregate_type}.{event_type}".to_owned(),
        mandatory: true,
        routes: Vec::new(),
        allowed_exchanges: None,
    }
}

fn routed(exchange: &str, routing_key: &str, mandatory: bool) -> Routed {
    Routed {
        exchange: exchange.to_owned(),
        routing_key: routing_key.to_owned(),
        mandatory,
    }
}

#[test]
fn the_default_route_and_the_row_s_own() {
    let router = Router::new(rules()).unwrap();
    assert_eq!(
        router.route(&mut sample()).unwrap(),
        routed("events", "order.created", true)
    );
    let mut own = Message {
        exchange: Some("audit".to_owned()),
        routing_key: Some("a.b".to_owned()),
        ..sample()
    };
    assert_eq!(
        router.route(&mut own).unwrap(),
        routed("audit", "a.b", true)
    );
}

#[test]
fn the_first_rule_that_fits_wins() {
    let rule = |aggregate_type: &str, exchange: &str| Rule {
        aggregate_type: Some(aggregate_type.to_owned()),
        exchange: Some(exchange.to_owned()),
        routing_key: Some("{aggregate_id}".to_owned()),
        mandatory: Some(false),
        ..Rule::default()
    };
    let routes = vec![
        rule("invoice", "money"),
        rule("ord*", "orders"),
        rule("order", "never"),
    ];
    let router = Router::new(RoutingRules { routes, ..rules() }).unwrap();
    assert_eq!(
        router.route(&mut sample()).unwrap(),
        routed("orders", "1042", false)
    );
    let mut other = Message {
        aggregate_type: "invoices".to_owned(),
        ..sample()
    };
    assert_eq!(
        router.route(&mut other).unwrap(),
        routed("events", "invoices.created", true)
    );
    assert_eq!(router.exchanges(), ["events", "money", "never", "orders"]);
}

#[test]
fn an_allow_list_holds_for_rows_and_never_for_the_configured_exchanges() {
    let allowed_exchanges = Some(vec!["audit".to_owned()]);
    let router = Router::new(RoutingRules {
        allowed_exchanges,
        ..rules()
    })
    .unwrap();
    let with = |exchange: Option<&str>| {
        router
            .route(&mut Message {
                exchange: exchange.map(str::to_owned),
                ..sample()
            })
            .map(|r| r.exchange)
    };
    assert_eq!(with(None).unwrap(), "events");
    assert_eq!(with(Some("events")).unwrap(), "events");
    assert_eq!(with(Some("audit")).unwrap(), "audit");
    assert_eq!(
        with(Some("other")).unwrap_err().reason,
        Reason::ExchangeNotAllowed
    );
}

#[test]
fn a_row_reaches_the_default_exchange_only_where_it_is_listed() {
    let goes = |rules: RoutingRules, exchange: Option<&str>, routing_key: Option<&str>| {
        Router::new(rules)
            .unwrap()
            .route(&mut Message {
                exchange: exchange.map(str::to_owned),
                routing_key: routing_key.map(str::to_owned),
                ..sample()
            })
            .map_err(|refusal| refusal.reason)
    };
    let refused = Err(Reason::ExchangeNotAllowed);
    let listing = |names: &[&str]| {
        let names = names.iter().map(|&name| name.to_owned()).collect();
        RoutingRules {
            allowed_exchanges: Some(names),
            ..rules()
        }
    };
    assert_eq!(goes(rules(), Some(""), Some("other.queue")), refused);
    assert_eq!(goes(rules(), Some(""), None), refused);
    assert_eq!(goes(listing(&["audit"]), Some(""), Some("q")), refused);
    assert_eq!(
        goes(listing(&[""]), Some(""), Some("q")),
        Ok(routed("", "q", true))
    );
    assert_eq!(
        goes(rules(), Some("audit"), Some("q")),
        Ok(routed("audit", "q", true))
    );

    // A configured default exchange is the team's choice, but the row must not choose the queue.
    let configured = |rules: RoutingRules| RoutingRules {
        exchange: String::new(),
        ..rules
    };
    assert_eq!(
        goes(configured(rules()), None, None),
        Ok(routed("", "order.created", true))
    );
    assert_eq!(
        goes(configured(rules()), Some(""), None),
        Ok(routed("", "order.created", true))
    );
    assert_eq!(
        goes(configured(rules()), None, Some("other.queue")),
        refused
    );
    assert_eq!(
        goes(configured(listing(&["audit"])), None, Some("other.queue")),
        refused
    );
    assert_eq!(
        goes(configured(listing(&[""])), None, Some("q")),
        Ok(routed("", "q", true))
    );
}

#[test]
fn a_route_s_list_replaces_the_section_s_list_for_its_messages() {
    let named = |names: &[&str]| Some(names.iter().map(|&name| name.to_owned()).collect());
    let routes = vec![
        Rule {
            aggregate_type: Some("ord*".to_owned()),
            allowed_exchanges: named(&["sales"]),
            ..Rule::default()
        },
        Rule {
            aggregate_type: Some("refund".to_owned()),
            allowed_exchanges: named(&[]),
            ..Rule::default()
        },
    ];
    let router = Router::new(RoutingRules {
        routes,
        allowed_exchanges: named(&["audit"]),
        ..rules()
    })
    .unwrap();
    let goes = |aggregate_type: &str, exchange: &str| {
        let mut message = Message {
            aggregate_type: aggregate_type.to_owned(),
            exchange: Some(exchange.to_owned()),
            ..sample()
        };
        router.route(&mut message).is_ok()
    };
    for (aggregate_type, exchange, expected) in [
        ("order", "sales", true),
        ("order", "events", true),
        ("order", "audit", false),
        ("refund", "sales", false),
        ("refund", "events", true),
        ("user", "audit", true),
        ("user", "sales", false),
    ] {
        assert_eq!(
            goes(aggregate_type, exchange),
            expected,
            "{aggregate_type} {exchange}"
        );
    }
}

#[test]
fn names_that_amqp_cannot_carry_are_refused() {
    let router = Router::new(rules()).unwrap();
    let reason = |message: Message| router.route(&mut { message }).unwrap_err().reason;
    let long = || Some("é".repeat(128));
    assert_eq!(
        reason(Message {
            routing_key: long(),
            ..sample()
        }),
        Reason::RoutingKeyTooLong
    );
    assert_eq!(
        reason(Message {
            event_type: "e".repeat(250),
            ..sample()
        }),
        Reason::RoutingKeyTooLong
    );
    assert_eq!(
        reason(Message {
            exchange: long(),
            ..sample()
        }),
        Reason::ExchangeInvalid
    );
    let newline = || Some("a\nb".to_owned());
    assert_eq!(
        reason(Message {
            exchange: newline(),
            ..sample()
        }),
        Reason::ExchangeInvalid
    );
    assert_eq!(
        reason(Message {
            routing_key: newline(),
            ..sample()
        }),
        Reason::RoutingKeyInvalid
    );
    let by_id = RoutingRules {
        routing_key: "{aggregate_id}".to_owned(),
        ..rules()
    };
    let mut without = Message {
        aggregate_id: None,
        ..sample()
    };
    assert_eq!(
        Router::new(by_id)
            .unwrap()
            .route(&mut without)
            .unwrap_err()
            .reason,
        Reason::NoRoute
    );
}

#[test]
fn a_pattern_that_cannot_be_filled_is_named() {
    for pattern in ["{id}", "{aggregate_type", "a}b", "{}", "{aggregate_type}}"] {
        let error = Router::new(RoutingRules {
            routing_key: pattern.to_owned(),
            ..rules()
        })
        .unwrap_err();
        assert!(
            error.to_string().starts_with("routing.routing_key: "),
            "{error}"
        );
    }
    let routes = vec![Rule {
        exchange: Some("a\u{7}".to_owned()),
        ..Rule::default()
    }];
    let error = Router::new(RoutingRules { routes, ..rules() }).unwrap_err();
    assert!(
        error.to_string().starts_with("routing.routes.0.exchange: "),
        "{error}"
    );
}

#[test]
fn a_problem_with_a_route_names_its_key_in_the_configuration() {
    let routes = vec![Rule {
        routing_key: Some("{".to_owned()),
        ..Rule::default()
    }];
    let error = Router::new(RoutingRules { routes, ..rules() }).unwrap_err();
    assert_eq!(error.key(), "routing.routes.0.routing_key");
    let exchange = "x".repeat(256);
    let error = Router::new(RoutingRules {
        exchange,
        ..rules()
    })
    .unwrap_err();
    assert_eq!(error.key(), "routing.exchange");
    assert_eq!(
        error.to_string(),
        "routing.exchange: an exchange's name has more than 255 bytes"
    );
}

#[test]
fn a_refused_exchange_says_which_list_would_allow_it() {
    let detail = |exchange: &str, rules| {
        let mut message = Message {
            exchange: Some(exchange.to_owned()),
            ..sample()
        };
        let router = Router::new(rules).unwrap();
        router.route(&mut message).unwrap_err().detail
    };
    let allowed_exchanges = Some(Vec::new());
    let nothing_allowed = RoutingRules {
        allowed_exchanges,
        ..rules()
    };
    let other = detail("other", nothing_allowed);
    assert!(
        other.contains("not in routing.allowed_exchanges"),
        "{other}"
    );
    let default = detail("", rules());
    assert!(default.contains("list \"\" in"), "{default}");
}

#[test]
fn a_pattern_may_be_as_long_as_a_routing_key_and_end_in_text() {
    let with = |routing_key: String| {
        Router::new(RoutingRules {
            routing_key,
            ..rules()
        })
    };
    assert!(with("k".repeat(255)).is_ok());
    assert!(with("k".repeat(256)).is_err());
    let router = with("a.{event_type}.z".to_owned()).unwrap();
    let routed = router.route(&mut sample()).unwrap();
    assert_eq!(routed.routing_key, "a.created.z");
}
