use std::net::TcpListener;

use kube::Config;
use weft_apilite::ApiServer;

use super::*;

pub(crate) async fn api() -> (ApiServer, Client) {
    let server = ApiServer::builder().start().unwrap();
    let address = server.serve(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
    let client = Client::try_from(Config::new(format!("http://{address}").parse().unwrap())).unwrap();
    (server, client)
}

pub(crate) fn candidate(client: &Client, identity: &str, unasked: bool) -> Candidate {
    Candidate::new(client.clone(), "kube-system", identity.to_owned(), unasked)
}

fn note(blocks: &[&str]) -> Note {
    let mut note = Note::default();
    for block in blocks {
        note.add("default", "u1", (*block).to_owned());
    }
    note
}

async fn lease(client: &Client) -> Lease {
    Api::namespaced(client.clone(), "kube-system")
        .get(NAME)
        .await
        .unwrap()
}

fn holder(lease: &Lease) -> &str {
    lease.spec.as_ref().unwrap().holder_identity.as_deref().unwrap()
}

#[tokio::test]
async fn a_note_of_one_who_was_replaced_fails_and_nothing_of_it_is_left() {
    let (_server, client) = api().await;
    let first = candidate(&client, "first", false).acquire(|_| {}).await;
    first.note(note(&["10.244.0.0/24"])).await.unwrap();
    // By its own clock the first leads for ten seconds more, as if it had been paused.
    let second = candidate(&client, "second", true).acquire(|_| {}).await;
    assert!(first.leads());
    assert_eq!(second.noted().await, note(&["10.244.0.0/24"]));
    let late = first.note(note(&["10.244.0.0/24", "10.244.1.0/24"])).await;
    assert!(
        matches!(&late, Err(LeaseError::Lost(holder)) if holder == "second"),
        "{late:?}"
    );
    let lease = lease(&client).await;
    assert_eq!(read_note(&lease), note(&["10.244.0.0/24"]));
    assert_eq!(lease.spec.unwrap().lease_transitions, Some(1));
}

#[tokio::test]
async fn what_is_noted_stays_until_it_is_not_noted_any_more() {
    let (_server, client) = api().await;
    let leader = candidate(&client, "a", false).acquire(|_| {}).await;
    leader
        .note(note(&["10.244.0.0/24", "10.244.1.0/24"]))
        .await
        .unwrap();
    let written = lease(&client).await;
    // Less needs no write.
    leader.note(note(&["10.244.1.0/24"])).await.unwrap();
    assert_eq!(
        lease(&client).await.resource_version(),
        written.resource_version()
    );
    // More does, and says all.
    leader
        .note(note(&["10.244.1.0/24", "10.244.2.0/24"]))
        .await
        .unwrap();
    assert_eq!(
        read_note(&lease(&client).await),
        note(&["10.244.1.0/24", "10.244.2.0/24"])
    );
    leader.note(Note::default()).await.unwrap();
    leader.release().await.unwrap();
    let released = lease(&client).await;
    assert_eq!((holder(&released), read_note(&released)), ("", Note::default()));
    // What was let go is taken without waiting.
    let next = candidate(&client, "b", false)
        .acquire(|who| panic!("{who}"))
        .await;
    assert!(next.leads());
    assert_eq!(holder(&lease(&client).await), "b");
}

#[tokio::test]
async fn somebody_else_who_writes_to_the_lease_is_no_harm() {
    let (_server, client) = api().await;
    let leader = candidate(&client, "a", false).acquire(|_| {}).await;
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-system");
    let labelled = serde_json::json!({"metadata": {"labels": {"seen": "by-a-person"}}});
    leases
        .patch(
            NAME,
            &kube::api::PatchParams::default(),
            &kube::api::Patch::Merge(labelled),
        )
        .await
        .unwrap();
    leader.note(note(&["10.244.0.0/24"])).await.unwrap();
    let lease = lease(&client).await;
    assert_eq!(
        lease.labels().get("seen").map(String::as_str),
        Some("by-a-person")
    );
    assert_eq!(read_note(&lease), note(&["10.244.0.0/24"]));
}

#[tokio::test]
async fn one_who_waits_names_the_holder_and_takes_nothing() {
    let (_server, client) = api().await;
    let _leader = candidate(&client, "a", false).acquire(|_| {}).await;
    let (told, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let waits = candidate(&client, "b", false);
    let waiting = waits.acquire(|who| told.send(who.to_owned()).unwrap());
    tokio::select! {
        _ = waiting => panic!("took a Lease that is held"),
        who = hears.recv() => assert_eq!(who.unwrap(), "a leads"),
    }
    assert_eq!(holder(&lease(&client).await), "a");
}
