//! Tests of the guarantees, against real servers and real processes.
//!
//! One binary, so that PostgreSQL and RabbitMQ start once; every test has a database and a virtual host of its own.
//! Tests that break a server start their own.

mod answers;
mod aside;
mod checking;
mod commands;
mod connections;
mod consuming;
mod costs;
mod crashes;
mod culprits;
mod deadline;
mod delivery;
mod doctor;
mod failing;
mod finding;
mod floods;
mod halves;
mod helping;
mod kit;
mod locked;
mod maintenance;
mod migrating;
mod names;
mod order;
mod outages;
mod people;
mod port;
mod producing;
mod replaying;
mod roles;
mod rows;
mod schema;
mod seeing;
mod session;
mod signals;
mod starting;
mod surroundings;
mod terminal;
mod tls;
mod typed;
mod unwritten;
mod world;
