//! Keys: public halves that check, private halves that sign, and the files that hold them.

mod file;
mod public;
mod signer;

pub use file::{KeyFileError, decrypt, encrypt};
pub use public::{Algorithm, PublicKey, PublicKeyError};
pub use signer::{LocalSigner, Signer, SignerError};
