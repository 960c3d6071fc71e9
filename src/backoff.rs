//! STUB
pub fn delay(_: u32, i: std::time::Duration, _: std::time::Duration, _: &mut impl rand::Rng) -> std::time::Duration { i }
