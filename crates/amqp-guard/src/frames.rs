//! Reads the broker's bytes frame by frame. No I/O.
//!
//! Unreadable parts of a message's properties are removed (`header.rs`). Any other unreadable part ends the connection.
//! So every byte that reaches lapin's parser was checked. <https://www.rabbitmq.com/docs/specification>

use super::{
    bounds::{HEAD, LARGEST_HEADER, Refused, SMALLEST},
    header::header,
    table::{Depth, Reader, table},
};

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
const END: u8 = 0xce;

/// The length of the first frame of `input`; `None` if `input` is too short to tell.
fn length(input: &[u8], frame_max: u32) -> Result<Option<usize>, Refused> {
    match input.first() {
        None => return Ok(None),
        // A protocol header: the server speaks another version of AMQP.
        Some(b'A') => return Ok(Some(8)),
        Some(&(METHOD | HEADER | BODY | HEARTBEAT)) => {}
        Some(_) => return Err(Refused::NotAmqp),
    }
    let Some(size) = input.get(3..HEAD).and_then(|b| b.try_into().ok()) else {
        return Ok(None);
    };
    let size = u64::from(u32::from_be_bytes(size)) + HEAD as u64 + 1;
    let max = match input[0] {
        HEADER => frame_max.max(LARGEST_HEADER),
        _ => frame_max,
    };
    if size > u64::from(max) {
        return Err(Refused::FrameTooLarge { size, max });
    }
    usize::try_from(size).map(Some).map_err(|_| Refused::Broken)
}

/// Checks the whole frames of `input` and moves them to `output`. Returns the number of bytes consumed. Lowers
/// `frame_max` to the server's offer, as lapin does.
pub(crate) fn pass(
    input: &[u8],
    frame_max: &mut u32,
    output: &mut Vec<u8>,
) -> Result<usize, Refused> {
    let mut done = 0;
    while let Some(length) = length(&input[done..], *frame_max)? {
        let Some(frame) = input.get(done..done + length) else {
            break;
        };
        done += length;
        if frame[0] == b'A' {
            output.extend_from_slice(frame);
            continue;
        }
        if frame[length - 1] != END {
            return Err(Refused::Broken);
        }
        let payload = &frame[HEAD..length - 1];
        match frame[0] {
            METHOD => {
                method(payload, frame_max)?;
                output.extend_from_slice(frame);
            }
            HEADER => match header(payload, *frame_max)? {
                None => output.extend_from_slice(frame),
                Some(payload) => {
                    let size = u32::try_from(payload.len()).map_err(|_| Refused::Broken)?;
                    output.extend_from_slice(&frame[..3]);
                    output.extend_from_slice(&size.to_be_bytes());
                    output.extend_from_slice(&payload);
                    output.push(END);
                }
            },
            _ => output.extend_from_slice(frame),
        }
    }
    Ok(done)
}

/// Among the methods that a server sends, only `connection.start` contains a table. lapin also parses the methods of
/// clients before it rejects them, so methods with a table must not reach lapin.
fn method(payload: &[u8], frame_max: &mut u32) -> Result<(), Refused> {
    let mut rest = Reader(payload);
    match (rest.u16()?, rest.u16()?) {
        // connection.start: two version bytes, then the server's properties.
        (10, 10) => {
            rest.take(2)?;
            match table(rest.long()?)? {
                Depth::Fine => Ok(()),
                Depth::TooDeep => Err(Refused::TooDeep),
            }
        }
        // connection.tune: maximum number of channels, largest frame; 0 means no limit.
        (10, 30) => {
            rest.take(2)?;
            let offered = rest.take(4)?.try_into().map_err(|_| Refused::Broken)?;
            match u32::from_be_bytes(offered) {
                0 => {}
                offered => *frame_max = offered.max(SMALLEST).min(*frame_max),
            }
            Ok(())
        }
        // connection.start-ok; exchange.declare, bind, unbind; queue.declare, bind, unbind; basic.consume.
        (10, 11) | (40, 10 | 30 | 40) | (50, 10 | 20 | 50) | (60, 20) => Err(Refused::ClientMethod),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use amq_protocol::{
        frame::{AMQPContentHeader, AMQPFrame, gen_frame, parse_frame},
        protocol::{AMQPClass, basic, connection},
        types::{AMQPValue, FieldArray, FieldTable},
    };
    use proptest::prelude::*;

    use super::*;
    use crate::{
        bounds::MAX_DEPTH,
        header::{HEADERS, REMOVED},
    };

    const MAX: u32 = 131_072;

    /// `levels` tables, each inside the previous one; every second level is an array.
    fn nested(levels: usize) -> AMQPValue {
        let mut value = AMQPValue::Boolean(true);
        for level in 0..levels {
            value = if level % 2 == 0 {
                let mut table = FieldTable::default();
                table.insert("a".into(), value);
                AMQPValue::FieldTable(table)
            } else {
                AMQPValue::FieldArray(FieldArray::from(vec![value]))
            };
        }
        value
    }

    fn bytes(frame: &AMQPFrame) -> Vec<u8> {
        let mut buffer = vec![0; 200_000];
        let (_, size) = gen_frame(frame)(buffer.as_mut_slice().into())
            .unwrap()
            .into_inner();
        buffer.truncate(usize::try_from(size).unwrap());
        buffer
    }

    fn message(headers: FieldTable) -> AMQPFrame {
        let properties = basic::AMQPProperties::default()
            .with_content_type("text/plain".into())
            .with_headers(headers)
            .with_message_id("id".into());
        AMQPFrame::Header(
            1,
            AMQPContentHeader {
                class_id: 60,
                body_size: 4,
                properties,
            },
        )
    }

    fn start(properties: FieldTable) -> AMQPFrame {
        AMQPFrame::Method(
            0,
            AMQPClass::Connection(connection::AMQPMethod::Start(connection::Start {
                version_major: 0,
                version_minor: 9,
                server_properties: properties,
                mechanisms: "PLAIN".into(),
                locales: "en_US".into(),
            })),
        )
    }

    fn passed(input: &[u8]) -> Result<Vec<u8>, Refused> {
        let mut output = Vec::new();
        assert_eq!(pass(input, &mut { MAX }, &mut output)?, input.len());
        Ok(output)
    }

    fn with(name: &str, value: AMQPValue) -> FieldTable {
        let mut table = FieldTable::default();
        table.insert(name.into(), value);
        table
    }

    #[test]
    fn frames_pass_unchanged_whole_and_in_pieces() {
        let mut sent = bytes(&start(with("capabilities", nested(3))));
        sent.extend(bytes(&message(with("x-death", nested(MAX_DEPTH - 1)))));
        sent.extend(bytes(&AMQPFrame::Body(1, b"body".to_vec())));
        sent.extend(bytes(&AMQPFrame::Heartbeat));
        assert_eq!(passed(&sent).unwrap(), sent);

        let (mut held, mut output) = (Vec::new(), Vec::new());
        for byte in &sent {
            held.push(*byte);
            let done = pass(&held, &mut { MAX }, &mut output).unwrap();
            held.drain(..done);
        }
        assert_eq!((output, held), (sent, Vec::new()));
    }

    #[test]
    fn headers_that_are_too_deep_are_removed_and_the_message_passes() {
        let mut headers = with("deep", nested(500));
        headers.insert("deeper".into(), nested(MAX_DEPTH));
        headers.insert("kept".into(), nested(MAX_DEPTH - 1));
        let mut left = with("kept", nested(MAX_DEPTH - 1));
        left.insert(
            REMOVED.into(),
            AMQPValue::LongString("2: deep, deeper".into()),
        );
        let output = passed(&bytes(&message(headers))).unwrap();
        let (rest, frame) = parse_frame(&output[..]).unwrap();
        assert_eq!((rest, frame), (&[][..], message(left)));
    }

    /// The frame as lapin reads it after the guard, and the text of its marker.
    fn read(input: &[u8]) -> (basic::AMQPProperties, Option<String>) {
        let output = passed(input).unwrap();
        assert!(output.len() <= MAX as usize);
        let (rest, frame) = parse_frame(&output[..]).unwrap();
        let (&[], AMQPFrame::Header(_, header)) = (rest, frame) else {
            panic!("a header")
        };
        let headers = header.properties.headers().clone().unwrap_or_default();
        let said = headers.inner().get(REMOVED).map(|said| match said {
            AMQPValue::LongString(said) => said.to_string(),
            _ => panic!("text"),
        });
        (header.properties, said)
    }

    /// A content header. `properties` follow class, weight and size.
    fn raw(flags: u16, properties: &[u8]) -> Vec<u8> {
        let mut frame = vec![HEADER, 0, 1];
        frame.extend(u32::try_from(properties.len() + 14).unwrap().to_be_bytes());
        frame.extend([0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4]);
        frame.extend(flags.to_be_bytes());
        frame.extend(properties);
        frame.push(END);
        frame
    }

    const MESSAGE_ID: u16 = 1 << 7;
    const TYPE: u16 = 1 << 5;

    #[test]
    fn unreadable_parts_are_removed_and_named() {
        let table = |entries: &[u8]| {
            let mut table = u32::try_from(entries.len()).unwrap().to_be_bytes().to_vec();
            table.extend(entries);
            table.extend(b"\x02id");
            raw(HEADERS | MESSAGE_ID, &table)
        };
        for (input, expected) in [
            (raw(MESSAGE_ID | TYPE, b"\x02id\x01\xff"), "1: type"),
            (table(b"\x01at\x01\x01\xfft\x01\x01bt\x01"), "1: \u{fffd}"),
            (table(b"\x01at\x01\x01zZ\x01\x01bt\x01"), "1: z"),
            (
                table(b"\x01at\x01\x01fF\0\0\0\x04\x01\xfft\x01\x01bt\x01"),
                "1: f",
            ),
            (table(b"\x01at\x01\x01fF\0\0\0\x02\x01a"), "1: f"),
            (table(b"\x01at\x01\x09f"), "1: ?"),
            (raw(MESSAGE_ID | 1, b"\x02id"), "1: properties"),
            (raw(MESSAGE_ID, b"\x02idx"), "1: properties"),
            (raw(MESSAGE_ID | TYPE, b"\x02id\x09x"), "1: properties"),
        ] {
            let (properties, said) = read(&input);
            assert_eq!(said.as_deref(), Some(expected));
            let id = properties.message_id().as_ref().map(|id| id.as_str());
            assert_eq!(id, Some("id"), "{expected}");
        }
        // A marker that the publisher wrote.
        let (_, said) = read(&bytes(&message(with(REMOVED, AMQPValue::Void))));
        assert_eq!(said, Some(format!("1: {REMOVED}")));
    }

    #[test]
    fn the_largest_frame_is_what_both_sides_agree_on() {
        let tune = |frame_max| {
            bytes(&AMQPFrame::Method(
                0,
                AMQPClass::Connection(connection::AMQPMethod::Tune(connection::Tune {
                    channel_max: 2047,
                    frame_max,
                    heartbeat: 60,
                })),
            ))
        };
        for (offered, agreed) in [(0, MAX), (u32::MAX, MAX), (8192, 8192), (1, 4096)] {
            let (mut frame_max, mut output) = (MAX, Vec::new());
            pass(&tune(offered), &mut frame_max, &mut output).unwrap();
            assert_eq!((frame_max, output), (agreed, tune(offered)));
        }
    }

    #[test]
    fn headers_that_outgrow_the_frame_lose_the_largest_and_pass() {
        let full = |bytes: usize| {
            let mut headers = with("large", AMQPValue::LongString("x".repeat(bytes).into()));
            headers.insert("small".into(), AMQPValue::Boolean(true));
            message(headers)
        };
        let spare = MAX as usize - bytes(&full(0)).len();
        assert_eq!(read(&bytes(&full(spare))).1, None);
        for above in [1, 22, 60_000] {
            let (properties, said) = read(&bytes(&full(spare + above)));
            assert_eq!(said.as_deref(), Some("1: large"));
            let headers = properties.headers().clone().unwrap();
            assert_eq!(
                headers.inner().get("small"),
                Some(&AMQPValue::Boolean(true))
            );
            assert_eq!(properties.message_id(), &Some("id".into()));
        }
        // Full when the message was published; the broker has added its counts since.
        let counted = |above: usize| {
            let AMQPFrame::Header(channel, mut header) = full(spare + above) else {
                panic!("a header")
            };
            let mut headers = header.properties.headers().clone().unwrap();
            headers.insert("x-delivery-count".into(), AMQPValue::LongLongInt(3));
            header.properties = header.properties.with_headers(headers);
            read(&bytes(&AMQPFrame::Header(channel, header)))
        };
        let (properties, said) = counted(0);
        assert_eq!(
            (said, properties.headers().clone().unwrap().inner().len()),
            (None, 2)
        );
        assert_eq!(counted(1).1.as_deref(), Some("1: large"));
    }

    #[test]
    fn a_table_of_the_server_that_is_too_deep_ends_the_connection() {
        assert!(passed(&bytes(&start(with("a", nested(MAX_DEPTH - 1))))).is_ok());
        let refused = passed(&bytes(&start(with("a", nested(MAX_DEPTH)))));
        assert_eq!(refused, Err(Refused::TooDeep));
    }

    #[test]
    fn no_client_method_with_a_table_reaches_the_parser() {
        for (class, method) in [
            (10_u16, 11_u16),
            (40, 10),
            (40, 30),
            (40, 40),
            (50, 10),
            (50, 20),
            (50, 50),
            (60, 20),
        ] {
            let mut frame = vec![METHOD, 0, 0, 0, 0, 0, 4];
            frame.extend(class.to_be_bytes());
            frame.extend(method.to_be_bytes());
            frame.push(END);
            assert_eq!(passed(&frame), Err(Refused::ClientMethod));
        }
    }

    #[test]
    fn a_frame_above_the_bound_is_refused_by_its_head() {
        let mut output = Vec::new();
        let head = [BODY, 0, 1, 0xff, 0xff, 0xff, 0xff];
        let size = u64::from(u32::MAX) + 8;
        let refused = Refused::FrameTooLarge { size, max: MAX };
        assert_eq!(pass(&head, &mut { MAX }, &mut output), Err(refused));
        assert_eq!(
            pass(b"\x15\x03\x01", &mut { MAX }, &mut output),
            Err(Refused::NotAmqp)
        );
        assert_eq!(
            pass(b"HTTP/1.1", &mut { MAX }, &mut output),
            Err(Refused::NotAmqp)
        );
        assert_eq!(pass(b"AMQP\0\0\x09\x01", &mut { MAX }, &mut output), Ok(8));
    }

    #[test]
    fn every_type_of_the_parser_is_walked() {
        for byte in 0..=u8::MAX {
            let known = amq_protocol::types::AMQPType::from_id(char::from(byte)).is_some();
            let mut input = vec![byte];
            input.extend([0; 16]);
            assert_eq!(Reader(&input).value().is_ok(), known, "{byte}");
        }
    }

    fn value() -> impl Strategy<Value = AMQPValue> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(AMQPValue::Boolean),
            any::<i64>().prop_map(AMQPValue::LongLongInt),
            any::<u16>().prop_map(AMQPValue::ShortUInt),
            ".{0,20}".prop_map(|s: String| AMQPValue::LongString(s.into())),
            Just(AMQPValue::Void),
        ];
        leaf.prop_recursive(40, 200, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4)
                    .prop_map(|items| AMQPValue::FieldArray(FieldArray::from(items))),
                prop::collection::vec(("[a-z]{0,4}", inner), 0..4).prop_map(|fields| {
                    let mut table = FieldTable::default();
                    for (name, value) in fields {
                        table.insert(name.into(), value);
                    }
                    AMQPValue::FieldTable(table)
                }),
            ]
        })
    }

    fn depth(value: &AMQPValue) -> usize {
        match value {
            AMQPValue::FieldTable(table) => {
                1 + table.inner().values().map(depth).max().unwrap_or(0)
            }
            AMQPValue::FieldArray(items) => {
                1 + items.as_slice().iter().map(depth).max().unwrap_or(0)
            }
            _ => 0,
        }
    }

    proptest! {
        /// A publisher can put any bytes here.
        #[test]
        fn the_parser_reads_any_content_header_that_passes(
            flags in any::<u16>(),
            bytes in prop::collection::vec(prop_oneof![
                prop::sample::select(&b"\0\0\0\0\x01\x02\x05\x09FASltDxVzU\xff"[..]),
                any::<u8>(),
            ], 0..120),
        ) {
            let output = passed(&raw(flags, &bytes)).unwrap();
            prop_assert!(matches!(parse_frame(&output[..]), Ok((&[], AMQPFrame::Header(..)))));
        }

        #[test]
        fn tables_that_pass_keep_to_the_bound(values in prop::collection::vec(value(), 0..4)) {
            let mut headers = FieldTable::default();
            for (i, value) in values.into_iter().enumerate() {
                headers.insert(format!("h{i}").into(), value);
            }
            let fine = depth(&AMQPValue::FieldTable(headers.clone())) <= MAX_DEPTH;
            let input = bytes(&message(headers.clone()));
            let output = passed(&input).unwrap();
            prop_assert_eq!(fine, output == input);
            prop_assert!(output.len() <= input.len());
            let (_, frame) = parse_frame(&output[..]).unwrap();
            let AMQPFrame::Header(_, header) = frame else { panic!("a header") };
            let left = header.properties.headers().clone().unwrap();
            prop_assert!(depth(&AMQPValue::FieldTable(left)) <= MAX_DEPTH);
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 1_u8..9) {
            let mut input = vec![kind, 0, 1];
            input.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
            input.extend(&bytes);
            input.push(END);
            let _ = pass(&input, &mut { MAX }, &mut Vec::new());
            let _ = pass(&bytes, &mut { MAX }, &mut Vec::new());
        }
    }
}
