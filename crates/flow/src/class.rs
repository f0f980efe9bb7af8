//! What sort of work it is, and whose.

/// What sort of work waits. Each class is served in proportion to its weight while others wait too, and has
/// everything when they do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Something is about to run, and waits for the answer whether it may.
    Verify,
    /// Somebody waits for one signature.
    Sign,
    /// Nobody waits: many images at once.
    Batch,
}

impl Class {
    /// Every class, the most urgent first.
    pub const ALL: [Self; 3] = [Self::Verify, Self::Sign, Self::Batch];

    /// Its share of the turns, relative to the others'.
    #[must_use]
    pub const fn weight(self) -> i64 {
        match self {
            Self::Verify => 8,
            Self::Sign => 4,
            Self::Batch => 1,
        }
    }

    /// As a metric's label says it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Verify => "verify",
            Self::Sign => "sign",
            Self::Batch => "batch",
        }
    }

    pub(crate) const fn index(self) -> usize {
        self as usize
    }
}

/// For whom something is done, and what sort of work it is. Empty for a person at the command line, who shares with
/// nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller<'a> {
    pub project: &'a str,
    pub class: Class,
}

impl<'a> Caller<'a> {
    #[must_use]
    pub const fn new(project: &'a str, class: Class) -> Self {
        Self { project, class }
    }

    /// A person at the command line, without a server.
    pub const LOCAL: Caller<'static> = Caller::new("", Class::Sign);
}
