//! The matrix's bad inputs, each a row of its own: configuration, rows.

pub mod configuration;
mod rows;
mod stage;

use crate::row::Row;

/// In the matrix's order.
pub fn all() -> Vec<&'static Row> {
    let mut all = configuration::cases();
    all.extend(rows::CASES);
    all.sort_unstable_by_key(|row| row.number);
    all
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_bad_input_of_the_matrix_is_there_once_and_in_order() {
        let numbers: Vec<u32> = super::all().iter().map(|row| row.number).collect();
        assert!(numbers.is_sorted_by(|one, next| one < next), "{numbers:?}");
    }
}
