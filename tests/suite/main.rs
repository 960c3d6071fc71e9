//! Guarantees, each against real servers and real processes.
//!
//! One binary, so that PostgreSQL and RabbitMQ start once; every test has a database and a virtual host of its own.
//! Tests that break a server start their own.

mod delivery;
mod world;
