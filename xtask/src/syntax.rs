//! Finds the paths that a file names, from its syntax tree.
//!
//! The form of a name does not matter: in a group, renamed, through a glob, by `super`, in an attribute, or inside of a
//! macro call. Two kinds of names are not seen: those that another macro assembles, and those that a third module
//! exports under a new name.

use std::{collections::HashMap, fs, path::Path};

use proc_macro2::{Span, TokenStream, TokenTree};
use programs::Result;
use syn::{
    Attribute, Block, Ident, ItemExternCrate, ItemMod, ItemUse, Macro, UseTree,
    ext::IdentExt,
    visit::{self, Visit},
};

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
pub struct Named {
    pub names: Vec<Name>,
    /// The names that `use` brings into the file's own scope, each with its path.
    pub imports: HashMap<String, Vec<String>>,
}

pub fn parse(file: &Path) -> Result<syn::File> {
    let said = |e: &dyn std::fmt::Display| format!("{}: {e}", file.display());
    let text = fs::read_to_string(file).map_err(|e| said(&e))?;
    Ok(syn::parse_file(&text).map_err(|e| said(&e))?)
}

pub fn read(module: &[String], file: &syn::File) -> Named {
    let mut names = Names {
        module: module.to_vec(),
        imported: vec![HashMap::new()],
        found: Vec::new(),
    };
    names.import_all(&file.items);
    names.visit_file(file);
    Named {
        names: names.found,
        imports: names.imported.swap_remove(0),
    }
}

/// Collects every path of a file.
struct Names {
    /// The module that is being visited.
    module: Vec<String>,
    /// Names that `use` has brought into the open scopes, the innermost scope last.
    imported: Vec<HashMap<String, Vec<String>>>,
    found: Vec<Name>,
}

impl Names {
    /// Returns the path from the crate on, with `self`, `super` and imported names resolved.
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
            module: self.module.clone(),
        });
    }

    /// Runs before the items of a scope are visited, because a name may be used above its `use`.
    fn import_all<'a>(&mut self, items: impl IntoIterator<Item = &'a syn::Item>) {
        for item in items {
            match item {
                syn::Item::Use(item) => {
                    for leaf in leaves(&item.tree) {
                        let stands_for = self.resolved(&leaf.path);
                        // `use tokio;` stands for itself.
                        if let Some(name) = leaf.binds.filter(|name| stands_for != [name.clone()]) {
                            self.bind(name, stands_for);
                        }
                    }
                }
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

/// A leaf of a `use` tree: its path, and the name that it binds. `a::{self}` is `a`; a glob binds no name of its own.
struct Leaf {
    path: Vec<String>,
    binds: Option<String>,
    at: Span,
}

fn leaves(tree: &UseTree) -> Vec<Leaf> {
    fn walk(prefix: &[String], tree: &UseTree, found: &mut Vec<Leaf>) {
        let below = |ident: &Ident| [prefix, &[ident.unraw().to_string()]].concat();
        let leaf = |ident: &Ident| match prefix {
            [_, ..] if ident == "self" => prefix.to_vec(),
            _ => below(ident),
        };
        match tree {
            UseTree::Path(path) => walk(&below(&path.ident), &path.tree, found),
            UseTree::Group(group) => {
                for tree in &group.items {
                    walk(prefix, tree, found);
                }
            }
            UseTree::Name(name) => {
                let path = leaf(&name.ident);
                found.push(Leaf {
                    binds: path.last().cloned(),
                    path,
                    at: name.ident.span(),
                });
            }
            UseTree::Rename(name) => found.push(Leaf {
                path: leaf(&name.ident),
                binds: Some(name.rename.unraw().to_string()),
                at: name.ident.span(),
            }),
            UseTree::Glob(glob) => found.push(Leaf {
                path: prefix.to_vec(),
                binds: None,
                at: glob.star_token.spans[0],
            }),
        }
    }
    let mut found = Vec::new();
    walk(&[], tree, &mut found);
    found
}

impl<'ast> Visit<'ast> for Names {
    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        for leaf in leaves(&item.tree) {
            self.add(&leaf.path, leaf.binds.is_none(), leaf.at);
        }
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
        // A single word is a local name, or an imported name that is resolved elsewhere.
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
        // A module does not inherit the names of the module around it.
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
