"""Places an order and writes its events in the same transaction."""

import json
import os
import uuid

import psycopg


def place_order(conn: psycopg.Connection, order_id: str, total_cents: int, traceparent: str) -> uuid.UUID:
    body = json.dumps({"id": order_id, "total_cents": total_cents})
    headers = json.dumps({"traceparent": traceparent, "tenant": "blue"})
    receipt = f"Order {order_id}: {total_cents} cents".encode()
    with conn.transaction():
        conn.execute(
            "INSERT INTO orders (id, total_cents, status) VALUES (%s, %s, 'placed')",
            (order_id, total_cents),
        )
        (message_id,) = conn.execute(
            "SELECT outbox.enqueue('order', %s, 'placed', %s::json, headers => %s::json)",
            (order_id, body, headers),
        ).fetchone()
        conn.execute(
            "SELECT outbox.enqueue_binary('order', %s, 'receipt_printed', %s::bytea, 'text/plain')",
            (order_id, receipt),
        )
    return message_id


if __name__ == "__main__":
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as conn:
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        print(place_order(conn, f"python-{uuid.uuid4()}", 1999, trace))
