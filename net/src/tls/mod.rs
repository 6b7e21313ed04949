//! TLS 1.2 and 1.3 (RFC 8446, 5246) for the server's side of a connection: received bytes in, plain bytes out, and back.
//!
//! rustls does it, by its unbuffered interface: no socket and no buffer of its own, so that one adapter serves every
//! executor. Its crypto is ring's: 15 s of a core to build unoptimised and 37 s optimised, all else of TLS included, where
//! aws-lc-rs takes 46 and 89 s (Sapphire Rapids guest), and ring wants no more than a C compiler.

mod identity;
mod session;
mod validity;

pub use identity::{Identity, IdentityError};
pub use session::{Received, Refusal, SealError, Session};

/// What is said to a client for whom there is no place, before it has said anything: a fatal alert, `internal_error`
/// (RFC 8446 section 6.2).
pub const NO_PLACE: [u8; 7] = [21, 3, 3, 0, 2, 2, 80];
