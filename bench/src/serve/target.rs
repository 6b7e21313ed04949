//! The server under load, and what is asked of it, as all loads tell it.
use std::path::PathBuf;
use std::time::Duration;

use super::connection::Settled;
use super::load::{Arrivals, Load};
use super::prompt::Prompts;
use super::report::Report;
use super::request::{Ask, Endpoint, RequestTemplate};
use super::url::Url;
use super::wire::Place;
use super::{Error, client, positive};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct TargetArgs {
    /// Server to load, by http or https
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    pub(crate) url: Url,
    /// Authorities that may have signed the certificate of an https server, as a PEM file
    #[arg(long)]
    tls_ca: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t = Endpoint::Chat)]
    pub(crate) endpoint: Endpoint,
    /// Served name of the model (default: the first that the server lists)
    #[arg(long)]
    model: Option<String>,
    /// Go on to max-tokens whatever the model says (not on endpoint inference)
    #[arg(long)]
    ignore_eos: bool,
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Seeds prompts, arrivals and sampling
    #[arg(long, default_value_t = 42)]
    pub(crate) seed: u64,
    /// Value of `Authorization: Bearer`
    #[arg(long)]
    api_key: Option<String>,
    /// A request that takes longer has failed
    #[arg(long, default_value_t = 300.0, value_parser = positive)]
    timeout_s: f64,
}

/// A server that has answered.
pub(crate) struct Target {
    pub(crate) place: Place,
    args: TargetArgs,
    model: Option<String>,
    words_per_token: f64,
}

impl TargetArgs {
    /// The same requests to the server at that address.
    ///
    /// # Errors
    /// [`Error::Url`].
    pub(crate) fn at(&self, url: &str) -> Result<Self, Error> {
        Ok(Self { url: url.parse().map_err(Error::Url)?, ..self.clone() })
    }

    /// The same server, asked at that endpoint.
    pub(crate) fn on(&self, endpoint: Endpoint) -> Self {
        Self { endpoint, ..self.clone() }
    }

    /// Asks the server for what the requests need.
    ///
    /// # Errors
    /// Where there is no such server.
    pub(crate) fn reach(&self) -> Result<Target, Error> {
        if self.ignore_eos && self.endpoint == Endpoint::Inference {
            return Err(Error::IgnoreEosOnInference);
        }
        let place = self.place()?;
        let api_key = self.api_key.as_deref();
        let model = self.model.clone().or_else(|| client::first_model(&self.url, &place, api_key));
        let words_per_token = client::words_per_token(&self.url, &place, api_key)?;
        Ok(Target { place, args: self.clone(), model, words_per_token })
    }

    fn place(&self) -> Result<Place, Error> {
        let address = self.url.resolve()?;
        match (self.url.is_secure, &self.tls_ca) {
            (false, None) => Ok(Place::clear(address)),
            (true, Some(authorities)) => Place::secure(address, self.url.host(), authorities).map_err(Error::Tls),
            (true, None) => Err(Error::Tls("an https url wants --tls-ca".to_owned())),
            (false, Some(_)) => Err(Error::Tls("--tls-ca wants an https url".to_owned())),
        }
    }
}

impl Target {
    pub(crate) fn url(&self) -> &Url {
        &self.args.url
    }

    pub(crate) fn api_key(&self) -> Option<&str> {
        self.args.api_key.as_deref()
    }

    pub(crate) fn seed(&self) -> u64 {
        self.args.seed
    }

    /// Requests of about `prompt_tokens`, answered by `max_tokens` at most, in one body if `whole`.
    pub(crate) fn template(&self, prompt_tokens: u32, max_tokens: u32, whole: bool) -> RequestTemplate {
        RequestTemplate {
            endpoint: self.args.endpoint,
            whole,
            url: self.args.url.clone(),
            model: self.model.clone(),
            max_tokens,
            temperature: self.args.temperature,
            ignore_eos: self.args.ignore_eos,
            api_key: self.args.api_key.clone(),
            prompts: Prompts::new(self.args.seed, prompt_tokens, self.words_per_token),
        }
    }

    /// Runs a load to its end and hands over each request as it is settled; the time that all took.
    ///
    /// # Errors
    /// As [`Load::run`].
    pub(crate) fn run(
        &self,
        arrivals: Arrivals,
        requests: u32,
        ask: &dyn Fn(u32) -> Ask,
        settle: &mut dyn FnMut(Settled),
    ) -> Result<Duration, Error> {
        let timeout = Duration::from_secs_f64(self.args.timeout_s);
        Load { place: self.place.clone(), ask, arrivals, requests, seed: self.args.seed, timeout }.run(settle)
    }

    /// Runs a load to its end, into `report`.
    ///
    /// # Errors
    /// As [`Load::run`].
    pub(crate) fn measure(
        &self,
        arrivals: Arrivals,
        requests: u32,
        ask: &dyn Fn(u32) -> Ask,
        mut report: Report,
    ) -> Result<Report, Error> {
        let elapsed = self.run(arrivals, requests, ask, &mut |settled| report.add(&settled))?;
        report.set_elapsed(elapsed);
        Ok(report)
    }
}
