// Applies each payment message once, even if the broker redelivers it. You can run any number of copies.
//
// payments.go contains the handlers; this file contains the loop around them.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"maps"
	"math/rand/v2"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	amqp "github.com/rabbitmq/amqp091-go"
)

const maxAttempts = 5

// Each handler has a time limit; a stop does not interrupt it.
const handlerTimeout = time.Minute

// jitter is full, which spreads the retries of messages that failed together.
func jitter(failures int, most time.Duration) <-chan time.Time {
	ceiling := min(most, 100*time.Millisecond<<min(failures, 10))
	return time.After(rand.N(ceiling))
}

type consumer struct {
	db       *pgx.Conn
	channel  *amqp.Channel
	returned chan amqp.Return
	queue    string
}

// deadLetter returns after the broker's confirm. It fails if the broker refuses the message or the queue does not
// exist.
func (c *consumer) deadLetter(message amqp.Delivery, reason string, attempts int, text string) error {
	log.Printf("dead-lettered %s: %s after %d failed attempts: %q", message.MessageId, reason, attempts, text)
	headers := amqp.Table{}
	maps.Copy(headers, message.Headers)
	headers["outbox-dead-reason"] = reason
	headers["outbox-dead-attempts"] = int64(attempts)
	headers["outbox-dead-error"] = string([]rune(text)[:min(1000, len([]rune(text)))])
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	// Remove the expiration: a dead letter that expires is a lost message.
	confirm, err := c.channel.PublishWithDeferredConfirmWithContext(ctx, "", c.queue+".dead", true, false,
		amqp.Publishing{
			Headers: headers, ContentType: message.ContentType, ContentEncoding: message.ContentEncoding,
			DeliveryMode: amqp.Persistent, Priority: message.Priority, CorrelationId: message.CorrelationId,
			ReplyTo: message.ReplyTo, MessageId: message.MessageId, Timestamp: message.Timestamp,
			Type: message.Type, AppId: message.AppId, Body: message.Body,
		})
	if err != nil {
		return err
	}
	confirmed, err := confirm.WaitContext(ctx)
	if err != nil {
		return err
	}
	select {
	case <-c.returned: // A return comes before the confirm.
		return fmt.Errorf("there is no queue %s.dead", c.queue)
	default:
	}
	if !confirmed {
		return errors.New("the broker did not take a dead letter")
	}
	return nil
}

func (c *consumer) attempt(message amqp.Delivery) error {
	ctx, cancel := context.WithTimeout(context.Background(), handlerTimeout)
	defer cancel()
	return apply(ctx, c.db, message)
}

// failed counts an attempt in a separate transaction, because the attempt's own was rolled back. Without a connection
// this fails too: nothing is counted, and the message is redelivered.
func (c *consumer) failed(message amqp.Delivery, failure error) (attempts int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	key, err := keyOf(message)
	if err == nil {
		err = c.db.QueryRow(ctx, "SELECT inbox.fail('payments', $1, $2)", key, failure.Error()).Scan(&attempts)
	}
	return attempts, err
}

func (c *consumer) handle(stop context.Context, message amqp.Delivery) error {
	attempts := 0
	for {
		failure := c.attempt(message)
		if failure == nil {
			break
		}
		var gaveUp dead
		if !errors.As(failure, &gaveUp) {
			counted, err := c.failed(message, failure)
			if err != nil {
				return errors.Join(failure, err)
			}
			attempts = counted
			gaveUp = dead{"attempts_exhausted", failure.Error()}
			if attempts < maxAttempts {
				select {
				case <-jitter(attempts, 5*time.Second):
					continue
				case <-stop.Done():
					return nil // Not acknowledged: the broker redelivers the message.
				}
			}
		}
		if err := c.deadLetter(message, gaveUp.reason, attempts, gaveUp.text); err != nil {
			return err
		}
		break
	}
	// Acknowledge last. After a crash before this line the message is redelivered, and the inbox recognises it.
	return message.Ack(false)
}

// consume runs until a stop or until a connection breaks. Unacknowledged messages then return to the queue.
func consume(stop context.Context, queue string) error {
	within, cancel := context.WithTimeout(stop, 10*time.Second)
	defer cancel()
	db, err := pgx.Connect(within, os.Getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	defer func() {
		within, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		db.Close(within)
	}()
	config := amqp.Config{Heartbeat: 30 * time.Second, Dial: amqp.DefaultDial(10 * time.Second)}
	broker, err := amqp.DialConfig(os.Getenv("AMQP_URL"), config)
	if err != nil {
		return err
	}
	defer func() { broker.CloseDeadline(time.Now().Add(10 * time.Second)) }()
	channel, err := broker.Channel()
	if err != nil {
		return err
	}
	if err := errors.Join(channel.Confirm(false), channel.Qos(10, 0, false)); err != nil {
		return err
	}
	c := consumer{db, channel, channel.NotifyReturn(make(chan amqp.Return, 1)), queue}
	messages, err := channel.Consume(queue, "", false, false, false, false, nil)
	if err != nil {
		return err
	}
	for {
		select {
		case <-stop.Done():
			return nil
		case message, open := <-messages:
			if stop.Err() != nil {
				return nil
			}
			if !open {
				return errors.New("the broker ended the consumer")
			}
			if err := c.handle(stop, message); err != nil {
				return err
			}
		}
	}
}

func main() {
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer cancel()
	for failures := 0; stop.Err() == nil; {
		began := time.Now()
		err := consume(stop, os.Getenv("QUEUE"))
		if err == nil {
			return
		}
		failures++
		if time.Since(began) > time.Minute {
			failures = 1
		}
		log.Printf("connecting again: %v", err)
		select {
		case <-jitter(failures, 10*time.Second):
		case <-stop.Done():
		}
	}
}
