import java.nio.charset.StandardCharsets;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.util.UUID;

/** Places an order and writes its events in the same transaction. */
public class PlaceOrder {
    static UUID placeOrder(Connection connection, String orderId, int totalCents, String traceparent)
            throws SQLException {
        // A service uses its JSON library here; these values need no escaping.
        String body = "{\"id\":\"%s\",\"total_cents\":%d}".formatted(orderId, totalCents);
        String headers = "{\"traceparent\":\"%s\",\"tenant\":\"blue\"}".formatted(traceparent);
        byte[] receipt = "Order %s: %d cents".formatted(orderId, totalCents).getBytes(StandardCharsets.UTF_8);
        connection.setAutoCommit(false);
        try (PreparedStatement order = connection.prepareStatement(
                     "INSERT INTO orders (id, total_cents, status) VALUES (?, ?, 'placed')");
             PreparedStatement event = connection.prepareStatement(
                     "SELECT outbox.enqueue('order', ?, 'placed', ?::json, headers => ?::json)");
             PreparedStatement binary = connection.prepareStatement(
                     "SELECT outbox.enqueue_binary('order', ?, 'receipt_printed', ?::bytea, 'text/plain')")) {
            order.setString(1, orderId);
            order.setInt(2, totalCents);
            order.executeUpdate();
            event.setString(1, orderId);
            event.setString(2, body);
            event.setString(3, headers);
            UUID messageId;
            try (ResultSet written = event.executeQuery()) {
                written.next();
                messageId = written.getObject(1, UUID.class);
            }
            binary.setString(1, orderId);
            binary.setBytes(2, receipt);
            binary.execute();
            connection.commit();
            return messageId;
        } catch (SQLException error) {
            connection.rollback();
            throw error;
        }
    }

    public static void main(String[] args) throws SQLException {
        try (Connection connection = DriverManager.getConnection(System.getenv("JDBC_URL"))) {
            String trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
            System.out.println(placeOrder(connection, "java-" + UUID.randomUUID(), 1999, trace));
        }
    }
}
