//! docs/guides/producing.md says what is so: its code is in the examples, and its SQL runs.

use crate::{database, onlooker, read};

/// A fenced block: what stands behind the fence, and the lines in it, without the indentation of the fence.
struct Block {
    kind: String,
    code: String,
}

fn blocks() -> Vec<Block> {
    let mut blocks = Vec::new();
    let page = read("docs/guides/producing.md");
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(kind) = line.trim_start().strip_prefix("```") else {
            continue;
        };
        let indentation = line.len() - line.trim_start().len();
        let code: Vec<&str> = lines
            .by_ref()
            .take_while(|line| line.trim() != "```")
            .map(|line| line.get(indentation..).unwrap_or_default())
            .collect();
        blocks.push(Block {
            kind: kind.to_owned(),
            code: code.join("\n"),
        });
    }
    blocks
}

#[test]
fn its_code_is_quoted_from_the_examples() {
    for (kind, file) in [
        ("rust", "crates/outbox/examples/place_order.rs"),
        ("python", "examples/producing/python/place_order.py"),
        ("js", "examples/producing/node/place_order.js"),
        ("java", "examples/producing/java/PlaceOrder.java"),
        ("go", "examples/producing/go/main.go"),
    ] {
        let quoted: Vec<Block> = blocks().into_iter().filter(|b| b.kind == kind).collect();
        assert!(!quoted.is_empty(), "no {kind} in the page");
        for block in quoted {
            assert!(
                read(file).contains(&block.code),
                "{kind} in docs/guides/producing.md is not in {file}"
            );
        }
    }
}

/// As the role of a service; `sql owner` as the owner of the database.
#[tokio::test]
async fn its_sql_runs() {
    let (service, owner) = (database().await, onlooker().await);
    owner
        .batch_execute(
            "CREATE ROLE my_service; \
             CREATE TABLE outboxevent (id uuid PRIMARY KEY, aggregatetype varchar(255), aggregateid varchar(255), \
                                       type varchar(255), payload jsonb)",
        )
        .await
        .unwrap();
    let mut run = 0;
    for block in blocks() {
        let client = match block.kind.as_str() {
            "sql" => &service,
            "sql owner" => &owner,
            _ => continue,
        };
        if let Err(error) = client.batch_execute(&block.code).await {
            panic!("{error:?}\n{}", block.code);
        }
        run += 1;
    }
    assert!(run >= 12, "{run} blocks of SQL");

    // The move from Debezium: the service's old statement, jsonb and all, writes to the outbox.
    service
        .batch_execute(
            "INSERT INTO outboxevent (id, aggregatetype, aggregateid, type, payload) \
             VALUES (gen_random_uuid(), 'moved', '1', 'placed', '{}'::jsonb)",
        )
        .await
        .unwrap();
    let moved = "SELECT FROM outbox.message WHERE aggregate_type = 'moved' AND aggregate_id = '1'";
    assert_eq!(owner.query(moved, &[]).await.unwrap().len(), 1);
}
