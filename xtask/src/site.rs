//! Builds the documents as a site under target/site, with mdBook (book.toml).

use std::{fs, path::Path};

use programs::Result;

use crate::{files::files, links, shell::command, tools};

const MDBOOK: &str = "0.5.4";
const SITE: &str = "target/site";

pub fn build() -> Result<()> {
    let features = ["--no-default-features", "--features", "search"];
    let mdbook = tools::installed("mdbook", MDBOOK, &features)
        .map_err(|e| format!("the pages are written, but not the site: {e}"))?;
    command(&mdbook.display().to_string(), &["build"])?;
    for file in links::outside(Path::new("docs"))? {
        copy(&file)?;
    }
    // mdBook turns a README.md into index.html, but links to it become README.html.
    for page in files(&["docs"], "md")?
        .iter()
        .filter(|page| page.ends_with("README.md"))
    {
        let page = Path::new(SITE).join(page);
        fs::copy(
            page.with_file_name("index.html"),
            page.with_extension("html"),
        )?;
    }
    eprintln!("written to {SITE}/docs/index.html");
    Ok(())
}

/// Pages link to files of the repository, so these are copied beside the book. mdBook turns every link to `.md` into
/// one to `.html`.
fn copy(file: &Path) -> Result<()> {
    let to = Path::new(SITE).join(file);
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    if file.extension().is_some_and(|e| e == "md") {
        let text = fs::read_to_string(file)?
            .replace('&', "&amp;")
            .replace('<', "&lt;");
        fs::write(
            to.with_extension("html"),
            format!("<meta charset=\"utf-8\"><pre>{text}</pre>"),
        )?;
    } else {
        fs::copy(file, to)?;
    }
    Ok(())
}
