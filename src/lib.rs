//! outboxd: commit to PostgreSQL, and the event reaches RabbitMQ.

pub mod message;
