//! Named stops in the flow, for tests that kill the process between two steps. Compiled to nothing without the
//! `failpoints` feature.
//!
//! `OUTBOXD_FAILPOINT=name=hang` prints `failpoint reached: name` to standard error and waits for ever there;
//! `name=panic` panics; `name@3=hang` does so the third time.

#[cfg(not(feature = "failpoints"))]
pub async fn reach(_: &'static str) {}

#[cfg(feature = "failpoints")]
pub use armed::reach;

#[cfg(feature = "failpoints")]
mod armed {
    use std::sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    };

    struct Armed {
        name: String,
        at: u64,
        panics: bool,
        seen: AtomicU64,
    }

    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

    fn armed() -> Option<&'static Armed> {
        ARMED
            .get_or_init(|| {
                let spec = std::env::var("OUTBOXD_FAILPOINT").ok()?;
                let (place, action) = spec.split_once('=')?;
                let (name, at) = place.split_once('@').unwrap_or((place, "1"));
                Some(Armed {
                    name: name.to_owned(),
                    at: at.parse().ok()?,
                    panics: action == "panic",
                    seen: AtomicU64::new(0),
                })
            })
            .as_ref()
    }

    pub async fn reach(name: &'static str) {
        let Some(armed) = armed().filter(|a| a.name == name) else {
            return;
        };
        if armed.seen.fetch_add(1, Ordering::SeqCst) + 1 != armed.at {
            return;
        }
        if armed.panics {
            panic!("failpoint reached: {name}");
        }
        eprintln!("failpoint reached: {name}");
        std::future::pending::<()>().await;
    }
}
