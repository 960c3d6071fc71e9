import com.rabbitmq.client.AMQP.BasicProperties;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.ConnectionFactory;
import com.rabbitmq.client.Delivery;
import java.io.IOException;
import java.lang.System.Logger.Level;
import java.sql.DriverManager;
import java.sql.SQLException;
import java.util.HashMap;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

/** Applies each payment message once, even if the broker redelivers it. You can run any number of copies. */
public class Consumer {
    private static final System.Logger LOG = System.getLogger("payments");
    private static final int MAX_ATTEMPTS = 5;
    private static final String QUEUE = System.getenv("QUEUE");
    /** Reaches zero at a stop. */
    private static final CountDownLatch STOP = new CountDownLatch(1);
    private static volatile boolean ended;

    private final Channel channel;
    private final Payments payments;
    private volatile boolean returned;

    private Consumer(Channel channel, Payments payments) {
        this.channel = channel;
        this.payments = payments;
        // A return comes before the confirm.
        channel.addReturnListener(message -> returned = true);
    }

    private void handle(Delivery message)
            throws SQLException, IOException, InterruptedException, TimeoutException, Payments.Dead {
        int attempts = 0;
        while (true) {
            try {
                payments.apply(message.getProperties(), message.getBody());
                break;
            } catch (Payments.Dead dead) {
                deadLetter(message, dead.reason, attempts, dead.getMessage());
                break;
            } catch (SQLException | IOException | RuntimeException error) {
                // Without a connection this fails too: nothing is counted, and the message is redelivered.
                attempts = payments.failed(Payments.keyOf(message.getProperties()), error.toString());
                if (attempts >= MAX_ATTEMPTS) {
                    deadLetter(message, "attempts_exhausted", attempts, error.toString());
                    break;
                }
                if (stoppedWithin(attempts, 5_000)) return; // Not acknowledged: the broker redelivers the message.
            }
        }
        // Acknowledge last. After a crash before this line the message is redelivered, and the inbox recognises it.
        channel.basicAck(message.getEnvelope().getDeliveryTag(), false);
    }

    /** Returns after the broker's confirm; throws if the broker refuses the message or the queue does not exist. */
    private void deadLetter(Delivery message, String reason, int attempts, String error)
            throws IOException, InterruptedException, TimeoutException {
        BasicProperties properties = message.getProperties();
        LOG.log(Level.ERROR, "dead-lettered {0}: {1} after {2} failed attempts: {3}",
                properties.getMessageId(), reason, attempts, error);
        Map<String, Object> headers = new HashMap<>();
        if (properties.getHeaders() != null) headers.putAll(properties.getHeaders());
        headers.put("outbox-dead-reason", reason);
        headers.put("outbox-dead-attempts", (long) attempts);
        headers.put("outbox-dead-error", error.substring(0, Math.min(1000, error.length())));
        // Remove the expiration: a dead letter that expires is a lost message.
        BasicProperties marked = properties.builder().headers(headers).deliveryMode(2).expiration(null).build();
        returned = false;
        channel.basicPublish("", QUEUE + ".dead", true, marked, message.getBody());
        channel.waitForConfirmsOrDie(30_000);
        if (returned) throw new IOException("there is no queue " + QUEUE + ".dead");
    }

    /** Full jitter spreads the retries of messages that failed together. */
    private static boolean stoppedWithin(int failures, long most) throws InterruptedException {
        long ceiling = Math.min(most, 100L << Math.min(failures, 10));
        return STOP.await(ThreadLocalRandom.current().nextLong(ceiling), TimeUnit.MILLISECONDS);
    }

    /** Runs until a stop or until a connection breaks. Unacknowledged messages then return to the queue. */
    private static void consume() throws Exception {
        ConnectionFactory broker = new ConnectionFactory();
        broker.setUri(System.getenv("AMQP_URL"));
        broker.setAutomaticRecoveryEnabled(false); // This program reconnects by itself, on both connections.
        Properties bounds = new Properties();
        bounds.putAll(Map.of("connectTimeout", "10", "socketTimeout", "40", "tcpKeepAlive", "true"));
        try (var db = DriverManager.getConnection(System.getenv("JDBC_URL"), bounds);
                var connection = broker.newConnection();
                var channel = connection.createChannel()) {
            channel.confirmSelect();
            channel.basicQos(10);
            BlockingQueue<Delivery> messages = new LinkedBlockingQueue<>(); // Bounded by the prefetch.
            CountDownLatch cancelled = new CountDownLatch(1);
            channel.basicConsume(QUEUE, false, (tag, message) -> messages.add(message), tag -> cancelled.countDown());
            Consumer consumer = new Consumer(channel, new Payments(db));
            while (STOP.getCount() > 0) {
                Delivery message = messages.poll(200, TimeUnit.MILLISECONDS);
                if (STOP.getCount() == 0) return;
                if (message != null) consumer.handle(message);
                else if (!channel.isOpen()) throw new IOException("the broker closed the channel");
                else if (cancelled.getCount() == 0) throw new IOException("the broker cancelled the consumer");
            }
        }
    }

    public static void main(String[] arguments) throws InterruptedException {
        Thread main = Thread.currentThread();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            STOP.countDown();
            try {
                main.join();
            } catch (InterruptedException error) {
                ended = false;
            }
            Runtime.getRuntime().halt(ended ? 0 : 1); // Otherwise a JVM that stops on request exits with 143.
        }));
        int failures = 0;
        while (STOP.getCount() > 0) {
            long began = System.nanoTime();
            try {
                consume();
            } catch (Exception error) {
                failures = System.nanoTime() - began > 60_000_000_000L ? 1 : failures + 1;
                LOG.log(Level.WARNING, "connecting again", error);
                stoppedWithin(failures, 10_000);
            }
        }
        ended = true;
    }
}
