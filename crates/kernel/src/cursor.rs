//! Where a list goes on.

/// The last key of a page, opaque to the caller: hex of the key, so that it fits a URL unquoted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor(String);

/// Why a text is not a cursor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the cursor is not one that a list gave out; start the list again without it")]
pub struct CursorError;

impl Cursor {
    #[must_use]
    pub fn after(key: &str) -> Self {
        Self(key.to_owned())
    }

    /// The key after which the next page begins.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.0
    }

    #[must_use]
    pub fn encode(&self) -> String {
        hex::encode(&self.0)
    }

    /// # Errors
    /// If `text` is not what [`Cursor::encode`] wrote.
    pub fn decode(text: &str) -> Result<Self, CursorError> {
        let bytes = hex::decode(text).map_err(|_| CursorError)?;
        String::from_utf8(bytes).map(Self).map_err(|_| CursorError)
    }
}
