//! Finds the paths that a file names, in its tokens.
//!
//! The form of a name does not matter: in a group, renamed, through a glob, by `super`, in an attribute, or inside of a
//! macro call. Two kinds of names are not seen: those that another macro assembles, and those that a third module
//! exports under a new name.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::Path,
};

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};
use programs::Result;

/// The path of a file's module within its crate: `src/relay/worker.rs` is `crate::relay::worker`.
pub fn module_of(file: &Path) -> Vec<String> {
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

/// A named path, starting at its crate.
#[derive(Debug)]
pub struct Name {
    pub path: Vec<String>,
    /// `path::*`: names everything in the module.
    pub glob: bool,
    pub line: usize,
    /// The module that contains the path. A path that starts with neither `crate` nor a crate's name starts there.
    pub module: Vec<String>,
}

/// The names in a file.
#[derive(Default)]
pub struct Named {
    pub names: Vec<Name>,
    /// The names that `use` brings into the file's own scope, each with its path.
    pub imports: HashMap<String, Vec<String>>,
    /// Names of the items that the file defines.
    pub items: BTreeSet<String>,
}

pub fn parse(file: &Path) -> Result<TokenStream> {
    let said = |e: &dyn std::fmt::Display| format!("{}: {e}", file.display());
    let text = fs::read_to_string(file).map_err(|e| said(&e))?;
    Ok(text.parse().map_err(|e| said(&e))?)
}

pub fn read(module: &[String], file: TokenStream) -> Named {
    let mut names = Names {
        module: module.to_vec(),
        imported: Vec::new(),
        named: Named::default(),
    };
    names.named.imports = names.scope(file);
    names.named
}

struct Names {
    /// The module that is being read.
    module: Vec<String>,
    /// Names that `use` has brought into the open scopes, the innermost scope last.
    imported: Vec<HashMap<String, Vec<String>>>,
    named: Named,
}

/// A leaf of a `use` tree: its path, the name that it binds, and its line. A glob binds no name of its own.
type Leaf = (Vec<String>, Option<String>, usize);

impl Names {
    /// Returns the path from the crate on, with `self`, `super` and imported names resolved.
    fn resolved(&self, path: &[String]) -> Vec<String> {
        let mut base = match path[0].as_str() {
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

    fn add(&mut self, path: &[String], glob: bool, line: usize) {
        self.named.names.push(Name {
            path: self.resolved(path),
            glob,
            line,
            module: self.module.clone(),
        });
    }

    /// A file, or what is in brackets. Returns the names that `use` brought into it.
    fn scope(&mut self, tokens: TokenStream) -> HashMap<String, Vec<String>> {
        let tokens = Vec::from_iter(tokens);
        let is_file = self.imported.is_empty();
        self.imported.push(HashMap::new());
        // A name may be used above its `use`.
        for (path, binds, _) in (0..tokens.len()).flat_map(|at| uses(&tokens[at..])) {
            let stands_for = self.resolved(&path);
            // `use tokio;` stands for itself.
            if let Some(name) = binds.filter(|name| stands_for != [name.clone()]) {
                let scope = self.imported.len() - 1;
                self.imported[scope].insert(name, stands_for);
            }
        }
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            let leaves = uses(&tokens[at..]);
            if !leaves.is_empty() {
                for (path, binds, line) in leaves {
                    self.add(&path, binds.is_none(), line);
                }
                at += tokens[at..].iter().position(|t| is(t, ';')).unwrap_or(0) + 1;
                continue;
            }
            if is_file && let Some(item) = item(&tokens[at..]) {
                self.named.items.insert(item);
            }
            if let TokenTree::Group(group) = token {
                let keyword = at.checked_sub(2).and_then(|i| word(&tokens[i]));
                let is_module = keyword.is_some_and(|keyword| keyword == "mod")
                    && group.delimiter() == Delimiter::Brace;
                match word_before(&tokens, at).filter(|_| is_module) {
                    Some(name) => {
                        // A module does not inherit the names of the module around it.
                        let around = std::mem::replace(&mut self.imported, vec![HashMap::new()]);
                        self.module.push(name);
                        self.scope(group.stream());
                        self.module.pop();
                        self.imported = around;
                    }
                    None => drop(self.scope(group.stream())),
                }
                at += 1;
                continue;
            }
            let (path, after) = path(&tokens, at);
            // A single word is a local name, or an imported name that is resolved elsewhere.
            if path.len() > 1 {
                self.add(&path, false, token.span().start().line);
            }
            at = after.max(at + 1);
        }
        self.imported.pop().unwrap_or_default()
    }
}

fn word(token: &TokenTree) -> Option<String> {
    match token {
        TokenTree::Ident(ident) => Some(ident.to_string().trim_start_matches("r#").to_owned()),
        _ => None,
    }
}

fn word_before(tokens: &[TokenTree], at: usize) -> Option<String> {
    word(&tokens[at.checked_sub(1)?])
}

fn is(token: &TokenTree, punct: char) -> bool {
    matches!(token, TokenTree::Punct(p) if p.as_char() == punct)
}

/// Whether `::` is there.
fn colons(tokens: &[TokenTree], at: usize) -> bool {
    let joint = |t: &TokenTree| matches!(t, TokenTree::Punct(p) if p.spacing() == Spacing::Joint);
    tokens.get(at).is_some_and(|t| is(t, ':') && joint(t))
        && tokens.get(at + 1).is_some_and(|t| is(t, ':'))
}

/// The words from here on that `::` joins, and where they end.
fn path(tokens: &[TokenTree], mut at: usize) -> (Vec<String>, usize) {
    let mut path = Vec::new();
    while let Some(word) = tokens.get(at).and_then(word) {
        path.push(word);
        at += 1;
        if !colons(tokens, at) || tokens.get(at + 2).and_then(self::word).is_none() {
            break;
        }
        at += 2;
    }
    (path, at)
}

/// The leaves of the `use` or `extern crate` that begins here, if one does.
fn uses(tokens: &[TokenTree]) -> Vec<Leaf> {
    let first = |at: usize| tokens.get(at).and_then(word);
    let skipped = match (first(0).as_deref(), first(1).as_deref()) {
        (Some("use"), _) => 1,
        (Some("extern"), Some("crate")) => 2,
        _ => return Vec::new(),
    };
    let end = tokens.iter().position(|t| is(t, ';'));
    let mut found = Vec::new();
    if let Some(end) = end {
        leaves(&[], &tokens[skipped..end], &mut found);
    }
    found
}

/// `a::{self}` is `a`.
fn leaves(prefix: &[String], tree: &[TokenTree], found: &mut Vec<Leaf>) {
    let start = if colons(tree, 0) { 2 } else { 0 };
    let (words, mut at) = path(tree, start);
    let mut whole = [prefix, &words].concat();
    if colons(tree, at) {
        at += 2;
    }
    match tree.get(at) {
        Some(TokenTree::Group(group)) => {
            let trees = Vec::from_iter(group.stream());
            for tree in trees.split(|token| is(token, ',')) {
                leaves(&whole, tree, found);
            }
        }
        Some(token) if is(token, '*') => found.push((whole, None, token.span().start().line)),
        renamed if !words.is_empty() => {
            if whole.len() > 1 && whole.last().is_some_and(|last| last == "self") {
                whole.pop();
            }
            let name = match renamed {
                Some(_) => tree.last().and_then(word),
                None => whole.last().cloned(),
            };
            found.push((whole, name, tree[start].span().start().line));
        }
        _ => {}
    }
}

/// The name of the item whose keyword is here.
fn item(tokens: &[TokenTree]) -> Option<String> {
    const KEYWORDS: &[&str] = &[
        "const", "enum", "fn", "mod", "static", "struct", "trait", "type", "union",
    ];
    let name = match word(tokens.first()?)?.as_str() {
        "macro_rules" => tokens.get(2)?,
        keyword if KEYWORDS.contains(&keyword) => tokens.get(1)?,
        _ => return None,
    };
    word(name)
}

#[cfg(test)]
mod tests {
    use super::*;

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
