"""Applies each payment message once, even if the broker redelivers it. You can run any number of copies."""

import json
import logging
import os
import random
import re
import signal
import time
import urllib.request

import pika
import psycopg

MAX_ATTEMPTS = 5
stopping = False


class Dead(Exception):
    """A failure without a retry: a person must look. The message goes to the dead-letter queue with its reason."""

    def __init__(self, reason: str, error: str):
        super().__init__(error)
        self.reason = reason


def key_of(properties: pika.BasicProperties) -> str:
    """The business key if there is one: a fact keeps it when it is published again under another message id."""
    payment = (properties.headers or {}).get("payment")
    key = payment if isinstance(payment, str) else properties.message_id or ""
    if not 1 <= len(key.encode()) <= 255 or re.search(r"[\x00-\x1f\x7f-\x9f]", key):
        raise Dead("message_id_invalid", "the idempotency key is missing, too long, or not printable")
    return key


def parse(body: bytes, **fields: type) -> list:
    try:
        event = json.loads(body)
        values = [event[name] for name in fields]
    except (ValueError, TypeError, KeyError) as error:
        raise Dead("rejected", f"the body does not match its type: {error!r}") from error
    if [type(value) for value in values] != list(fields.values()):
        raise Dead("rejected", f"the body does not match its type: {fields}")
    return values


def is_first(db: psycopg.Connection, claim: str, key: str, message, *guard) -> bool:
    """Returns whether to continue. A duplicate or stale message needs no more work."""
    kind, content_type, body = message
    outcome = db.execute(
        f"SELECT outcome FROM inbox.{claim}('payments', %s, inbox.fingerprint(%s, %s, %b::bytea)"
        + ", %s" * len(guard) + ")",
        (key, kind, content_type, body, *guard),
    ).fetchone()[0]
    if outcome in ("conflict", "in_doubt"):
        raise Dead(outcome, f"inbox.{claim} said {outcome}")
    return outcome == "first"


def complete(db: psycopg.Connection, key: str, result: dict) -> None:
    db.execute(
        "SELECT inbox.complete('payments', %s, %s::bytea, 'application/json'), inbox.forgive('payments', %s)",
        (key, json.dumps(result).encode(), key),
    )


def order_placed(db, key, message, headers) -> None:
    order, cents = parse(message[2], order=str, cents=int)
    # One transaction: a crash leaves the claim, the payment and the result, or none of them.
    with db.transaction():
        if is_first(db, "claim", key, message):
            db.execute("INSERT INTO payment (order_id, cents) VALUES (%s, %s)", (order, cents))
            complete(db, key, {"order": order, "paid": cents})


def order_moved(db, key, message, headers) -> None:
    order, address = parse(message[2], order=str, address=str)
    entity, position = headers.get("outbox-key"), headers.get("outbox-position")
    if not isinstance(entity, str) or not isinstance(position, int):
        raise Dead("rejected", "without outbox-key and outbox-position the newest address is unknown")
    with db.transaction():
        if is_first(db, "claim", key, message, entity, position):
            db.execute(
                "INSERT INTO address (order_id, address) VALUES (%s, %s)"
                " ON CONFLICT (order_id) DO UPDATE SET address = excluded.address",
                (order, address),
            )
            complete(db, key, {"order": order, "address": address})


def payment_requested(db, key, message, headers) -> None:
    order, cents = parse(message[2], order=str, cents=int)
    # While this copy holds the lock, another copy waits here and then finds the record. If this copy dies, PostgreSQL
    # releases the lock, and the next copy finds a beginning without a record: in doubt.
    db.execute("SELECT pg_advisory_lock(hashtextextended('payments ' || %s, 0))", (key,))
    try:
        with db.transaction():
            if not is_first(db, "begin_effect", key, message):
                return
        # The intent is committed. From here on a crash can leave one charge, but not cause a second one.
        provider_id = charge(key, order, cents)
        with db.transaction():
            db.execute(
                "INSERT INTO charge (order_id, cents, provider_id) VALUES (%s, %s, %s)", (order, cents, provider_id)
            )
            db.execute(
                "SELECT inbox.record_effect('payments', %s, %s::bytea, 'application/json'), inbox.forgive('payments', %s)",
                (key, json.dumps({"order": order, "charge": provider_id}).encode(), key),
            )
    finally:
        db.execute("SELECT pg_advisory_unlock(hashtextextended('payments ' || %s, 0))", (key,))


def charge(key: str, order: str, cents: int) -> str:
    request = urllib.request.Request(
        f"{os.environ['PROVIDER_URL']}/charges",
        data=json.dumps({"order": order, "cents": cents}).encode(),
        headers={"Content-Type": "application/json", "Idempotency-Key": key},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)["id"]
    except Exception as error:  # After any error the card may have been charged.
        raise Dead("in_doubt", f"the provider did not confirm the charge: {error!r}") from error


HANDLERS = {"order_placed": order_placed, "order_moved": order_moved, "payment_requested": payment_requested}


def apply(db, properties: pika.BasicProperties, body: bytes) -> None:
    key = key_of(properties)
    handler = HANDLERS.get(properties.type)
    if handler is None:
        raise Dead("rejected", f"no handler for the type {properties.type!r}")
    handler(db, key, (properties.type, properties.content_type, body), properties.headers or {})


def dead_letter(channel, queue: str, properties, body: bytes, reason: str, attempts: int, error: str) -> None:
    logging.error("dead-lettered %s: %s after %s failed attempts: %r", properties.message_id, reason, attempts, error)
    properties.headers = (properties.headers or {}) | {
        "outbox-dead-reason": reason,
        "outbox-dead-attempts": attempts,
        "outbox-dead-error": error[:1000],
    }
    properties.delivery_mode = 2
    properties.expiration = None  # A dead letter that expires is a lost message.
    # Returns after the broker's confirm; raises if the broker refuses the message or the queue does not exist.
    channel.basic_publish("", f"{queue}.dead", body, properties, mandatory=True)


def handle(channel, db, queue: str, method, properties, body: bytes) -> None:
    attempts = 0
    while True:
        try:
            apply(db, properties, body)
            break
        except Dead as dead:
            dead_letter(channel, queue, properties, body, dead.reason, attempts, str(dead))
            break
        except Exception as error:
            # A separate transaction, because the attempt's own was rolled back. Without a connection this raises too:
            # nothing is counted, and the message is redelivered.
            count = "SELECT inbox.fail('payments', %s, %s)"
            attempts = db.execute(count, (key_of(properties), str(error))).fetchone()[0]
            if attempts >= MAX_ATTEMPTS:
                dead_letter(channel, queue, properties, body, "attempts_exhausted", attempts, str(error))
                break
            # Full jitter spreads the retries of messages that failed together. Heartbeats continue.
            channel.connection.sleep(random.uniform(0, min(5, 0.1 * 2**attempts)))
            if stopping:
                return  # Not acknowledged: the broker redelivers the message.
    # Acknowledge last. After a crash before this line the message is redelivered, and the inbox recognises it.
    channel.basic_ack(method.delivery_tag)


def consume(queue: str) -> None:
    """Runs until a stop or until a connection breaks. Unacknowledged messages then return to the queue."""
    broker = pika.URLParameters(os.environ["AMQP_URL"])
    broker.heartbeat, broker.blocked_connection_timeout = 60, 30
    bounds = {"connect_timeout": 10, "keepalives_idle": 20, "tcp_user_timeout": 40_000}
    with (
        psycopg.connect(os.environ["DATABASE_URL"], autocommit=True, **bounds) as db,
        pika.BlockingConnection(broker) as connection,
    ):
        channel = connection.channel()
        channel.confirm_delivery()
        channel.basic_qos(prefetch_count=10)
        for method, properties, body in channel.consume(queue, inactivity_timeout=0.2):
            if stopping:
                return
            if method:
                handle(channel, db, queue, method, properties, body)
        raise pika.exceptions.AMQPError("the broker cancelled the consumer")


def main() -> None:
    def stop(*_):
        global stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    failures = 0
    while not stopping:
        began = time.monotonic()
        try:
            consume(os.environ["QUEUE"])
        except (psycopg.Error, pika.exceptions.AMQPError, OSError) as error:
            failures = 1 if time.monotonic() - began > 60 else failures + 1
            logging.warning("connecting again: %r", error)
            time.sleep(random.uniform(0, min(10, 0.1 * 2**failures)))


if __name__ == "__main__":
    main()
