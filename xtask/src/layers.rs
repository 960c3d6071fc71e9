//! The layers of the code, as docs/internals/architecture.md draws them: which module may name which.
//!
//! The rules are checked on the syntax tree, so it does not matter how a name is written: in a group, renamed, through a
//! glob, by `super`, in an attribute or inside a macro's call. Not seen: a name that another macro puts together, and one
//! that a third module exports under a name of its own.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::Path,
    process::Command,
};

use proc_macro2::{Span, TokenStream, TokenTree};
use syn::{
    Attribute, Block, ItemExternCrate, ItemMod, ItemUse, Macro, UseTree,
    ext::IdentExt,
    visit::{self, Visit},
};

use crate::Result;

/// A place, and what its files must not name: a crate, or a path and all that is in it.
const RULES: &[(&str, &[&str])] = &[
    ("crates/core", PURE),
    (
        "src/outbox",
        &[
            "lapin",
            "crate::broker",
            "crate::relay",
            "crate::cli",
            "outbox_core::envelope",
        ],
    ),
    (
        "src/broker",
        &[
            "tokio_postgres",
            "crate::outbox",
            "crate::relay",
            "crate::cli",
            "outbox_core::message",
            "outbox_core::claim",
            "outbox_core::wave",
        ],
    ),
    (
        "src/config",
        &[
            "lapin",
            "crate::outbox",
            "crate::relay",
            "crate::cli",
            "crate::admin",
        ],
    ),
    ("src/relay", &["crate::cli", "crate::admin"]),
    (
        "src/admin",
        &[
            "crate::cli",
            "crate::outbox",
            "crate::broker",
            "lapin",
            "tokio_postgres",
        ],
    ),
    (
        "src/telemetry",
        &[
            "crate::cli",
            "crate::outbox",
            "crate::broker",
            "crate::relay",
            "lapin",
            "tokio_postgres",
        ],
    ),
    // Of the relay's code services share outbox_core alone; the schema is the contract.
    ("crates/outbox", &["outboxd"]),
    (
        "crates/outbox/src/event.rs",
        &["lapin", "tokio", "tokio_postgres"],
    ),
    ("crates/outbox/src/enqueue.rs", &["lapin"]),
    ("crates/outbox/src/inbox", &["lapin"]),
    (
        "crates/checker",
        &[
            "outboxd",
            "outbox_core",
            "test_support",
            "lapin",
            "tokio_postgres",
        ],
    ),
    (
        "crates/model",
        &[
            "outboxd",
            "lapin",
            "tokio_postgres",
            "tokio",
            "test_support",
        ],
    ),
    ("crates/test-support", &["outboxd", "outbox_core"]),
    (
        "crates/amqp-guard",
        &[
            "outboxd",
            "outbox_core",
            "outbox",
            "tokio_postgres",
            "test_support",
        ],
    ),
    ("crates/chaos", &["outboxd", "outbox_core"]),
];

/// No servers, no runtime, no I/O.
const PURE: &[&str] = &[
    "lapin",
    "outboxd",
    "tokio",
    "tokio_postgres",
    "std::env",
    "std::fs",
    "std::io",
    "std::net",
    "std::process",
    "std::thread",
];

/// What crates/core must not depend on, through whatever crate.
const IO: &[&str] = &[
    "amq-protocol",
    "getrandom",
    "lapin",
    "mio",
    "nix",
    "rustls",
    "socket2",
    "tokio",
    "tokio-postgres",
];

pub fn check() -> Result<()> {
    let mut broken = Vec::new();
    for (place, forbidden) in RULES {
        look(Path::new(place), forbidden, &mut broken)?;
    }
    core_depends_on_no_io(&mut broken)?;
    if broken.is_empty() {
        Ok(())
    } else {
        Err(format!(
            "layers: {}\n        docs/internals/architecture.md says why: move the code, or hand the value in as an argument",
            broken.join("\n        ")
        )
        .into())
    }
}

fn core_depends_on_no_io(broken: &mut Vec<String>) -> Result<()> {
    let tree = Command::new("cargo")
        .args(["tree", "--locked", "--package", "outbox-core"])
        .args(["--edges", "normal", "--prefix", "none"])
        .output()?;
    if !tree.status.success() {
        return Err(format!("cargo tree: {}", String::from_utf8_lossy(&tree.stderr)).into());
    }
    let tree = String::from_utf8_lossy(&tree.stdout);
    let names = tree.lines().filter_map(|line| line.split(' ').next());
    let found: BTreeSet<&str> = names.filter(|name| IO.contains(name)).collect();
    broken.extend(found.iter().map(|name| {
        format!(
            "crates/core depends on {name}: `cargo tree -p outbox-core -e normal -i {name}` says through what"
        )
    }));
    Ok(())
}

fn look(place: &Path, forbidden: &[&str], broken: &mut Vec<String>) -> Result<()> {
    // A rule for a place that is gone would hold for ever, and for nothing.
    let attributes = fs::metadata(place).map_err(|e| {
        format!(
            "{}: {e}; correct the rules in xtask/src/layers.rs",
            place.display()
        )
    })?;
    if attributes.is_dir() {
        for entry in fs::read_dir(place)? {
            look(&entry?.path(), forbidden, broken)?;
        }
        return Ok(());
    }
    if place.extension().is_none_or(|e| e != "rs") {
        return Ok(());
    }
    let text = fs::read_to_string(place).map_err(|e| format!("{}: {e}", place.display()))?;
    let found = violations(&module_of(place), &text, forbidden)
        .map_err(|e| format!("{}: {e}", place.display()))?;
    let found = found
        .iter()
        .map(|(line, name)| format!("{}:{line} names {name}", place.display()));
    broken.extend(found);
    Ok(())
}

/// The path of a file's module within its crate: `src/relay/worker.rs` is `crate::relay::worker`.
fn module_of(file: &Path) -> Vec<String> {
    let inside = file
        .iter()
        .map(|part| part.to_string_lossy().into_owned())
        .skip_while(|part| part != "src")
        .skip(1);
    let mut module = vec!["crate".to_owned()];
    module.extend(inside.map(|part| part.trim_end_matches(".rs").to_owned()));
    if module
        .last()
        .is_some_and(|name| matches!(name.as_str(), "mod" | "lib" | "main"))
    {
        module.pop();
    }
    module
}

/// The lines of a file that name what is forbidden, each with the rule.
fn violations<'r>(
    module: &[String],
    text: &str,
    forbidden: &[&'r str],
) -> syn::Result<BTreeSet<(usize, &'r str)>> {
    let file = syn::parse_file(text)?;
    let mut names = Names {
        module: module.to_vec(),
        imported: vec![HashMap::new()],
        found: Vec::new(),
    };
    names.import_all(&file.items);
    names.visit_file(&file);
    let rules: Vec<(Vec<&str>, &'r str)> = forbidden
        .iter()
        .map(|rule| (rule.split("::").collect(), *rule))
        .collect();
    let mut broken = BTreeSet::new();
    for name in &names.found {
        for (path, rule) in &rules {
            if name.breaks(path) {
                broken.insert((name.line, *rule));
            }
        }
    }
    Ok(broken)
}

/// A path as it was named, from its crate on.
#[derive(Debug)]
struct Name {
    path: Vec<String>,
    /// `path::*`: whatever is in it.
    glob: bool,
    line: usize,
}

impl Name {
    fn breaks(&self, rule: &[&str]) -> bool {
        let starts_alike = self.path.iter().zip(rule).all(|(have, want)| have == want);
        starts_alike && (self.path.len() >= rule.len() || self.glob)
    }
}

/// Collects every path of a file.
struct Names {
    /// The module that is visited.
    module: Vec<String>,
    /// What `use` has brought into the scopes that are open, the innermost last.
    imported: Vec<HashMap<String, Vec<String>>>,
    found: Vec<Name>,
}

impl Names {
    /// From the crate on: `self`, `super` and imported names are replaced by what they stand for.
    fn resolved(&self, path: &[String]) -> Vec<String> {
        let Some(first) = path.first() else {
            return Vec::new();
        };
        let mut base = match first.as_str() {
            "self" => self.module.clone(),
            "super" => self.module[..self.module.len().saturating_sub(1)].to_vec(),
            name => match self.imported.iter().rev().find_map(|scope| scope.get(name)) {
                Some(stands_for) => stands_for.clone(),
                None => vec![name.to_owned()],
            },
        };
        for part in &path[1..] {
            if part == "super" {
                base.pop();
            } else {
                base.push(part.clone());
            }
        }
        base
    }

    fn add(&mut self, path: &[String], glob: bool, span: Span) {
        let path = self.resolved(path);
        self.found.push(Name {
            path,
            glob,
            line: span.start().line,
        });
    }

    /// Before the items of a scope are visited: a name may be used above its `use`.
    fn import_all<'a>(&mut self, items: impl IntoIterator<Item = &'a syn::Item>) {
        for item in items {
            match item {
                syn::Item::Use(item) => self.import(&mut Vec::new(), &item.tree),
                syn::Item::ExternCrate(item) => {
                    if let Some((_, name)) = &item.rename {
                        let stands_for = self.resolved(&[item.ident.unraw().to_string()]);
                        self.bind(name.unraw().to_string(), stands_for);
                    }
                }
                _ => {}
            }
        }
    }

    fn bind(&mut self, name: String, stands_for: Vec<String>) {
        if let Some(scope) = self.imported.last_mut() {
            scope.insert(name, stands_for);
        }
    }

    fn import(&mut self, prefix: &mut Vec<String>, tree: &UseTree) {
        match tree {
            UseTree::Path(path) => {
                prefix.push(path.ident.unraw().to_string());
                self.import(prefix, &path.tree);
                prefix.pop();
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.import(prefix, tree);
                }
            }
            UseTree::Name(name) => {
                let (path, last) = leaf(prefix, &name.ident.unraw().to_string());
                let stands_for = self.resolved(&path);
                // `use tokio;` stands for itself.
                if stands_for != [last.clone()] {
                    self.bind(last, stands_for);
                }
            }
            UseTree::Rename(name) => {
                let (path, _) = leaf(prefix, &name.ident.unraw().to_string());
                let stands_for = self.resolved(&path);
                self.bind(name.rename.unraw().to_string(), stands_for);
            }
            UseTree::Glob(_) => {}
        }
    }

    fn name_all(&mut self, prefix: &mut Vec<String>, tree: &UseTree) {
        match tree {
            UseTree::Path(path) => {
                prefix.push(path.ident.unraw().to_string());
                self.name_all(prefix, &path.tree);
                prefix.pop();
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.name_all(prefix, tree);
                }
            }
            UseTree::Name(syn::UseName { ident })
            | UseTree::Rename(syn::UseRename { ident, .. }) => {
                let (path, _) = leaf(prefix, &ident.unraw().to_string());
                self.add(&path, false, ident.span());
            }
            UseTree::Glob(glob) => self.add(prefix, true, glob.star_token.spans[0]),
        }
    }

    /// Paths in the words of a macro's call: what they mean to the macro is not known, but they are names all the same.
    fn in_tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut at = Span::call_site();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.end(&mut path, at);
                        at = ident.span();
                    }
                    path.push(ident.unraw().to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Punct(_) | TokenTree::Literal(_) => {
                    self.end(&mut path, at);
                    colons = 0;
                }
                TokenTree::Group(group) => {
                    self.end(&mut path, at);
                    colons = 0;
                    self.in_tokens(group.stream());
                }
            }
        }
        self.end(&mut path, at);
    }

    fn end(&mut self, path: &mut Vec<String>, at: Span) {
        if path.len() > 1 {
            self.add(path, false, at);
        }
        path.clear();
    }
}

/// The path of a `use` tree's leaf, and the name that it binds: `a::{self}` is `a`.
fn leaf(prefix: &[String], name: &str) -> (Vec<String>, String) {
    let mut path = prefix.to_vec();
    if name == "self" && !prefix.is_empty() {
        let last = prefix.last().cloned().unwrap_or_default();
        return (path, last);
    }
    path.push(name.to_owned());
    (path, name.to_owned())
}

impl<'ast> Visit<'ast> for Names {
    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.name_all(&mut Vec::new(), &item.tree);
    }

    fn visit_item_extern_crate(&mut self, item: &'ast ItemExternCrate) {
        self.add(&[item.ident.unraw().to_string()], false, item.ident.span());
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let words: Vec<String> = path
            .segments
            .iter()
            .map(|segment| segment.ident.unraw().to_string())
            .collect();
        // One word alone is a local name, or was imported, and is found there.
        if words.len() > 1 {
            let span = path.segments[0].ident.span();
            self.add(&words, false, span);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        visit::visit_macro(self, call);
        self.in_tokens(call.tokens.clone());
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        visit::visit_attribute(self, attribute);
        if let syn::Meta::List(list) = &attribute.meta {
            self.in_tokens(list.tokens.clone());
        }
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        self.module.push(item.ident.unraw().to_string());
        // The names of the module around it are not in scope.
        let around = std::mem::replace(&mut self.imported, vec![HashMap::new()]);
        if let Some((_, items)) = &item.content {
            self.import_all(items);
        }
        visit::visit_item_mod(self, item);
        self.imported = around;
        self.module.pop();
    }

    fn visit_block(&mut self, block: &'ast Block) {
        self.imported.push(HashMap::new());
        let items = block.stmts.iter().filter_map(|statement| match statement {
            syn::Stmt::Item(item) => Some(item),
            _ => None,
        });
        self.import_all(items);
        visit::visit_block(self, block);
        self.imported.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORBIDDEN: &[&str] = &["crate::outbox", "lapin", "std::fs"];

    /// Rules that src/broker/publish.rs breaks when it is this text.
    fn broken(text: &str) -> Vec<&'static str> {
        let module = module_of(Path::new("src/broker/publish.rs"));
        let found = violations(&module, text, FORBIDDEN).unwrap();
        found.into_iter().map(|(_, rule)| rule).collect()
    }

    #[test]
    fn a_grouped_import_is_caught() {
        assert_eq!(broken("use crate::{config, outbox};"), ["crate::outbox"]);
        assert_eq!(
            broken("use crate::{outbox::claim::get};"),
            ["crate::outbox"]
        );
        assert_eq!(broken("use std::{fs, path::Path};"), ["std::fs"]);
    }

    #[test]
    fn a_renamed_import_is_caught_and_what_is_reached_through_it() {
        assert_eq!(broken("use crate::outbox as o;"), ["crate::outbox"]);
        assert_eq!(broken("use lapin as l;"), ["lapin"]);
        assert_eq!(broken("extern crate lapin as l;"), ["lapin"]);
        let through_the_crate = "use crate as here; fn f() { here::outbox::g() }";
        assert_eq!(broken(through_the_crate), ["crate::outbox"]);
        let within_a_block = "fn f() { use super::super as up; up::outbox::g() }";
        assert_eq!(broken(within_a_block), ["crate::outbox"]);
    }

    #[test]
    fn a_nested_group_is_caught() {
        let nested =
            "use crate::{\n    config::{self, Secret},\n    outbox::{claim::{self, Claim}, *},\n};";
        assert_eq!(broken(nested), ["crate::outbox"]);
        let module = module_of(Path::new("src/broker/mod.rs"));
        let found = violations(&module, nested, FORBIDDEN).unwrap();
        assert_eq!(Vec::from_iter(found), [(3, "crate::outbox")]);
        assert_eq!(broken("use {std::{fs::{self}}};"), ["std::fs"]);
    }

    #[test]
    fn a_glob_names_whatever_is_in_it() {
        assert_eq!(broken("use crate::*;"), ["crate::outbox"]);
        assert_eq!(broken("use crate::outbox::*;"), ["crate::outbox"]);
        assert_eq!(broken("use super::super::*;"), ["crate::outbox"]);
        assert_eq!(broken("mod tests { use super::*; }"), [""; 0]);
    }

    #[test]
    fn paths_in_code_types_and_attributes_are_caught() {
        for text in [
            "fn f() { crate::outbox::g() }",
            "fn f() { super::super::outbox::g() }",
            "fn f(claim: &crate::outbox::Claim) {}",
            "impl From<crate::outbox::Error> for E {}",
            "mod tests { fn f() { super::super::super::outbox::g() } }",
            "#[crate::outbox::test]\nfn f() {}",
            "#[cfg_attr(test, derive(crate::outbox::D))]\nstruct S;",
        ] {
            assert_eq!(broken(text), ["crate::outbox"], "{text}");
        }
        assert_eq!(broken("fn f() { ::lapin::g() }"), ["lapin"]);
        let imported_below = "fn f() { o::g() }\nuse lapin as o;";
        assert_eq!(broken(imported_below), ["lapin", "lapin"]);
    }

    #[test]
    fn paths_inside_a_macro_are_caught() {
        for text in [
            "fn f() { assert!(crate::outbox::g() == 1) }",
            "fn f() { select! { x = y => { super::super::outbox::g() } } }",
            "macro_rules! m { () => { $crate::outbox::g() } }",
        ] {
            assert_eq!(broken(text), ["crate::outbox"], "{text}");
        }
    }

    #[test]
    fn what_only_looks_alike_is_not_caught() {
        for text in [
            "// crate::outbox\nfn f() { \"crate::outbox\"; }",
            "/// [`crate::outbox`]\nuse outbox_core::claim;",
            "use crate::outbox_of_mail;",
            "use self::outbox::x;",
            "fn f(outbox: u8) { outbox::<u8>(); }",
            "mod crates { use crate::broker::fs; }",
        ] {
            assert_eq!(broken(text), [""; 0], "{text}");
        }
    }

    #[test]
    fn a_file_is_the_module_that_its_path_says() {
        for (file, module) in [
            ("src/lib.rs", "crate"),
            ("src/relay/mod.rs", "crate::relay"),
            ("src/relay/worker.rs", "crate::relay::worker"),
            ("crates/outbox/src/inbox/claim.rs", "crate::inbox::claim"),
        ] {
            assert_eq!(module_of(Path::new(file)).join("::"), module);
        }
    }
}
