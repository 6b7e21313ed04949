//! GGUF files: bytes to a validated view and back.
#![forbid(unsafe_code)]
