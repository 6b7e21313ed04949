//! Whether answers under load are those of the same requests alone.
use std::collections::BTreeMap;

use super::Error;
use super::connection::{Outcome, Settled};
use super::load::Arrivals;
use super::request::Ask;
use super::target::Target;

/// The texts of finished requests, by their index.
#[derive(Default)]
pub(crate) struct Texts(BTreeMap<u32, String>);

impl Texts {
    pub(crate) fn keep(&mut self, settled: Settled) {
        if let Outcome::Finished(finished) = settled.outcome {
            self.0.insert(settled.index, finished.text);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Asks for each again, one at a time; the requests whose text is another now.
    ///
    /// # Errors
    /// As [`Target::run`], and where a request fails that went well under load.
    pub(crate) fn compare(&self, target: &Target, ask: &dyn Fn(u32) -> Ask) -> Result<Vec<u32>, Error> {
        let indices: Vec<u32> = self.0.keys().copied().collect();
        let (mut differing, mut failures) = (Vec::new(), Vec::new());
        let again = |place: u32| ask(indices[place as usize]);
        target.run(Arrivals::Closed { streams: 1 }, indices.len() as u32, &again, &mut |settled| {
            let index = indices[settled.index as usize];
            match settled.outcome {
                Outcome::Finished(finished) if finished.text == self.0[&index] => {}
                Outcome::Finished(_) => differing.push(index),
                Outcome::Failed(failed) => failures.push(failed.message),
                Outcome::HungUp { .. } => unreachable!("nobody was asked to leave"),
            }
        })?;
        match failures.first() {
            Some(first) => Err(Error::Failed(failures.len() as u64, first.clone())),
            None => Ok(differing),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::serve::fake_server::{self, Behaviour, Fault};
    use crate::serve::target::TargetArgs;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        target: TargetArgs,
    }

    #[test]
    fn a_text_that_differs_is_named() {
        let behaviour = Behaviour {
            tokens: 3,
            first_token: Duration::ZERO,
            gap: Duration::ZERO,
            fault: Fault::None,
            requests_per_connection: 0,
        };
        let url = format!("http://{}", fake_server::start(behaviour));
        let cli = <Cli as clap::Parser>::parse_from(["test", "--url", &url]);
        let target = cli.target.reach().unwrap();
        let template = target.template(4, 3, false);
        let (ask, mut texts) = (|index| template.ask(index), Texts::default());
        target.run(Arrivals::Closed { streams: 2 }, 4, &ask, &mut |settled| texts.keep(settled)).unwrap();
        assert_eq!((texts.len(), texts.0[&0].as_str()), (4, "aaa"));
        assert_eq!(texts.compare(&target, &ask).unwrap(), [0_u32; 0]);
        texts.0.insert(2, "aab".to_owned());
        assert_eq!(texts.compare(&target, &ask).unwrap(), [2]);
    }
}
