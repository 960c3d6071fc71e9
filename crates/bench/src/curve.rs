//! A line of a picture.

/// A line of a picture.
pub struct Curve {
    pub picture: &'static str,
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

impl Curve {
    pub fn new(picture: &'static str, name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self {
            picture,
            name: name.into(),
            points,
        }
    }
}
