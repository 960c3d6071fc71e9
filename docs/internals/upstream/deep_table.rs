//! Parses a table nested `LEVELS` deep. A peer can send such a table in `connection.start` or in a message's headers. The
//! thread has Rust's default stack (2 MiB), like lapin's `lapin-io-loop`.
//!
//! `cargo run --example deep_table -- 100000` ends with SIGABRT, "thread 'parser' has overflowed its stack".

use amq_protocol::types::parsing::parse_field_table;

fn main() {
    let levels = std::env::args().nth(1).and_then(|n| n.parse().ok());
    let levels: usize = levels.unwrap_or(100_000);
    // Each level is an entry without a name, of type 'F', with the next level as its value.
    let mut table = Vec::new();
    for inside in (1..=levels).rev() {
        let size = u32::try_from(inside * 6).expect("a table of less than 4 GiB");
        table.extend(size.to_be_bytes());
        table.extend([0, b'F']);
    }
    table.extend([0; 4]);
    let parser = std::thread::Builder::new().name("parser".to_owned());
    let parsed = parser.spawn(move || parse_field_table(&table[..]).is_ok());
    let parsed = parsed.expect("a thread").join().expect("no panic");
    println!("{levels} levels: parsed {parsed}");
}
