// Places an order and writes its events in the same transaction.
import { randomUUID } from "node:crypto";
import { pathToFileURL } from "node:url";
import pg from "pg";

export async function placeOrder(pool, orderId, totalCents, traceparent) {
  const body = JSON.stringify({ id: orderId, total_cents: totalCents });
  const headers = JSON.stringify({ traceparent, tenant: "blue" });
  const receipt = Buffer.from(`Order ${orderId}: ${totalCents} cents`);
  const client = await pool.connect(); // One connection: pool.query() would leave the transaction.
  let broken;
  try {
    await client.query("BEGIN");
    await client.query("INSERT INTO orders (id, total_cents, status) VALUES ($1, $2, 'placed')", [
      orderId,
      totalCents,
    ]);
    const { rows } = await client.query(
      "SELECT outbox.enqueue('order', $1, 'placed', $2::json, headers => $3::json) AS message_id",
      [orderId, body, headers],
    );
    await client.query("SELECT outbox.enqueue_binary('order', $1, 'receipt_printed', $2::bytea, 'text/plain')", [
      orderId,
      receipt,
    ]);
    await client.query("COMMIT");
    return rows[0].message_id;
  } catch (error) {
    await client.query("ROLLBACK").catch((lost) => (broken = lost));
    throw error;
  } finally {
    client.release(broken);
  }
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL });
  const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
  console.log(await placeOrder(pool, `node-${randomUUID()}`, 1999, trace));
  await pool.end();
}
