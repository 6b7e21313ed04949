//! Sends the body of an answer: a small one with its length, any other in pieces as its client takes them.

use net::api::PIECE_BYTES;
use net::http::{self, Body, Request, Response};
use net::sse::Framing;

use super::Shard;
use super::answer::count;
use super::peer::{Peer, Writer};
use crate::executor;

/// Answers `request` with the JSON that `write_piece` appends, until that says that it was the last piece. `false` where the
/// connection can't go on.
pub(super) async fn send(
    shard: &Shard,
    peer: &Peer,
    request: &Request,
    id: &str,
    writer: &mut Writer,
    mut write_piece: impl FnMut(&mut Vec<u8>) -> bool,
) -> bool {
    let mut first = Vec::with_capacity(FIRST_BYTES);
    let mut done = write_piece(&mut first);
    count(shard, writer, 200);
    if done {
        http::write_json(&mut writer.out, request, id, 200, &first);
        return true;
    }
    // It has begun: nothing else can be said from here on.
    writer.part_with(|_| {});
    let response = Response::new(request, id, 200, "application/json", Body::Chunked);
    let framing = Framing::of(&response);
    response.write_head(&mut writer.out);
    framing.frame(&mut writer.out, |out| out.append(&mut first));
    drop(first);
    while !done {
        if writer.flush_piece().await.is_err() || peer.gone.get() {
            shard.metrics.requests.outcomes.cancelled.add(1);
            return false;
        }
        executor::give_way().await;
        framing.frame(&mut writer.out, |out| done = write_piece(out));
    }
    framing.end(&mut writer.out);
    response.keep_alive
}

/// Most answers are shorter.
const FIRST_BYTES: usize = 512;
const _: () = assert!(PIECE_BYTES >= FIRST_BYTES);
