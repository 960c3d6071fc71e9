//! From everything that was given to a configuration.

use super::{
    Config, ConfigErrors, LoadOptions,
    given::Given,
    layers::{self, Gathered, Values},
    reader::Reader,
    sections,
};

impl Config {
    /// Reads, checks and relates everything, offline.
    pub fn load(options: LoadOptions) -> Result<Self, ConfigErrors> {
        Ok(Self::read(options)?.0)
    }

    /// The same, with the values as they were given.
    pub(super) fn read(options: LoadOptions) -> Result<(Self, Values), ConfigErrors> {
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
        let mut reader = Reader::new(values.clone());
        let config = sections::config(&mut reader, needs);
        match (config, reader.finish()) {
            (Some(config), problems) if problems.is_empty() => {
                let config = Self {
                    file,
                    given,
                    ..config
                };
                Ok((config, values))
            }
            (_, problems) => Err(ConfigErrors(problems)),
        }
    }
}
