//! Projects in the database.

use flow::Rate;
use store::{Row, args};

use crate::audit::{self, Record};
use crate::tables::{invalid_row, timestamp};
use crate::{Access, AccessError, Context, Pattern, Project, ProjectChange, ProjectName};

const ONE: &str =
    "SELECT name, images, created_at, quota_per_minute, quota_burst FROM project WHERE name = $1";

impl Access {
    /// Makes a project.
    ///
    /// # Errors
    /// [`AccessError::Exists`] if there is one of that name.
    pub async fn create_project(
        &self,
        context: &Context,
        name: ProjectName,
        images: Vec<Pattern>,
    ) -> Result<Project, AccessError> {
        let project = Project {
            name,
            images,
            quota: None,
            created_at: self.clock.now(),
        };
        let patterns = joined(&project.images);
        let mut tx = self.db.begin().await?;
        let rows = tx
            .execute(
                "INSERT INTO project (name, images, created_at) VALUES ($1, $2, $3) ON CONFLICT (name) DO NOTHING",
                args![project.name.as_str(), &patterns, project.created_at.as_microsecond()],
            )
            .await?;
        if rows == 0 {
            return Err(AccessError::Exists {
                what: "project",
                name: project.name.to_string(),
            });
        }
        let record = Record {
            action: "project.create",
            resource: project.name.as_str(),
            detail: &patterns,
        };
        audit::record(&mut tx, context, &*self.clock, &*self.random, record).await?;
        tx.commit().await?;
        Ok(project)
    }

    /// Changes a project. It counts at once here, and within [`store::STALE_MS_MAX`] on other servers.
    ///
    /// # Errors
    /// [`AccessError::NotFound`] if there is none, [`AccessError::Invalid`] for a quota out of bounds.
    pub async fn change_project(
        &self,
        context: &Context,
        name: &ProjectName,
        change: ProjectChange,
    ) -> Result<Project, AccessError> {
        change.require_valid()?;
        let mut tx = self.db.begin().await?;
        let _change = self.projects.change(&mut tx, name.as_str()).await?;
        let mut detail = Vec::new();
        if let Some(images) = &change.images {
            let patterns = joined(images);
            let sql = "UPDATE project SET images = $1 WHERE name = $2";
            tx.execute(sql, args![&patterns, name.as_str()]).await?;
            detail.push(format!("images {patterns}"));
        }
        if let Some(quota) = change.quota {
            let sql = "UPDATE project SET quota_per_minute = $1, quota_burst = $2 WHERE name = $3";
            let (per_minute, burst) = (
                quota.map(|rate| i64::from(rate.per_minute)),
                quota.map(|rate| i64::from(rate.burst)),
            );
            tx.execute(sql, args![per_minute, burst, name.as_str()]).await?;
            detail.push(match quota {
                Some(rate) => format!("quota {} a minute, {} at once", rate.per_minute, rate.burst),
                None => "quota of the server".to_owned(),
            });
        }
        let row = tx.read_one(ONE, args![name.as_str()]).await?;
        let Some(row) = row else {
            return Err(no_project(name));
        };
        let project = project_of(&row)?;
        let detail = detail.join("; ");
        let record = Record {
            action: "project.update",
            resource: name.as_str(),
            detail: &detail,
        };
        audit::record(&mut tx, context, &*self.clock, &*self.random, record).await?;
        tx.commit().await?;
        Ok(project)
    }

    /// One project.
    ///
    /// # Errors
    /// [`AccessError::NotFound`] if there is none.
    pub async fn project(&self, name: &ProjectName) -> Result<Project, AccessError> {
        let read = async {
            let row = self.db.read_one(ONE, args![name.as_str()]).await?;
            row.as_ref().map(project_of).transpose()
        };
        let project = self.projects.read(name.clone(), read).await?;
        project.ok_or_else(|| no_project(name))
    }

    /// The projects that the context may know of, after the name `after`.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn projects(
        &self,
        context: &Context,
        after: &str,
        limit: u32,
    ) -> Result<Vec<Project>, AccessError> {
        let sql = "SELECT name, images, created_at, quota_per_minute, quota_burst FROM project \
                   WHERE name > $1 AND (name = $2 OR $3 = 1) ORDER BY name LIMIT $4";
        let args = args![after, context.project.as_str(), context.everywhere, limit];
        self.db.read(sql, args).await?.iter().map(project_of).collect()
    }
}

fn no_project(name: &ProjectName) -> AccessError {
    AccessError::NotFound {
        what: "project",
        name: name.to_string(),
    }
}

fn joined(images: &[Pattern]) -> String {
    let patterns: Vec<String> = images.iter().map(ToString::to_string).collect();
    patterns.join(" ")
}

fn project_of(row: &Row) -> Result<Project, AccessError> {
    let number = |column| -> Result<Option<u32>, AccessError> {
        let number = row.opt_int(column)?.map(u32::try_from).transpose();
        number.map_err(|_| invalid_row("project's quota"))
    };
    let quota = number("quota_per_minute")?.zip(number("quota_burst")?);
    Ok(Project {
        name: row.text("name")?.parse()?,
        images: row
            .text("images")?
            .split_whitespace()
            .map(Pattern::stored)
            .collect(),
        quota: quota.map(|(per_minute, burst)| Rate { per_minute, burst }),
        created_at: timestamp(row.int("created_at")?)?,
    })
}
