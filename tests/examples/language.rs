//! Builds each example with the tools that its README names, into the target directory.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, SystemTime},
};

use tokio::{process::Command, sync::OnceCell};

/// For one build tool: a slow registry must not look like a hang.
const BUILD: Duration = Duration::from_secs(600);

#[derive(Debug, Clone, Copy)]
pub enum Language {
    Python,
    Node,
    Java,
    Go,
    Rust,
}

/// What starts an example.
#[derive(Debug)]
pub struct Program {
    pub path: PathBuf,
    pub args: Vec<String>,
}

/// Installed once for all tests of this process; `None` in it: not on this machine.
type Installed = OnceCell<Option<Program>>;

static PYTHON: Installed = OnceCell::const_new();
static NODE: Installed = OnceCell::const_new();
static JAVA: Installed = OnceCell::const_new();
static GO: Installed = OnceCell::const_new();
static RUST: Installed = OnceCell::const_new();

impl Language {
    /// `None`: its tools are not on this machine. That they fail is a failure.
    pub async fn program(self) -> Option<&'static Program> {
        match self {
            Self::Python => PYTHON.get_or_init(python).await.as_ref(),
            Self::Node => NODE.get_or_init(node).await.as_ref(),
            Self::Java => JAVA.get_or_init(java).await.as_ref(),
            Self::Go => GO.get_or_init(go).await.as_ref(),
            Self::Rust => RUST.get_or_init(rust).await.as_ref(),
        }
    }
}

async fn python() -> Option<Program> {
    needed("python", &[&["python3", "-c", "import ensurepip, venv"]]).await?;
    let at = Build::of("python", &["payments.py", "requirements.txt"]);
    let python = at.folder.join("venv/bin/python");
    at.once(async || {
        at.run("python3", &["-m", "venv", "venv"]).await;
        let install = ["-m", "pip", "install", "-q", "-r", "requirements.txt"];
        at.run(&python, &install).await;
    })
    .await;
    Some(at.program(&python, &["payments.py"]))
}

async fn node() -> Option<Program> {
    needed(
        "node",
        &[
            &["node", "-e", "process.exit(AbortSignal.any ? 0 : 1)"],
            &["npm", "--version"],
        ],
    )
    .await?;
    let files = ["payments.js", "package.json", "package-lock.json"];
    let at = Build::of("node", &files);
    at.once(async || {
        let install = ["ci", "--no-audit", "--no-fund", "--loglevel", "error"];
        at.run("npm", &install).await;
    })
    .await;
    Some(at.program(Path::new("node"), &["payments.js"]))
}

async fn java() -> Option<Program> {
    needed(
        "java",
        &[
            &["javac", "--release", "17", "-version"],
            &["mvn", "--version"],
        ],
    )
    .await?;
    let at = Build::of(
        "java",
        &[
            "pom.xml",
            "src/main/java/Payments.java",
            "src/main/java/Consumer.java",
        ],
    );
    at.once(async || {
        // A repository of our own: what it downloads goes with the target directory.
        let repository = format!("-Dmaven.repo.local={}", at.folder.join("m2").display());
        let goals = ["compile", "dependency:copy-dependencies"];
        at.run("mvn", &[&["-q", "-B", &repository], &goals[..]].concat())
            .await;
    })
    .await;
    let folder = at.folder.display();
    let classes = format!("{folder}/target/classes:{folder}/target/dependency/*");
    Some(Program {
        path: "java".into(),
        // Many of them run at once here, and each for a second.
        args: [
            "-XX:TieredStopAtLevel=1",
            "-XX:+UseSerialGC",
            "-cp",
            &classes,
            "Consumer",
        ]
        .map(str::to_owned)
        .into(),
    })
}

async fn go() -> Option<Program> {
    needed(
        "go",
        // An old one does not even read the file, and a newer one fetches the toolchain that it names.
        &[&[
            "go",
            "mod",
            "edit",
            "-print",
            "examples/consuming/go/go.mod",
        ]],
    )
    .await?;
    let at = Build::of("go", &["main.go", "payments.go", "go.mod", "go.sum"]);
    at.once(async || at.run("go", &["build", "-o", "payments", "."]).await)
        .await;
    Some(at.program(&at.folder.join("payments"), &[]))
}

/// An example of this package: `cargo test` built it, unless it was told to build this test alone.
async fn rust() -> Option<Program> {
    let at = Build {
        folder: repository().to_owned(),
        sources: String::new(),
    };
    let binary = std::env::current_exe().unwrap();
    let program = binary.ancestors().nth(2).unwrap().join("examples/payments");
    let sources = ["examples/consuming/rust", "crates/outbox/src"];
    let changed = sources.map(|folder| newest(&repository().join(folder)));
    if !fs::metadata(&program)
        .is_ok_and(|built| changed.iter().all(|at| built.modified().unwrap() > *at))
    {
        // As all tests are built together, or it builds every dependency once more.
        let build = [
            "build",
            "-q",
            "--locked",
            "--workspace",
            "--example",
            "payments",
        ];
        let features = ["--features", "outboxd/failpoints"];
        at.run(env!("CARGO"), &[&build[..], &features].concat())
            .await;
    }
    Some(at.program(&program, &[]))
}

/// When the last of the files below was changed.
fn newest(folder: &Path) -> SystemTime {
    let entries = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let times = entries.map(|path| {
        if path.is_dir() {
            newest(&path)
        } else {
            fs::metadata(path).unwrap().modified().unwrap()
        }
    });
    times.max().unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Whether all the tools run; says so when not, also where the output of passed tests is swallowed.
async fn needed(language: &str, tools: &[&[&str]]) -> Option<()> {
    for tool in tools {
        let status = Command::new(tool[0])
            .args(&tool[1..])
            .current_dir(repository())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if !status.await.is_ok_and(|status| status.success()) {
            let line = format!(
                "SKIPPED: {language}: `{}` does not run here\n",
                tool.join(" ")
            );
            let _ = std::io::stderr().write_all(line.as_bytes());
            return None;
        }
    }
    Some(())
}

/// A copy of an example in the target directory: nothing is installed beside the sources.
struct Build {
    folder: PathBuf,
    sources: String,
}

impl Build {
    fn of(language: &str, files: &[&str]) -> Self {
        let from = repository().join("examples/consuming").join(language);
        let folder = target().join("examples-consuming").join(language);
        let mut sources = String::new();
        for file in files {
            let text = fs::read_to_string(from.join(file)).unwrap();
            let to = folder.join(file);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::write(to, &text).unwrap();
            sources.push_str(&text);
        }
        Self { folder, sources }
    }

    /// Installs, unless the very same sources were installed before.
    async fn once(&self, install: impl AsyncFnOnce()) {
        let stamp = self.folder.join("installed");
        if fs::read_to_string(&stamp).is_ok_and(|installed| installed == self.sources) {
            return;
        }
        install().await;
        fs::write(stamp, &self.sources).unwrap();
    }

    async fn run(&self, tool: impl AsRef<Path>, args: &[&str]) {
        let tool = tool.as_ref();
        let mut command = Command::new(tool);
        command
            .args(args)
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        // What cargo tells us of our package would make it build some dependencies again.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
                command.env_remove(&name);
            }
        }
        let output = tokio::time::timeout(BUILD, command.output()).await;
        let output = output
            .unwrap_or_else(|_| panic!("{} {args:?} did not end", tool.display()))
            .unwrap();
        assert!(
            output.status.success(),
            "{} {args:?}: {}\n{}{}",
            tool.display(),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn program(&self, path: &Path, files: &[&str]) -> Program {
        let args = files
            .iter()
            .map(|file| self.folder.join(file).display().to_string())
            .collect();
        Program {
            path: path.to_owned(),
            args,
        }
    }
}

pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The test binary is in `target/<profile>/deps`.
fn target() -> PathBuf {
    let binary = std::env::current_exe().unwrap();
    binary.ancestors().nth(3).unwrap().to_owned()
}
