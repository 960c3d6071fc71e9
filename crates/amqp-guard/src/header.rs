//! The properties of a message. Unreadable parts are removed: if the message ended the connection, the broker would
//! deliver it again.

use super::{
    bounds::{HEAD, MAX_DEPTH, Refused},
    table::{Depth, Reader, Value, is_text, walk},
};

/// The header that reports the removed parts: nested too deep, unreadable, or too large for a frame. Its value is their
/// number and their names.
pub const REMOVED: &str = "outbox-headers-removed";

/// Maximum length of the list of removed names, in bytes.
const NAMES: usize = 200;

/// The properties of a message, in the order of their flags. <https://www.rabbitmq.com/docs/specification>
const PROPERTIES: [(&str, Property); 14] = [
    ("content_type", Property::Text),
    ("content_encoding", Property::Text),
    ("headers", Property::Headers),
    ("delivery_mode", Property::Plain(1)),
    ("priority", Property::Plain(1)),
    ("correlation_id", Property::Text),
    ("reply_to", Property::Text),
    ("expiration", Property::Text),
    ("message_id", Property::Text),
    ("timestamp", Property::Plain(8)),
    ("type", Property::Text),
    ("user_id", Property::Text),
    ("app_id", Property::Text),
    ("cluster_id", Property::Text),
];
pub(crate) const HEADERS: u16 = 1 << 13;

#[derive(Debug, Clone, Copy)]
enum Property {
    Text,
    Headers,
    Plain(usize),
}

/// Checks a message's properties. `Some`: a replacement without the parts that are nested too deep, unreadable, or too
/// large.
pub(crate) fn header(payload: &[u8], frame_max: u32) -> Result<Option<Vec<u8>>, Refused> {
    let mut rest = Reader(payload);
    // Class, weight, and size of the body.
    let fixed = rest.take(12)?;
    let flags = rest.u16()?;
    let mut removed: Vec<&[u8]> = Vec::new();
    let mut entries: Vec<&[u8]> = Vec::new();
    let (mut kept, mut before, mut behind) = (flags & HEADERS, Vec::new(), Vec::new());
    let mut whole = true;
    for ((name, kind), bit) in PROPERTIES.into_iter().zip((2..16).rev()) {
        let flag: u16 = 1 << bit;
        if flags & flag == 0 {
            continue;
        }
        let from = rest.0;
        let read = match kind {
            Property::Text => rest.short().map(|text| std::str::from_utf8(text).is_ok()),
            Property::Plain(size) => rest.take(size).map(|_| true),
            Property::Headers => rest.long().map(|table| {
                shallow(table, &mut entries, &mut removed);
                false
            }),
        };
        match (read, kind) {
            (Ok(true), _) => {
                kept |= flag;
                let bytes = &from[..from.len() - rest.0.len()];
                if flag > HEADERS {
                    &mut before
                } else {
                    &mut behind
                }
                .extend_from_slice(bytes);
            }
            (Ok(false), Property::Headers) => {}
            (Ok(false), _) => removed.push(name.as_bytes()),
            (Err(_), _) => {
                whole = false;
                break;
            }
        }
    }
    // Also covers the flag for further flags, which nobody uses and lapin does not read.
    if !whole || !rest.0.is_empty() || flags & 0b11 != 0 {
        removed.push(b"properties");
    }
    let others = HEAD + 1 + fixed.len() + 2 + before.len() + behind.len() + 4;
    let mut size = others + entries.iter().map(|entry| entry.len()).sum::<usize>();
    let frame_max = usize::try_from(frame_max).map_err(|_| Refused::Broken)?;
    if removed.is_empty() && size <= frame_max {
        return Ok(None);
    }
    // Remove the broker's own counts first. The broker adds them to headers that already fill a frame, and the
    // publisher's headers stay complete.
    if size > frame_max {
        entries.retain(|entry| {
            let counts = [&b"x-delivery-count"[..], b"x-acquired-count"];
            let is_count = Reader(entry)
                .short()
                .is_ok_and(|name| counts.contains(&name));
            size -= if is_count { entry.len() } else { 0 };
            !is_count
        });
    }
    // Remove the largest header first, so that small headers and the relay's headers stay.
    while size > frame_max || (!removed.is_empty() && size + marker(&removed).len() > frame_max) {
        let sizes = entries.iter().map(|entry| entry.len()).enumerate();
        let Some((largest, _)) = sizes.max_by_key(|(_, size)| *size) else {
            break;
        };
        let entry = entries.remove(largest);
        size -= entry.len();
        removed.push(Reader(entry).short()?);
    }
    let marker = match removed.as_slice() {
        [] => Vec::new(),
        removed => marker(removed),
    };
    let mut changed = fixed.to_vec();
    changed.extend_from_slice(&(kept | HEADERS).to_be_bytes());
    changed.extend_from_slice(&before);
    let headers = entries.concat();
    let size = u32::try_from(headers.len() + marker.len()).map_err(|_| Refused::Broken)?;
    changed.extend_from_slice(&size.to_be_bytes());
    changed.extend_from_slice(&headers);
    changed.extend_from_slice(&marker);
    changed.extend_from_slice(&behind);
    Ok(Some(changed))
}

/// Splits the headers: `entries` to keep, and the names of the others in `removed`.
fn shallow<'a>(headers: &'a [u8], entries: &mut Vec<&'a [u8]>, removed: &mut Vec<&'a [u8]>) {
    let mut rest = Reader(headers);
    while !rest.0.is_empty() {
        let from = rest.0;
        let Ok(name) = rest.short() else {
            removed.push(b"?");
            return;
        };
        let depth = match rest.value() {
            Ok(Value::Plain) => Ok(Depth::Fine),
            // The headers table itself is the first level.
            Ok(Value::Nested(inner, kind)) => walk(inner, kind, MAX_DEPTH - 1),
            // The end of this value is unknown, so the rest cannot be read either.
            Err(_) => {
                removed.push(name);
                return;
            }
        };
        // The consumer would take a publisher's marker for the guard's, so it is removed.
        if depth == Ok(Depth::Fine) && is_text(name) && name != REMOVED.as_bytes() {
            entries.push(&from[..from.len() - rest.0.len()]);
        } else {
            removed.push(name);
        }
    }
}

/// The header that reports the removed parts.
fn marker(removed: &[&[u8]]) -> Vec<u8> {
    let mut names = String::new();
    for name in removed {
        let name = String::from_utf8_lossy(name);
        let separator = if names.is_empty() { "" } else { ", " };
        if names.len() + separator.len() + name.len() > NAMES {
            names += ", …";
            break;
        }
        names += separator;
        names += &name;
    }
    let said = format!("{}: {names}", removed.len());
    let mut marker = Vec::with_capacity(REMOVED.len() + said.len() + 6);
    // Both lengths are small.
    marker.push(u8::try_from(REMOVED.len()).unwrap_or(0));
    marker.extend_from_slice(REMOVED.as_bytes());
    marker.push(b'S');
    marker.extend_from_slice(&u32::try_from(said.len()).unwrap_or(0).to_be_bytes());
    marker.extend_from_slice(said.as_bytes());
    marker
}
