//! The rows of the matrix, by what breaks.

mod broker;
mod cluster;
mod consumer;
mod data;
mod database;
mod failover;
mod network;
mod relay;
mod surroundings;

use crate::row::Row;

/// In the matrix's order.
pub fn all() -> Vec<&'static Row> {
    let groups = [
        relay::ROWS,
        broker::ROWS,
        cluster::ROWS,
        network::ROWS,
        database::ROWS,
        failover::ROWS,
        data::ROWS,
        consumer::ROWS,
        surroundings::ROWS,
    ];
    let mut rows: Vec<&Row> = groups.into_iter().flatten().collect();
    rows.sort_by_key(|row| row.number);
    rows
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_row_of_the_matrix_is_there_once() {
        let numbers: Vec<u32> = super::all().iter().map(|row| row.number).collect();
        assert_eq!(numbers, (1..=57).collect::<Vec<_>>());
    }
}
