//! What belongs to one project is not there for another.

use access::{Context, ProjectName};
use kernel::{Clock as _, Fault as _, Kind};
use registry::Options;
use signing::{Asked, VerifyRequest};

use crate::forge::annotations;
use crate::world::World;

async fn project(world: &World, name: &str, pattern: &str) -> Context {
    let name: ProjectName = name.parse().unwrap();
    let patterns = vec![pattern.parse().unwrap()];
    world
        .access
        .create_project(&world.context(), name.clone(), patterns)
        .await
        .unwrap();
    Context::server(name)
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_one_project_are_not_there_for_another() {
    let world = World::new().await;
    let other = project(&world, "other", "**").await;
    let error = world
        .signing
        .sign(&other, &world.request(world.reference()))
        .await
        .unwrap_err();
    assert_eq!((error.code().id, error.kind()), ("PC1201", Kind::NotFound));
    assert!(
        world
            .signing
            .keyring()
            .list("other", None)
            .await
            .unwrap()
            .is_empty()
    );
    assert!(
        world
            .signing
            .keyring()
            .verifying("other")
            .await
            .unwrap()
            .is_empty()
    );
    let error = world
        .signing
        .keyring()
        .rotate(&other, "default", world.clock.now())
        .await
        .unwrap_err();
    assert_eq!(error.code().id, "PC1201");
    assert_eq!(world.signatures().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signature_of_one_project_answers_no_other() {
    let world = World::new().await;
    let other = project(&world, "other", "**").await;
    world.signing.keyring().create(&other, "default").await.unwrap();
    let first = world.sign().await;
    let request = world.request(world.reference());
    let second = world.signing.sign(&other, &request).await.unwrap().remove(0);
    assert!(!second.deduplicated);
    assert_ne!((&first.id, &first.key_id), (&second.id, &second.key_id));
    assert_eq!((world.signatures().await, world.log_size().await), (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verdict_of_one_project_is_none_for_another() {
    let world = World::new().await;
    let other = project(&world, "other", "**").await;
    world.signing.keyring().create(&other, "default").await.unwrap();
    world.sign().await;
    let request = world.verify_request();
    let verify = async |context: &Context| world.verifying.verify(context, &request).await.unwrap().remove(0);
    assert!(verify(&world.context()).await.report.verified);
    assert!(
        !verify(&other).await.report.verified,
        "its keys did not sign this"
    );
    // The same policy, word for word, in both projects: each asks the registry itself.
    let shared = VerifyRequest {
        asked: Asked::Keys {
            keys: world.signing.keyring().verifying("default").await.unwrap(),
            log_required: true,
        },
        ..world.verify_request()
    };
    world.verifying.verify(&world.context(), &shared).await.unwrap();
    let calls = world.fake.calls();
    world.verifying.verify(&world.context(), &shared).await.unwrap();
    assert_eq!(world.fake.calls(), calls, "its own verdict is known");
    world.verifying.verify(&other, &shared).await.unwrap();
    assert!(world.fake.calls().total() > calls.total(), "another's is not");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_ends_when_the_image_is_signed() {
    let world = World::new().await;
    let request = world.verify_request();
    let verify = async || {
        world
            .verifying
            .verify(&world.context(), &request)
            .await
            .unwrap()
            .remove(0)
    };
    assert!(!verify().await.report.verified);
    let calls = world.fake.calls();
    assert!(!verify().await.report.verified);
    assert_eq!(world.fake.calls(), calls);
    world.sign().await;
    assert!(
        verify().await.report.verified,
        "the refusal was forgotten with the signature"
    );
    // A refusal by itself stands ten seconds, for what others sign.
    let other = VerifyRequest {
        annotations: annotations(&[("a", "b")]),
        ..request.clone()
    };
    let refused = async || {
        !world.verifying.verify(&world.context(), &other).await.unwrap()[0]
            .report
            .verified
    };
    assert!(refused().await);
    let calls = world.fake.calls();
    world.clock.advance(std::time::Duration::from_secs(9));
    assert!(refused().await && world.fake.calls() == calls);
    world.clock.advance(std::time::Duration::from_secs(2));
    assert!(refused().await && world.fake.calls() != calls);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_signs_only_what_its_patterns_say() {
    let world = World::with(Options::default(), "*/elsewhere/**").await;
    let images = vec![world.reference()];
    let error = world
        .signing
        .sign(&world.context(), &world.request(images[0].clone()))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
    let release = world
        .signing
        .release(&world.context(), images, None, annotations(&[]))
        .await;
    assert_eq!(release.unwrap_err().kind(), Kind::Denied);
    assert_eq!(
        world.fake.calls().total(),
        0,
        "nothing is asked for what may not be signed"
    );
    assert_eq!((world.signatures().await, world.log_size().await), (0, 0));
}
