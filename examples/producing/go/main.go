// Places an order and writes its events in the same transaction.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

func placeOrder(ctx context.Context, conn *pgx.Conn, orderID string, totalCents int, traceparent string) (uuid.UUID, error) {
	messageID, err := uuid.NewV7()
	if err != nil {
		return uuid.Nil, err
	}
	body, err := json.Marshal(map[string]any{"id": orderID, "total_cents": totalCents})
	if err != nil {
		return uuid.Nil, err
	}
	headers, err := json.Marshal(map[string]string{"traceparent": traceparent, "tenant": "blue"})
	if err != nil {
		return uuid.Nil, err
	}
	receipt := fmt.Appendf(nil, "Order %s: %d cents", orderID, totalCents)
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx,
			"INSERT INTO orders (id, total_cents, status) VALUES ($1, $2, 'placed')",
			orderID, totalCents); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx,
			`INSERT INTO outbox.message (message_id, aggregate_type, aggregate_id, event_type, payload, headers)
			 VALUES ($1, 'order', $2, 'placed', $3, $4)`,
			messageID, orderID, body, headers); err != nil {
			return err
		}
		_, err := tx.Exec(ctx,
			"SELECT outbox.enqueue_binary('order', $1, 'receipt_printed', $2::bytea, 'text/plain')",
			orderID, receipt)
		return err
	})
	return messageID, err
}

func main() {
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close(ctx)
	trace := "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	messageID, err := placeOrder(ctx, conn, "go-"+uuid.NewString(), 1999, trace)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(messageID)
}
