import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.rabbitmq.client.AMQP.BasicProperties;
import com.rabbitmq.client.LongString;
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.sql.Connection;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.time.Duration;
import java.util.Map;

/** The handlers of payment messages; Consumer contains the loop around them. */
class Payments {
    /** A failure without a retry: a person must look. The message goes to the dead-letter queue with its reason. */
    static class Dead extends Exception {
        final String reason;

        Dead(String reason, String error) {
            super(error);
            this.reason = reason;
        }
    }

    record Message(String key, BasicProperties properties, byte[] body) {}

    private static final ObjectMapper JSON =
            new ObjectMapper().enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS);
    private static final HttpClient HTTP = HttpClient.newBuilder().connectTimeout(Duration.ofSeconds(5)).build();

    private final Connection db;

    Payments(Connection db) {
        this.db = db;
    }

    /** The business key if there is one: a fact keeps it when it is published again under another message id. */
    static String keyOf(BasicProperties properties) throws Dead {
        String key = header(properties, "payment") instanceof LongString payment ? payment.toString()
                : properties.getMessageId() == null ? "" : properties.getMessageId();
        int bytes = key.getBytes(StandardCharsets.UTF_8).length;
        if (bytes < 1 || bytes > 255 || key.chars().anyMatch(Character::isISOControl)) {
            throw new Dead("message_id_invalid", "the idempotency key is missing, too long, or not printable");
        }
        return key;
    }

    void apply(BasicProperties properties, byte[] body) throws Dead, SQLException, IOException {
        Message message = new Message(keyOf(properties), properties, body);
        switch (properties.getType() == null ? "" : properties.getType()) {
            case "order_placed" -> orderPlaced(message);
            case "order_moved" -> orderMoved(message);
            case "payment_requested" -> paymentRequested(message);
            default -> throw new Dead("rejected", "no handler for the type " + properties.getType());
        }
    }

    private void orderPlaced(Message message) throws Dead, SQLException, IOException {
        JsonNode event = parse(message);
        String order = text(event, "order");
        long cents = number(event, "cents");
        // One transaction: a crash leaves the claim, the payment and the result, or none of them.
        transaction(() -> {
            if (!isFirst("claim", message)) return false;
            execute("INSERT INTO payment (order_id, cents) VALUES (?, ?)", order, cents);
            return done("complete", message, Map.of("order", order, "paid", cents));
        });
    }

    private void orderMoved(Message message) throws Dead, SQLException, IOException {
        JsonNode event = parse(message);
        String order = text(event, "order");
        String address = text(event, "address");
        if (!(header(message.properties, "outbox-key") instanceof LongString entity)
                || !(header(message.properties, "outbox-position") instanceof Long position)) {
            throw new Dead("rejected", "without outbox-key and outbox-position the newest address is unknown");
        }
        transaction(() -> {
            if (!isFirst("claim", message, entity.toString(), position)) return false;
            execute("INSERT INTO address (order_id, address) VALUES (?, ?)"
                    + " ON CONFLICT (order_id) DO UPDATE SET address = excluded.address", order, address);
            return done("complete", message, Map.of("order", order, "address", address));
        });
    }

    private void paymentRequested(Message message) throws Dead, SQLException, IOException {
        JsonNode event = parse(message);
        String order = text(event, "order");
        long cents = number(event, "cents");
        // While this copy holds the lock, another copy waits here and then finds the record. If this copy dies,
        // PostgreSQL releases the lock, and the next copy finds a beginning without a record: in doubt.
        execute("SELECT pg_advisory_lock(hashtextextended('payments ' || ?, 0))", message.key);
        try {
            if (!transaction(() -> isFirst("begin_effect", message))) return;
            // The intent is committed. From here on a crash can leave one charge, but not cause a second one.
            String charge = askProvider(message.key, order, cents);
            transaction(() -> {
                execute("INSERT INTO charge (order_id, cents, provider_id) VALUES (?, ?, ?)", order, cents, charge);
                return done("record_effect", message, Map.of("order", order, "charge", charge));
            });
        } finally {
            execute("SELECT pg_advisory_unlock(hashtextextended('payments ' || ?, 0))", message.key);
        }
    }

    private String askProvider(String key, String order, long cents) throws Dead {
        try {
            byte[] body = JSON.writeValueAsBytes(Map.of("order", order, "cents", cents));
            HttpRequest request = HttpRequest.newBuilder(URI.create(System.getenv("PROVIDER_URL") + "/charges"))
                    .timeout(Duration.ofSeconds(10))
                    .header("Content-Type", "application/json")
                    .header("Idempotency-Key", key)
                    .POST(HttpRequest.BodyPublishers.ofByteArray(body))
                    .build();
            HttpResponse<byte[]> response = HTTP.send(request, HttpResponse.BodyHandlers.ofByteArray());
            if (response.statusCode() != 200) throw new IOException("status " + response.statusCode());
            return text(JSON.readTree(response.body()), "id");
        } catch (Exception error) { // After any error the card may have been charged.
            throw new Dead("in_doubt", "the provider did not confirm the charge: " + error);
        }
    }

    /** Counts a failed attempt in a separate transaction, because the attempt's own was rolled back. */
    int failed(String key, String error) throws SQLException {
        try (PreparedStatement statement = prepare("SELECT inbox.fail('payments', ?, ?)", key, error);
                ResultSet row = statement.executeQuery()) {
            row.next();
            return row.getInt(1);
        }
    }

    /** Returns whether to continue. A duplicate or stale message needs no more work. */
    private boolean isFirst(String claim, Message message, Object... guard) throws Dead, SQLException {
        String sql = "SELECT outcome FROM inbox." + claim + "('payments', ?, inbox.fingerprint(?, ?, ?::bytea)"
                + ", ?".repeat(guard.length) + ")";
        Object[] values = new Object[4 + guard.length];
        values[0] = message.key;
        values[1] = message.properties.getType();
        values[2] = message.properties.getContentType();
        values[3] = message.body;
        System.arraycopy(guard, 0, values, 4, guard.length);
        try (PreparedStatement statement = prepare(sql, values); ResultSet row = statement.executeQuery()) {
            row.next();
            String outcome = row.getString(1);
            if (outcome.equals("conflict") || outcome.equals("in_doubt")) {
                throw new Dead(outcome, "inbox." + claim + " said " + outcome);
            }
            return outcome.equals("first");
        }
    }

    /** `how` is complete, or record_effect. */
    private boolean done(String how, Message message, Map<String, ?> result) throws SQLException, IOException {
        execute("SELECT inbox." + how + "('payments', ?, ?::bytea, 'application/json'), inbox.forgive('payments', ?)",
                message.key, JSON.writeValueAsBytes(result), message.key);
        return true;
    }

    private interface Work {
        boolean run() throws Dead, SQLException, IOException;
    }

    private boolean transaction(Work work) throws Dead, SQLException, IOException {
        db.setAutoCommit(false);
        boolean committed = false;
        try {
            boolean result = work.run();
            db.commit();
            committed = true;
            return result;
        } finally {
            if (!committed) db.rollback();
            db.setAutoCommit(true);
        }
    }

    private void execute(String sql, Object... values) throws SQLException {
        try (PreparedStatement statement = prepare(sql, values)) {
            statement.execute();
        }
    }

    private PreparedStatement prepare(String sql, Object... values) throws SQLException {
        PreparedStatement statement = db.prepareStatement(sql);
        for (int i = 0; i < values.length; i++) {
            // The driver cannot see the type of a null.
            if (values[i] == null) statement.setString(i + 1, null);
            else statement.setObject(i + 1, values[i]);
        }
        return statement;
    }

    private static Object header(BasicProperties properties, String name) {
        return properties.getHeaders() == null ? null : properties.getHeaders().get(name);
    }

    private static JsonNode parse(Message message) throws Dead {
        try {
            return JSON.readTree(message.body);
        } catch (IOException error) {
            throw new Dead("rejected", "the body is not JSON: " + error.getMessage());
        }
    }

    private static String text(JsonNode event, String name) throws Dead {
        if (event.path(name).isTextual()) return event.path(name).textValue();
        throw new Dead("rejected", "the body does not match its type: " + name);
    }

    private static long number(JsonNode event, String name) throws Dead {
        JsonNode value = event.path(name);
        if (value.isIntegralNumber() && value.canConvertToLong()) return value.longValue();
        throw new Dead("rejected", "the body does not match its type: " + name);
    }
}
