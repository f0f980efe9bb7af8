//! The API's description, but for what the domains say of their own calls: what is the same for every call, and the
//! addresses that belong to no domain.

use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Components, Content, OpenApi, PathItem, Ref, RefOr, Required, ResponseBuilder};
use web::ProblemDocument;

/// Names of shared parts.
const TOKEN: &str = "token";
const PROBLEM: &str = "Problem";

/// Addresses that need no token; their calls are about no project.
#[derive(utoipa::OpenApi)]
#[openapi(
    paths(
        public::trusted_root,
        public::signing_config,
        public::livez,
        public::readyz,
        public::metrics,
        public::description
    ),
    components(schemas(ProblemDocument))
)]
pub struct Public;

mod public {
    #![expect(
        dead_code,
        reason = "only their descriptions are read; the handlers are in wiring"
    )]

    #[utoipa::path(get, path = "/api/v1/trust/trusted_root.json", tag = "trust",
        responses((status = 200, body = Object, description = "The log's key, as a Sigstore TrustedRoot.")))]
    pub(super) fn trusted_root() {}

    #[utoipa::path(get, path = "/api/v1/trust/signing_config.json", tag = "trust",
        responses((status = 200, body = Object, description = "Where the log is written to, as a Sigstore SigningConfig.")))]
    pub(super) fn signing_config() {}

    #[utoipa::path(get, path = "/api/v1/openapi.json", tag = "server",
        responses((status = 200, body = Object, description = "This description.")))]
    pub(super) fn description() {}

    #[utoipa::path(get, path = "/livez", tag = "server",
        responses((status = 200, body = String, content_type = "text/plain", description = "The process answers.")))]
    pub(super) fn livez() {}

    #[utoipa::path(get, path = "/readyz", tag = "server", responses(
        (status = 200, body = String, content_type = "text/plain", description = "The server serves; what it depends on plays no part."),
        (status = 503, body = String, content_type = "text/plain", description = "It was told to stop, and still serves; send nothing new.")))]
    pub(super) fn readyz() {}

    #[utoipa::path(get, path = "/metrics", tag = "server",
        responses((status = 200, body = String, content_type = "text/plain", description = "Prometheus text format.")))]
    pub(super) fn metrics() {}
}

/// Adds to every call of `domains` the token, the project and the shape of errors, and to the whole the public
/// addresses.
pub fn complete(mut domains: OpenApi) -> OpenApi {
    for item in domains.paths.paths.values_mut() {
        for operation in operations(item) {
            operation.security = Some(vec![SecurityRequirement::new(TOKEN, Vec::<String>::new())]);
            let parameters = operation.parameters.get_or_insert_default();
            parameters.push(RefOr::T(project()));
            let problem = RefOr::Ref(Ref::from_response_name(PROBLEM));
            operation
                .responses
                .responses
                .insert("default".to_owned(), problem);
        }
    }
    domains.merge(<Public as utoipa::OpenApi>::openapi());
    let components = domains.components.get_or_insert_with(Components::new);
    let token = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("pcl_ and 36 letters and digits, or a JSON Web Token")
        .description(Some(
            "Made with `portcullis token create`, or the OpenID Connect token of a build system's job that a trust rule \
             names.",
        ))
        .build();
    let schemes = &mut components.security_schemes;
    schemes.insert(TOKEN.to_owned(), RefOr::T(SecurityScheme::Http(token)));
    let schema = Content::new(Some(Ref::from_schema_name("ProblemDocument")));
    let problem = ResponseBuilder::new()
        .description("Anything but success (RFC 9457). 429 and 503 carry Retry-After.")
        .content("application/problem+json", schema)
        .build();
    components.responses.insert(PROBLEM.to_owned(), RefOr::T(problem));
    domains
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let PathItem {
        get,
        put,
        post,
        delete,
        ..
    } = item;
    [get, put, post, delete].into_iter().flatten()
}

fn project() -> Parameter {
    ParameterBuilder::new()
        .name("X-Portcullis-Project")
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(
            "The project that the call is about, for tokens that are good for all; `default` if left out. 404 if \
             there is none of that name.",
        ))
        .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
        .build()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    #[test]
    fn every_call_says_its_errors_its_token_and_its_lists_their_paging() {
        let whole = serde_json::to_value(crate::routes::openapi()).unwrap();
        assert_eq!(
            whole["components"]["securitySchemes"]["token"]["scheme"],
            "bearer"
        );
        let schema =
            &whole["components"]["responses"]["Problem"]["content"]["application/problem+json"]["schema"];
        assert_eq!(schema["$ref"], "#/components/schemas/ProblemDocument");
        let mut lists = 0;
        for (path, item) in whole["paths"].as_object().unwrap() {
            for (method, call) in item.as_object().unwrap() {
                let Some(default) = call["responses"].get("default") else {
                    assert!(call.get("security").is_none(), "{method} {path}");
                    continue;
                };
                assert_eq!(
                    default["$ref"], "#/components/responses/Problem",
                    "{method} {path}"
                );
                assert_eq!(
                    call["security"][0]["token"],
                    serde_json::json!([]),
                    "{method} {path}"
                );
                let parameters = call["parameters"].as_array().unwrap();
                let has = |name: &str| parameters.iter().any(|parameter| parameter["name"] == name);
                assert!(has("X-Portcullis-Project"), "{method} {path}");
                let answer = &call["responses"]["200"]["content"]["application/json"]["schema"]["$ref"];
                let page = answer.as_str().is_some_and(|name| name.contains("/Page_"));
                // One signature answers a line for each of its images, all at once.
                if page && !path.ends_with("{id}") {
                    lists += 1;
                    assert!(has("limit") && has("cursor"), "{method} {path}");
                }
            }
        }
        assert_eq!(
            lists, 6,
            "projects, tokens, keys, signatures, image policies, audit records"
        );
        for path in [
            "/livez",
            "/readyz",
            "/metrics",
            "/api/v1/trust/trusted_root.json",
            "/api/v1/trust/signing_config.json",
        ] {
            assert!(whole["paths"][path]["get"] != Value::Null, "{path}");
        }
    }
}
