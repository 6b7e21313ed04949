//! Who has had how much: rows computed for each client, so that no client takes the place of another.
//!
//! Virtual token counters: whoever has had the fewest rows goes first, within a quantum. A client that comes anew starts
//! with what the least served of the others has had, so that neither the past nor an absence counts.

/// A client of the server, as whoever takes the requests tells them apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientId(pub u64);

/// A client that has sequences here.
#[derive(Clone, Copy, Debug)]
struct Client {
    id: ClientId,
    sequences: usize,
    served_rows: u64,
}

/// The clients that have sequences, and lately had.
#[derive(Debug, Default)]
pub(super) struct Clients(Vec<Client>);

/// Place in the table, valid while the client has sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClientIndex(usize);

impl Clients {
    /// With room for so many clients at a time.
    pub(super) fn with_capacity(sequences_max: usize) -> Self {
        Self(Vec::with_capacity(sequences_max + IDLE_MAX))
    }

    /// A sequence of `id` comes.
    pub(super) fn join(&mut self, id: ClientId) -> ClientIndex {
        let least = self.0.iter().filter(|client| client.sequences > 0).map(|client| client.served_rows).min();
        if least.is_none() {
            // Nobody has anything to settle with anybody.
            self.0.clear();
        }
        let known = self.0.iter().position(|client| client.id == id);
        let index = known.unwrap_or_else(|| {
            let new = Client { id, sequences: 0, served_rows: 0 };
            let idle = self.0.iter().enumerate().filter(|(_, client)| client.sequences == 0);
            let (count, debtless) = (idle.clone().count(), idle.min_by_key(|(_, client)| client.served_rows));
            match debtless {
                Some((index, _)) if count >= IDLE_MAX => {
                    self.0[index] = new;
                    index
                }
                _ => {
                    self.0.push(new);
                    self.0.len() - 1
                }
            }
        });
        let client = &mut self.0[index];
        if client.sequences == 0 {
            client.served_rows = client.served_rows.max(least.unwrap_or(0));
        }
        client.sequences += 1;
        ClientIndex(index)
    }

    /// A sequence of the client has ended.
    pub(super) fn leave(&mut self, client: ClientIndex) {
        self.0[client.0].sequences -= 1;
    }

    /// Rows were computed for the client.
    pub(super) fn charge(&mut self, client: ClientIndex, rows: usize) {
        self.0[client.0].served_rows += rows as u64;
    }

    /// Rows that were computed for the client, as far as they count.
    pub(super) fn served(&self, client: ClientIndex) -> u64 {
        self.0[client.0].served_rows
    }
}

/// Rows that a client may be ahead of another before it waits for it.
pub(super) const QUANTUM_ROWS: u64 = 1024;
/// Clients without sequences that are remembered.
const IDLE_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absence_saves_nothing_up_and_a_debt_is_not_forgotten() {
        let mut clients = Clients::with_capacity(8);
        let a = clients.join(ClientId(1));
        clients.charge(a, 500);
        let b = clients.join(ClientId(2));
        assert_eq!(clients.served(b), 500, "one that comes later is owed nothing");
        clients.charge(b, 300);
        clients.leave(b);
        clients.charge(a, 100);
        let b = clients.join(ClientId(2));
        assert_eq!((clients.served(a), clients.served(b)), (600, 800));
        clients.leave(b);
        clients.charge(a, 1000);
        let b = clients.join(ClientId(2));
        assert_eq!(clients.served(b), 1600);
        clients.leave(a);
        clients.leave(b);
        let b = clients.join(ClientId(2));
        assert_eq!(clients.served(b), 0, "with nobody there, nobody is owed anything");
    }

    #[test]
    fn the_table_stays_small_however_many_come() {
        let mut clients = Clients::with_capacity(4);
        let stays = clients.join(ClientId(0));
        for id in 1..10_000 {
            let client = clients.join(ClientId(id));
            clients.charge(client, 1);
            clients.leave(client);
        }
        assert!(clients.0.len() <= IDLE_MAX + 2);
        assert_eq!(clients.0[stays.0].sequences, 1);
    }
}
