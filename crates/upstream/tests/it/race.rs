//! Many writers of one tag.

use flow::Caller;
use std::collections::BTreeSet;
use std::sync::Arc;

use signing::ports::Registry as _;

use super::{World, client};

const WRITERS: usize = 16;
const ROUNDS: usize = 20;

/// Sixteen clients that share nothing, as sixteen processes would: cosign keeps 3 to 5 of 16.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_clients_attach_to_one_digest_without_the_referrers_api_and_all_are_there() {
    for round in 0..ROUNDS {
        let world = Arc::new(World::without_referrers().await);
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let world = Arc::clone(&world);
                let client = client(Default::default());
                tokio::spawn(async move { world.attach(&client, &format!("writer {writer}")).await })
            })
            .collect();
        let mut attached = BTreeSet::new();
        for writer in writers {
            attached.insert(writer.await.unwrap().unwrap().digest);
        }
        let reader = client(Default::default());
        let listed = reader
            .referrers(Caller::LOCAL, &world.repository, world.image)
            .await
            .unwrap();
        let listed: BTreeSet<_> = listed.into_iter().map(|entry| entry.digest).collect();
        assert_eq!(listed, attached, "round {round}");
        assert_eq!(listed.len(), WRITERS, "round {round}");
    }
}

/// One process: the turns at the tag keep its writers apart, so nothing is lost and little is repeated.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_callers_of_one_client_take_turns() {
    let world = Arc::new(World::without_referrers().await);
    let client = Arc::new(client(Default::default()));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (world, client) = (Arc::clone(&world), Arc::clone(&client));
            tokio::spawn(async move { world.attach(&client, &format!("writer {writer}")).await })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap().unwrap();
    }
    assert_eq!(
        client
            .referrers(Caller::LOCAL, &world.repository, world.image)
            .await
            .unwrap()
            .len(),
        WRITERS
    );
    let calls = world.fake.calls();
    assert_eq!(
        calls.manifest_writes,
        2 * WRITERS as u64,
        "each manifest and each index was written once"
    );
}
