#!/bin/sh
# Checks what is in deploy/ and beside it, as far as this machine has the tools:
#
#   sh deploy/check.sh
#
# Exits non-zero when a check fails. A check whose tool is missing prints `SKIPPED: …`, is listed again at the end,
# and does not fail; STRICT=1 makes it fail. Tools: promtool (Debian: prometheus), systemd-analyze, hadolint, yamllint,
# kubernetes-validate, shellcheck, cargo-deny, docker with the compose plugin.
# BUILD_IMAGE=1 also builds the image; it needs a Docker engine.
# What is read word by word below are names, without spaces; backticks in single quotes are Markdown.
# shellcheck disable=SC2013,SC2016
set -u
cd "$(dirname "$0")/.." || exit 1
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
failures=0
skips=0

# check "what" command…: runs it, shows its output only when it fails.
check() {
    what=$1
    shift
    if "$@" >"$scratch/output" 2>&1; then
        echo "ok: $what"
    else
        echo "FAILED: $what"
        sed 's/^/    /' "$scratch/output"
        failures=$((failures + 1))
    fi
}

skip() {
    echo "SKIPPED: $1: $2"
    echo "    $1: $2" >>"$scratch/skips"
    skips=$((skips + 1))
}

# needs tool "what": true if the tool is there; says that the check is skipped if not.
needs() {
    command -v "$1" >/dev/null 2>&1 && return 0
    skip "$2" "$1 is not installed"
    return 1
}

# ---------------------------------------------------------------- Prometheus
rules='deploy/prometheus/alerts.yml deploy/prometheus/inbox_alerts.yml'
if needs promtool "alert rules, their tests, and prometheus.yml"; then
    # shellcheck disable=SC2086
    check "alert rules: syntax and templates (promtool check rules)" promtool check rules $rules
    for test in deploy/prometheus/*_test.yml; do
        check "alert tests: $test (promtool test rules)" promtool test rules "$test"
    done
    check "prometheus.yml (promtool check config)" promtool check config deploy/prometheus/prometheus.yml
fi

# Each alert has a runbook of its own, links to it, and is expected to fire in some test; each runbook has its alert. A file of rules that is not in the list above would be checked by nobody.
# shellcheck disable=SC2086
alerts_are_documented_and_tested() {
    status=0
    for file in deploy/prometheus/*.yml; do
        case $file in
            *_test.yml | */prometheus.yml) continue ;;
        esac
        case " $rules " in
            *" $file "*) ;;
            *) echo "$file: not among the rules that are checked"; status=1 ;;
        esac
        grep -qx "  - ${file##*/}" deploy/prometheus/prometheus.yml || { echo "$file: not in prometheus.yml"; status=1; }
        grep -q "$file:/etc/prometheus/${file##*/}:ro" docker-compose.yml || { echo "$file: not mounted in docker-compose.yml"; status=1; }
    done
    # alertname runbook_url severity, one line an alert
    awk '/- alert:/ {name = $3} /severity:/ {sub(/.*severity: */, ""); sub(/,.*/, ""); severity = $0}
         /summary:/ {summary = 1} /description:/ {description = 1}
         /runbook_url:/ {print name, $2, severity, summary + description; summary = description = 0}' \
        $rules >"$scratch/alerts"
    [ "$(cat $rules | grep -c -- '- alert:')" -eq "$(wc -l <"$scratch/alerts")" ] ||
        { echo "an alert has no runbook_url"; status=1; }
    while read -r name url severity texts; do
        [ "$url" = "docs/runbooks/$name.md" ] || { echo "$name: runbook_url is $url"; status=1; }
        [ "$texts" = 2 ] || { echo "$name: needs a summary and a description"; status=1; }
        case $severity in
            critical | warning) ;;
            *) echo "$name: severity is '$severity'"; status=1 ;;
        esac
        grep -qx "# $name" "docs/runbooks/$name.md" || { echo "$name: no docs/runbooks/$name.md with that title"; status=1; }
        grep -q "^| \[$name\]($name.md) | $severity |" docs/runbooks/README.md || { echo "$name: not in the table of docs/runbooks/README.md as $severity"; status=1; }
        grep -q "alertname=\"$name\"" deploy/prometheus/*_test.yml || { echo "$name: no test expects it"; status=1; }
    done <"$scratch/alerts"
    for runbook in docs/runbooks/*box?*.md; do
        name=$(basename "$runbook" .md)
        cat $rules | grep -q -- "- alert: $name\$" || { echo "$name: a runbook without an alert"; status=1; }
    done
    return $status
}
check "every alert has a runbook, texts, a severity and a test" alerts_are_documented_and_tested

# -------------------------------------------------------- postgres_exporter
# The YAML holds a copy of the query, since the exporter can't include a file.
exporter_query_is_the_sql_file() {
    grep -v '^--' "deploy/postgres_exporter/$1" >"$scratch/sql"
    sed -n '/^  query: |$/,/^  metrics:$/s/^    //p' "deploy/postgres_exporter/$2" >"$scratch/yaml"
    [ -s "$scratch/sql" ] && diff "$scratch/sql" "$scratch/yaml"
}
check "queries.yaml and outbox_status.sql are one query (diff)" \
    exporter_query_is_the_sql_file outbox_status.sql queries.yaml
check "inbox_queries.yaml and inbox_status.sql are one query (diff)" \
    exporter_query_is_the_sql_file inbox_status.sql inbox_queries.yaml

# ---------------------------------------------------------------- container
if needs hadolint "Dockerfile"; then
    check "Dockerfile (hadolint)" hadolint Dockerfile
fi

export POSTGRES_PASSWORD=check RABBITMQ_PASSWORD=check
export OUTBOXD_DATABASE_URL=postgres://check OUTBOXD_BROKER_URL=amqp://check
if docker compose version >/dev/null 2>&1; then
    check "docker-compose.yml (docker compose config)" docker compose --file docker-compose.yml config --quiet
else
    skip "docker-compose.yml" "no docker with the compose plugin"
fi

if docker info >/dev/null 2>&1 && [ -n "${BUILD_IMAGE:-}" ]; then
    check "the image builds (docker build)" docker build --tag outboxd:check .
else
    skip "the image builds" "no Docker engine, or BUILD_IMAGE is not set"
fi

# The image is built from what .dockerignore lets through, and the code compiles some files in.
context_has_what_is_compiled_in() {
    status=0
    for file in $(grep -rho 'include_str!("[^"]*"' src crates xtask | sed 's/.*"\(.*\)"/\1/; s|^\(\.\./\)*||'); do
        # Those of src/ itself are let through with it.
        [ -e "$file" ] || continue
        dir=${file%/*}
        while ! grep -qx "!$dir" .dockerignore; do
            case $dir in
                */*) dir=${dir%/*} ;;
                *) echo "$file is compiled in, and .dockerignore keeps it out"; status=1; break ;;
            esac
        done
    done
    return $status
}
check ".dockerignore lets through what is compiled in" context_has_what_is_compiled_in

# Cargo reads the manifest of every member of the workspace, and wants the file of every target, whatever it builds.
context_has_the_workspace() {
    context=$scratch/context
    mkdir "$context"
    sed -n 's/^!//p' .dockerignore | xargs cp --recursive --parents --target-directory "$context"
    cargo metadata --manifest-path "$context/Cargo.toml" --locked --offline --no-deps --format-version 1 >/dev/null
}
if needs cargo ".dockerignore lets through the workspace"; then
    check ".dockerignore lets through the workspace (cargo metadata)" context_has_the_workspace
fi

# --------------------------------------------------------------- the code
# Names that these files share with the code.
manual=$(find docs/operating docs/runbooks -name '*.md')
# shellcheck disable=SC2086
metrics_exist() {
    status=0
    for name in $(cat deploy/prometheus/*.yml $manual | grep -owE 'outbox_[a-z_]+' | sort -u); do
        case $name in
            outbox_producer | outbox_relay | outbox_monitor | outbox_status | outbox_wake) continue ;;
        esac
        base=$(echo "$name" | sed -E 's/_(bucket|sum|count)$//')
        grep -q "\"$base\"" src/telemetry/metrics.rs || { echo "$name: no such metric in src/telemetry/metrics.rs"; status=1; }
    done
    return $status
}
check "every metric in alerts and runbooks is one of the code's" metrics_exist

# The same for the inbox: of the crate, and of the exporter's query.
# shellcheck disable=SC2086
inbox_metrics_exist() {
    status=0
    for name in $(cat deploy/prometheus/inbox*.yml $manual | grep -owE 'inbox_[a-z_]+' | sort -u); do
        case $name in
            inbox_consumer | inbox_monitor | inbox_status | inbox_queries | inbox_roles | inbox_alerts*) continue ;;
        esac
        base=$(echo "$name" | sed -E 's/_(bucket|sum|count)$//')
        grep -q "\"$base\"" crates/outbox/src/metrics.rs || { echo "$name: no such metric in crates/outbox/src/metrics.rs"; status=1; }
    done
    for name in $(cat deploy/prometheus/inbox*.yml $manual | grep -owE 'pg_inbox_[a-z_]+' | sort -u); do
        grep -q "^    - ${name#pg_inbox_}:\$" deploy/postgres_exporter/inbox_queries.yaml ||
            { echo "$name: not in inbox_queries.yaml"; status=1; }
    done
    return $status
}
check "every metric in the inbox's alerts and runbooks is one of the code's" inbox_metrics_exist

# What the code counts begins at 0, so all of it is in metrics.rs's lists; and monitoring.md explains those, and no other.
inbox_labels_agree() {
    metrics=crates/outbox/src/metrics.rs
    sed -n '/^pub(crate) const [A-Z]*: Counted/,/^};/p' "$metrics" | grep -oE '"[a-z_]+"' | tr -d '"' | sort -u >"$scratch/labels.code"
    sed -n '/^## Inbox metrics/,/^## [^I]/p' docs/operating/monitoring.md | grep -oE '^\| `[a-z_]+` ' | tr -d '|` ' | sort -u >"$scratch/labels.docs"
    [ -s "$scratch/labels.code" ] && diff "$scratch/labels.code" "$scratch/labels.docs" || return 1
    status=0
    consumer=crates/outbox/src/consumer
    for name in $(grep -hoE '(dead\(|code: |Ok\(|, )"[a-z_]+"' \
        "$consumer/attempt.rs" "$consumer/process.rs" "$consumer/keys.rs" crates/outbox/src/http/execute.rs | grep -oE '"[a-z_]+"' | tr -d '"' | sort -u); do
        grep -qx "$name" "$scratch/labels.code" || { echo "$name: counted, and not in $metrics's lists"; status=1; }
    done
    return $status
}
check "an inbox's outcomes and reasons: begun at 0, explained, and no other" inbox_labels_agree

reasons_agree() {
    sed -n 's/.*=> "\([a-z_]*\)",$/\1/p' crates/core/src/reason.rs | sort >"$scratch/reasons.code"
    sed -n '/^## Reasons/,$s/^| `\([a-z_]*\)` .*/\1/p' docs/operating/dead-letters.md | sort >"$scratch/reasons.docs"
    [ -s "$scratch/reasons.code" ] && diff "$scratch/reasons.code" "$scratch/reasons.docs"
}
check "docs/operating/dead-letters.md explains every reason code, and no other (diff)" reasons_agree

# The first cell of each row of the troubleshooting table, cut at <…>, is text of the code.
error_texts_exist() {
    find src -name '*.rs' -exec cat {} + | awk '
        joined { sub(/^ +/, "") }
        { joined = sub(/\\$/, ""); printf "%s%s", $0, joined ? "" : "\n" }' |
        sed -e 's/\\"/"/g' -e 's/{[^{}]*}/<>/g' >"$scratch/code"
    sed -n 's/^| ``//p' docs/operating/errors.md | sed 's/`` |.*//' >"$scratch/texts"
    [ -s "$scratch/texts" ] || { echo "no rows"; return 1; }
    sed 's/<[^>]*>/\n/g' "$scratch/texts" | sed 's/^ *//; s/ *$//' | awk 'length > 3' | while IFS= read -r part; do
        grep -qF -- "$part" "$scratch/code" || { echo "not in src/: $part"; exit 1; }
    done
}
check "every text of the troubleshooting table is in the code" error_texts_exist

# ------------------------------------------------------------------ systemd
if needs systemd-analyze "systemd unit"; then
    # The binary is not installed on a build machine, and verify insists on one.
    sed -e 's|/usr/bin/outboxd|/bin/true|' deploy/systemd/outboxd.service >"$scratch/outboxd.service"
    # verify exits 0 on unknown keys and only complains, so silence is asked for.
    unit_is_silent() {
        systemd-analyze verify --man=no "$scratch/outboxd.service" >"$scratch/verify" 2>&1
        verified=$?
        grep -F outboxd.service "$scratch/verify" && return 1
        return $verified
    }
    check "systemd unit (systemd-analyze verify)" unit_is_silent
    check "systemd unit: exposure at most 2.0 of 10 (systemd-analyze security)" \
        systemd-analyze security --offline=true --no-pager --threshold=20 "$scratch/outboxd.service"
fi

# --------------------------------------------------------------- Kubernetes
if needs kubernetes-validate "Kubernetes manifests against the API's schema"; then
    check "Kubernetes manifests (kubernetes-validate, 1.31)" \
        kubernetes-validate --kubernetes-version 1.31 --strict deploy/kubernetes/outboxd.yaml
fi

# ------------------------------------------------------------------ the rest
if needs yamllint "YAML style"; then
    check "YAML: syntax, duplicate keys, indentation (yamllint)" yamllint --strict --config-data \
        '{extends: default, rules: {line-length: disable, document-start: disable, truthy: disable, braces: {max-spaces-inside: 0}}}' \
        deploy docker-compose.yml
fi
if needs shellcheck "shell scripts"; then
    check "shell scripts (shellcheck)" shellcheck deploy/check.sh deploy/compose/generate-env.sh
fi
if needs cargo-deny "licences, banned crates, sources"; then
    # It looks at the crates of all platforms; a build fetches those of its own.
    cargo fetch --locked >/dev/null 2>&1
    check "licences, banned crates, sources (cargo deny)" cargo-deny --offline --locked check licenses bans sources
    # Its database is a git repository, fetched here if it can be.
    if cargo-deny fetch db >/dev/null 2>&1; then
        check "security advisories (cargo deny)" cargo-deny --locked check advisories
    else
        skip "security advisories" "the advisory database can't be fetched from here"
    fi
else
    skip "security advisories" "cargo-deny is not installed"
fi

echo "$failures failed, $skips skipped"
[ "$skips" -eq 0 ] || { echo "NOT CHECKED HERE:"; cat "$scratch/skips"; }
[ "$failures" -eq 0 ] || exit 1
[ -z "${STRICT:-}" ] || [ "$skips" -eq 0 ] || exit 1
