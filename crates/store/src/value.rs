//! Arguments and rows in the three types that both databases share: BIGINT, TEXT and BLOB.

use std::sync::Arc;

use sqlx::Column as _;

use crate::StoreError;

/// An argument of a statement or a column of a row. `None` is NULL, typed because PostgreSQL asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Int(Option<i64>),
    Text(Option<String>),
    Blob(Option<Vec<u8>>),
}

/// `args![a, b, c]` makes the arguments of a statement.
#[macro_export]
macro_rules! args {
    ($($value:expr),* $(,)?) => { vec![$($crate::Value::from($value)),*] };
}

macro_rules! from {
    ($($source:ty => |$value:ident| $target:expr;)*) => {
        $(impl From<$source> for Value {
            fn from($value: $source) -> Self { $target }
        })*
    };
}

from! {
    i64 => |value| Self::Int(Some(value));
    u32 => |value| Self::Int(Some(i64::from(value)));
    bool => |value| Self::Int(Some(i64::from(value)));
    Option<i64> => |value| Self::Int(value);
    &str => |value| Self::Text(Some(value.to_owned()));
    String => |value| Self::Text(Some(value));
    &String => |value| Self::Text(Some(value.clone()));
    Option<String> => |value| Self::Text(value);
    Option<&str> => |value| Self::Text(value.map(str::to_owned));
    &[u8] => |value| Self::Blob(Some(value.to_vec()));
    &[u8; 32] => |value| Self::Blob(Some(value.to_vec()));
    Vec<u8> => |value| Self::Blob(Some(value));
    Option<Vec<u8>> => |value| Self::Blob(value);
    &kernel::Id => |value| Self::Text(Some(value.as_str().to_owned()));
}

/// One row of an answer.
#[derive(Debug, Clone)]
pub struct Row {
    pub(crate) columns: Arc<[String]>,
    pub(crate) values: Vec<Value>,
}

impl Row {
    fn get(&self, column: &str) -> Result<&Value, StoreError> {
        let at = self.columns.iter().position(|name| name == column);
        at.and_then(|at| self.values.get(at))
            .ok_or_else(|| StoreError::column(column, "it is not in the answer"))
    }

    /// A BIGINT that may be NULL.
    ///
    /// # Errors
    /// If there is no such column, or it holds something else.
    pub fn opt_int(&self, column: &str) -> Result<Option<i64>, StoreError> {
        match self.get(column)? {
            Value::Int(value) => Ok(*value),
            Value::Text(None) | Value::Blob(None) => Ok(None),
            _ => Err(StoreError::column(column, "it is not a number")),
        }
    }

    /// A TEXT that may be NULL.
    ///
    /// # Errors
    /// If there is no such column, or it holds something else.
    pub fn opt_text(&self, column: &str) -> Result<Option<String>, StoreError> {
        match self.get(column)? {
            Value::Text(value) => Ok(value.clone()),
            Value::Int(None) | Value::Blob(None) => Ok(None),
            _ => Err(StoreError::column(column, "it is not text")),
        }
    }

    /// A BLOB that may be NULL.
    ///
    /// # Errors
    /// If there is no such column, or it holds something else.
    pub fn opt_blob(&self, column: &str) -> Result<Option<Vec<u8>>, StoreError> {
        match self.get(column)? {
            Value::Blob(value) => Ok(value.clone()),
            Value::Int(None) | Value::Text(None) => Ok(None),
            _ => Err(StoreError::column(column, "it is not a blob")),
        }
    }

    /// # Errors
    /// If there is no such column, it holds something else, or NULL.
    pub fn int(&self, column: &str) -> Result<i64, StoreError> {
        self.opt_int(column)?
            .ok_or_else(|| StoreError::column(column, "it is null"))
    }

    /// # Errors
    /// If there is no such column, it holds something else, or NULL.
    pub fn text(&self, column: &str) -> Result<String, StoreError> {
        self.opt_text(column)?
            .ok_or_else(|| StoreError::column(column, "it is null"))
    }

    /// # Errors
    /// If there is no such column, it holds something else, or NULL.
    pub fn blob(&self, column: &str) -> Result<Vec<u8>, StoreError> {
        self.opt_blob(column)?
            .ok_or_else(|| StoreError::column(column, "it is null"))
    }
}

/// The rows of an answer; `value_of` reads one column of one row as the database at hand types it.
pub(crate) fn rows_of<R: sqlx::Row>(
    rows: &[R],
    value_of: impl Fn(&R, usize) -> Result<Value, sqlx::Error>,
) -> Result<Vec<Row>, StoreError> {
    let Some(first) = rows.first() else {
        return Ok(Vec::new());
    };
    let columns: Arc<[String]> = first
        .columns()
        .iter()
        .map(|column| column.name().to_owned())
        .collect();
    let row_of = |row: &R| {
        let values = (0..columns.len())
            .map(|at| value_of(row, at))
            .collect::<Result<_, _>>();
        values.map(|values| Row {
            columns: columns.clone(),
            values,
        })
    };
    rows.iter()
        .map(row_of)
        .collect::<Result<_, _>>()
        .map_err(|source| StoreError::query("reading", source))
}
