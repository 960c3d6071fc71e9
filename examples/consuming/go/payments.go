package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"
	"unicode"

	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"
)

// dead is a failure without a retry: a person must look. The message goes to the dead-letter queue with its reason.
type dead struct{ reason, text string }

func (d dead) Error() string { return d.text }

// keyOf returns the business key if there is one: a fact keeps it when it is published again under another message id.
func keyOf(message amqp.Delivery) (string, error) {
	key, isText := message.Headers["payment"].(string)
	if !isText {
		key = message.MessageId
	}
	if key == "" || len(key) > 255 || strings.ContainsFunc(key, unicode.IsControl) {
		return "", dead{"message_id_invalid", "the idempotency key is missing, too long, or not printable"}
	}
	return key, nil
}

func parse(body []byte, into any) error {
	if err := json.Unmarshal(body, into); err != nil {
		return dead{"rejected", fmt.Sprintf("the body does not match its type: %v", err)}
	}
	return nil
}

// isFirst returns whether to continue. A duplicate or stale message needs no more work.
func isFirst(ctx context.Context, tx pgx.Tx, claim, key string, message amqp.Delivery, guard ...any) (bool, error) {
	sql := "SELECT outcome FROM inbox." + claim + "('payments', $1, inbox.fingerprint($2, $3, $4::bytea)"
	for n := range guard {
		sql += fmt.Sprintf(", $%d", n+5)
	}
	arguments := append([]any{key, message.Type, message.ContentType, message.Body}, guard...)
	var outcome string
	if err := tx.QueryRow(ctx, sql+")", arguments...).Scan(&outcome); err != nil {
		return false, err
	}
	if outcome == "conflict" || outcome == "in_doubt" {
		return false, dead{outcome, fmt.Sprintf("inbox.%s said %s", claim, outcome)}
	}
	return outcome == "first", nil
}

// done records the result; how is complete, or record_effect.
func done(ctx context.Context, tx pgx.Tx, how, key string, result map[string]any) error {
	body, err := json.Marshal(result)
	if err != nil {
		return err
	}
	sql := "SELECT inbox." + how + "('payments', $1, $2::bytea, 'application/json'), inbox.forgive('payments', $1)"
	_, err = tx.Exec(ctx, sql, key, body)
	return err
}

func apply(ctx context.Context, db *pgx.Conn, message amqp.Delivery) error {
	key, err := keyOf(message)
	if err != nil {
		return err
	}
	switch message.Type {
	case "order_placed":
		return orderPlaced(ctx, db, key, message)
	case "order_moved":
		return orderMoved(ctx, db, key, message)
	case "payment_requested":
		return paymentRequested(ctx, db, key, message)
	}
	return dead{"rejected", fmt.Sprintf("no handler for the type %q", message.Type)}
}

func orderPlaced(ctx context.Context, db *pgx.Conn, key string, message amqp.Delivery) error {
	order, cents, err := parsePayment(message.Body)
	if err != nil {
		return err
	}
	// One transaction: a crash leaves the claim, the payment and the result, or none of them.
	return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		if first, err := isFirst(ctx, tx, "claim", key, message); err != nil || !first {
			return err
		}
		if _, err := tx.Exec(ctx, "INSERT INTO payment (order_id, cents) VALUES ($1, $2)", order, cents); err != nil {
			return err
		}
		return done(ctx, tx, "complete", key, map[string]any{"order": order, "paid": cents})
	})
}

func orderMoved(ctx context.Context, db *pgx.Conn, key string, message amqp.Delivery) error {
	var event struct{ Order, Address *string }
	if err := parse(message.Body, &event); err != nil {
		return err
	}
	entity, known := message.Headers["outbox-key"].(string)
	position, placed := message.Headers["outbox-position"].(int64)
	if !known || !placed || event.Order == nil || event.Address == nil {
		return dead{"rejected", "without order, address, outbox-key and outbox-position the newest address is unknown"}
	}
	return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		if first, err := isFirst(ctx, tx, "claim", key, message, entity, position); err != nil || !first {
			return err
		}
		if _, err := tx.Exec(ctx,
			`INSERT INTO address (order_id, address) VALUES ($1, $2)
			 ON CONFLICT (order_id) DO UPDATE SET address = excluded.address`,
			*event.Order, *event.Address); err != nil {
			return err
		}
		return done(ctx, tx, "complete", key, map[string]any{"order": event.Order, "address": event.Address})
	})
}

func paymentRequested(ctx context.Context, db *pgx.Conn, key string, message amqp.Delivery) (err error) {
	order, cents, err := parsePayment(message.Body)
	if err != nil {
		return err
	}
	// While this copy holds the lock, another copy waits here and then finds the record. If this copy dies, PostgreSQL
	// releases the lock, and the next copy finds a beginning without a record: in doubt.
	if _, err := db.Exec(ctx, "SELECT pg_advisory_lock(hashtextextended('payments ' || $1, 0))", key); err != nil {
		return err
	}
	defer func() {
		_, lost := db.Exec(ctx, "SELECT pg_advisory_unlock(hashtextextended('payments ' || $1, 0))", key)
		err = errors.Join(err, lost)
	}()
	var first bool
	if err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) (err error) {
		first, err = isFirst(ctx, tx, "begin_effect", key, message)
		return err
	}); err != nil || !first {
		return err
	}
	// The intent is committed. From here on a crash can leave one charge, but not cause a second one.
	charge, err := askProvider(ctx, key, order, cents)
	if err != nil { // After any error the card may have been charged.
		return dead{"in_doubt", fmt.Sprintf("the provider did not confirm the charge: %v", err)}
	}
	return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "INSERT INTO charge (order_id, cents, provider_id) VALUES ($1, $2, $3)",
			order, cents, charge); err != nil {
			return err
		}
		return done(ctx, tx, "record_effect", key, map[string]any{"order": order, "charge": charge})
	})
}

func parsePayment(body []byte) (order string, cents int64, err error) {
	var event struct {
		Order *string
		Cents *int64
	}
	if err := parse(body, &event); err != nil {
		return "", 0, err
	}
	if event.Order == nil || event.Cents == nil {
		return "", 0, dead{"rejected", "the body does not match its type: order and cents"}
	}
	return *event.Order, *event.Cents, nil
}

func askProvider(ctx context.Context, key, order string, cents int64) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	body, err := json.Marshal(map[string]any{"order": order, "cents": cents})
	if err != nil {
		return "", err
	}
	url := os.Getenv("PROVIDER_URL") + "/charges"
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Idempotency-Key", key)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	var charge struct{ ID string }
	if err := json.NewDecoder(response.Body).Decode(&charge); err != nil {
		return "", err
	}
	if response.StatusCode != http.StatusOK || charge.ID == "" {
		return "", errors.New(response.Status)
	}
	return charge.ID, nil
}
