//! Parses PostgreSQL addresses: URLs of libpq, of platforms and of ORMs, and key=value text.
//!
//! The relay honours a part, ignores it because it has no meaning here, or refuses it: the error names the part and says what
//! to write instead. The driver's own parser has one error text for everything that it refuses, adds hosts where libpq
//! replaces them, and takes part of an unencoded password for a host. No error shows a password, or text that could be one.
//! <https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING>

mod parameters;
#[cfg(test)]
mod tests;

use std::net::Ipv6Addr;

pub(super) use parameters::Dsn;
use parameters::{Parts, port_number};

const FORM: &str = "postgres://user:password@host:5432/database?sslmode=verify-full";

/// Other forms, by their beginnings.
const FOREIGN: &[(&str, &str)] = &[
    ("jdbc:", "is a JDBC URL"),
    ("r2dbc:", "is an R2DBC URL"),
    ("ecto:", "is an Ecto URL"),
    ("postgis:", "is Django's URL for PostGIS"),
    ("pgsql:", "is a URL of PHP's"),
    ("postgresql+", "is an SQLAlchemy URL"),
    ("postgres+", "is an SQLAlchemy URL"),
    ("mysql:", "is a MySQL URL"),
    ("mariadb:", "is a MariaDB URL"),
    ("sqlserver:", "is an SQL Server URL"),
    ("mssql:", "is an SQL Server URL"),
    ("oracle:", "is an Oracle URL"),
    ("mongodb", "is a MongoDB URL"),
    ("redis", "is a Redis URL"),
    ("sqlite:", "is an SQLite URL"),
    ("cockroachdb:", "is a CockroachDB URL"),
    ("amqp", "is a URL of RabbitMQ"),
    ("http:", "is a web address"),
    ("https:", "is a web address"),
];

/// `section` is the prefix of the keys that errors name: `database.`, or `source.0.database.`.
pub(super) fn parse(text: &str, section: &str) -> Result<Dsn, String> {
    let text = text.trim();
    let mut parts = Parts::new(section);
    let lower = text.get(..text.len().min(16)).unwrap_or_default();
    let lower = lower.to_ascii_lowercase();
    let begins = |with: &str| lower.starts_with(with).then(|| &text[with.len()..]);
    if let Some(rest) = begins("postgres://").or_else(|| begins("postgresql://")) {
        url(rest, &mut parts)?;
    } else if let Some((_, form)) = FOREIGN.iter().find(|(with, _)| lower.starts_with(with)) {
        return Err(format!("{form}; write {FORM}"));
    } else if text.starts_with(['"', '\'']) {
        return Err(
            "begins with a quotation mark; remove it (an env file of Docker keeps quotation marks)"
                .to_owned(),
        );
    } else if text.contains("://") || !text.contains('=') {
        return Err(format!(
            "is not a PostgreSQL URL ({FORM}) and not key=value text"
        ));
    } else if text.contains(';') && !text.contains(char::is_whitespace) {
        return Err(format!("is an ADO.NET connection string; write {FORM}"));
    } else {
        words(text, &mut parts)?;
    }
    parts.finish()
}

/// Parses the text after `postgres://`.
fn url(rest: &str, parts: &mut Parts<'_>) -> Result<(), String> {
    if let Some(c) = rest.chars().find(|c| c.is_whitespace() || c.is_control()) {
        return Err(match c {
            ' ' => "contains a space; write it as %20".to_owned(),
            _ => "contains a line break or another control character; remove it".to_owned(),
        });
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, behind) = rest.split_at(end);
    // Without this check the rest of a password would be taken for a database, a parameter or a host. It would be shown in an
    // error, or looked up in DNS.
    if behind.contains('@') {
        let culprit = &behind[..1];
        let code = if culprit == "/" { "%2F" } else { "%3F" };
        return Err(format!(
            "contains a {culprit} before an @: in a user name or a password write {culprit} as {code}, and an @ that does \
             not stand before the host as %40"
        ));
    }
    let (credentials, hosts) = match authority.rsplit_once('@') {
        Some((credentials, hosts)) => (Some(credentials), hosts),
        None => (None, authority),
    };
    if let Some(credentials) = credentials {
        if credentials.contains('@') {
            return Err(
                "contains more than one @ before the host: in a user name or a password write @ as %40"
                    .to_owned(),
            );
        }
        let (user, password) = match credentials.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (credentials, None),
        };
        parts.user = Some(decoded(user, "user name")?).filter(|user| !user.is_empty());
        if let Some(password) = password {
            parts.password =
                Some(decoded(password, "password")?).filter(|password| !password.is_empty());
        }
    }
    authority_hosts(hosts, parts)?;
    let (path, query) = match behind.split_once('?') {
        Some((path, query)) => (path, query),
        None => (behind, ""),
    };
    let dbname = path.strip_prefix('/').unwrap_or(path);
    if dbname.contains('/') {
        return Err("has a / in the name of the database; write it as %2F".to_owned());
    }
    parts.dbname = Some(decoded(dbname, "database")?).filter(|name| !name.is_empty());
    parts.holds_password = holds_password(query);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let Some((name, value)) = pair.split_once('=') else {
            return Err("has a parameter without a value; write ?name=value&name=value".to_owned());
        };
        let name = decoded(name, "parameters")?;
        let shown = parts.shown(&name);
        parts.parameter(&name, &decoded(value, &shown)?)?;
    }
    Ok(())
}

fn authority_hosts(hosts: &str, parts: &mut Parts<'_>) -> Result<(), String> {
    if hosts.is_empty() {
        return Ok(());
    }
    for one in hosts.split(',') {
        let (host, port) = if let Some(rest) = one.strip_prefix('[') {
            let (ip, behind) = rest
                .split_once(']')
                .ok_or("has an IPv6 address without its ]")?;
            let ip: Ipv6Addr = ip
                .parse()
                .map_err(|_| "has no IPv6 address between [ and ]")?;
            let port = match behind.strip_prefix(':') {
                Some(port) => port,
                None if behind.is_empty() => "",
                None => return Err("has something between ] and the port".to_owned()),
            };
            (ip.to_string(), port)
        } else {
            if one.matches(':').count() > 1 {
                return Err(
                    "has a host with more than one colon; write an IPv6 address in brackets: [::1]:5432"
                        .to_owned(),
                );
            }
            let (host, port) = one.split_once(':').unwrap_or((one, ""));
            (decoded(host, "host")?, port)
        };
        parts.hosts.push(host);
        parts
            .ports
            .push(port_number(if port.is_empty() { "5432" } else { port })?);
    }
    Ok(())
}

/// `host=… user=…`, with quotes as libpq has them.
fn words(text: &str, parts: &mut Parts<'_>) -> Result<(), String> {
    parts.holds_password = holds_password(text);
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        // Do not show the part: it may be the rest of an unquoted password.
        let no_pair = || {
            "is key=value text with a part that is not key=value; write a value with spaces in quotation marks: \
             password='two words'"
                .to_owned()
        };
        let (name, behind) = rest.split_once('=').ok_or_else(no_pair)?;
        let name = name.trim_end();
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(no_pair());
        }
        let (value, behind) = word(behind.trim_start())?;
        parts.parameter(name, &value)?;
        rest = behind.trim_start();
    }
    Ok(())
}

fn holds_password(text: &str) -> bool {
    text.to_lowercase().contains("password")
}

fn word(text: &str) -> Result<(String, &str), String> {
    let quoted = text.strip_prefix('\'');
    let mut chars = quoted.unwrap_or(text).char_indices();
    let (mut value, text) = (String::new(), quoted.unwrap_or(text));
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            '\'' if quoted.is_some() => return Ok((value, &text[at + 1..])),
            c if quoted.is_none() && c.is_whitespace() => return Ok((value, &text[at..])),
            c => value.push(c),
        }
    }
    if quoted.is_some() {
        return Err("is key=value text with a quotation mark that is not closed".to_owned());
    }
    Ok((value, ""))
}

fn decoded(text: &str, part: &str) -> Result<String, String> {
    let bytes = text.as_bytes();
    for (i, byte) in bytes.iter().enumerate() {
        let hex = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_hexdigit);
        if *byte == b'%' && !(hex(i + 1) && hex(i + 2)) {
            return Err(format!(
                "has a % in its {part} without two hexadecimal digits behind it; write a % itself as %25"
            ));
        }
    }
    let text = percent_encoding::percent_decode_str(text)
        .decode_utf8()
        .map_err(|_| format!("has bytes in its {part} that are not UTF-8"))?;
    if text.contains('\0') {
        return Err(format!("has a NUL in its {part}"));
    }
    Ok(text.into_owned())
}
