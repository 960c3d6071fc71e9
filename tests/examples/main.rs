//! The examples of examples/consuming, each driven as the process that a reader would start, against real servers.
//!
//! What is asked is written once, in `questions`; every language answers all of it: `python::processed_twice_…`.

mod language;
mod provider;
mod questions;
mod world;

use language::Language;
use world::World;

macro_rules! answers {
    ($module:ident, $language:ident: $($question:ident)*) => {
        mod $module {
            $(
                #[tokio::test]
                async fn $question() {
                    if let Some(world) = super::World::of(super::Language::$language).await {
                        super::questions::$question(&world).await;
                    }
                }
            )*
        }
    };
}

macro_rules! every_language_answers {
    ($($questions:tt)*) => {
        answers! { python, Python: $($questions)* }
        answers! { node, Node: $($questions)* }
        answers! { java, Java: $($questions)* }
        answers! { go, Go: $($questions)* }
        answers! { rust, Rust: $($questions)* }
    };
}

every_language_answers! {
    a_message_that_comes_twice_is_applied_once
    two_consumers_at_once_apply_a_message_once
    killed_before_the_commit_nothing_is_lost_and_after_it_nothing_is_applied_twice
    an_external_effect_is_asked_for_once_under_the_key_of_the_message
    a_lost_response_leaves_the_effect_in_doubt_until_somebody_settles_it
    killed_during_the_external_call_the_effect_is_in_doubt
    one_business_fact_under_two_message_ids_is_applied_once
    an_older_address_never_replaces_a_newer_one
    another_body_under_a_known_key_is_a_conflict
    what_cannot_be_read_is_dead_lettered_with_its_reason
    a_write_that_keeps_failing_is_given_up_with_the_number_of_its_attempts
    a_lost_database_connection_loses_no_message
    a_stop_ends_the_running_handler_and_acknowledges_its_message
}
