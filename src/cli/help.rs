//! What the help says below the options. A line that fits 80 columns is not wrapped on any terminal.

/// Below the help of the program.
pub(super) const PROGRAM: &str = "\
Configuration, a later one wins:
  defaults; the file; DATABASE_URL and AMQP_URL; OUTBOXD__… variables; --set
The file is the first of:
  --config FILE
  OUTBOXD_CONFIG
  config/outboxd.toml in the working directory, if it exists
  /etc/outboxd/outboxd.toml, if it exists

Environment:
  OUTBOXD_CONFIG         the configuration file, as --config
  OUTBOXD__SECTION__KEY  one key of the configuration, as --set section.key:
                         OUTBOXD__RELAY__WORKERS=8 is --set relay.workers=8
  OUTBOXD_SOURCE         the [[source]], as --source; commands that do not act
                         on one database ignore it
  DATABASE_URL           database.url
  AMQP_URL               broker.url
  NO_COLOR               no colours on a terminal

Exit codes:
  0   ok
  1   failure
  2   wrong usage
  69  a server is unavailable
  78  bad configuration, or a missing schema or grant
check-lag has the codes of a monitoring plugin:
  0 ok, 1 warning, 2 critical, 3 unknown";

/// Below the help of `run`.
pub(super) const RUN: &str = "\
Signals:
  SIGTERM, SIGINT  stop: claim nothing new, settle what is published; a second
                   one ends the relay at once
  SIGHUP           read the configuration again, and apply log.level. Change it
                   in the file: the variables and options of a running process
                   stay as they are, and win over the file";

/// Below the help of `doctor`.
pub(super) const DOCTOR: &str = "\
Each line is ok, warning, fault or not checked, with a code. The codes, and the
cure of each: docs/operating/doctor.md. It changes nothing, and publishes
nothing that a queue could take.

Exit codes:
  0   no fault; there may be warnings
  69  faults that may pass: a server is unavailable, somebody holds a lock
  78  a fault that needs a person: configuration, schema, grants, exchanges";
