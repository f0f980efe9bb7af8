//! Lists, a page at a time.

use axum::extract::{FromRequestParts, OriginalUri, Query};
use axum::http::request::Parts;
use kernel::limits::PAGE_ROWS_MAX;
use kernel::{Code, Cursor, CursorError, Fault, Kind};

use crate::{Problem, body_codes};

/// Rows of a page when the caller names no number.
const PAGE_ROWS_DEFAULT: u32 = 50;

/// `?limit=` and `?cursor=` of a list call.
#[derive(Debug, Clone)]
pub struct Paging {
    /// Rows wanted, 1 to [`PAGE_ROWS_MAX`].
    pub limit: u32,
    /// Where the page before ended.
    pub after: Option<Cursor>,
    path: String,
    filters: Vec<(String, String)>,
}

/// [`Paging`] in the description of a call: `params(web::PagingQuery)`.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "only its description is read")]
pub struct PagingQuery {
    /// Rows of a page; 50 if left out.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u32>,
    /// Where the page before ended, from its `next`.
    cursor: Option<String>,
}

/// One page of a list.
#[derive(Debug, Clone, serde::Serialize, utoipa::ToSchema)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// The next page's address; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

#[derive(Debug, thiserror::Error)]
enum PagingError {
    #[error("reading the query")]
    Query(#[source] axum::extract::rejection::QueryRejection),
    #[error("a value of the query holds a NUL character")]
    Nul,
    #[error("limit is a number from 1 to {PAGE_ROWS_MAX}")]
    Limit,
    #[error("reading the cursor")]
    Cursor(#[from] CursorError),
}

impl Fault for PagingError {
    fn kind(&self) -> Kind {
        Kind::Invalid
    }
    fn code(&self) -> &'static Code {
        &body_codes::INVALID
    }
}

impl<S: Sync> FromRequestParts<S> for Paging {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let Query(pairs) =
            Query::<Vec<(String, String)>>::try_from_uri(&parts.uri).map_err(PagingError::Query)?;
        let (mut limit, mut after, mut filters) = (PAGE_ROWS_DEFAULT, None, Vec::new());
        for (name, value) in pairs {
            refuse_nul(&value)?;
            match name.as_str() {
                "limit" => {
                    limit = value.parse().map_err(|_| PagingError::Limit)?;
                    if !(1..=PAGE_ROWS_MAX).contains(&limit) {
                        return Err(PagingError::Limit.into());
                    }
                }
                "cursor" => {
                    let cursor = Cursor::decode(&value).map_err(PagingError::Cursor)?;
                    refuse_nul(cursor.key())?;
                    after = Some(cursor);
                }
                _ => filters.push((name, value)),
            }
        }
        // Routes are nested below a prefix, which the inner address lacks.
        let original = parts.extensions.get::<OriginalUri>();
        let path = original.map_or(parts.uri.path(), |uri| uri.path()).to_owned();
        Ok(Self {
            limit,
            after,
            path,
            filters,
        })
    }
}

/// No text of ours holds one, and PostgreSQL takes none.
fn refuse_nul(text: &str) -> Result<(), PagingError> {
    match text.contains('\0') {
        true => Err(PagingError::Nul),
        false => Ok(()),
    }
}

impl Paging {
    /// The value of a filter such as `?digest=`.
    #[must_use]
    pub fn filter(&self, name: &str) -> Option<&str> {
        self.filters
            .iter()
            .find(|(own, _)| own == name)
            .map(|(_, value)| value.as_str())
    }

    /// The key after which the page begins; before every key on the first page.
    #[must_use]
    pub fn after_key(&self) -> &str {
        self.after.as_ref().map_or("", Cursor::key)
    }

    /// Makes the page of `rows`, which were asked for with one more than [`Paging::limit`]: the extra row
    /// only says that there is another page.
    #[must_use]
    pub fn page<T>(&self, mut rows: Vec<T>, key: impl Fn(&T) -> String) -> Page<T> {
        let limit = self.limit as usize;
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = rows.last().filter(|_| more).map(|last| {
            let mut url = format!(
                "{}?limit={}&cursor={}",
                self.path,
                self.limit,
                Cursor::after(&key(last)).encode()
            );
            for (name, value) in &self.filters {
                url.push_str(&format!("&{}={}", escape(name), escape(value)));
            }
            url
        });
        Page { items: rows, next }
    }
}

/// Percent-encoding of a query component (RFC 3986).
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
