//! Tokens in the database, and the tables of this domain.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use kernel::{Clock, Digest, Id, Random};
use store::{Db, Kept, Migration, Recent, Row, args};

use crate::audit::{self, Record};
use crate::oidc::Oidc;
use crate::token::LIFE_DAYS_MAX;
use crate::{AccessError, Context, NewToken, Project, ProjectName, Token, TokenText};

/// The tables of this domain.
pub const MIGRATIONS: &[Migration] = &[FIRST, audit::MIGRATION, QUOTA];

const FIRST: Migration = Migration {
    domain: "access",
    version: 1,
    sql: "CREATE TABLE project (
            name TEXT PRIMARY KEY, images TEXT NOT NULL, created_at BIGINT NOT NULL
          );
          CREATE TABLE token (
            id TEXT PRIMARY KEY, sha256 {blob} NOT NULL UNIQUE, name TEXT NOT NULL,
            project TEXT REFERENCES project (name), role TEXT NOT NULL,
            created_at BIGINT NOT NULL, expires_at BIGINT NOT NULL, revoked_at BIGINT
          );
          CREATE TABLE audit (
            id TEXT PRIMARY KEY, at BIGINT NOT NULL, actor TEXT NOT NULL, project TEXT NOT NULL,
            action TEXT NOT NULL, resource TEXT NOT NULL, detail TEXT NOT NULL, request_id TEXT NOT NULL
          );
          CREATE INDEX audit_project ON audit (project, id);",
};

/// A project's own quota; NULL is the server's default.
const QUOTA: Migration = Migration {
    domain: "access",
    version: 2,
    sql: "ALTER TABLE project ADD COLUMN quota_per_minute BIGINT;
          ALTER TABLE project ADD COLUMN quota_burst BIGINT;",
};

/// Projects, tokens, and who a request's token is. Cheap to clone.
#[derive(Clone)]
pub struct Access {
    pub(crate) db: Db,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
    /// By SHA-256 of the text.
    tokens: Arc<Recent<Digest, Token>>,
    pub(crate) projects: Arc<Recent<ProjectName, Project>>,
    pub(crate) oidc: Oidc,
}

impl Access {
    #[must_use]
    pub fn new(db: Db, clock: Arc<dyn Clock>, random: Arc<dyn Random>) -> Self {
        Self {
            tokens: Arc::new(Recent::new("token", clock.clone(), |id, _, token| {
                token.id.as_str() == id
            })),
            projects: Arc::new(Recent::new("project", clock.clone(), |name, key, _| {
                key.as_str() == name
            })),
            oidc: Oidc::none(clock.clone()),
            db,
            clock,
            random,
        }
    }

    /// What is kept in memory of the rows that other servers may change.
    #[must_use]
    pub fn kept(&self) -> [Arc<dyn Kept>; 2] {
        [self.tokens.clone(), self.projects.clone()]
    }

    /// The same, taking the tokens of workloads too.
    #[must_use]
    pub fn with_oidc(self, oidc: Oidc) -> Self {
        Self { oidc, ..self }
    }

    /// Whose token this is. A token that this server revoked is refused at once, one that another server on the
    /// same database revoked after [`store::STALE_MS_MAX`] at the latest; its end is held against the clock each time.
    ///
    /// # Errors
    /// [`AccessError::BadToken`] if nobody's, expired or revoked.
    pub async fn authenticate(&self, text: &TokenText) -> Result<Token, AccessError> {
        let token = self.find_token(text).await?;
        self.require_valid(&token)?;
        Ok(token)
    }

    /// Whose token this is, though it may have ended.
    pub(crate) async fn find_token(&self, text: &TokenText) -> Result<Token, AccessError> {
        let sha256 = text.sha256();
        let token = self.tokens.read(sha256, self.token(sha256)).await?;
        token.ok_or(AccessError::BadToken("this server did not make it"))
    }

    pub(crate) fn require_valid(&self, token: &Token) -> Result<(), AccessError> {
        token.require_valid(self.clock.now())
    }

    async fn token(&self, sha256: Digest) -> Result<Option<Token>, AccessError> {
        let sql =
            "SELECT id, name, project, role, created_at, expires_at, revoked_at FROM token WHERE sha256 = $1";
        let row = self.db.read_one(sql, args![sha256.as_bytes()]).await?;
        row.as_ref().map(token_of).transpose()
    }

    /// Makes a token; its text leaves here, and only here.
    ///
    /// # Errors
    /// If the project does not exist or the life is too long.
    pub async fn create_token(
        &self,
        context: &Context,
        new: NewToken,
    ) -> Result<(Token, TokenText), AccessError> {
        if !(1..=LIFE_DAYS_MAX).contains(&new.days) {
            let why = "a token lives 1 to 90 days";
            return Err(AccessError::Invalid {
                what: "life",
                text: new.days.to_string(),
                why,
            });
        }
        if new.name.is_empty() || new.name.len() > 100 || new.name.chars().any(char::is_control) {
            let why = "a token's name is 1 to 100 printable characters";
            return Err(AccessError::Invalid {
                what: "name",
                text: new.name.chars().take(100).collect(),
                why,
            });
        }
        if let Some(project) = &new.project {
            self.project(project).await?;
        }
        let text = TokenText::generate(&*self.random);
        let now = self.clock.now();
        let token = Token {
            id: Id::new("tok", &*self.clock, &*self.random),
            name: new.name,
            project: new.project,
            role: new.role,
            created_at: now,
            expires_at: now
                .saturating_add(SignedDuration::from_hours(24 * new.days))
                .unwrap_or(Timestamp::MAX),
            revoked_at: None,
        };
        let mut tx = self.db.begin().await?;
        tx.execute(
            "INSERT INTO token (id, sha256, name, project, role, created_at, expires_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
            args![
                &token.id,
                text.sha256().as_bytes(),
                &token.name,
                token.project.as_ref().map(ProjectName::as_str),
                token.role.as_str(),
                token.created_at.as_microsecond(),
                token.expires_at.as_microsecond()
            ],
        )
        .await?;
        let detail = format!("{} as {}", token.name, token.role);
        let record = Record {
            action: "token.create",
            resource: token.id.as_str(),
            detail: &detail,
        };
        audit::record(&mut tx, context, &*self.clock, &*self.random, record).await?;
        tx.commit().await?;
        Ok((token, text))
    }

    /// Ends a token at once. Ending it twice is the same as once.
    ///
    /// # Errors
    /// [`AccessError::NotFound`] if the context's project has no such token.
    pub async fn revoke_token(&self, context: &Context, id: &str) -> Result<(), AccessError> {
        let mut tx = self.db.begin().await?;
        let _change = self.tokens.change(&mut tx, id).await?;
        let rows = tx
            .execute(
                "UPDATE token SET revoked_at = COALESCE(revoked_at, $1) WHERE id = $2 AND (project = $3 OR $4 = 1)",
                args![self.clock.now_us(), id, context.project.as_str(), context.everywhere],
            )
            .await?;
        if rows == 0 {
            return Err(AccessError::NotFound {
                what: "token",
                name: id.chars().take(60).collect(),
            });
        }
        let record = Record {
            action: "token.revoke",
            resource: id,
            detail: "",
        };
        audit::record(&mut tx, context, &*self.clock, &*self.random, record).await?;
        Ok(tx.commit().await?)
    }

    /// The tokens that the context may know of, after the id `after`.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn tokens(
        &self,
        context: &Context,
        after: &str,
        limit: u32,
    ) -> Result<Vec<Token>, AccessError> {
        let sql = "SELECT id, name, project, role, created_at, expires_at, revoked_at FROM token \
                   WHERE id > $1 AND (project = $2 OR $3 = 1) ORDER BY id LIMIT $4";
        let args = args![after, context.project.as_str(), context.everywhere, limit];
        self.db.read(sql, args).await?.iter().map(token_of).collect()
    }

    /// Whether the server has any token at all, good or ended: one that has never started has none.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn has_tokens(&self) -> Result<bool, AccessError> {
        Ok(self
            .db
            .read_one("SELECT id FROM token LIMIT 1", args![])
            .await?
            .is_some())
    }
}

fn token_of(row: &Row) -> Result<Token, AccessError> {
    Ok(Token {
        id: row.text("id")?.parse().map_err(|_| invalid_row("token id"))?,
        name: row.text("name")?,
        project: row.opt_text("project")?.map(|name| name.parse()).transpose()?,
        role: row.text("role")?.parse()?,
        created_at: timestamp(row.int("created_at")?)?,
        expires_at: timestamp(row.int("expires_at")?)?,
        revoked_at: row.opt_int("revoked_at")?.map(timestamp).transpose()?,
    })
}

pub(crate) fn timestamp(us: i64) -> Result<Timestamp, AccessError> {
    Timestamp::from_microsecond(us).map_err(|_| invalid_row("time"))
}

pub(crate) fn invalid_row(what: &'static str) -> AccessError {
    AccessError::Invalid {
        what,
        text: Digest::of(what.as_bytes()).hex()[..8].to_owned(),
        why: "the database row is damaged",
    }
}
