//! A private RabbitMQ node, with an epmd of its own.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    Result, ServerTls, eventually,
    guard::{Account, Guarded},
    port::Port,
};

/// Time limit of a start, which takes seconds, and minutes on a busy machine.
const START: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, Default)]
pub struct RabbitMqOptions {
    /// Additional lines of rabbitmq.conf.
    pub config: Vec<String>,
    /// Adds a TLS listener.
    pub tls: Option<ServerTls>,
    pub plugins: Vec<String>,
}

/// A node whose cluster another node joins, and the port of the epmd of both.
struct Cluster {
    first: String,
    epmd_port: u16,
}

pub struct RabbitMq {
    epmd: Option<Guarded>,
    server: Option<Guarded>,
    account: Account,
    scripts: PathBuf,
    folder: TempDir,
    env: Vec<(&'static str, String)>,
    epmd_port: u16,
    /// The epmd of another node, which lives as long as that node.
    shares_epmd: bool,
    port: u16,
    tls_port: Option<u16>,
    /// Its own, also while it is stopped.
    _ports: Vec<Port>,
}

impl RabbitMq {
    pub async fn start() -> Result<Self> {
        Self::start_with(RabbitMqOptions::default()).await
    }

    pub async fn start_with(options: RabbitMqOptions) -> Result<Self> {
        Self::start_node(options, None).await
    }

    async fn start_node(options: RabbitMqOptions, cluster: Option<Cluster>) -> Result<Self> {
        let scripts = programs::rabbitmq()?;
        let account = Account::of("rabbitmq")?;
        let folder = tempfile::Builder::new().prefix("outboxd-mq-").tempdir()?;
        account.own(folder.path())?;
        let mut ports = Vec::new();
        let mut free_port = || {
            let port = Port::free()?;
            let number = port.number();
            ports.push(port);
            Ok::<_, crate::Error>(number)
        };
        let (port, dist_port) = (free_port()?, free_port()?);
        let epmd_port = match &cluster {
            Some(cluster) => cluster.epmd_port,
            None => free_port()?,
        };
        let tls_port = options.tls.as_ref().map(|_| free_port()).transpose()?;
        let at = |name: &str| folder.path().join(name);
        let directory = |name: &str| {
            Ok::<_, crate::Error>(
                account
                    .directory(folder.path(), name)?
                    .display()
                    .to_string(),
            )
        };

        let mut config = format!(
            "listeners.tcp.1 = 127.0.0.1:{port}\nvm_memory_high_watermark.relative = 0.4\ndisk_free_limit.absolute = 50MB\n"
        );
        if let (Some(tls), Some(tls_port)) = (&options.tls, tls_port) {
            account.write(&at("server.pem"), &tls.certificate_pem, 0o600)?;
            account.write(&at("server.key"), &tls.key_pem, 0o600)?;
            let verify = match &tls.client_ca_pem {
                Some(ca) => {
                    account.write(&at("ca.pem"), ca, 0o600)?;
                    "ssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true\n\
                     auth_mechanisms.1 = EXTERNAL\nauth_mechanisms.2 = PLAIN\n"
                }
                None => {
                    account.write(&at("ca.pem"), &tls.certificate_pem, 0o600)?;
                    "ssl_options.verify = verify_none\n"
                }
            };
            config.push_str(&format!(
                "listeners.ssl.1 = 127.0.0.1:{tls_port}\nssl_options.cacertfile = {}\nssl_options.certfile = {}\n\
                 ssl_options.keyfile = {}\n{verify}",
                at("ca.pem").display(),
                at("server.pem").display(),
                at("server.key").display(),
            ));
        }
        if let Some(Cluster { first, .. }) = &cluster {
            config.push_str(&format!(
                "cluster_formation.peer_discovery_backend = classic_config\n\
                 cluster_formation.classic_config.nodes.1 = {first}\n\
                 cluster_formation.classic_config.nodes.2 = {}\n",
                node_name(port)
            ));
        }
        for line in &options.config {
            config.push_str(line);
            config.push('\n');
        }
        account.write(&at("rabbitmq.conf"), &config, 0o600)?;
        account.write(&at("env.conf"), "", 0o600)?;
        account.write(
            &at("plugins"),
            &format!("[{}].\n", options.plugins.join(",")),
            0o600,
        )?;
        account.write(&at(".erlang.cookie"), "outboxdtests", 0o400)?;

        let path = |name: &str| at(name).display().to_string();
        let env = vec![
            ("HOME", folder.path().display().to_string()),
            ("ERL_EPMD_PORT", epmd_port.to_string()),
            ("ERL_EPMD_ADDRESS", "127.0.0.1".to_owned()),
            // An epmd that the node starts itself is a daemon, and would outlive us.
            ("ERL_FLAGS", "-start_epmd false".to_owned()),
            ("RABBITMQ_NODENAME", node_name(port)),
            ("RABBITMQ_DIST_PORT", dist_port.to_string()),
            ("RABBITMQ_CONF_ENV_FILE", path("env.conf")),
            ("RABBITMQ_CONFIG_FILE", path("rabbitmq.conf")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", path("plugins")),
            ("RABBITMQ_MNESIA_BASE", directory("mnesia")?),
            ("RABBITMQ_LOG_BASE", directory("logs")?),
            ("RABBITMQ_LOGS", "-".to_owned()),
            ("RABBITMQ_GENERATED_CONFIG_DIR", directory("generated")?),
            ("RABBITMQ_PID_FILE", path("pid")),
            ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+S 2:2".to_owned()),
            ("RABBITMQ_CTL_ERL_ARGS", "+S 1:1".to_owned()),
        ];
        let mut broker = Self {
            epmd: None,
            server: None,
            account,
            scripts,
            folder,
            env,
            epmd_port,
            shares_epmd: cluster.is_some(),
            port,
            tls_port,
            _ports: ports,
        };
        broker.restart().await?;
        Ok(broker)
    }

    /// Starts the node, on the same port and data, and waits until it speaks AMQP.
    pub async fn restart(&mut self) -> Result<()> {
        self.server = None;
        if !self.shares_epmd && !self.epmd.as_ref().is_some_and(Guarded::is_running) {
            let port = self.epmd_port.to_string();
            let log = self.folder.path().join("epmd.log");
            let args = ["-port", &port, "-address", "127.0.0.1"];
            // A RabbitMQ home with its own Erlang has epmd beside the scripts.
            let own = self.scripts.join("epmd");
            let program = if own.exists() { own } else { "epmd".into() };
            self.epmd = Some(Guarded::start(
                self.account,
                &program,
                &args,
                &self.env,
                &log,
            )?);
            eventually("epmd to listen", START, async || {
                TcpStream::connect(("127.0.0.1", self.epmd_port)).await.ok()
            })
            .await;
        }
        let log = self.folder.path().join("log");
        let program = self.scripts.join("rabbitmq-server");
        let server = Guarded::start(self.account, &program, &[], &self.env, &log)?;
        let deadline = tokio::time::Instant::now() + START;
        while !self.speaks_amqp().await {
            if !server.is_running() || tokio::time::Instant::now() > deadline {
                return Err(format!("RabbitMQ did not start:\n{}", server.log_tail()).into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.server = Some(server);
        Ok(())
    }

    async fn speaks_amqp(&self) -> bool {
        let ask = async {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
            stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
            let mut answer = [0; 1];
            stream.read_exact(&mut answer).await?;
            Ok::<_, std::io::Error>(answer[0] == 1)
        };
        matches!(
            tokio::time::timeout(Duration::from_secs(10), ask).await,
            Ok(Ok(true))
        )
    }

    /// Starts another node in this node's cluster. This node must be running, and must outlive the new one.
    pub async fn member(&self) -> Result<Self> {
        let cluster = Cluster {
            first: self.node(),
            epmd_port: self.epmd_port,
        };
        Self::start_node(RabbitMqOptions::default(), Some(cluster)).await
    }

    pub fn node(&self) -> String {
        node_name(self.port)
    }

    /// The folder with data, configuration and logs.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn tls_port(&self) -> Option<u16> {
        self.tls_port
    }

    /// URL of `guest`, who may do everything. `vhost` needs no percent-encoding here.
    pub fn url(&self, vhost: &str) -> String {
        self.url_for("guest", "guest", vhost)
    }

    pub fn url_for(&self, user: &str, password: &str, vhost: &str) -> String {
        format!(
            "amqp://{user}:{password}@127.0.0.1:{}/{}",
            self.port,
            vhost.replace('/', "%2f")
        )
    }

    /// The pid of the process that was started; the node itself is a child of it.
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(Guarded::pid)
    }

    /// The number of unacknowledged messages of a quorum queue. It asks the queue's state machine, because the numbers of
    /// `list_queues` are up to five seconds old.
    pub async fn unacknowledged(&self, vhost: &str, queue: &str) -> Result<usize> {
        let total = format!(
            "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"{vhost}\">>, queue, <<\"{queue}\">>)), \
             {{ok, N, _}} = ra:consistent_query(amqqueue:get_pid(Q), {{rabbit_fifo, query_messages_total, []}}), N."
        );
        Ok(self.ctl(&["eval", &total]).await?.trim().parse()?)
    }

    /// Runs rabbitmqctl against this node. This takes a second or two, and many more on a busy machine.
    pub async fn ctl(&self, args: &[&str]) -> Result<String> {
        let mut command =
            tokio::process::Command::from(self.account.command(self.scripts.join("rabbitmqctl")));
        command
            .args(args)
            .env_clear()
            .env("PATH", std::env::var("PATH").unwrap_or_default())
            .env("LANG", "C.UTF-8")
            .envs(self.env.iter().map(|(k, v)| (*k, v)))
            .current_dir("/")
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(START, command.output()).await??;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            return Err(format!("rabbitmqctl {}: {text}{errors}", args.join(" ")).into());
        }
        Ok(text)
    }

    /// Creates virtual hosts in which `guest` may do everything, in one call.
    pub async fn create_vhosts(&self, names: &[String]) -> Result<()> {
        let list: Vec<String> = names.iter().map(|name| format!("<<\"{name}\">>")).collect();
        let code = format!(
            "[begin rabbit_vhost:add(V, <<\"tests\">>), \
             rabbit_auth_backend_internal:set_permissions(<<\"guest\">>, V, <<\".*\">>, <<\".*\">>, <<\".*\">>, <<\"tests\">>) \
             end || V <- [{}]], ok.",
            list.join(",")
        );
        self.ctl(&["eval", &code]).await.map(drop)
    }

    pub async fn stop(&mut self) -> Result<()> {
        if let Some(server) = self.server.take() {
            self.ctl(&["stop"]).await?;
            server.ended(START).await;
        }
        Ok(())
    }

    /// Waits until declarations are on disk. Mnesia writes its log a moment after it answers: a broker that was killed too soon
    /// forgot a durable binding (seen with RabbitMQ 3.10 on a busy machine, in one kill of twenty).
    pub async fn remember(&self) -> Result<()> {
        // Versions without Mnesia do not need this.
        self.ctl(&["eval", "catch mnesia:sync_log(), ok."]).await?;
        Ok(())
    }

    /// Sends SIGKILL, like a loss of power.
    pub async fn kill(&mut self) {
        if let Some(server) = self.server.take() {
            server.kill(START).await;
        }
    }

    /// Sends SIGSTOP: the node keeps its sockets and answers nothing.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        self.server
            .as_ref()
            .ok_or("the broker is not running")?
            .signal_all(signal);
        Ok(())
    }
}

fn node_name(port: u16) -> String {
    format!("rabbit-{port}@localhost")
}
