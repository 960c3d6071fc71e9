//! A cluster of three RabbitMQ nodes and a quorum queue with a member on each. Rows 24 and 25.
//!
//! The relay has one broker address. Where an operator has a load balancer, there is a switch.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use test_support::{Daemon, Mode, Proxy, RabbitMq, amqp, eventually, over};
use tokio::time::sleep;

use super::network::timeouts;
use crate::{
    arena::{Arena, BATCH, QUEUE, SOON, Setup, WINDOW, since},
    flow::Flow,
    row::{Outcome, Result, Row, expect, rows},
    traffic::Rate,
};

pub const ROWS: &[Row] = rows! { setup;
    24, "3-node cluster, quorum-queue leader killed" => leader_killed(setup);
    25, "quorum majority lost" => majority_lost(setup);
};

const NODES: usize = 3;

struct Cluster<'a> {
    arena: Arena<'a>,
    /// The second node and the third.
    others: [RabbitMq; NODES - 1],
    /// The relay's way to it, and the consumer's.
    relay_way: Proxy,
    consumer_way: Proxy,
}

impl<'a> Cluster<'a> {
    /// The queue's leader is on the third node; the relay is led to the first, the consumer to the second.
    async fn start(setup: &'a Setup) -> Result<Self> {
        let mut arena = Arena::start(setup).await?;
        // A confirm that a lost node owed does not come.
        arena.short_confirms();
        let first = &arena.rabbitmq;
        let (second, third) = tokio::try_join!(first.member(), first.member())?;
        // Once more, now that there are three nodes to have members on.
        let channel = amqp::channel(&third.url("/")).await?;
        amqp::delete(&channel, QUEUE).await?;
        amqp::declare(&third.url("/"), QUEUE).await?;
        let consumer_way = Proxy::start(address(&second)).await?;
        let relay_way = arena.broker_proxy().await?;
        let cluster = Self {
            arena,
            others: [second, third],
            relay_way,
            consumer_way,
        };
        cluster.online(NODES).await;
        Ok(cluster)
    }

    fn node(&self, n: usize) -> &RabbitMq {
        match n.checked_sub(1) {
            None => &self.arena.rabbitmq,
            Some(n) => &self.others[n],
        }
    }

    fn node_mut(&mut self, n: usize) -> &mut RabbitMq {
        match n.checked_sub(1) {
            None => &mut self.arena.rabbitmq,
            Some(n) => &mut self.others[n],
        }
    }

    async fn flowing(&self) -> Result<(Flow, Daemon)> {
        let relay = self.arena.relay()?;
        let broker = over(&self.arena.broker_url(), self.consumer_way.port());
        let database = self.arena.owner_url();
        // Three brokers share the machine.
        let rate = Rate {
            per_second: 10,
            ..Rate::default()
        };
        let flow = self.arena.flow_over(&database, &broker, rate);
        flow.steady(200).await?;
        Ok((flow, relay))
    }

    /// What node `asked` says of the queue.
    async fn queue(&self, asked: usize, column: &str) -> Result<String> {
        let words = ["list_queues", "-q", "--no-table-headers", column];
        Ok(self.node(asked).ctl(&words).await?.trim().to_owned())
    }

    /// Where the queue's leader is, as node `asked` knows.
    async fn leader(&self, asked: usize) -> Result<usize> {
        let name = self.queue(asked, "leader").await?;
        let found = (0..NODES).find(|n| self.node(*n).node() == name);
        found.ok_or_else(|| format!("no node is called {name}").into())
    }

    /// Waits until the queue has so many members that are up.
    async fn online(&self, members: usize) {
        eventually("the queue's members to be up", SOON, async || {
            let online = self.queue(0, "online").await.ok()?;
            (online.matches("rabbit-").count() == members).then_some(())
        })
        .await;
    }
}

fn address(node: &RabbitMq) -> SocketAddr {
    ([127, 0, 0, 1], node.port()).into()
}

async fn leader_killed(setup: &Setup) -> Result<Outcome> {
    let mut cluster = Cluster::start(setup).await?;
    let (mut flow, relay) = cluster.flowing().await?;
    let leader = cluster.leader(0).await?;
    expect(leader == 2, || {
        format!("the leader is on node {leader}, with the clients")
    })?;
    // Nobody is connected to it. It stays dead meanwhile: the others elect a leader, and that is the recovery.
    let killed = Instant::now();
    cluster.node_mut(leader).kill().await;
    flow.recovers(killed, Duration::from_secs(30)).await?;
    flow.note(format!("{:.1} s with the clients elsewhere", since(killed)));
    cluster.node_mut(leader).restart().await?;
    cluster.online(NODES).await;

    // And now the relay's own node: the switch leads it to another one. Whoever is there before the new leader may be
    // nacked on that channel for good; the relay opens another one then.
    let leader = cluster.leader(2).await?;
    cluster.relay_way.retarget(address(cluster.node(leader)));
    cluster.relay_way.set(Mode::Cut);
    eventually("the relay to be cut off", SOON, async || {
        (cluster.relay_way.connections() == 0).then_some(())
    })
    .await;
    cluster.relay_way.set(Mode::Forward);
    flow.steady(200).await?;
    let killed = Instant::now();
    cluster.node_mut(leader).kill().await;
    let alive = address(cluster.node(2));
    cluster.relay_way.retarget(alive);
    cluster.consumer_way.retarget(alive);
    flow.recovers(killed, Duration::from_secs(30)).await?;
    flow.note(format!("{:.1} s with the relay on it", since(killed)));
    flow.steady(200).await?;
    // A crash of a broker repeats what it had not confirmed, and what it had not heard to be taken.
    let timeouts = timeouts(&relay);
    flow.note(format!("{timeouts} time-outs"));
    flow.finish(4 * WINDOW + timeouts * BATCH).await
}

async fn majority_lost(setup: &Setup) -> Result<Outcome> {
    let mut cluster = Cluster::start(setup).await?;
    cluster.consumer_way.retarget(address(cluster.node(0)));
    let (mut flow, relay) = cluster.flowing().await?;
    let [second, third] = &mut cluster.others;
    tokio::join!(second.kill(), third.kill());
    // What was confirmed before may still be marked, once its neighbours' time-out of three seconds is over.
    relay.line("no answer within", SOON).await;
    sleep(Duration::from_secs(5)).await;
    let sent = "outbox.message WHERE sent_at IS NOT NULL";
    let before = cluster.arena.count(sent).await?;
    sleep(Duration::from_secs(5)).await;
    let after = cluster.arena.count(sent).await?;
    expect(before == after, || {
        let marked = after - before;
        format!("{marked} messages were marked sent, and no majority had them")
    })?;
    let pending = "outbox.message WHERE sent_at IS NULL";
    let held = cluster.arena.count(pending).await?;
    let [second, third] = &mut cluster.others;
    tokio::try_join!(second.restart(), third.restart())?;
    let over = Instant::now();
    flow.note(format!("{held} messages were held back"));
    flow.recovers(over, Duration::from_secs(60)).await?;
    let timeouts = timeouts(&relay);
    flow.note(format!("{timeouts} time-outs"));
    flow.finish(WINDOW * timeouts.max(1)).await
}
