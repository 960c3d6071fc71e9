use crate::Result;
#[derive(clap::Subcommand)]
pub enum Command {
    Relay,
}
pub fn run(_: &Command) -> Result<()> {
    Ok(())
}
