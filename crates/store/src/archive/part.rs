//! Rows of a table as lines of JSON: the table and its columns, then a row in each line.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::ArchiveError;
use crate::Value;

/// A part is ended when it has so many bytes.
pub const PART_BYTES_MIN: usize = 4 << 20;

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ColumnKind {
    Int,
    Text,
    /// Base64 in the archive.
    Blob,
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Column {
    pub name: String,
    pub kind: ColumnKind,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    table: String,
    columns: Vec<Column>,
}

/// Rows as they were read. Which tables and columns there are, is for the reader to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub table: String,
    pub columns: Vec<Column>,
    /// NULL has the type of its column.
    pub rows: Vec<Vec<Value>>,
}

/// Gathers rows.
pub struct PartWriter {
    head: Vec<u8>,
    bytes: Vec<u8>,
    rows: usize,
}

impl PartWriter {
    #[must_use]
    pub fn new(table: &str, columns: &[Column]) -> Self {
        let head = serde_json::json!({ "table": table, "columns": columns });
        let head = format!("{head}\n").into_bytes();
        Self {
            bytes: head.clone(),
            head,
            rows: 0,
        }
    }

    /// Adds a row.
    pub fn row(&mut self, values: &[Value]) {
        let line: Json = values.iter().map(json).collect();
        self.bytes.extend(format!("{line}\n").bytes());
        self.rows += 1;
    }

    /// Whether it should be taken before another row comes.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.bytes.len() >= PART_BYTES_MIN
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// What was gathered; it begins anew.
    pub fn take(&mut self) -> Vec<u8> {
        self.rows = 0;
        std::mem::replace(&mut self.bytes, self.head.clone())
    }
}

fn json(value: &Value) -> Json {
    match value {
        Value::Int(Some(number)) => (*number).into(),
        Value::Text(Some(text)) => text.as_str().into(),
        Value::Blob(Some(bytes)) => BASE64.encode(bytes).into(),
        Value::Int(None) | Value::Text(None) | Value::Blob(None) => Json::Null,
    }
}

fn value(kind: ColumnKind, json: Json) -> Option<Value> {
    Some(match (kind, json) {
        (ColumnKind::Int, Json::Null) => Value::Int(None),
        (ColumnKind::Text, Json::Null) => Value::Text(None),
        (ColumnKind::Blob, Json::Null) => Value::Blob(None),
        (ColumnKind::Int, Json::Number(number)) => Value::Int(Some(number.as_i64()?)),
        (ColumnKind::Text, Json::String(text)) => Value::Text(Some(text)),
        (ColumnKind::Blob, Json::String(text)) => Value::Blob(Some(BASE64.decode(text).ok()?)),
        _ => return None,
    })
}

impl Part {
    /// Reads a part.
    ///
    /// # Errors
    /// If it is none: each line has a value of its kind for each column, and each ends with a newline.
    pub fn parse(bytes: &[u8]) -> Result<Self, ArchiveError> {
        let wrong = |line: usize, why: &str| ArchiveError::damaged(format!("line {line} of a table"), why);
        let text = std::str::from_utf8(bytes).map_err(|_| wrong(1, "it is no text"))?;
        let text = text
            .strip_suffix('\n')
            .ok_or_else(|| wrong(1, "its end is missing"))?;
        let mut lines = text.split('\n');
        let head: Head = serde_json::from_str(lines.next().unwrap_or_default())
            .map_err(|error| wrong(1, &error.to_string()))?;
        let mut rows = Vec::new();
        for (number, line) in (2..).zip(lines) {
            let row: Vec<Json> =
                serde_json::from_str(line).map_err(|error| wrong(number, &error.to_string()))?;
            if row.len() != head.columns.len() {
                return Err(wrong(number, "it has not one value for each column"));
            }
            let values = head.columns.iter().zip(row);
            let values: Option<Vec<Value>> = values.map(|(column, json)| value(column.kind, json)).collect();
            rows.push(values.ok_or_else(|| wrong(number, "a value is not of its column's kind"))?);
        }
        Ok(Self {
            table: head.table,
            columns: head.columns,
            rows,
        })
    }

    /// The same as bytes.
    #[must_use]
    pub fn render(&self) -> Vec<u8> {
        let mut writer = PartWriter::new(&self.table, &self.columns);
        self.rows.iter().for_each(|row| writer.row(row));
        writer.take()
    }
}
