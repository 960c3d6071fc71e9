//! Places an order and writes its events in the same transaction. The table: examples/producing/shop.sql.
//!
//! `DATABASE_URL=postgresql://… cargo run -p outbox --example place_order`

use outbox::{Event, enqueue_all};
use serde_json::json;
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

async fn place_order(
    client: &mut Client,
    order_id: &str,
    total_cents: i32,
    traceparent: &str,
) -> Result<Vec<Uuid>> {
    let transaction = client.transaction().await?;
    transaction
        .execute(
            "INSERT INTO orders (id, total_cents, status) VALUES ($1, $2, 'placed')",
            &[&order_id, &total_cents],
        )
        .await?;
    let placed = Event::new("order", "placed")
        .key(order_id)
        .json(&json!({ "id": order_id, "total_cents": total_cents }))?
        .traceparent(traceparent)
        .header("tenant", "blue");
    let receipt = format!("Order {order_id}: {total_cents} cents").into_bytes();
    let printed = Event::new("order", "receipt_printed")
        .key(order_id)
        .bytes("text/plain", receipt);
    let message_ids = enqueue_all(&transaction, &[placed, printed]).await?;
    transaction.commit().await?;
    Ok(message_ids)
}

#[tokio::main]
async fn main() -> Result<()> {
    let url = std::env::var("DATABASE_URL")?;
    let (mut client, connection) = tokio_postgres::connect(&url, NoTls).await?;
    tokio::spawn(connection);
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let order_id = format!("rust-{}", Uuid::new_v4());
    println!(
        "{:?}",
        place_order(&mut client, &order_id, 1999, trace).await?
    );
    Ok(())
}
