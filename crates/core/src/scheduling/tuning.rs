//! The constants of scheduling. docs/internals/experiments.md has the measurements.

use std::time::Duration;

/// Each field has its unit in its type or its documentation, and its reason.
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    /// Lanes: the most that one claim takes during a backlog. Other relays then find lanes too, and a batch of several
    /// lanes has several keys, whose messages need not wait for each other. The number does not divide
    /// [`LANES`](super::LANES): otherwise the same lanes would meet in every claim, and [`shares`](super::shares) could
    /// not keep them level with all others.
    pub lanes_per_backlog_claim: usize,
    /// Lanes: the most that one claim takes without a backlog. A claim costs the servers the same for one message as
    /// for thirty, so few large claims save CPU; but the lanes of a claim wait for its slowest confirm.
    pub lanes_per_light_claim: usize,
    /// One of so many free lanes is left to the other workers during a backlog. If a worker took all free lanes, each
    /// worker would always get back the lanes that it released.
    pub leave_one_lane_in: usize,
    /// How long a lane without a backlog waits for more lanes while another worker works. Claims of several lanes halve
    /// the number of claims.
    pub gather_lanes_for: Duration,
    /// How long we ignore a lane that another relay holds. That relay reads the lane until it is empty. A longer time
    /// delays messages if that relay crashed, or only tidied the lane.
    pub ignore_foreign_lane_for: Duration,

    /// The pause between two polls while there is traffic.
    pub shortest_pause: Duration,
    /// The time between two polls while every worker has lanes. Nobody can take at once what the scout finds, but a few
    /// lanes that are never empty must not keep the scout from finding the others.
    pub poll_beside_busy_workers_every: Duration,
    /// A pause lasts at least so many times as long as the query before it: with five, polling never uses more than 1/6
    /// of a core. Beside an open transaction that has written a million messages, a query takes seconds.
    pub pause_per_query_time: u32,
    /// The limit of that rule: new messages wait no longer than this, and a query, for the next poll.
    pub longest_pause_for_query_time: Duration,
    /// The longest pause of a relay that listens and does not sleep (another relay sleeps): nobody notifies it.
    pub longest_pause_awake: Duration,
    /// After so long without traffic the scout tries to sleep.
    pub sleep_after_idle: Duration,

    /// After so long without traffic the scout tidies marks.
    pub tidy_after_idle: Duration,
    /// The time between two steps of tidying.
    pub tidy_step_every: Duration,
    /// The time between two rounds of tidying, and between two attempts while a transaction or another relay prevents a
    /// round.
    pub tidy_round_every: Duration,

    /// Positions by which a lane must lag to get one more part. It is twice [`STRIDE`](crate::low_water::STRIDE), by which
    /// a mark may be late, and about the distance by which a claim of 500 messages advances each of fifteen lanes.
    pub share_step_positions: i64,
    /// Parts of a lane that neither lags nor leads.
    pub share_parts: i64,
    /// The most parts of a lane that lags, twice the normal number: a hot key must not take the whole claim. Marks stand
    /// still while a writing transaction is open, and then say nothing about the backlog.
    pub share_most_parts: i64,
    /// The fewest parts of a lane that leads, half of the normal number, for the same reasons.
    pub share_fewest_parts: i64,

    /// If `relay.batch_bytes` ended a batch early, the next claim asks for one message in so many more than fitted, and
    /// one. What a claim reads beyond the bytes, it reads for nothing.
    pub batch_headroom_one_in: usize,
    /// Otherwise the next claim asks for so many times as many messages.
    pub batch_growth: usize,
}

impl Tuning {
    /// The values that were measured.
    pub const MEASURED: Self = Self {
        lanes_per_backlog_claim: 15,
        lanes_per_light_claim: 32,
        leave_one_lane_in: 4,
        gather_lanes_for: Duration::from_millis(5),
        ignore_foreign_lane_for: Duration::from_millis(20),

        shortest_pause: Duration::from_millis(5),
        poll_beside_busy_workers_every: Duration::from_millis(100),
        pause_per_query_time: 5,
        longest_pause_for_query_time: Duration::from_secs(10),
        longest_pause_awake: Duration::from_millis(250),
        sleep_after_idle: Duration::from_millis(20),

        tidy_after_idle: Duration::from_secs(1),
        tidy_step_every: Duration::from_millis(100),
        tidy_round_every: Duration::from_secs(10),

        share_step_positions: 2048,
        share_parts: 16,
        share_most_parts: 32,
        share_fewest_parts: 8,

        batch_headroom_one_in: 4,
        batch_growth: 2,
    };
}
