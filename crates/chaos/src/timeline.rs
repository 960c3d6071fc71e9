//! What the plot is drawn from: the samples of each row, and its faults as bands.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use serde::Serialize;

#[derive(Debug, Clone, Copy, Serialize)]
pub struct Sample {
    /// Seconds since the run began.
    pub at: f64,
    /// Deliveries so far, in this row.
    pub delivered: usize,
    /// Seconds; `None` while the database could not be asked.
    pub lag: Option<f64>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Band {
    pub row: String,
    pub from: f64,
    /// `None`: it lasted to the end of its row.
    pub to: Option<f64>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Section {
    pub row: String,
    pub fault: String,
    pub from: f64,
    pub to: f64,
    pub samples: Vec<Sample>,
}

#[derive(Debug)]
pub struct Timeline {
    began: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    sections: Vec<Section>,
    bands: Vec<Band>,
}

impl Timeline {
    /// Its seconds count from `began`.
    pub fn since(began: Instant) -> Self {
        Self {
            began,
            state: Mutex::default(),
        }
    }

    /// An empty one whose seconds count from the same moment.
    pub fn beside(&self) -> Self {
        Self::since(self.began)
    }

    /// Takes over what a row has left in one of its own.
    pub fn absorb(&self, row: &Self) {
        let mut of_row = row.lock();
        let mut state = self.lock();
        state.sections.append(&mut of_row.sections);
        state.bands.append(&mut of_row.bands);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    pub fn begin(&self, row: &str, fault: &str) {
        let at = self.now();
        self.lock().sections.push(Section {
            row: row.to_owned(),
            fault: fault.to_owned(),
            from: at,
            to: at,
            samples: Vec::new(),
        });
    }

    pub fn end(&self) {
        let at = self.now();
        if let Some(section) = self.lock().sections.last_mut() {
            section.to = at;
        }
    }

    pub fn sample(&self, delivered: usize, lag: Option<f64>) {
        let at = self.now();
        if let Some(section) = self.lock().sections.last_mut() {
            section.samples.push(Sample { at, delivered, lag });
        }
    }

    /// The fault begins.
    pub fn fault(&self) {
        let from = self.now();
        let mut state = self.lock();
        let row = state
            .sections
            .last()
            .map_or_else(String::new, |section| section.row.clone());
        state.bands.push(Band {
            row,
            from,
            to: None,
        });
    }

    /// The fault is over; returns when, to count the recovery from.
    pub fn over(&self) -> Instant {
        let to = self.now();
        if let Some(band) = self.lock().bands.last_mut() {
            band.to = Some(to);
        }
        Instant::now()
    }

    pub fn sections(&self) -> Vec<Section> {
        self.lock().sections.clone()
    }

    pub fn bands(&self) -> Vec<Band> {
        self.lock().bands.clone()
    }
}
