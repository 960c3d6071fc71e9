//! Guarantees, each against real servers and real processes.
//!
//! One binary, so that PostgreSQL and RabbitMQ start once; every test has a database and a virtual host of its own.
//! Tests that break a server start their own.

mod answers;
mod commands;
mod consuming;
mod crashes;
mod delivery;
mod order;
mod outages;
mod producing;
mod rows;
mod schema;
mod seeing;
mod tls;
mod world;
