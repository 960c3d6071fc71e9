//! Reads files that people name, without waiting, and only up to a limit.
//!
//! A pipe waits for a writer, a device has no end, and a log that somebody names by mistake has gigabytes. A start, a reload
//! or a reconnect must survive each of these.

use std::{
    fs::{Metadata, OpenOptions},
    io::Read,
    os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    path::Path,
};

use nix::libc::{O_NOCTTY, O_NONBLOCK};

/// Largest size of a file that a key or a flag names.
pub const MOST: u64 = 4 << 20;

/// The accounts that must not change or read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// No restriction.
    Any,
    /// Only its owner and its group may change the file.
    Trusted,
    /// Only its owner may change the file, and only its owner and its group may read it.
    Secret,
}

/// Reads the whole file. The error names the file and says what would be right, and never shows the contents.
pub fn read(path: &Path, most: u64, guard: Guard) -> Result<Vec<u8>, String> {
    let name = path.display();
    let unreadable = |e: std::io::Error| format!("cannot read {name}: {e}");
    // Check the file before opening it, because opening a device can already have an effect.
    judge(path, &std::fs::metadata(path).map_err(unreadable)?, guard)?;
    let file = OpenOptions::new()
        .read(true)
        // The file may have become a pipe in between.
        .custom_flags(O_NONBLOCK | O_NOCTTY)
        .open(path)
        .map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    judge(path, &metadata, guard)?;
    let mut bytes = Vec::new();
    // Bound the read as well: the size of a file under /proc is 0, and any file may grow.
    file.take(most + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > most {
        return Err(format!(
            "cannot read {name}: it has more than {most} bytes; is it the right file?"
        ));
    }
    Ok(bytes)
}

fn judge(path: &Path, metadata: &Metadata, guard: Guard) -> Result<(), String> {
    let name = path.display();
    let kind = metadata.file_type();
    if !kind.is_file() {
        let what = if kind.is_dir() {
            "a directory"
        } else if kind.is_fifo() {
            "a pipe"
        } else if kind.is_socket() {
            "a socket"
        } else {
            "a device"
        };
        return Err(format!(
            "cannot read {name}: it is {what}, and must be a file"
        ));
    }
    let mode = metadata.mode();
    let shown = mode & 0o777;
    match guard {
        Guard::Secret if mode & 0o007 != 0 => Err(format!(
            "{name} is open to everybody (mode {shown:o}); chmod o= {name}"
        )),
        Guard::Trusted if mode & 0o002 != 0 => Err(format!(
            "{name} can be changed by everybody (mode {shown:o}); chmod o-w {name}"
        )),
        Guard::Secret if mode & 0o020 != 0 => Err(format!(
            "{name} can be changed by its group (mode {shown:o}); chmod g-w {name}"
        )),
        Guard::Any | Guard::Trusted | Guard::Secret => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::{fs::PermissionsExt, fs::symlink, net::UnixListener},
        sync::mpsc,
        time::Duration,
    };

    use super::*;

    /// Reads on a separate thread, because a regression would hang or use up the machine's memory.
    fn soon(path: &Path, most: u64, guard: Guard) -> Result<Vec<u8>, String> {
        let (tell, told) = mpsc::channel();
        let path = path.to_owned();
        std::thread::spawn(move || tell.send(read(&path, most, guard)));
        told.recv_timeout(Duration::from_secs(30))
            .expect("it neither hangs nor panics")
    }

    #[test]
    fn endless_and_blocking_files_are_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        symlink(at("pipe"), at("link")).unwrap();
        symlink("/dev/zero", at("zero")).unwrap();
        for (path, says) in [
            (at("pipe"), "it is a pipe"),
            (at("link"), "it is a pipe"),
            (at("socket"), "it is a socket"),
            ("/dev/zero".into(), "it is a device"),
            ("/dev/tty".into(), "it is a device"),
            (at("zero"), "it is a device"),
            ("/proc/kmsg".into(), "cannot read"),
            ("/".into(), "it is a directory"),
            (at("nothing"), "cannot read"),
        ] {
            for guard in [Guard::Any, Guard::Trusted, Guard::Secret] {
                let problem = soon(&path, MOST, guard).unwrap_err();
                assert!(problem.contains(says), "{}: {problem}", path.display());
            }
        }
    }

    #[test]
    fn a_read_keeps_to_its_limit() {
        let file = tempfile::NamedTempFile::new().unwrap();
        // A sparse file stands for a log of 3 GB that somebody names by mistake.
        file.as_file().set_len(3 << 30).unwrap();
        let problem = soon(file.path(), 100, Guard::Any).unwrap_err();
        assert!(problem.contains("more than 100 bytes"), "{problem}");
        file.as_file().set_len(100).unwrap();
        assert_eq!(
            soon(file.path(), 100, Guard::Any),
            Ok(vec![0; 100]),
            "exactly as much"
        );
    }

    #[test]
    fn a_file_s_permissions_decide_whether_it_is_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let taken = |mode: u32, guard| {
            std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            read(file.path(), 100, guard).is_ok()
        };
        for mode in [0o400, 0o440, 0o600, 0o640, 0o750] {
            assert!(taken(mode, Guard::Secret), "{mode:o}");
        }
        for mode in [0o444, 0o604, 0o620, 0o660, 0o602, 0o601] {
            assert!(!taken(mode, Guard::Secret), "{mode:o}");
        }
        for (mode, trusted) in [(0o644, true), (0o664, true), (0o646, false), (0o602, false)] {
            assert_eq!(taken(mode, Guard::Trusted), trusted, "{mode:o}");
            assert!(taken(mode, Guard::Any), "{mode:o}");
        }
    }

    /// Kubernetes mounts secrets like this, and swaps `..data` to rotate them.
    #[test]
    fn a_mounted_secret_is_followed_through_its_links() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("..2026")).unwrap();
        std::fs::write(at("..2026/url"), "one").unwrap();
        std::fs::set_permissions(at("..2026/url"), std::fs::Permissions::from_mode(0o440)).unwrap();
        symlink("..2026", at("..data")).unwrap();
        symlink("..data/url", at("url")).unwrap();
        assert_eq!(
            read(&at("url"), 100, Guard::Secret),
            Ok(b"one".to_vec()),
            "the link's own mode is 777"
        );
    }
}
