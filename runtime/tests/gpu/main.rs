//! GPU offload through the real server, without a GPU: the real kernels on the CPU emulator behind a driver library of
//! our own, and every fault that can be told to it.
#![expect(clippy::unwrap_used, reason = "whatever fails here fails the test")]

#[expect(dead_code, reason = "shared with the tests of serving")]
#[path = "../serve/clients.rs"]
mod clients;
mod driver;
mod faults;
#[expect(dead_code, reason = "shared with the tests of serving")]
#[path = "../serve/models.rs"]
mod models;
#[path = "../serve/secured.rs"]
mod secured;
#[expect(dead_code, reason = "shared with the tests of serving")]
#[path = "../serve/server.rs"]
mod server;
mod serves;
