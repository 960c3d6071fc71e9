fn main() {
    std::fs::write("config/outboxd.toml", outboxd::config::keys::example()).unwrap();
    std::fs::write("docs/configuration.md", outboxd::config::keys::reference()).unwrap();
}
