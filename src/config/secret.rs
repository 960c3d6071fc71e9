//! Secret text, and the files that contain it.

use std::{fmt, path::Path};

use crate::file::{self, Guard};

/// A secret: `Debug` and `Display` do not show it, and it cannot be serialised.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Largest file of a secret. A URL or a password is far shorter.
const MOST: u64 = 64 << 10;

/// Reads a secret. One newline at the file's end is not part of it. The error names the file, and never shows its contents.
pub(super) fn read_file(path: &Path) -> Result<Secret, String> {
    let name = path.display();
    let bytes = file::read(path, MOST, Guard::Secret)?;
    let text = String::from_utf8(bytes).map_err(|_| format!("{name} is not UTF-8 text"))?;
    let text = text
        .strip_suffix('\n')
        .map_or(text.as_str(), |t| t.strip_suffix('\r').unwrap_or(t));
    if text.is_empty() {
        return Err(format!("{name} is empty"));
    }
    Ok(Secret::new(text))
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::fs::PermissionsExt};

    use super::*;

    fn file(text: &str, mode: u32) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    #[test]
    fn one_newline_at_the_end_is_trimmed_and_no_more() {
        for (text, secret) in [
            ("00123", "00123"),
            ("a b\n", "a b"),
            ("a\r\n", "a"),
            (" a\n\n", " a\n"),
        ] {
            assert_eq!(
                read_file(file(text, 0o600).path()).unwrap().expose(),
                secret
            );
        }
    }

    #[test]
    fn an_empty_missing_or_open_file_is_refused_without_being_quoted() {
        let problem = |file: &tempfile::NamedTempFile| read_file(file.path()).unwrap_err();
        for nothing in ["", "\n"] {
            assert!(problem(&file(nothing, 0o600)).ends_with("is empty"));
        }
        let binary = file("", 0o600);
        std::fs::write(binary.path(), b"hunter2\xff").unwrap();
        assert!(problem(&binary).ends_with("is not UTF-8 text"));
        let group = problem(&file("hunter2", 0o660));
        assert!(
            group.contains("can be changed by its group (mode 660); chmod g-w"),
            "{group}"
        );
        let long = problem(&file(&"hunter2".repeat(10_000), 0o600));
        assert!(
            long.contains("more than 65536 bytes") && !long.contains("hunter2"),
            "{long}"
        );
        for mode in [0o644, 0o604, 0o602] {
            let open = problem(&file("hunter2", mode));
            assert!(
                open.contains("is open to everybody") && !open.contains("hunter2"),
                "{open}"
            );
        }
        assert!(
            read_file(Path::new("/nonexistent/secret"))
                .unwrap_err()
                .contains("cannot read")
        );
    }

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "[redacted]");
    }
}
