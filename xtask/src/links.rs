//! Checks that every relative link of the documents leads to a file, and, if it names one, to an existing heading.

use std::{
    collections::BTreeSet,
    fs,
    path::{Component, Path, PathBuf},
};

use programs::Result;
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use crate::files::files;

const DOCUMENTS: &[&str] = &[
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs",
    "examples/commands/README.md",
    "examples/consuming/README.md",
    "examples/producing/README.md",
];

pub fn dead() -> Result<Vec<String>> {
    let mut dead = dead_of(&files(DOCUMENTS, "md")?)?;
    dead.extend(unlisted(Path::new("docs"))?);
    Ok(dead)
}

/// Files outside of the folder that its pages link to.
pub fn outside(folder: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for file in files(&[&folder.display().to_string()], "md")? {
        let targets = Page::read(&file)?.links;
        let targets = targets.iter().map(|link| target(&file, link).0);
        found.extend(targets.filter(|target| !target.starts_with(folder)));
    }
    Ok(found)
}

fn dead_of(documents: &[PathBuf]) -> Result<Vec<String>> {
    let mut dead = Vec::new();
    for document in documents {
        for link in Page::read(document)?.links {
            let (file, anchor) = target(document, &link);
            let fault = if !file.is_file() {
                "no such file"
            } else if anchor.is_some_and(|a| !has_heading(&file, a)) {
                "no such heading"
            } else {
                continue;
            };
            dead.push(format!("{}: {link}: {fault}", document.display()));
        }
    }
    Ok(dead)
}

/// Pages that the summary does not list; mdBook does not show them.
fn unlisted(folder: &Path) -> Result<Vec<String>> {
    let summary = folder.join("SUMMARY.md");
    let links = Page::read(&summary)?.links;
    let mut listed: BTreeSet<PathBuf> = links.iter().map(|link| target(&summary, link).0).collect();
    listed.insert(summary.clone());
    let pages = files(&[&folder.display().to_string()], "md")?;
    let missing = pages.iter().filter(|page| !listed.contains(*page));
    Ok(missing
        .map(|page| format!("{}: does not name {}", summary.display(), page.display()))
        .collect())
}

fn has_heading(file: &Path, anchor: &str) -> bool {
    Page::read(file).is_ok_and(|page| page.anchors.contains(anchor))
}

/// The file, with `..` resolved, and the heading.
fn target<'a>(document: &Path, link: &'a str) -> (PathBuf, Option<&'a str>) {
    let (path, anchor) = match link.split_once('#') {
        Some((path, anchor)) => (path, Some(anchor)),
        None => (link, None),
    };
    if path.is_empty() {
        return (document.to_owned(), anchor);
    }
    let mut file = document.parent().map(Path::to_owned).unwrap_or_default();
    for part in Path::new(path).components() {
        match part {
            Component::ParentDir => drop(file.pop()),
            Component::CurDir => {}
            part => file.push(part),
        }
    }
    (file, anchor)
}

#[derive(Default)]
struct Page {
    links: Vec<String>,
    anchors: BTreeSet<String>,
}

impl Page {
    fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let mut page = Self::default();
        let mut heading: Option<String> = None;
        for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
            match event {
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. })
                    if !dest_url.contains(':') =>
                {
                    page.links.push(dest_url.into_string());
                }
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    page.anchors
                        .insert(anchor(&heading.take().unwrap_or_default()));
                }
                Event::Text(text) | Event::Code(text) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&text);
                    }
                }
                _ => {}
            }
        }
        page
    }
}

/// The anchor of a heading, as GitHub and mdBook make it.
fn anchor(heading: &str) -> String {
    let kept = heading
        .chars()
        .filter(|c| c.is_alphanumeric() || " _-".contains(*c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_link_and_a_dead_anchor_are_caught_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let file = folder.path().join(name);
            fs::write(&file, text).unwrap();
            file
        };
        let other = write("other.md", "# Title\n\n## Why `NOTIFY` is *conditional*?\n");
        let page = write(
            "page.md",
            "# Page\n\n[file](other.md), [heading](other.md#why-notify-is-conditional), [here](#page), [web](https://a.b/c)\n\n\
             | table |\n|---|\n| [gone](gone.md) |\n\n[gone heading](other.md#why)\n\n```\n[code](no-link.md)\n```\n",
        );
        let dead = dead_of(&[page.clone(), other]).unwrap();
        let page = page.display();
        assert_eq!(
            dead,
            [
                format!("{page}: gone.md: no such file"),
                format!("{page}: other.md#why: no such heading"),
            ]
        );
    }

    #[test]
    fn a_page_that_the_summary_does_not_name_is_caught() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("SUMMARY.md", "[one](one.md)"),
            ("one.md", ""),
            ("two.md", ""),
        ] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let missing = unlisted(folder.path()).unwrap();
        assert!(
            matches!(&missing[..], [one] if one.ends_with("two.md")),
            "{missing:?}"
        );
    }
}
