#!/bin/sh
# Writes .env beside docker-compose.yml with random passwords. It refuses to overwrite an existing file, because the
# database volume keeps the password with which it was made.
set -eu
cd "$(dirname "$0")/../.."
if [ -e .env ]; then
    echo ".env exists; remove it and the volumes (docker compose down --volumes) to start afresh" >&2
    exit 1
fi
# The password is hexadecimal, so it needs no escaping in a URL.
random_password() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
postgres_password=$(random_password)
rabbitmq_password=$(random_password)
umask 077
cat > .env <<END
POSTGRES_PASSWORD=$postgres_password
RABBITMQ_PASSWORD=$rabbitmq_password
OUTBOXD_DATABASE_URL=postgres://app:$postgres_password@postgres:5432/app?sslmode=disable
OUTBOXD_BROKER_URL=amqp://outboxd:$rabbitmq_password@rabbitmq:5672/%2f
END
echo "wrote .env"
