//! The rows of the matrix, by what breaks.

mod broker;
mod cluster;
mod data;
mod database;
mod failover;
mod neighbours;
mod network;
mod people;
mod relay;
mod scene;
mod surroundings;

use crate::row::Row;

/// In the matrix's order. The number of a row that went is not given again.
pub fn all() -> Vec<&'static Row> {
    let groups = [
        relay::ROWS,
        broker::ROWS,
        cluster::ROWS,
        network::ROWS,
        database::ROWS,
        failover::ROWS,
        data::ROWS,
        surroundings::ROWS,
    ];
    let people = people::ROWS.iter().copied();
    in_order(groups.into_iter().chain(people))
}

/// H1 and on, in order.
pub fn neighbours() -> Vec<&'static Row> {
    in_order(neighbours::ROWS.iter().copied())
}

fn in_order(groups: impl Iterator<Item = &'static [Row]>) -> Vec<&'static Row> {
    let mut rows: Vec<&Row> = groups.flatten().collect();
    rows.sort_by_key(|row| row.number);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(rows: Vec<&Row>) -> Vec<u32> {
        rows.into_iter().map(|row| row.number).collect()
    }

    #[test]
    fn every_row_of_the_matrix_is_there_once() {
        for rows in [numbers(all()), numbers(neighbours())] {
            assert!(rows.is_sorted_by(|one, next| one < next), "{rows:?}");
        }
    }
}
