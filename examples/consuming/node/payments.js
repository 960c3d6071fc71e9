// Applies each payment message once, even if the broker redelivers it. You can run any number of copies.
import { EventEmitter, on } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import amqp from "amqplib";
import pg from "pg";

const { AMQP_URL, DATABASE_URL, PROVIDER_URL, QUEUE } = process.env;
const MAX_ATTEMPTS = 5;
const stop = new AbortController();

/** A failure without a retry: a person must look. The message goes to the dead-letter queue with its reason. */
class Dead extends Error {
  constructor(reason, message) {
    super(message);
    this.reason = reason;
  }
}

/** The business key if there is one: a fact keeps it when it is published again under another message id. */
function keyOf({ headers, messageId }) {
  const key = typeof headers?.payment === "string" ? headers.payment : (messageId ?? "");
  if (key === "" || Buffer.byteLength(key) > 255 || /\p{Cc}/u.test(key)) {
    throw new Dead("message_id_invalid", "the idempotency key is missing, too long, or not printable");
  }
  return key;
}

const isText = (value) => typeof value === "string";

function parse(body, fields) {
  let event;
  try {
    event = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(body));
  } catch (error) {
    throw new Dead("rejected", `the body is not JSON: ${error.message}`);
  }
  for (const [name, fits] of Object.entries(fields)) {
    if (!fits(event?.[name])) throw new Dead("rejected", `the body does not match its type: ${name}`);
  }
  return event;
}

async function transaction(db, work) {
  await db.query("BEGIN");
  try {
    const result = await work();
    await db.query("COMMIT");
    return result;
  } catch (error) {
    await db.query("ROLLBACK");
    throw error;
  }
}

/** Returns whether to continue. A duplicate or stale message needs no more work. */
async function isFirst(db, claim, key, { properties, content }, guard = []) {
  const more = guard.map((_, i) => `, $${i + 5}`).join("");
  const sql = `SELECT outcome FROM inbox.${claim}('payments', $1, inbox.fingerprint($2, $3, $4::bytea)${more})`;
  const { rows } = await db.query(sql, [key, properties.type, properties.contentType, content, ...guard]);
  const { outcome } = rows[0];
  if (outcome === "conflict" || outcome === "in_doubt") throw new Dead(outcome, `inbox.${claim} said ${outcome}`);
  return outcome === "first";
}

/** `how` is `complete`, or `record_effect`. */
async function done(db, how, key, result) {
  const sql = `SELECT inbox.${how}('payments', $1, $2::bytea, 'application/json'), inbox.forgive('payments', $1)`;
  await db.query(sql, [key, Buffer.from(JSON.stringify(result))]);
}

const handlers = {
  async order_placed(db, key, message) {
    const { order, cents } = parse(message.content, { order: isText, cents: Number.isSafeInteger });
    // One transaction: a crash leaves the claim, the payment and the result, or none of them.
    await transaction(db, async () => {
      if (!(await isFirst(db, "claim", key, message))) return;
      await db.query("INSERT INTO payment (order_id, cents) VALUES ($1, $2)", [order, cents]);
      await done(db, "complete", key, { order, paid: cents });
    });
  },

  async order_moved(db, key, message) {
    const { order, address } = parse(message.content, { order: isText, address: isText });
    const { "outbox-key": entity, "outbox-position": position } = message.properties.headers ?? {};
    if (!isText(entity) || !["number", "bigint"].includes(typeof position)) {
      throw new Dead("rejected", "without outbox-key and outbox-position the newest address is unknown");
    }
    await transaction(db, async () => {
      if (!(await isFirst(db, "claim", key, message, [entity, position]))) return;
      await db.query(
        `INSERT INTO address (order_id, address) VALUES ($1, $2)
         ON CONFLICT (order_id) DO UPDATE SET address = excluded.address`,
        [order, address],
      );
      await done(db, "complete", key, { order, address });
    });
  },

  async payment_requested(db, key, message) {
    const { order, cents } = parse(message.content, { order: isText, cents: Number.isSafeInteger });
    // While this copy holds the lock, another copy waits here and then finds the record. If this copy dies, PostgreSQL
    // releases the lock, and the next copy finds a beginning without a record: in doubt.
    await db.query("SELECT pg_advisory_lock(hashtextextended('payments ' || $1, 0))", [key]);
    try {
      if (!(await transaction(db, () => isFirst(db, "begin_effect", key, message)))) return;
      // The intent is committed. From here on a crash can leave one charge, but not cause a second one.
      const charge = await askProvider(key, order, cents);
      await transaction(db, async () => {
        const sql = "INSERT INTO charge (order_id, cents, provider_id) VALUES ($1, $2, $3)";
        await db.query(sql, [order, cents, charge]);
        await done(db, "record_effect", key, { order, charge });
      });
    } finally {
      await db.query("SELECT pg_advisory_unlock(hashtextextended('payments ' || $1, 0))", [key]);
    }
  },
};

async function askProvider(key, order, cents) {
  try {
    const response = await fetch(`${PROVIDER_URL}/charges`, {
      method: "POST",
      headers: { "Content-Type": "application/json", "Idempotency-Key": key },
      body: JSON.stringify({ order, cents }),
      signal: AbortSignal.timeout(10_000),
    });
    if (!response.ok) throw new Error(`status ${response.status}`);
    const { id } = await response.json();
    if (!isText(id)) throw new Error("no id in the answer");
    return id;
  } catch (error) {
    // After any error the card may have been charged.
    throw new Dead("in_doubt", `the provider did not confirm the charge: ${error.cause ?? error}`);
  }
}

async function apply(db, message) {
  const key = keyOf(message.properties);
  const { type } = message.properties;
  if (!Object.hasOwn(handlers, type ?? "")) throw new Dead("rejected", `no handler for the type ${type}`);
  await handlers[type](db, key, message);
}

const within = (ms, work, what) => {
  let timer;
  const late = new Promise((_, reject) => (timer = setTimeout(() => reject(new Error(`${what}: no answer`)), ms)));
  return Promise.race([work, late]).finally(() => clearTimeout(timer));
};

/** Returns after the broker's confirm; fails if the broker refuses the message or the queue does not exist. */
async function deadLetter(channel, { properties, content }, reason, attempts, text) {
  console.error("dead-lettered", properties.messageId, { reason, attempts, text });
  const headers = {
    ...properties.headers,
    "outbox-dead-reason": reason,
    "outbox-dead-attempts": attempts,
    "outbox-dead-error": text.slice(0, 1000),
  };
  // Remove the expiration: a dead letter that expires is a lost message.
  const options = { ...properties, headers, expiration: undefined, persistent: true, mandatory: true };
  const confirmed = new Promise((resolve, reject) => {
    channel.once("return", () => reject(new Error(`there is no queue ${QUEUE}.dead`)));
    channel.sendToQueue(`${QUEUE}.dead`, content, options, (refused) => (refused ? reject(refused) : resolve()));
  });
  await within(30_000, confirmed, "dead letter").finally(() => channel.removeAllListeners("return"));
}

async function handle(channel, db, message, signal) {
  for (let attempts = 0; ; ) {
    try {
      await apply(db, message);
      break;
    } catch (error) {
      if (error instanceof Dead) {
        await deadLetter(channel, message, error.reason, attempts, error.message);
        break;
      }
      // A separate transaction, because the attempt's own was rolled back. Without a connection this fails too: nothing
      // is counted, and the message is redelivered.
      const sql = "SELECT inbox.fail('payments', $1, $2) AS attempts";
      attempts = (await db.query(sql, [keyOf(message.properties), error.message])).rows[0].attempts;
      if (attempts >= MAX_ATTEMPTS) {
        await deadLetter(channel, message, "attempts_exhausted", attempts, error.message);
        break;
      }
      // Full jitter spreads the retries of messages that failed together.
      await sleep(Math.random() * Math.min(5000, 100 * 2 ** attempts), null, { signal }).catch(() => {});
      if (signal.aborted) return; // Not acknowledged: the broker redelivers the message.
    }
  }
  // Acknowledge last. After a crash before this line the message is redelivered, and the inbox recognises it.
  channel.ack(message);
}

/** Runs until a stop or until a connection breaks. Unacknowledged messages then return to the queue. */
async function consume() {
  const broken = new AbortController();
  const signal = AbortSignal.any([stop.signal, broken.signal]);
  const bounds = { connectionTimeoutMillis: 10_000, query_timeout: 40_000, keepAlive: true };
  const db = new pg.Client({ connectionString: DATABASE_URL, ...bounds });
  db.on("error", (error) => broken.abort(error));
  const broker = await amqp.connect(AMQP_URL, { timeout: 10_000 });
  let channel;
  try {
    broker.on("error", (error) => broken.abort(error));
    broker.on("close", () => broken.abort(new Error("the broker closed the connection")));
    await db.connect();
    channel = await broker.createConfirmChannel();
    channel.on("error", (error) => broken.abort(error));
    await channel.prefetch(10);
    const arrived = new EventEmitter();
    const messages = on(arrived, "message", { signal });
    await channel.consume(QUEUE, (message) => arrived.emit("message", message));
    for await (const [message] of messages) {
      if (signal.aborted) break;
      if (message === null) throw new Error("the broker cancelled the consumer");
      await handle(channel, db, message, signal);
    }
  } catch (error) {
    if (!signal.aborted) throw error; // After a stop, the wait for the next message ends with this error.
  } finally {
    // Close the channel first: closing the connection may overtake acknowledgements in flight.
    const closed = channel?.close().catch(() => {}).then(() => broker.close());
    await within(10_000, Promise.allSettled([closed ?? broker.close(), db.end()]), "close").catch(() => {});
  }
  if (!stop.signal.aborted) throw broken.signal.reason;
}

process.on("SIGTERM", () => stop.abort());
for (let failures = 0; !stop.signal.aborted; ) {
  const began = Date.now();
  try {
    await consume();
  } catch (error) {
    failures = Date.now() - began > 60_000 ? 1 : failures + 1;
    console.error("connecting again:", error);
    await sleep(Math.random() * Math.min(10_000, 100 * 2 ** failures), null, { signal: stop.signal }).catch(() => {});
  }
}
process.exit(); // A connection that does not close in time must not delay the exit.
