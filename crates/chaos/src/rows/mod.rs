//! The rows of the matrix, by what breaks.

mod broker;
mod consumer;
mod data;
mod database;
mod network;
mod relay;

use crate::row::Row;

/// In the matrix's order.
pub fn all() -> Vec<&'static Row> {
    let groups = [
        relay::ROWS,
        broker::ROWS,
        network::ROWS,
        database::ROWS,
        data::ROWS,
        consumer::ROWS,
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
