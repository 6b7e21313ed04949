//! Server-sent events out of body bytes.

/// Collects lines into events (WHATWG HTML, 9.2.6); fields other than `event` and `data` are passed over.
#[derive(Debug, Default)]
pub(crate) struct EventStream {
    line: Vec<u8>,
    event: Vec<u8>,
    data: Vec<u8>,
}

impl EventStream {
    /// Takes the next bytes; calls `on_event(event, data)` for each event that is complete. Invalid UTF-8 ends as U+FFFD.
    pub(crate) fn feed(&mut self, bytes: &[u8], mut on_event: impl FnMut(&str, &str)) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let Some(end) = piece.strip_suffix(b"\n") else {
                self.line.extend_from_slice(piece);
                return;
            };
            if self.line.is_empty() {
                self.take_line(end, &mut on_event);
            } else {
                let mut line = std::mem::take(&mut self.line);
                line.extend_from_slice(end);
                self.take_line(&line, &mut on_event);
                line.clear();
                self.line = line;
            }
        }
    }

    fn take_line(&mut self, line: &[u8], on_event: &mut impl FnMut(&str, &str)) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let value = |field: &[u8]| line.strip_prefix(field).map(|value| value.strip_prefix(b" ").unwrap_or(value));
        if line.is_empty() {
            if !self.data.is_empty() {
                on_event(&String::from_utf8_lossy(&self.event), &String::from_utf8_lossy(&self.data));
            }
            self.event.clear();
            self.data.clear();
        } else if let Some(value) = value(b"data:") {
            if !self.data.is_empty() {
                self.data.push(b'\n');
            }
            self.data.extend_from_slice(value);
        } else if let Some(value) = value(b"event:") {
            self.event.clear();
            self.event.extend_from_slice(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_a_split_at_every_byte() {
        let bytes =
            b":\n\ndata: one\n\nevent: token\r\ndata:two\r\ndata: lines\r\n\r\nid: 7\n\ndata: [DONE]\n\ndata: cut";
        for at in 0..bytes.len() {
            let (mut stream, mut seen) = (EventStream::default(), Vec::new());
            for part in [&bytes[..at], &bytes[at..]] {
                stream.feed(part, |event, data| seen.push((event.to_owned(), data.to_owned())));
            }
            let seen: Vec<(&str, &str)> = seen.iter().map(|(event, data)| (event.as_str(), data.as_str())).collect();
            assert_eq!(seen, [("", "one"), ("token", "two\nlines"), ("", "[DONE]")]);
        }
    }
}
