//! docs/operating/doctor.md: the codes of `outboxd doctor`, from the code.

const HEAD: &str = "\
<!-- Written by `cargo xtask docs`. -->

# Doctor

Something is wrong, and you do not know what. `outboxd doctor` asks everything in one run: the configuration, the
process, and both servers of every source. It needs no running relay, and it does not stop at the first fault.

```console
$ outboxd doctor
configuration
  ok           D101  file: /etc/outboxd/outboxd.toml; sources: default
…
default: roles and privileges
  fault        D401  this role lacks privileges that a relay needs. Run as the owner of schema outbox:
                       GRANT DELETE ON outbox.dead TO relay;
                     cure: or grant all of them: `outboxd sql --roles`, then GRANT outbox_relay to this role
…
ok: 36, warnings: 1, faults: 1, not checked: 3
```

| word | meaning |
|---|---|
| `ok` | asked, and as it should be |
| `warning` | a relay works with it. It costs something, or it will become a fault |
| `fault` | a relay cannot work with it, or an event can be lost |
| `not checked` | nobody could ask. The line names the fault that is the reason, or says why the question has no answer |

The exit code is 0 without a fault, also with warnings; 69 if every fault may pass by itself (a server is away, somebody
holds a lock); 78 if a person must act. `--json` prints one object for each line, with `code`, `source`, `group`,
`check`, `state`, `finding` and `cure`. A code keeps its meaning.

`outboxd check --connect` prints the faults and warnings of the same checks, as far as a start depends on them. Use it
in a deployment; use the doctor when something is wrong.

## What it does to the servers

It changes nothing, and it publishes nothing that a queue could take. It opens one session on PostgreSQL, two more for a
moment to find a pooler, and one connection on RabbitMQ; with TLS, one more each to see the certificate. No statement
reads a whole table: each has a limit of rows, reads statistics, or ends after two seconds. A statement ends after 10 s,
and waits for a lock for half a second.

Two answers depend on what the role may see. When the transactions of other roles began, only members of
`pg_read_all_stats` see. Without it, the doctor judges by the messages: one that was written after the transaction began,
and is old, proves the transaction's age (D602). AMQP does not tell which queues are bound, so D807 is never `ok`.

## A file for a ticket

`outboxd doctor --bundle FILE` also writes a file of JSON: the version, the checks, the configuration as `config show`
prints it, the state as `status --json`, the servers' versions, and `/metrics` of the relay on this host. It holds no
password, no body and no header. It does hold names: of hosts, users, databases, exchanges and applications. Read it before
you attach it. Only its owner may read the file (mode 0600), and a file that exists is refused.

## Codes
";

pub fn reference() -> String {
    let mut text = HEAD.to_owned();
    let mut group = String::new();
    for check in outboxd::cli::checks() {
        if check.group != group {
            let (first, rest) = check.group.split_at(1);
            let title = first.to_uppercase() + rest;
            text += &format!("\n### {title}\n\n| code | holds | cure |\n|---|---|---|\n");
            group = check.group;
        }
        text += &format!("| {} | {} | {} |\n", check.code, check.asks, check.cure);
    }
    text
}
