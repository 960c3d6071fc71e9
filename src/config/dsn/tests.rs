use proptest::prelude::*;
use tokio_postgres::config::{Host, SslMode};

use super::*;

fn parsed(text: &str) -> Dsn {
    parse(text, "database.").unwrap_or_else(|problem| panic!("{text}: {problem}"))
}

/// Every usual form that is accepted, and the result of the driver's own parser, or of libpq.
#[test]
fn the_usual_forms_are_understood() {
    let plain = "user=u password=p dbname=d host=h port=5432";
    for (form, same_as) in [
        ("postgres://u:p@h/d", plain),
        ("postgresql://u:p@h:5432/d", plain),
        ("POSTGRES://u:p@h/d", plain),
        (" postgres://u:p@h/d\n", plain),
        ("postgres://u:p@h/d?", plain),
        // Platforms and ORMs.
        ("postgresql://u:p@h/d?schema=public", plain),
        (
            "postgresql://u:p@h/d?schema=public&connection_limit=5&pool_timeout=10",
            plain,
        ),
        ("postgres://u:p@h/d?serverVersion=15&charset=utf8", plain),
        ("postgres://u:p@h/d?pool=5&encoding=unicode", plain),
        ("postgres://u:p@h/d?client_encoding=UTF-8", plain),
        ("postgres://u:p@h/d?application_name=shop", plain),
        ("postgres://u:p@h/d?supa=base-pooler.x", plain),
        (
            "postgres://u:p@h/d?statement_cache_size=100&prepareThreshold=5",
            plain,
        ),
        (
            "postgres://u:p@h/d?sslcompression=0&gssencmode=disable&sslsni=1&sslrootcert=system",
            plain,
        ),
        (
            "postgres://u:p@h/d?keepalives=1&keepalives_idle=30&keepalives_count=3&tcp_user_timeout=9000",
            plain,
        ),
        ("postgres://u:p@h/d?connect_timeout=0", plain),
        // Places of parts.
        ("postgres://h/d?user=u&password=p", plain),
        ("postgres:///d?host=h&user=u&password=p&port=5432", plain),
        ("postgres://u:p@elsewhere:1/d?host=h&port=5432", plain),
        ("postgres://u:p@elsewhere:1/d?port=5432&host=h", plain),
        ("host=h user=u password=p dbname=d port=5432", plain),
        ("host = h user = u password = 'p' dbname=d port=5432", plain),
        (
            "postgres://u:p@/d?host=/cloudsql/project:region:db",
            "user=u password=p dbname=d host=/cloudsql/project:region:db",
        ),
        (
            "postgres://u:p@%2Frun%2Fpostgresql/d",
            "user=u password=p dbname=d host=/run/postgresql port=5432",
        ),
        (
            "postgres://u:p@[2001:db8::1]:6432/d",
            "user=u password=p dbname=d host=2001:db8::1 port=6432",
        ),
        (
            "postgres://u:p@a:1,b:2,c/d?target_session_attrs=primary",
            "user=u password=p dbname=d host=a,b,c port=1,2,5432 target_session_attrs=read-write",
        ),
        (
            "postgres://u:p@a,b/d?targetServerType=primary&load_balance_hosts=random",
            "user=u password=p dbname=d host=a,b port=5432,5432 target_session_attrs=read-write load_balance_hosts=random",
        ),
        (
            "host=db.example hostaddr=10.0.0.1 user=u",
            "host=db.example hostaddr=10.0.0.1 user=u",
        ),
        (
            "postgres://u:p@h/d?options=-c%20x%3Dy&channel_binding=require&connect_timeout=7&sslnegotiation=direct",
            "user=u password=p dbname=d host=h port=5432 options='-c x=y' channel_binding=require \
             connect_timeout=7 sslnegotiation=direct",
        ),
        (
            "postgres://u:p@h/d?options=project%3Dshop",
            "user=u password=p dbname=d host=h port=5432 options=project=shop",
        ),
        // Characters of a password, plain and encoded.
        (
            "postgres://u:a:b#c!$&'()*+,;=[]{}|^~`\\\"<>@h/d",
            "user=u password='a:b#c!$&\\'()*+,;=[]{}|^~`\\\\\"<>' dbname=d host=h port=5432",
        ),
        (
            "postgres://relay%40server:p%40%2F%3F%23%25%20%3A@h/d",
            "user=relay@server password='p@/?#% :' dbname=d host=h port=5432",
        ),
        (
            "host=h user=u password='two \\'words\\\\'",
            "host=h user=u password='two \\'words\\\\'",
        ),
    ] {
        let expected: tokio_postgres::Config = same_as.parse().unwrap();
        assert_eq!(parsed(form).config, expected, "{form}");
        assert_eq!(parsed(form).sslmode, None, "{form}");
    }
    for (parameter, mode) in [
        ("sslmode=require", SslMode::Require),
        ("sslmode=verify-ca", SslMode::Require),
        ("sslmode=verify-full", SslMode::Require),
        ("sslmode=prefer", SslMode::Prefer),
        ("sslmode=disable", SslMode::Disable),
        ("ssl=true", SslMode::Require),
        ("ssl=require", SslMode::Require),
        ("ssl=false", SslMode::Disable),
    ] {
        let dsn = parsed(&format!("postgres://u:p@h/d?{parameter}"));
        assert_eq!(dsn.config.get_ssl_mode(), mode, "{parameter}");
        assert!(dsn.sslmode.is_some(), "{parameter}");
    }
    for parameter in [
        "pgbouncer=true",
        "statement_cache_size=0",
        "prepareThreshold=0",
        "prepared_statements=false",
        "binary_parameters=yes",
        "default_query_exec_mode=simple_protocol",
    ] {
        let dsn = parsed(&format!("postgres://u:p@h/d?{parameter}"));
        assert_eq!(dsn.pooled.as_deref(), Some(parameter));
    }
    let socket = parsed("postgres://u@%2Ftmp/d").config;
    assert_eq!(socket.get_hosts(), [Host::Unix("/tmp".into())]);
}

/// Every usual form that is refused, and its error, which never shows part of the password.
#[test]
fn what_is_not_honoured_is_named_with_what_to_write_instead() {
    for (form, says) in [
        // Other forms.
        (
            "jdbc:postgresql://h/d?user=u&password=hunter2",
            "is a JDBC URL; write postgres://user",
        ),
        (
            "postgresql+psycopg2://u:hunter2@h/d",
            "is an SQLAlchemy URL; write postgres://user",
        ),
        ("postgresql+asyncpg://u:hunter2@h/d", "is an SQLAlchemy URL"),
        ("postgis://u:hunter2@h/d", "is Django's URL for PostGIS"),
        ("pgsql://u:hunter2@h/d", "is a URL of PHP's"),
        ("mysql://u:hunter2@h/d", "is a MySQL URL"),
        ("amqp://u:hunter2@h", "is a URL of RabbitMQ"),
        (
            "\"postgres://u:hunter2@h/d\"",
            "begins with a quotation mark",
        ),
        (
            "Host=h;Username=u;Password=hunter2",
            "is an ADO.NET connection string",
        ),
        ("u:hunter2@h/d", "is not a PostgreSQL URL (postgres://user"),
        ("", "is not a PostgreSQL URL"),
        // Files and timeouts have keys of their own.
        (
            "postgres://u:hunter2@h/d?sslrootcert=/ca.pem",
            "has the parameter sslrootcert: write database.ca_file",
        ),
        (
            "postgres://u:hunter2@h/d?sslmode=verify-full&sslcert=/c.pem",
            "has the parameter sslcert: write database.cert_file",
        ),
        (
            "postgres://u:hunter2@h/d?sslkey=/k.pem",
            "has the parameter sslkey: write database.key_file",
        ),
        (
            "postgres://u@h/d?passfile=/p",
            "has the parameter passfile: write database.password_file",
        ),
        (
            "postgres://u@h/d?statement_timeout=5000",
            "has the parameter statement_timeout: write database.statement_timeout",
        ),
        (
            "host=h user=u password=hunter2 service=shop",
            "has the parameter service: ",
        ),
        // Values.
        (
            "postgres://u:hunter2@h/d?sslmode=allow",
            "has the parameter sslmode with a value other than disable, prefer",
        ),
        (
            "postgres://u:hunter2@h/d?sslmode=no-verify",
            "has the parameter sslmode with a value other than",
        ),
        (
            "postgres://u:hunter2@h/d?sslaccept=accept_invalid_certs",
            "has the parameter sslaccept",
        ),
        (
            "postgres://u:hunter2@h/d?gssencmode=require",
            "has the parameter gssencmode",
        ),
        (
            "postgres://u:hunter2@h/d?target_session_attrs=standby",
            "has the parameter target_session_attrs with a value other than any, read-write",
        ),
        (
            "postgres://u:hunter2@h/d?keepalives=0",
            "has the parameter keepalives",
        ),
        (
            "postgres://u:hunter2@h/d?connect_timeout=5s",
            "has the parameter connect_timeout with a value other than seconds",
        ),
        (
            "postgres://u:hunter2@h/d?channel_binding=maybe",
            "has the parameter channel_binding",
        ),
        (
            "postgres://u:hunter2@h/d?client_encoding=latin1",
            "has the parameter client_encoding",
        ),
        (
            "postgres://u:hunter2@h/d?hostaddr=db.example",
            "has the parameter hostaddr with a value other than IP",
        ),
        (
            "postgres://u:hunter2@h/d?sslmode=disable&sslmode=verify-full",
            "has the parameter sslmode twice",
        ),
        // Names.
        (
            "postgres://u:hunter2@h/d?sqlmode=ansi",
            "has the parameter sqlmode, which is not known here; did you mean sslmode?",
        ),
        (
            "postgres://u:hunter2@h/d?nope=1",
            "has the parameter nope, which is not known here; remove it",
        ),
        (
            "postgres://u:hunter2@h/d?sslmode",
            "has a parameter without a value",
        ),
        // Special characters: the character, and its encoding.
        (
            "postgres://u:hun/ter2@h/d",
            "contains a / before an @: in a user name or a password write / as %2F",
        ),
        (
            "postgres://u:hun?ter2@h/d",
            "contains a ? before an @: in a user name or a password write ? as %3F",
        ),
        (
            "postgres://u:hun@ter2@h/d",
            "contains more than one @ before the host",
        ),
        (
            "postgres://u:hun ter2@h/d",
            "contains a space; write it as %20",
        ),
        ("postgres://u:hun\nter2@h/d", "contains a line break"),
        (
            "postgres://u:hun%ter2@h/d",
            "has a % in its password without two hexadecimal digits",
        ),
        (
            "postgres://u:hun%fFter2@h/d",
            "has bytes in its password that are not UTF-8",
        ),
        (
            "postgres://u:hunter2@h/d/e",
            "has a / in the name of the database",
        ),
        // Hosts.
        ("postgres://u:hunter2@/d", "names no host"),
        ("postgres://h/d", "names no user"),
        ("postgres://:hunter2@h/d", "names no user"),
        (
            "postgres://u:hunter2@::1/d",
            "write an IPv6 address in brackets",
        ),
        (
            "postgres://u:hunter2@[::1/d",
            "has an IPv6 address without its ]",
        ),
        (
            "postgres://u:hunter2@h:port/d",
            "has a port that is not a number",
        ),
        (
            "postgres://u:hunter2@h:0/d",
            "has a port that is not a number",
        ),
        (
            "postgres://u:hunter2@a,b/d?port=1,2,3",
            "has a different number of ports than hosts",
        ),
        (
            "postgres://u:hunter2@a,,b/d",
            "has a host that is not a name",
        ),
        // Words.
        (
            "host=h user=u password=hun ter2",
            "with a part that is not key=value",
        ),
        (
            "host=h user=u password='hunter2",
            "a quotation mark that is not closed",
        ),
        ("user=u password=hunter2", "names no host"),
    ] {
        let problem = parse(form, "database.").unwrap_err();
        assert!(
            problem.starts_with(says) || problem.contains(says),
            "{form}: {problem}"
        );
        for part in ["hunter2", "hun", "ter2"] {
            assert!(!problem.contains(part), "{form}: {problem}");
        }
    }
    // After a password, a name may be the rest of it.
    let problem = parse("host=h password=a ter2=b user=u", "database.").unwrap_err();
    assert!(!problem.contains("ter2"), "{problem}");
}

proptest! {
    #[test]
    fn no_text_panics(text in ".*") {
        let _ = parse(&text, "database.");
        let _ = parse(&format!("postgres://{text}"), "database.");
        let _ = parse(&format!("host={text}"), "database.");
    }

    #[test]
    fn a_password_never_shows(password in "[a-z@/?#%&=: ]{0,3}canary[a-z0-9@/?#%&=: ]{0,8}", host in "[a-z0-9:,./?]{0,8}") {
        for text in [
            format!("postgres://u:{password}@{host}/d"),
            format!("postgres://{host}/d?user=u&password={password}"),
            format!("host={host} password={password} user=u"),
        ] {
            match parse(&text, "database.") {
                Ok(dsn) => {
                    // The parser must take the password as a whole. Otherwise a part of it would be looked up in DNS.
                    let config = dsn.config;
                    prop_assert!(!format!("{:?}", config.get_hosts()).contains("canary"), "{}", text);
                }
                Err(problem) => prop_assert!(!problem.contains("canary"), "{}: {}", text, problem),
            }
        }
    }

    /// Every encoded password is accepted.
    #[test]
    fn an_encoded_password_arrives(password in "[^\\x00]{1,20}") {
        let encoded = percent_encoding::utf8_percent_encode(&password, percent_encoding::NON_ALPHANUMERIC);
        let dsn = parsed(&format!("postgres://u:{encoded}@h/d"));
        prop_assert_eq!(dsn.config.get_password(), Some(password.as_bytes()));
    }
}
