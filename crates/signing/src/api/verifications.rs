//! Verifying over HTTP.

use access::Context;
use axum::extract::State;
use kernel::Reference;
use web::{Json, Problem};

use crate::SigningError;
use crate::format::Annotations;
use crate::key::PublicKey;
use crate::verify::{Candidate, Report};
use crate::verify_service::{Asked, Verdict, VerifyRequest, Verifying};

/// An image to verify.
#[derive(Debug, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyBody {
    pub image: String,
    /// PEM of public keys; the project's own keys if left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
    /// The name of an image policy, which then says everything about keys and log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    #[serde(default, skip_serializing_if = "Annotations::is_empty")]
    pub annotations: Annotations,
    /// Whether a signature without proof of this server's log counts; `true` if left out: it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_required: Option<bool>,
    /// Also every manifest under an index; all have to be verified.
    #[serde(default)]
    pub recursive: bool,
}

/// What verifying found: 200 for both outcomes; an error is never an outcome.
#[derive(Debug, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct ReportBody {
    pub verified: bool,
    /// With its digest.
    pub image: String,
    pub digest: String,
    pub policy: String,
    /// What the policy asked for.
    pub checks: Vec<String>,
    /// Why it is not verified.
    pub reasons: Vec<String>,
    /// Everything that was looked at.
    pub evidence: Vec<CandidateBody>,
    /// How long ago this was found out.
    pub verdict_age_seconds: f64,
    /// With `recursive`: the manifests under the index.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(no_recursion)]
    pub manifests: Vec<ReportBody>,
}

/// One candidate.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct CandidateBody {
    /// `bundle` or `legacy`.
    pub format: String,
    /// Of the referrer's manifest, or of the legacy layer.
    pub digest: String,
    pub accepted: bool,
    /// A stable word for why it did not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    #[serde(default, skip_serializing_if = "Annotations::is_empty")]
    pub annotations: Annotations,
    /// Proven to be in a trusted log.
    #[serde(default)]
    pub logged: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_index: Option<u64>,
    /// Since when the external log is owed it, where the policy lets that count for a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owed_since: Option<String>,
}

#[utoipa::path(post, path = "/api/v1/verifications", tag = "verifications", request_body = VerifyBody,
    responses((status = 200, body = ReportBody)))]
pub(crate) async fn create(
    State(verifying): State<Verifying>,
    context: Context,
    Json(body): Json<VerifyBody>,
) -> Result<Json<ReportBody>, Problem> {
    let image: Reference = body.image.parse()?;
    let keys = body
        .keys
        .iter()
        .map(|pem| PublicKey::from_pem(pem))
        .collect::<Result<Vec<_>, _>>();
    let keys = keys.map_err(SigningError::from)?;
    let asked = match (body.policy, body.log_required) {
        (Some(policy), None) if keys.is_empty() => Asked::Policy(policy),
        (Some(_), _) => {
            let why = "policy says which keys and which log count: leave keys and log_required out";
            return Err(SigningError::Request(why.to_owned()).into());
        }
        (None, log_required) => Asked::Keys {
            keys,
            log_required: log_required.unwrap_or(true),
        },
    };
    let request = VerifyRequest {
        image,
        asked,
        annotations: body.annotations,
        recursive: body.recursive,
    };
    let verdicts = verifying.verify(&context, &request).await?;
    ReportBody::of(verdicts)
        .map(Json)
        .ok_or_else(|| SigningError::Lost.into())
}

impl ReportBody {
    /// The image's report with those of its manifests; `None` only for no reports at all. The whole is verified if
    /// every part is.
    #[must_use]
    pub fn of(verdicts: Vec<Verdict>) -> Option<Self> {
        let mut bodies = verdicts
            .into_iter()
            .map(|own| Self::one(&own.report, own.age.as_secs_f64()));
        let mut first = bodies.next()?;
        first.manifests = bodies.collect();
        for part in &first.manifests {
            if !part.verified {
                first.verified = false;
                first
                    .reasons
                    .push(format!("{} under it is not verified", part.digest));
            }
        }
        Some(first)
    }

    fn one(report: &Report, age: f64) -> Self {
        Self {
            verified: report.verified,
            image: report.image.to_string(),
            digest: report.digest.to_string(),
            policy: report.policy.clone(),
            checks: report.checks.clone(),
            reasons: report.reasons.clone(),
            evidence: report.candidates.iter().map(CandidateBody::from).collect(),
            verdict_age_seconds: age,
            manifests: Vec::new(),
        }
    }
}

impl From<&Candidate> for CandidateBody {
    fn from(candidate: &Candidate) -> Self {
        let base = Self {
            format: candidate.format.to_owned(),
            digest: candidate.digest.to_string(),
            ..Self::default()
        };
        match &candidate.outcome {
            Ok(accepted) => Self {
                accepted: true,
                key_id: accepted.key_id.clone(),
                identity: accepted.identity.clone(),
                issuer: accepted.issuer.clone(),
                annotations: accepted.annotations.clone(),
                logged: accepted.logged,
                log_index: accepted.log_index,
                owed_since: accepted.owed_since.map(|since| since.to_string()),
                ..base
            },
            Err(rejected) => Self {
                reason: Some(rejected.reason.to_owned()),
                detail: Some(rejected.detail.clone()),
                ..base
            },
        }
    }
}
