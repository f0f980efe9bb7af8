//! The words that every part of Portcullis shares.
//!
//! A [`Digest`] names content by its bytes; a [`Reference`] names an image the way people write it; an
//! [`Id`] names a record. [`Clock`] and [`Random`] are where time and chance come from: they are
//! arguments, never globals, so that a test can decide both. A [`Fault`] is an error that knows its
//! [`Kind`] (which decides the HTTP status and the exit code, once, for all domains) and its [`Code`] (a
//! stable name with a page that `portcullis explain` prints).
//!
//! ```text
//!   digest   reference   id   clock   random   fault   cursor   limits   secret   words
//! ```
//!
//! Nothing here waits, opens a socket or a file, or knows of a runtime.

mod clock;
mod crash;
mod cursor;
mod digest;
mod fault;
mod id;
pub mod limits;
mod random;
mod reference;
mod secret;
mod words;

pub use clock::{Clock, Monotonic, SystemClock, TestClock};
pub use crash::{arm_crash_point, crash_point};
pub use cursor::{Cursor, CursorError};
pub use digest::{Digest, DigestError};
pub use fault::{Code, Fault, Kind, chain};
pub use id::{Id, IdError};
pub use random::{Random, SeededRandom, SystemRandom};
pub use reference::{Reference, ReferenceError, Repository, codes as reference_codes};
pub use secret::Secret;
pub use words::{WORDS_CHARS_MAX, words};
