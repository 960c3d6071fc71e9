//! Messages that have arrived already: the commit of one message is sent with the claim of the next, and neither loses the
//! other.

use super::*;

/// One handler whose first message keeps it busy until the other messages have arrived.
async fn busy(world: &World) -> Running {
    let running = start(world, Payments::default(), |options| options.handlers = 1);
    pays("slow", "slow").of("slow").to(world).await;
    running
}

async fn send_plain(world: &World, account: &str, type_: &str) {
    pays(account, account).of(type_).to(world).await;
}

async fn assert_paid_once(world: &World, accounts: &[String]) {
    let mut expected: HashMap<String, i64> = accounts.iter().map(|a| (a.clone(), 1)).collect();
    expected.insert("slow".to_owned(), 1);
    assert_eq!(cents(world).await, expected);
    let claims = world.count("inbox.message").await;
    assert_eq!(
        usize::try_from(claims).unwrap(),
        expected.len(),
        "a claim for each effect, and none without"
    );
}

#[tokio::test]
async fn a_commit_that_is_refused_takes_nothing_of_the_next_message_with_it() {
    let world = world().await;
    let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
                  $$ BEGIN RAISE EXCEPTION 'refused at the commit'; END $$; \
                  CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON account DEFERRABLE INITIALLY DEFERRED \
                  FOR EACH ROW WHEN (NEW.id LIKE 'refused%') EXECUTE FUNCTION refuse()";
    world.sql(refuse).await;
    let running = busy(&world).await;
    let mut good = Vec::new();
    for n in 0..10 {
        send_plain(&world, &format!("refused{n}"), "pays").await;
        good.push(format!("good{n}"));
        send_plain(&world, &format!("good{n}"), "pays").await;
    }
    running.payments.go();
    until_holds(&world, QUEUE, 0).await;
    assert_paid_once(&world, &good).await;
    until_holds(&world, DEAD, 10).await;
    running.stopped().await;
}

#[tokio::test]
async fn what_is_not_committed_is_not_acknowledged_whether_the_handler_noticed_or_not() {
    let world = world().await;
    let running = busy(&world).await;
    let mut good = Vec::new();
    for n in 0..5 {
        let how = ["ignores_an_error", "returns_too_much"][n % 2];
        send_plain(&world, &format!("bad{n}"), how).await;
        good.push(format!("good{n}"));
        send_plain(&world, &format!("good{n}"), "pays").await;
    }
    running.payments.go();
    until_holds(&world, QUEUE, 0).await;
    assert_paid_once(&world, &good).await;
    until_holds(&world, DEAD, 5).await;
    running.stopped().await;
}

#[tokio::test]
async fn an_acknowledgement_does_not_wait_for_the_claim_of_the_next_message() {
    let world = world().await;
    let running = busy(&world).await;
    let mut other = world.postgres().connect(&world.database).await.unwrap();
    let transaction = other.transaction().await.unwrap();
    let operation = Operation::new("held", "pays", "text/plain", b"held").unwrap();
    let inbox = Inbox::new("payments").unwrap();
    inbox.claim(&transaction, &operation).await.unwrap();
    send_plain(&world, "held", "pays").await;
    running.payments.go();
    until_paid(&world, "slow").await;
    until_holds(&world, QUEUE, 1).await;
    transaction.rollback().await.unwrap();
    until_holds(&world, QUEUE, 0).await;
    assert_paid_once(&world, &["held".to_owned()]).await;
    running.stopped().await;
}

#[tokio::test]
async fn a_backlog_with_everything_in_it_is_applied_once_and_in_the_order_of_its_keys() {
    let world = world().await;
    let running = busy(&world).await;
    let mut good = Vec::new();
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for n in 0..40 {
        let account = format!("a{n}");
        let sent = pays(&account, &account)
            .of(if n % 4 == 0 { "fails_twice" } else { "pays" })
            .key(if n % 2 == 0 { "first" } else { "second" });
        sent.to(&world).await;
        if n % 3 == 0 {
            sent.to(&world).await;
        }
        if n % 2 == 0 { &mut first } else { &mut second }.push(account.clone());
        good.push(account);
    }
    running.payments.go();
    until_holds(&world, QUEUE, 0).await;
    assert_paid_once(&world, &good).await;
    let tried = running.payments.tried.lock().unwrap().clone();
    for key in [first, second] {
        let mut of_key: Vec<_> = tried.iter().filter(|t| key.contains(t)).cloned().collect();
        of_key.dedup();
        assert_eq!(of_key, key, "tried again in its place, and never overtaken");
    }
    running.stopped().await;
}
