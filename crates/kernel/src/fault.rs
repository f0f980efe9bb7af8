//! What every error of the product knows about itself.

/// What sort of failure it is. It is mapped once to an HTTP status and once to an exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request is wrong; sending it again will not help.
    Invalid,
    /// The input is larger than a named limit.
    TooLarge,
    /// Nobody is known: no credentials, or none that are valid.
    Unauthenticated,
    /// The actor is known and may not.
    Denied,
    /// There is no such thing, or the actor may not know of it.
    NotFound,
    /// It contradicts what is there already.
    Conflict,
    /// The actor's own quota is used up; try later.
    Quota,
    /// We have no capacity at the moment; try later.
    Overloaded,
    /// Something that we depend on does not answer, or not usefully; try later.
    Unavailable,
    /// There is no room to write; reading goes on.
    Full,
    /// Our own mistake.
    Bug,
}

impl Kind {
    /// The HTTP status (RFC 9110, RFC 4918 for 507, RFC 6585 for 429).
    #[must_use]
    pub const fn http_status(self) -> u16 {
        match self {
            Self::Invalid => 422,
            Self::TooLarge => 413,
            Self::Unauthenticated => 401,
            Self::Denied => 403,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::Quota => 429,
            Self::Overloaded | Self::Unavailable => 503,
            Self::Full => 507,
            Self::Bug => 500,
        }
    }

    /// The exit code of the command line: 4 not found, 5 not authorised, 6 could not ask, 7 conflict.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Invalid | Self::TooLarge | Self::Bug => 1,
            Self::NotFound => 4,
            Self::Unauthenticated | Self::Denied => 5,
            Self::Quota | Self::Overloaded | Self::Unavailable | Self::Full => 6,
            Self::Conflict => 7,
        }
    }
}

/// A stable name of a failure, with the page that explains it.
#[derive(Debug, PartialEq, Eq)]
pub struct Code {
    /// `PC` and four digits. Never reused for another meaning.
    pub id: &'static str,
    /// One line: what it is.
    pub title: &'static str,
    /// Why it happens and what it means, in plain sentences.
    pub explanation: &'static str,
    /// What to do next: a sentence or a command.
    pub hint: &'static str,
}

/// An error that a person or a program outside may see. `Display` says the operation that failed,
/// `source()` its cause.
pub trait Fault: std::error::Error + Send + Sync + 'static {
    fn kind(&self) -> Kind;
    fn code(&self) -> &'static Code;
    /// A hint that knows more than the code's own, such as a command with the reference filled in.
    fn hint(&self) -> String {
        self.code().hint.to_owned()
    }
    /// After how long it makes sense to try again, where that is known.
    fn retry_after(&self) -> Option<std::time::Duration> {
        None
    }
}

/// An error and its causes in one line: `operation: cause: cause`.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let line = cause.to_string();
        // Libraries often repeat their cause in their own text; once is enough.
        if !text.ends_with(&line) {
            text.push_str(": ");
            text.push_str(&line);
        }
        next = cause.source();
    }
    text
}
