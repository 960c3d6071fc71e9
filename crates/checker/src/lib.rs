//! The judge of a run: what producers committed against what consumers received.
//!
//! It shares no code with the relay, so an error of the relay cannot be in the checker too. Producers and consumers
//! append one JSON line an [`Entry`] to a file that no fault of the run reaches ([`LedgerFile`]). After the run the
//! files make a [`Ledger`], and [`check`] says whether anything was lost, invented, altered or put out of order.
//!
//! ```
//! use checker::{Committed, Delivered, Entry, Ledger, body_hash, check};
//!
//! let mut ledger = Ledger::default();
//! ledger.add(Entry::Committed(Committed {
//!     message_id: "6a1f".into(),
//!     key: Some("order/1042".into()),
//!     position: 1,
//!     body: body_hash(b"{}"),
//! }));
//! ledger.add(Entry::Delivered(Delivered {
//!     message_id: "6a1f".into(),
//!     body: body_hash(b"{}"),
//!     sequence: 1,
//!     redelivered: false,
//!     replay: false,
//! }));
//! check(&ledger).assert_clean();
//! ```

mod check;
mod ledger;

pub use check::{OrderViolation, Report, check};
pub use ledger::{Committed, Delivered, Entry, Ledger, LedgerFile, ReadError, body_hash};
