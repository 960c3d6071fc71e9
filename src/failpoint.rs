//! Named failpoints in the flow, for tests that kill the process between two steps. Without the feature `failpoints` they
//! compile to nothing.
//!
//! `OUTBOXD_FAILPOINT=name=hang` prints `failpoint reached: name` to standard error and waits forever;
//! `name=until:FILE` waits until the file exists; `name=panic` panics; `name@3=hang` waits at the third pass.

#[cfg(not(feature = "failpoints"))]
pub async fn reach(_: &'static str) {}

#[cfg(feature = "failpoints")]
pub use armed::reach;

#[cfg(feature = "failpoints")]
mod armed {
    use std::{
        sync::{
            OnceLock,
            atomic::{AtomicU64, Ordering},
        },
        time::Duration,
    };

    struct Armed {
        name: String,
        at: u64,
        action: String,
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
                    action: action.to_owned(),
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
        match armed.action.as_str() {
            "panic" => panic!("failpoint reached: {name}"),
            action => eprintln!("failpoint reached: {name} ({action})"),
        }
        match armed.action.strip_prefix("until:") {
            Some(file) => {
                while !std::path::Path::new(file).exists() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
            None if armed.action == "hang" => std::future::pending().await,
            None => panic!("OUTBOXD_FAILPOINT: unknown action {:?}", armed.action),
        }
    }
}
