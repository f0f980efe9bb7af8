//! One image to sign, and what came of it: the same for a request, a line of a batch and an operation.

use access::Context;
use flow::Class;
use kernel::Reference;
use web::{Problem, ProblemDocument};

use crate::format::Annotations;
use crate::{Formats, SignRequest, Signed, Signing, SigningError};

/// Items of one batch that are worked on at once.
pub(super) const BATCH_CONCURRENT_MAX: usize = 32;

/// An image to sign.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignBody {
    /// `registry/repository:tag` or `…@sha256:…`.
    pub image: String,
    /// A key of the project; `default` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    #[serde(default, skip_serializing_if = "Annotations::is_empty")]
    pub annotations: Annotations,
    /// Also every manifest under an index.
    #[serde(default)]
    pub recursive: bool,
    /// Look into the registry for a signature that stands already, and put it back if it is lost there.
    #[serde(default)]
    pub repair: bool,
    /// `bundle`, `legacy` or both; as configured for the registry if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub formats: Option<Vec<String>>,
}

/// A signature that stands.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct SignatureBody {
    pub id: String,
    /// With its digest.
    pub image: String,
    pub digest: String,
    pub key: String,
    pub key_id: String,
    pub formats: Vec<String>,
    /// Its place in the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_index: Option<u64>,
    #[serde(default, skip_serializing_if = "Annotations::is_empty")]
    pub annotations: Annotations,
    pub created_at: String,
    /// Whether it stood before this call.
    #[serde(default)]
    pub deduplicated: bool,
    /// Whether the registry had lost it, and holds it again.
    #[serde(default)]
    pub repaired: bool,
    /// With `recursive`: the signatures of the manifests under the index.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(no_recursion)]
    pub manifests: Vec<SignatureBody>,
}

/// One line of a batch's answer: the item's number in the request, and what came of it.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct BatchLine {
    pub item: usize,
    pub image: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signature: Option<SignatureBody>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<ProblemDocument>,
}

pub(super) async fn sign(
    signing: &Signing,
    context: &Context,
    body: SignBody,
    class: Class,
) -> Result<SignatureBody, Problem> {
    let request = request_of(body, class)?;
    let mut signed = signing
        .sign(context, &request)
        .await?
        .into_iter()
        .map(|own| body_of(own, &request.annotations));
    let first = signed.next().ok_or(SigningError::Lost)?;
    Ok(SignatureBody {
        manifests: signed.collect(),
        ..first
    })
}

pub(super) async fn release(
    signing: &Signing,
    context: &Context,
    items: Vec<SignBody>,
) -> Result<Vec<BatchLine>, Problem> {
    let first = items[0].clone();
    let mut images: Vec<Reference> = Vec::with_capacity(items.len());
    for item in &items {
        if item.key != first.key
            || item.annotations != first.annotations
            || item.recursive
            || item.repair
            || item.formats.is_some()
        {
            let text = "a release has one key and one set of annotations for all items, and neither recursive, repair nor formats";
            return Err(SigningError::Request(text.to_owned()).into());
        }
        images.push(item.image.parse()?);
    }
    let outcome = signing
        .release(context, images, first.key, first.annotations.clone())
        .await?;
    let lines = outcome.into_iter().zip(items).enumerate();
    let body = |signed: Signed| body_of(signed, &first.annotations);
    Ok(lines
        .map(|(at, (signed, item))| line(at, item.image, signed.map(body).map_err(Problem::from)))
        .map(|line| told(context, line))
        .collect())
}

/// Has the refusal of an item recorded, as that of a whole request would be.
pub(super) fn told(context: &Context, line: BatchLine) -> BatchLine {
    if let Some(problem) = &line.problem {
        context.item_refused("signature.create", &line.image, problem);
    }
    line
}

pub(super) fn line(item: usize, image: String, outcome: Result<SignatureBody, Problem>) -> BatchLine {
    match outcome {
        Ok(signature) => BatchLine {
            item,
            image,
            signature: Some(signature),
            problem: None,
        },
        Err(problem) => BatchLine {
            item,
            image,
            signature: None,
            problem: Some(problem.document().clone()),
        },
    }
}

fn request_of(body: SignBody, class: Class) -> Result<SignRequest, Problem> {
    let formats = body
        .formats
        .map(|words| words.join(",").parse::<Formats>())
        .transpose()?;
    let SignBody {
        image,
        key,
        annotations,
        recursive,
        repair,
        ..
    } = body;
    Ok(SignRequest {
        image: image.parse()?,
        key,
        annotations,
        recursive,
        repair,
        formats,
        class,
    })
}

pub(super) fn words(formats: Formats) -> Vec<String> {
    formats.to_string().split(',').map(str::to_owned).collect()
}

fn body_of(signed: Signed, annotations: &Annotations) -> SignatureBody {
    SignatureBody {
        id: signed.id.to_string(),
        image: signed.repository.at(signed.digest).to_string(),
        digest: signed.digest.to_string(),
        key: signed.key,
        key_id: signed.key_id,
        formats: words(signed.formats),
        log_index: signed.log_index,
        annotations: annotations.clone(),
        created_at: signed.created_at.to_string(),
        deduplicated: signed.deduplicated,
        repaired: signed.repaired,
        manifests: Vec::new(),
    }
}
