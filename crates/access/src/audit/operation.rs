//! What a request wants to do, in the words of the records of those that were done.

use axum::http::Method;

use super::Outcome;

/// The path below which the API lies.
const API: &str = "/api/v1/";
/// Letters of a verb that a path names; longer ones are not ours.
const VERB_CHARS_MAX: usize = 20;

/// The action of a request, `noun.verb`, and the resource that its path names. `route` is the pattern that matched,
/// `path` what was asked for.
#[must_use]
pub fn operation(method: &Method, route: &str, path: &str) -> (String, String) {
    let (Some(route), Some(path)) = (route.strip_prefix(API), path.strip_prefix(API)) else {
        return (
            format!("request.{}", method.as_str().to_lowercase()),
            String::new(),
        );
    };
    let mut parts = route.split('/');
    let noun = parts.next().unwrap_or_default();
    let noun = noun.strip_suffix(":batch").unwrap_or(noun);
    let has_name = parts.next().is_some_and(|part| part.starts_with('{'));
    let name = path.split('/').nth(1).filter(|_| has_name).unwrap_or_default();
    let is_verb = |verb: &&str| {
        (1..=VERB_CHARS_MAX).contains(&verb.len()) && verb.bytes().all(|byte| byte.is_ascii_lowercase())
    };
    let (resource, verb) = match name.rsplit_once(':') {
        Some((name, verb)) if method == Method::POST && is_verb(&verb) => (name, verb.to_owned()),
        _ => (name, verb_of(method, noun, has_name).to_owned()),
    };
    (format!("{}.{verb}", singular(noun)), resource.to_owned())
}

fn verb_of(method: &Method, noun: &str, has_name: bool) -> &'static str {
    match method.as_str() {
        "POST" => "create",
        "PUT" => "put",
        "PATCH" => "update",
        "DELETE" => "delete",
        _ if has_name || noun == "auth" => "get",
        _ => "list",
    }
}

fn singular(noun: &str) -> String {
    match noun.strip_suffix("ies") {
        Some(stem) => format!("{stem}y"),
        None => noun.strip_suffix('s').unwrap_or(noun).to_owned(),
    }
}

/// Whether the answer to a request is a refusal that is recorded: nobody may ask so, or a change cannot be made. That
/// something which was only asked for is not there is none, and neither is our own failure.
pub(super) fn refused(method: &Method, action: &str, status: u16, crossed: bool) -> Option<Outcome> {
    let reads = matches!(method.as_str(), "GET" | "HEAD") || action == "verification.create";
    match status {
        401 | 403 | 429 => Some(Outcome::Denied),
        // Another project's things are hidden as if they were not there.
        404 if crossed => Some(Outcome::Denied),
        400..=499 if !reads => Some(Outcome::Failed),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_named_like_the_changes_that_they_refuse() {
        for (method, route, path, action, resource) in [
            ("POST", "/signatures", "/signatures", "signature.create", ""),
            (
                "POST",
                "/signatures:batch",
                "/signatures:batch",
                "signature.create",
                "",
            ),
            (
                "POST",
                "/tokens/{action}",
                "/tokens/tok_1:revoke",
                "token.revoke",
                "tok_1",
            ),
            (
                "POST",
                "/keys/{name}",
                "/keys/default:rotate",
                "key.rotate",
                "default",
            ),
            ("POST", "/keys/{name}", "/keys/a:B2", "key.create", "a:B2"),
            (
                "PUT",
                "/image-policies/{name}",
                "/image-policies/p",
                "image-policy.put",
                "p",
            ),
            (
                "DELETE",
                "/image-policies/{name}",
                "/image-policies/p",
                "image-policy.delete",
                "p",
            ),
            (
                "GET",
                "/keys/{name}/cosign.pub",
                "/keys/k/cosign.pub",
                "key.get",
                "k",
            ),
            ("GET", "/audit", "/audit", "audit.list", ""),
            ("GET", "/projects", "/projects", "project.list", ""),
        ] {
            let method: Method = method.parse().unwrap();
            let found = operation(&method, &format!("/api/v1{route}"), &format!("/api/v1{path}"));
            assert_eq!(found, (action.to_owned(), resource.to_owned()));
        }
    }

    #[test]
    fn only_refusals_are_recorded() {
        let of = |method: &str, action: &str, status, crossed| {
            refused(&method.parse().unwrap(), action, status, crossed)
        };
        for status in [401, 403, 429] {
            assert_eq!(of("GET", "key.list", status, false), Some(Outcome::Denied));
        }
        assert_eq!(of("GET", "key.get", 404, false), None);
        assert_eq!(of("GET", "key.get", 404, true), Some(Outcome::Denied));
        assert_eq!(of("POST", "key.rotate", 409, false), Some(Outcome::Failed));
        assert_eq!(of("POST", "verification.create", 422, false), None);
        for status in [200, 201, 500, 503, 507] {
            assert_eq!(of("POST", "signature.create", status, false), None);
        }
    }
}
