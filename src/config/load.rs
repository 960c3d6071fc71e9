//! From everything that was given to a configuration.

use super::{
    Config, ConfigErrors, LoadOptions,
    given::Given,
    layers::{self, Gathered},
    reader::Reader,
    sections,
};

impl Config {
    /// Reads, checks and relates everything, offline.
    pub fn load(options: LoadOptions) -> Result<Self, ConfigErrors> {
        let needs = options.needs;
        let Gathered {
            file,
            values,
            problems,
        } = layers::gather(options);
        // Half a configuration would only add what follows from its missing half.
        if !problems.is_empty() {
            return Err(ConfigErrors(problems));
        }
        let given = Given::of(&values);
        let mut reader = Reader::new(values);
        let config = sections::config(&mut reader, needs);
        match (config, reader.finish()) {
            (Some(config), problems) if problems.is_empty() => Ok(Self {
                file,
                given,
                ..config
            }),
            (_, problems) => Err(ConfigErrors(problems)),
        }
    }
}
