//! No circles: if one file uses another, directly or through others, the other must not use the first one.
//!
//! A file uses another file of its crate if it names an item that is defined there. An exported name counts for the
//! file that defines it, not for the file that exports it: `mod.rs` may export items that its children share. A `mod`
//! declaration is not a use. Rooms (`src/config`, `src/broker`: the modules directly below a crate's root) must not
//! make circles either.
//!
//! The check sees the names that `syntax.rs` sees. It does not see a method whose `impl` is in another file than its
//! type.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs,
    path::{Path, PathBuf},
};

use proc_macro2::TokenStream;
use programs::Result;

use crate::{
    files,
    syntax::{self, Named, module_of},
};

pub fn found() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for place in places()? {
        let of_files = Crate::read(&place)?.uses();
        found.extend(of_files.circles().into_values());
        let of_rooms = of_files.by(room).circles().into_values();
        found.extend(of_rooms.map(|circle| format!("rooms: {circle}")));
    }
    Ok(found)
}

fn places() -> Result<Vec<PathBuf>> {
    let mut places = vec![PathBuf::from("src"), PathBuf::from("xtask/src")];
    for entry in fs::read_dir("crates")? {
        places.push(entry?.path().join("src"));
    }
    places.retain(|place| place.is_dir());
    places.sort();
    Ok(places)
}

/// A file of a crate.
struct File {
    path: String,
    named: Named,
}

impl File {
    fn new(path: &Path, module: &[String], file: TokenStream) -> Self {
        Self {
            path: path.display().to_string(),
            named: syntax::read(module, file),
        }
    }
}

/// The files of a crate, by module.
struct Crate(BTreeMap<Vec<String>, File>);

/// Maximum length of a chain of exports that is followed.
const FAR: usize = 16;

impl Crate {
    fn read(place: &Path) -> Result<Self> {
        let folder = place
            .to_str()
            .ok_or("the path of a crate is not UTF-8 text")?;
        let has_library = place.join("lib.rs").is_file();
        let mut files = BTreeMap::new();
        for path in files::files(&[folder], "rs")? {
            // A program beside a library is a separate crate.
            if has_library && path == place.join("main.rs") {
                continue;
            }
            let module = module_of(&path);
            let file = File::new(&path, &module, syntax::parse(&path)?);
            files.insert(module, file);
        }
        Ok(Self(files))
    }

    fn uses(&self) -> Uses {
        let mut uses = Uses::default();
        for (module, file) in &self.0 {
            for name in &file.named.names {
                let Some(path) = self.whole_path(module, &name.module, &name.path) else {
                    continue;
                };
                let Some(home) = self.home(&path, name.glob, FAR) else {
                    continue;
                };
                if home.path != file.path {
                    let said = format!("{}:{} names {}", file.path, name.line, path.join("::"));
                    uses.add(&file.path, &home.path, said);
                }
            }
        }
        uses
    }

    /// The whole path; `None` if it starts in another crate. `inner` is a module within the file of `module`; a path in
    /// it may start with a file below either.
    fn whole_path(
        &self,
        module: &[String],
        inner: &[String],
        path: &[String],
    ) -> Option<Vec<String>> {
        let first = path.first()?;
        if first == "crate" {
            return Some(path.to_vec());
        }
        (module.len()..=inner.len()).rev().find_map(|length| {
            let mut whole = inner[..length].to_vec();
            whole.push(first.clone());
            let is_file = self.0.contains_key(&whole);
            whole.extend_from_slice(&path[1..]);
            is_file.then_some(whole)
        })
    }

    /// The file that defines the item of a path. No file defines a module as such; a glob names the items of its
    /// module.
    fn home(&self, path: &[String], glob: bool, far: usize) -> Option<&File> {
        let mut module = path.get(..1)?.to_vec();
        for (i, word) in path.iter().enumerate().skip(1) {
            module.push(word.clone());
            if self.0.contains_key(&module) {
                continue;
            }
            module.pop();
            let file = self.0.get(&module)?;
            let stands_for = match file.named.imports.get(word) {
                _ if far == 0 || file.named.items.contains(word) => None,
                Some(path) => Some(self.whole_path(&module, &module, path)?),
                None => self.through_a_glob(&module, file, word),
            };
            let Some(mut stands_for) = stands_for else {
                return Some(file);
            };
            stands_for.extend_from_slice(&path[i + 1..]);
            return self.home(&stands_for, glob, far - 1);
        }
        if glob { self.0.get(&module) } else { None }
    }

    fn through_a_glob(&self, module: &[String], file: &File, word: &String) -> Option<Vec<String>> {
        let globs = file
            .named
            .names
            .iter()
            .filter(|name| name.glob && name.module == module);
        globs
            .filter_map(|glob| self.whole_path(module, module, &glob.path))
            .find(|around| {
                let there = self.0.get(around);
                there.is_some_and(|f| {
                    f.named.items.contains(word) || f.named.imports.contains_key(word)
                })
            })
            .map(|mut around| {
                around.push(word.clone());
                around
            })
    }
}

/// The module directly below a crate's root: `src/config/dsn/mod.rs` belongs to `src/config`, `src/tls.rs` to
/// `src/tls`.
fn room(file: &str) -> String {
    let mut room = PathBuf::new();
    let mut parts = Path::new(file).iter();
    for part in parts.by_ref() {
        room.push(part);
        if part == "src" {
            break;
        }
    }
    room.extend(parts.next());
    room.with_extension("").display().to_string()
}

/// The uses between files, each with the first line that contains it.
#[derive(Default)]
struct Uses(BTreeMap<String, BTreeMap<String, String>>);

impl Uses {
    fn add(&mut self, from: &str, to: &str, said: String) {
        let used = self.0.entry(from.to_owned()).or_default();
        used.entry(to.to_owned()).or_insert(said);
    }

    fn all(&self) -> impl Iterator<Item = (&String, &String, &String)> {
        let each = self.0.iter();
        each.flat_map(|(from, used)| used.iter().map(move |(to, said)| (from, to, said)))
    }

    /// The same between larger things.
    fn by(&self, larger: impl Fn(&str) -> String) -> Self {
        let mut uses = Self::default();
        for (from, to, said) in self.all() {
            let (from, to) = (larger(from), larger(to));
            if from != to {
                uses.add(&from, &to, said.clone());
            }
        }
        uses
    }

    /// The shortest circle through each node that is on one, a line for each step; each circle once.
    fn circles(&self) -> BTreeMap<BTreeSet<String>, String> {
        let rounds = self.0.keys().filter_map(|start| self.round(start));
        rounds
            .map(|way| {
                let (on_it, said): (BTreeSet<String>, Vec<String>) = way.into_iter().unzip();
                (on_it, said.join("\n           "))
            })
            .collect()
    }

    /// The nodes on the way, each with the line that names the next one.
    fn round(&self, start: &String) -> Option<Vec<(String, String)>> {
        let mut ways = VecDeque::from([(start, Vec::new())]);
        let mut seen = BTreeSet::new();
        while let Some((at, way)) = ways.pop_front() {
            for (to, said) in self.0.get(at).into_iter().flatten() {
                let mut way = way.clone();
                way.push((at.clone(), said.clone()));
                if to == start {
                    return Some(way);
                }
                if seen.insert(to) {
                    ways.push_back((to, way));
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uses(files: &[(&str, &str)]) -> Uses {
        let parsed = files.iter().map(|(path, text)| {
            let module = module_of(Path::new(path));
            let file = text.parse().unwrap();
            (module.clone(), File::new(Path::new(path), &module, file))
        });
        Crate(parsed.collect()).uses()
    }

    /// The circles of a crate, each as a list of file names.
    fn circles(files: &[(&str, &str)]) -> Vec<Vec<String>> {
        let circles = uses(files).circles();
        circles.into_keys().map(Vec::from_iter).collect()
    }

    const ROOT: (&str, &str) = ("src/lib.rs", "mod a; mod b; mod c;");

    #[test]
    fn a_grouped_import_is_caught() {
        let a = (
            "src/a.rs",
            "use std::{fs, io};\nuse crate::{b::{self, B}, c};",
        );
        let b = ("src/b.rs", "use super::{c::{C}, a::{A}};");
        let found = circles(&[ROOT, a, b, ("src/c.rs", "")]);
        assert_eq!(found, [["src/a.rs", "src/b.rs"]]);
        let said = uses(&[ROOT, a, b, ("src/c.rs", "")]).circles();
        let said = Vec::from_iter(said.values());
        assert!(said[0].contains("src/a.rs:2 names crate::b::B"), "{said:?}");
    }

    #[test]
    fn a_circle_over_others_is_caught_however_the_names_are_written() {
        let a = ("src/a.rs", "fn f() { crate::b::f() }");
        let b = (
            "src/b.rs",
            "use crate as all; fn f() { assert!(all::c::f()) }",
        );
        let c = (
            "src/c.rs",
            "use crate::a as first; impl From<first::A> for C {}",
        );
        let found = circles(&[ROOT, a, b, c]);
        assert_eq!(found, [["src/a.rs", "src/b.rs", "src/c.rs"]]);
    }

    #[test]
    fn a_child_that_uses_what_its_parent_defines_is_a_circle_if_the_parent_uses_it() {
        let child = ("src/a/child.rs", "use super::A; pub fn f(a: A) {}");
        let uses_it = (
            "src/a/mod.rs",
            "mod child; struct A; fn f() { child::f(A) }",
        );
        assert_eq!(
            circles(&[ROOT, uses_it, child]),
            [["src/a/child.rs", "src/a/mod.rs"]]
        );
        let exports_it = ("src/a/mod.rs", "mod child; pub use child::f; struct A;");
        assert_eq!(circles(&[ROOT, exports_it, child]).len(), 1);
        let declares_it = ("src/a/mod.rs", "mod child; struct A;");
        assert_eq!(circles(&[ROOT, declares_it, child]), [[""; 0]; 0]);
    }

    #[test]
    fn a_name_exported_by_the_parent_counts_for_the_file_that_defines_it() {
        let parent = (
            "src/a/mod.rs",
            "mod error; mod left; mod right; pub use error::{Error, Other as Another}; pub use left::*;",
        );
        let error = ("src/a/error.rs", "pub struct Error; pub struct Other;");
        let left = (
            "src/a/left.rs",
            "use super::{Another, Error}; pub struct Left;",
        );
        let right = (
            "src/a/right.rs",
            "use super::Left; fn f() { super::Error::new() }",
        );
        assert_eq!(circles(&[ROOT, parent, error, left, right]), [[""; 0]; 0]);
        let left = ("src/a/left.rs", "pub struct Left; use super::right::f;");
        assert_eq!(
            circles(&[ROOT, parent, error, left, right]),
            [["src/a/left.rs", "src/a/right.rs"]]
        );
    }

    #[test]
    fn a_module_that_is_only_named_on_the_way_is_not_used() {
        let a = (
            "src/a.rs",
            "use crate::b; use tokio::sync::a; mod tests { use super::*; }",
        );
        let b = ("src/b.rs", "use crate::a::A;");
        assert_eq!(circles(&[ROOT, a, b]), [[""; 0]; 0]);
        let a = ("src/a.rs", "use crate::b; fn f() { b::f() }");
        assert_eq!(circles(&[ROOT, a, b]).len(), 1);
    }

    #[test]
    fn rooms_make_no_circles_either() {
        let files = [
            ("src/lib.rs", "mod a; mod b;"),
            ("src/a/mod.rs", "mod one; mod two;"),
            ("src/a/one.rs", "use crate::b::one::B;"),
            ("src/a/two.rs", "pub struct A;"),
            ("src/b/mod.rs", "pub mod one; mod two;"),
            ("src/b/one.rs", "pub struct B;"),
            ("src/b/two.rs", "use crate::a::two::A;"),
        ];
        let uses = uses(&files);
        assert!(uses.circles().is_empty());
        let rooms = uses.by(room).circles();
        assert_eq!(
            rooms.into_keys().map(Vec::from_iter).collect::<Vec<_>>(),
            [["src/a", "src/b"]]
        );
    }
}
