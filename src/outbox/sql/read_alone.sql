-- Reads what a claim reads of one message, by its place: no index and no other table can fail this read. $1 ctid, $2 the
-- largest body
SELECT outbox.key_hash(aggregate_type, aggregate_id) AS key_hash, message_id,
       CASE WHEN octet_length(aggregate_type) <= 131072 THEN aggregate_type ELSE left(aggregate_type, 131073) END
           AS aggregate_type,
       CASE WHEN octet_length(aggregate_id) <= 131072 THEN aggregate_id ELSE left(aggregate_id, 131073) END
           AS aggregate_id,
       CASE WHEN octet_length(event_type) <= 255 THEN event_type ELSE left(event_type, 256) END AS event_type,
       CASE WHEN octet_length(content_type) <= 255 THEN content_type ELSE left(content_type, 256) END AS content_type,
       CASE WHEN coalesce(headers_size, pg_column_size(headers)) <= 131072 THEN headers END AS headers,
       left(exchange, 256) AS exchange, left(routing_key, 256) AS routing_key,
       CASE WHEN body_size <= $2 THEN payload END AS payload,
       CASE WHEN body_size <= $2 THEN binary_payload END AS binary_payload
FROM outbox.message
WHERE ctid = $1
