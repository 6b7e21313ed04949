//! Settings: flags, then the environment, then the TOML file, then defaults; what comes out is valid.

mod access;
mod otlp;
mod rates;
mod reload;
#[cfg(test)]
mod tests;
mod tls;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, CommandFactory, Parser};
use kernels::attention::{KvType, NoSuchKvType};
use net::api::DevicePreference;
use net::auth::Keys;
use net::cors::Origins;
use net::forwarded::Proxies;
use serde::{Deserialize, Deserializer, Serialize};

use crate::certificate::TlsFiles;
use crate::gpu::PromptAttention;
use crate::otlp::OtlpConfig;
use crate::registry::AllowedDirectories;

use crate::model::HeadScreen;
use crate::shard::{AdmissionLimits, RateLimits, TimeLimits};
use crate::speculate::{NoSuchSpeculation, Speculation};
use crate::tuned::Tuned;

use access::{parse_keys, parse_origins, parse_proxies, require_authentication};
pub use reload::{Reload, Reloaded};

/// Settings as they are written: each is a flag, an environment variable and a key of the file.
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Address to listen on, as ADDR:PORT; goes before host and port
    #[arg(long)]
    pub listen: Option<SocketAddr>,
    /// Address to listen on [default: 127.0.0.1]
    #[arg(long, env = "BITNET_SERVER_HOST")]
    pub host: Option<IpAddr>,
    /// Port to listen on; 0 takes a free one [default: 8080]
    #[arg(long, env = "BITNET_SERVER_PORT")]
    pub port: Option<u16>,
    /// Unix socket to listen on; the port is off then, unless listen, host or port say otherwise [default: none]
    #[arg(long, env = "BITNET_LISTEN_UNIX")]
    pub listen_unix: Option<PathBuf>,
    /// Permissions of the Unix socket, in octal digits: who may connect may change models, where no key is configured
    /// [default: 600]
    #[arg(long, env = "BITNET_LISTEN_UNIX_MODE")]
    pub listen_unix_mode: Option<String>,
    /// Certificate by which the port speaks TLS, as a PEM file with its chain behind it; wants tls_key
    /// [default: none, and no TLS]
    #[arg(long, env = "BITNET_TLS_CERT")]
    pub tls_cert: Option<PathBuf>,
    /// Key of the certificate, as a PEM file that is not encrypted
    #[arg(long, env = "BITNET_TLS_KEY")]
    pub tls_key: Option<PathBuf>,
    /// Model file, as PATH or NAME=PATH; more than one are served by name [default: the model inside the binary]
    #[arg(long, short, env = "BITNET_DEFAULT_MODEL_PATH")]
    #[serde(deserialize_with = "one_or_many", skip_serializing_if = "Option::is_none")]
    pub model: Option<Vec<String>>,
    /// Directory that models may be loaded from on request, several parted by `:` [default: none]
    #[arg(long = "allowed-model-directory", env = "BITNET_ALLOWED_MODEL_DIRECTORIES", value_delimiter = ':')]
    pub allowed_model_directories: Option<Vec<PathBuf>>,
    /// Where to remember which models are served, so that a restart serves the last good ones [default: nowhere]
    #[arg(long, env = "BITNET_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// Key that opens endpoints, as NAME=SHA256:SCOPE,SCOPE with the SHA-256 of the key in hexadecimal digits and the
    /// scopes model:read, model:write, model:manage; several parted by `;` [default: none, endpoints that change
    /// models are off]
    #[arg(long = "api-key", env = "BITNET_API_KEYS", value_delimiter = ';')]
    pub api_keys: Option<Vec<String>>,
    /// Secret of at least 32 bytes: bearer tokens signed with it (HS256) open endpoints by their scopes [default: none]
    #[arg(long, env = "BITNET_JWT_SECRET", hide_env_values = true)]
    #[serde(skip_serializing)]
    pub jwt_secret: Option<String>,
    /// Want an API key or a token for every request but health and metrics [default: false]
    #[arg(long, env = "BITNET_REQUIRE_AUTHENTICATION", num_args = 0..=1, default_missing_value = "true", value_parser = parse_bool)]
    pub require_authentication: Option<bool>,
    /// Origin of web pages that may use the server from a browser, as SCHEME://HOST:PORT, several parted by `,`; `*` stands
    /// for every one [default: none but its own]
    #[arg(long = "allowed-origin", env = "BITNET_ALLOWED_ORIGINS", value_delimiter = ',')]
    pub allowed_origins: Option<Vec<String>>,
    /// Requests that a client (API key, else address) may make in a minute, as CLASS=NUMBER with the classes inference,
    /// models (loading, swapping, removing), health (and metrics) and stats, several parted by `,` [default: no limits]
    #[arg(long = "rate-limit", env = "BITNET_RATE_LIMITS", value_delimiter = ',')]
    pub rate_limits: Option<Vec<String>>,
    /// Network of proxies, as ADDRESS or ADDRESS/PREFIX, several parted by `,`: what they say of their clients' addresses
    /// (X-Forwarded-For, Forwarded) counts for rate limits and fairness, the last that is no proxy's [default: none, all
    /// clients of a proxy are one]
    #[arg(long = "trusted-proxy", env = "BITNET_TRUSTED_PROXIES", value_delimiter = ',')]
    pub trusted_proxies: Option<Vec<String>>,
    /// Seconds that a swapped model is watched before the one it replaced is let go [default: 5]
    #[arg(long, env = "BITNET_SWAP_WATCH_SECONDS")]
    pub swap_watch_seconds: Option<u64>,
    /// Executor threads, each with its workers and listener [default: one per NUMA node]. Many streams of a model of a few million
    /// weights are faster with one for each core
    #[arg(long, env = "BITNET_SHARDS")]
    pub shards: Option<usize>,
    /// Kernel workers of each shard [default: one per core]
    #[arg(long, env = "BITNET_WORKERS")]
    pub workers: Option<usize>,
    /// Where requests that don't say so are computed: auto, cpu or gpu [default: auto]
    #[arg(long, env = "BITNET_DEFAULT_DEVICE")]
    pub device: Option<String>,
    /// GPUs to use: auto, off, or how many there must be [default: auto]
    #[arg(long, env = "BITNET_GPU")]
    pub gpu: Option<String>,
    /// Attention of prompts on GPUs: exact, with the bits of a CPU's, or tensor, on tensor cores: sooner, from F16 and rounded
    /// otherwise, so that a text may differ from a CPU's [default: exact]
    #[arg(long, env = "BITNET_GPU_PROMPT_ATTENTION")]
    pub gpu_prompt_attention: Option<String>,
    /// Instruction set of the kernels: portable, avx2, avx-vnni, avx512, avx512-vnni, amx-int8, neon-dotprod or neon-i8mm
    /// [default: the best there is]
    #[arg(long, env = "BITNET_ISA")]
    pub isa: Option<String>,
    /// What `bitnetd tune kernels` wrote; not used with isa [default: bitnetd/kernels.json in $XDG_CACHE_HOME or /var/cache]
    #[arg(long, env = "BITNET_TUNING_CACHE")]
    pub tuning_cache: Option<PathBuf>,
    /// Socket driver: auto, io_uring, epoll or glommio [default: auto]
    #[arg(long, env = "BITNET_IO")]
    pub io: Option<String>,
    /// Whether executors with a core of their own look for tokens all the time while steps are short, instead of being
    /// woken for them [default: true]
    #[arg(long, env = "BITNET_EXECUTOR_SPIN", value_parser = parse_bool)]
    pub executor_spin: Option<bool>,
    /// Whether a connection goes to the shard that has the cpu which received it, where one has; else by hash [default: false]
    #[arg(long, env = "BITNET_STEER_BY_CPU", value_parser = parse_bool)]
    pub steer_by_cpu: Option<bool>,
    /// Sequences that are computed at a time, over all shards [default: 100]
    #[arg(long, env = "BITNET_MAX_CONCURRENT_REQUESTS")]
    pub max_concurrent_requests: Option<usize>,
    /// Sequences that may wait for a place, over all shards [default: 400]
    #[arg(long, env = "BITNET_MAX_QUEUED_REQUESTS")]
    pub max_queued_requests: Option<usize>,
    /// Prompt tokens that may wait to be computed, over all shards [default: 262144]
    #[arg(long, env = "BITNET_MAX_QUEUED_TOKENS")]
    pub max_queued_tokens: Option<usize>,
    /// Share of all sequences that slots and queue take above which requests that would wait are refused [default: 0.9]
    #[arg(long, env = "BITNET_ADMISSION_BUSY_MAX")]
    pub admission_busy_max: Option<f64>,
    /// The same by the name that other servers have for it [default: none]
    #[arg(long, env = "BITNET_BACKPRESSURE_THRESHOLD")]
    pub backpressure_threshold: Option<f64>,
    /// Share of the KV cache in use above which new requests are refused; 1 lets them wait [default: 0.85]
    #[arg(long, env = "BITNET_ADMISSION_MEMORY_MAX")]
    pub admission_memory_max: Option<f64>,
    /// Share of all sequences above which requests of low priority that would wait are refused [default: 0.7]
    #[arg(long, env = "BITNET_ADMISSION_QUEUE_ABOVE")]
    pub admission_queue_above: Option<f64>,
    /// Rows of one forward pass: decoding sequences and prompt chunks together [default: 512]
    #[arg(long, env = "BITNET_MAX_BATCH_SIZE")]
    pub max_batch_size: Option<usize>,
    /// Open client connections, over all shards [default: 4096]
    #[arg(long, env = "BITNET_MAX_CONNECTIONS")]
    pub max_connections: Option<usize>,
    /// Most positions of a sequence [default: the model's context, at most 8192]
    #[arg(long, env = "BITNET_MAX_CONTEXT")]
    pub max_context: Option<usize>,
    /// Memory for the KV cache in MiB, over all shards [default: what the slots need, at most a third of the free memory]
    #[arg(long, env = "BITNET_KV_CACHE_MB")]
    pub kv_cache_mb: Option<u64>,
    /// How the KV cache keeps keys and values: f16, or int8 in half the memory, with a slightly different
    /// output (docs/BENCHMARKS.md says how different) [default: f16]
    #[arg(long, env = "BITNET_KV_CACHE_TYPE")]
    pub kv_cache_type: Option<String>,
    /// Keep the keys and values of earlier prompts and answers while there is room, and let requests that begin alike share
    /// them: same output, sooner; how soon tells a client whether others have sent a prompt before [default: true]
    #[arg(long, env = "BITNET_PREFIX_CACHE", value_parser = parse_bool)]
    pub prefix_cache: Option<bool>,
    /// Share of the KV cache that prompts and answers which nobody uses may take [default: 0.5]
    #[arg(long, env = "BITNET_PREFIX_CACHE_SHARE")]
    pub prefix_cache_share: Option<f64>,
    /// Seconds after which memory of the KV cache that nobody used goes back to the system, kept prompts included; 0 keeps
    /// it [default: 600]
    #[arg(long, env = "BITNET_KV_IDLE_SECONDS")]
    pub kv_idle_seconds: Option<u64>,
    /// Keep an int8 copy of a big output head: faster greedy and top-k decoding, same output, more memory [default: true]
    #[arg(long, env = "BITNET_HEAD_SCREEN", value_parser = parse_bool)]
    pub head_screen: Option<bool>,
    /// Longest step that running streams should feel, in milliseconds [default: 50]
    #[arg(long, env = "BITNET_ITL_TARGET_MS")]
    pub itl_target_ms: Option<u64>,
    /// Drafts out of a sequence's own text: auto (gaps stay even), fast (as far as they pay), off or a number [default: auto]
    #[arg(long, env = "BITNET_SPECULATION")]
    pub speculation: Option<String>,
    /// Seconds after which a request is given up; what a request says itself can only be shorter [default: 300]
    #[arg(long, env = "BITNET_REQUEST_TIMEOUT")]
    pub request_timeout: Option<u64>,
    /// Milliseconds that a request waits to be computed; what it says itself can only be shorter [default: no limit]
    #[arg(long, env = "BITNET_QUEUE_TIMEOUT_MS")]
    pub queue_timeout_ms: Option<u64>,
    /// Milliseconds until the first token of an answer; what a request says itself can only be shorter [default: no limit]
    #[arg(long, env = "BITNET_FIRST_TOKEN_TIMEOUT_MS")]
    pub first_token_timeout_ms: Option<u64>,
    /// Seconds that running streams get to finish on SIGTERM [default: 30]
    #[arg(long, env = "BITNET_DRAIN_TIMEOUT")]
    pub drain_timeout: Option<u64>,
    /// Use the fixed seed for requests that give none
    #[arg(long, env = "BITNET_DETERMINISTIC", num_args = 0..=1, default_missing_value = "true", value_parser = parse_bool)]
    pub deterministic: Option<bool>,
    /// The fixed seed [default: 42]
    #[arg(long, env = "BITNET_SEED")]
    pub seed: Option<u64>,
    /// Serve GET /metrics [default: true]
    #[arg(long, env = "BITNET_PROMETHEUS_ENABLED", value_parser = parse_bool)]
    pub prometheus_enabled: Option<bool>,
    /// Have GET /metrics say what it can by the names of vLLM too, which gateways, autoscalers and dashboards read
    /// [default: false]
    #[arg(long, env = "BITNET_VLLM_METRICS", num_args = 0..=1, default_missing_value = "true", value_parser = parse_bool)]
    pub vllm_metrics: Option<bool>,
    /// Collector that gets traces of requests, as http://HOST:PORT (OTLP by HTTP, in JSON); OTEL_EXPORTER_OTLP_ENDPOINT
    /// stands in for it [default: none]
    #[arg(long, env = "BITNET_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
    /// Fields of requests to the collector, as NAME=VALUE,NAME=VALUE [default: none]
    #[arg(long, env = "OTEL_EXPORTER_OTLP_HEADERS", hide_env_values = true)]
    #[serde(skip_serializing)]
    pub otlp_headers: Option<String>,
    /// What traces call this server [default: bitnetd]
    #[arg(long, env = "OTEL_SERVICE_NAME")]
    pub otlp_service_name: Option<String>,
    /// Share of requests that are traced; where a client sends a trace of its own (traceparent), it decides [default: 1]
    #[arg(long, env = "BITNET_OTLP_SAMPLE_RATIO")]
    pub otlp_sample_ratio: Option<f64>,
    /// error, warn or info [default: info]
    #[arg(long, env = "BITNET_LOG_LEVEL")]
    pub log_level: Option<String>,
}

/// Valid settings with every default filled in.
#[derive(Clone, Debug)]
pub struct Config {
    pub listen: Option<SocketAddr>,
    /// Where the Unix socket is, and its permissions.
    pub listen_unix: Option<(PathBuf, u32)>,
    /// Where the port speaks TLS.
    pub tls: Option<TlsFiles>,
    /// Names (where they are given) and files; none for the model inside the binary.
    pub models: Vec<(Option<String>, PathBuf)>,
    pub allowed_directories: AllowedDirectories,
    pub state_dir: Option<PathBuf>,
    pub keys: Keys,
    pub require_authentication: bool,
    pub origins: Origins,
    pub rates: RateLimits,
    pub proxies: Proxies,
    pub swap_watch: Duration,
    pub shards: Option<usize>,
    pub workers: Option<usize>,
    pub isa: kernels::Isa,
    /// None where the instruction set is told.
    pub tuning_cache: Option<PathBuf>,
    /// What was read from there.
    pub tuned: Tuned,
    pub device: DevicePreference,
    pub gpu: GpuChoice,
    pub gpu_prompt_attention: PromptAttention,
    pub io: IoChoice,
    pub executor_spin: bool,
    pub steer_by_cpu: bool,
    pub slots_max: usize,
    pub waiting_max: usize,
    pub admission: AdmissionLimits,
    pub rows_max: usize,
    pub connections_max: usize,
    pub context_max: usize,
    pub kv_bytes_max: Option<u64>,
    pub kv_type: KvType,
    pub prefix_cache: bool,
    pub prefix_cache_share: f64,
    pub kv_idle: Option<Duration>,
    pub head_screen: HeadScreen,
    pub itl_target: Duration,
    pub speculation: Speculation,
    pub time_limits: TimeLimits,
    pub drain_timeout: Duration,
    pub fixed_seed: Option<u64>,
    pub prometheus: bool,
    /// Its numbers under the names of vLLM too.
    pub vllm_metrics: bool,
    pub otlp: Option<OtlpConfig>,
    pub log_level: LogLevel,
}

/// Which GPUs to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuChoice {
    /// Those that there are.
    Auto,
    Off,
    /// So many, or the server does not start.
    Count(usize),
}

/// Which socket driver to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoChoice {
    Auto,
    IoUring,
    Epoll,
    /// io_uring by another executor, for comparison.
    Glommio,
}

/// The least important message that is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
}

impl LogLevel {
    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
        }
    }
}

/// What is wrong with the settings.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("can't read the configuration file {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}, line {line}: {message}")]
    Parse { path: PathBuf, line: usize, message: String },
    #[error("`{key}` is `{value}`, allowed are {allowed}")]
    Invalid { key: &'static str, value: String, allowed: String },
    #[error("environment variable {0} is not known (see `bitnetd serve --help`)")]
    UnknownVariable(String),
}

impl Settings {
    /// Fills what is unset from the file at `path`.
    ///
    /// # Errors
    /// When the file can't be read, is no TOML, or has a key that isn't known.
    pub fn or_file(self, path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let file: Self = toml::from_str(&text).map_err(|error| {
            let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            Error::Parse { path: path.to_owned(), line, message: error.message().replace('\n', " ") }
        })?;
        Ok(Self {
            listen: self.listen.or(file.listen),
            host: self.host.or(file.host),
            port: self.port.or(file.port),
            listen_unix: self.listen_unix.or(file.listen_unix),
            listen_unix_mode: self.listen_unix_mode.or(file.listen_unix_mode),
            tls_cert: self.tls_cert.or(file.tls_cert),
            tls_key: self.tls_key.or(file.tls_key),
            model: self.model.or(file.model),
            allowed_model_directories: self.allowed_model_directories.or(file.allowed_model_directories),
            state_dir: self.state_dir.or(file.state_dir),
            api_keys: self.api_keys.or(file.api_keys),
            jwt_secret: self.jwt_secret.or(file.jwt_secret),
            require_authentication: self.require_authentication.or(file.require_authentication),
            allowed_origins: self.allowed_origins.or(file.allowed_origins),
            rate_limits: self.rate_limits.or(file.rate_limits),
            trusted_proxies: self.trusted_proxies.or(file.trusted_proxies),
            swap_watch_seconds: self.swap_watch_seconds.or(file.swap_watch_seconds),
            shards: self.shards.or(file.shards),
            workers: self.workers.or(file.workers),
            device: self.device.or(file.device),
            gpu: self.gpu.or(file.gpu),
            gpu_prompt_attention: self.gpu_prompt_attention.or(file.gpu_prompt_attention),
            isa: self.isa.or(file.isa),
            tuning_cache: self.tuning_cache.or(file.tuning_cache),
            io: self.io.or(file.io),
            executor_spin: self.executor_spin.or(file.executor_spin),
            steer_by_cpu: self.steer_by_cpu.or(file.steer_by_cpu),
            max_concurrent_requests: self.max_concurrent_requests.or(file.max_concurrent_requests),
            max_queued_requests: self.max_queued_requests.or(file.max_queued_requests),
            max_queued_tokens: self.max_queued_tokens.or(file.max_queued_tokens),
            admission_busy_max: self.admission_busy_max.or(file.admission_busy_max),
            backpressure_threshold: self.backpressure_threshold.or(file.backpressure_threshold),
            admission_memory_max: self.admission_memory_max.or(file.admission_memory_max),
            admission_queue_above: self.admission_queue_above.or(file.admission_queue_above),
            max_batch_size: self.max_batch_size.or(file.max_batch_size),
            max_connections: self.max_connections.or(file.max_connections),
            max_context: self.max_context.or(file.max_context),
            kv_cache_mb: self.kv_cache_mb.or(file.kv_cache_mb),
            kv_cache_type: self.kv_cache_type.or(file.kv_cache_type),
            prefix_cache: self.prefix_cache.or(file.prefix_cache),
            prefix_cache_share: self.prefix_cache_share.or(file.prefix_cache_share),
            kv_idle_seconds: self.kv_idle_seconds.or(file.kv_idle_seconds),
            head_screen: self.head_screen.or(file.head_screen),
            itl_target_ms: self.itl_target_ms.or(file.itl_target_ms),
            speculation: self.speculation.or(file.speculation),
            request_timeout: self.request_timeout.or(file.request_timeout),
            queue_timeout_ms: self.queue_timeout_ms.or(file.queue_timeout_ms),
            first_token_timeout_ms: self.first_token_timeout_ms.or(file.first_token_timeout_ms),
            drain_timeout: self.drain_timeout.or(file.drain_timeout),
            deterministic: self.deterministic.or(file.deterministic),
            seed: self.seed.or(file.seed),
            prometheus_enabled: self.prometheus_enabled.or(file.prometheus_enabled),
            vllm_metrics: self.vllm_metrics.or(file.vllm_metrics),
            otlp_endpoint: self.otlp_endpoint.or(file.otlp_endpoint),
            otlp_headers: self.otlp_headers.or(file.otlp_headers),
            otlp_service_name: self.otlp_service_name.or(file.otlp_service_name),
            otlp_sample_ratio: self.otlp_sample_ratio.or(file.otlp_sample_ratio),
            log_level: self.log_level.or(file.log_level),
        })
    }

    /// Checks every value and fills in the defaults.
    ///
    /// # Errors
    /// The first value that isn't allowed.
    pub fn validate(self) -> Result<Config, Error> {
        let otlp = self.otlp()?;
        let tcp = self.listen_unix.is_none() || self.listen.is_some() || self.host.is_some() || self.port.is_some();
        let tls = self.tls(tcp)?;
        let keys = parse_keys(&self.api_keys.unwrap_or_default(), self.jwt_secret.as_deref())?;
        let unix_mode = parse_mode(self.listen_unix_mode.as_deref())?;
        let host = self.host.unwrap_or(IpAddr::from([127, 0, 0, 1]));
        let slots_max = within("max_concurrent_requests", self.max_concurrent_requests.unwrap_or(100), 1, 4096)?;
        let rows_max = within("max_batch_size", self.max_batch_size.unwrap_or(512), 1, 4096)?;
        let kv_type = parse_kv_type(self.kv_cache_type.as_deref())?;
        Ok(Config {
            listen: tcp.then(|| self.listen.unwrap_or(SocketAddr::new(host, self.port.unwrap_or(8080)))),
            listen_unix: self.listen_unix.map(|path| (path, unix_mode)),
            tls,
            models: parse_models(&self.model.unwrap_or_default())?,
            allowed_directories: parse_directories(&self.allowed_model_directories.unwrap_or_default())?,
            state_dir: self.state_dir,
            require_authentication: require_authentication(self.require_authentication, &keys)?,
            keys,
            rates: rates::parse(&self.rate_limits.unwrap_or_default())?,
            proxies: parse_proxies(&self.trusted_proxies.unwrap_or_default())?,
            origins: parse_origins(&self.allowed_origins.unwrap_or_default())?,
            swap_watch: Duration::from_secs(within(
                "swap_watch_seconds",
                self.swap_watch_seconds.unwrap_or(5),
                0,
                3600,
            )?),
            shards: self.shards.map(|n| within("shards", n, 1, 1024)).transpose()?,
            workers: self.workers.map(|n| within("workers", n, 1, 1024)).transpose()?,
            isa: parse_isa(self.isa.as_deref())?,
            tuning_cache: match (&self.isa, self.tuning_cache) {
                (Some(_), _) => None,
                (None, path) => Some(path.unwrap_or_else(default_tuning_cache)),
            },
            tuned: Tuned::default(),
            device: parse_device(self.device.as_deref())?,
            gpu: parse_gpu(self.gpu.as_deref())?,
            gpu_prompt_attention: parse_prompt_attention(self.gpu_prompt_attention.as_deref(), kv_type)?,
            io: parse_io(self.io.as_deref())?,
            executor_spin: self.executor_spin.unwrap_or(true),
            steer_by_cpu: self.steer_by_cpu.unwrap_or(false),
            slots_max,
            waiting_max: within("max_queued_requests", self.max_queued_requests.unwrap_or(400), 0, 100_000)?,
            admission: AdmissionLimits {
                busy_max: busy_max(self.admission_busy_max, self.backpressure_threshold)?,
                memory_max: within("admission_memory_max", self.admission_memory_max.unwrap_or(0.85), 0.0, 1.0)?,
                queue_above: within("admission_queue_above", self.admission_queue_above.unwrap_or(0.7), 0.0, 1.0)?,
                queued_tokens_max: within("max_queued_tokens", self.max_queued_tokens.unwrap_or(1 << 18), 1, 1 << 40)?,
            },
            rows_max: rows_max.max(slots_max),
            connections_max: within("max_connections", self.max_connections.unwrap_or(4096), 1, 1 << 20)?,
            context_max: within("max_context", self.max_context.unwrap_or(8192), 32, 1 << 20)?,
            kv_bytes_max: match self.kv_cache_mb {
                Some(mb) => Some(within("kv_cache_mb", mb, 1, KV_CACHE_MB_MAX)? << 20),
                None => None,
            },
            kv_type,
            prefix_cache: self.prefix_cache.unwrap_or(true),
            prefix_cache_share: within("prefix_cache_share", self.prefix_cache_share.unwrap_or(0.5), 0.0, 1.0)?,
            kv_idle: match within("kv_idle_seconds", self.kv_idle_seconds.unwrap_or(600), 0, 1 << 30)? {
                0 => None,
                seconds => Some(Duration::from_secs(seconds)),
            },
            head_screen: if self.head_screen.unwrap_or(true) { HeadScreen::WhereItPays } else { HeadScreen::Off },
            itl_target: Duration::from_millis(within("itl_target_ms", self.itl_target_ms.unwrap_or(50), 1, 10_000)?),
            speculation: parse_speculation(self.speculation.as_deref())?,
            time_limits: time_limits(self.request_timeout, self.queue_timeout_ms, self.first_token_timeout_ms)?,
            drain_timeout: Duration::from_secs(within("drain_timeout", self.drain_timeout.unwrap_or(30), 0, 3600)?),
            fixed_seed: self.deterministic.unwrap_or(false).then_some(self.seed.unwrap_or(42)),
            prometheus: self.prometheus_enabled.unwrap_or(true),
            vllm_metrics: self.vllm_metrics.unwrap_or(false),
            otlp,
            log_level: parse_log_level(self.log_level.as_deref())?,
        })
    }
}

impl Config {
    /// The default configuration.
    #[must_use]
    pub fn standard() -> Self {
        Settings::default().validate().expect("defaults are allowed")
    }
}

/// Refuses environment variables with our prefix that nothing reads.
///
/// # Errors
/// The first such variable.
pub fn check_environment() -> Result<(), Error> {
    #[derive(Parser)]
    struct Known {
        #[command(flatten)]
        settings: Settings,
    }
    let command = Known::command();
    let known = |name: &str| {
        OTHER_VARIABLES.contains(&name)
            || command.get_arguments().any(|arg| arg.get_env().is_some_and(|env| env == name))
    };
    for (name, _) in std::env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        if !name.starts_with("BITNET_") || known(name) {
            continue;
        }
        return Err(Error::UnknownVariable(name.to_owned()));
    }
    Ok(())
}

fn invalid(key: &'static str, value: &str, allowed: &str) -> Error {
    Error::Invalid { key, value: value.to_owned(), allowed: allowed.to_owned() }
}

fn within<T: Copy + PartialOrd + std::fmt::Display>(key: &'static str, value: T, min: T, max: T) -> Result<T, Error> {
    // What is no number is within nothing.
    if !(min..=max).contains(&value) {
        return Err(invalid(key, &value.to_string(), &format!("{min} to {max}")));
    }
    Ok(value)
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    Ok(Some(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(text) => vec![text],
        OneOrMany::Many(texts) => texts,
    }))
}

fn parse_models(texts: &[String]) -> Result<Vec<(Option<String>, PathBuf)>, Error> {
    let models = texts.iter().map(|text| parse_model(text)).collect::<Result<Vec<_>, Error>>()?;
    within("model", models.len(), 0, MODELS_MAX)?;
    Ok(models)
}

fn parse_directories(paths: &[PathBuf]) -> Result<AllowedDirectories, Error> {
    AllowedDirectories::new(paths).map_err(|(path, error)| {
        invalid("allowed_model_directories", &path.display().to_string(), &format!("directories: {error}"))
    })
}

fn busy_max(named: Option<f64>, by_older_name: Option<f64>) -> Result<f64, Error> {
    let older = by_older_name.map(|older| within("backpressure_threshold", older, 0.0, 1.0)).transpose()?;
    match (named, older) {
        (Some(named), Some(older)) if named != older => {
            let allowed = format!("{named}, as `admission_busy_max` is");
            Err(invalid("backpressure_threshold", &older.to_string(), &allowed))
        }
        (named, older) => within("admission_busy_max", named.or(older).unwrap_or(0.9), 0.0, 1.0),
    }
}

/// Of the whole in seconds, of the parts in milliseconds.
fn time_limits(total: Option<u64>, queue: Option<u64>, first_token: Option<u64>) -> Result<TimeLimits, Error> {
    let total_s = within("request_timeout", total.unwrap_or(300), 1, 86_400)?;
    let part =
        |key, ms: Option<u64>| ms.map(|ms| within(key, ms, 1, total_s * 1000).map(Duration::from_millis)).transpose();
    Ok(TimeLimits {
        queue: part("queue_timeout_ms", queue)?,
        first_token: part("first_token_timeout_ms", first_token)?,
        total: Duration::from_secs(total_s),
    })
}

fn parse_mode(text: Option<&str>) -> Result<u32, Error> {
    let text = text.unwrap_or("600");
    let octal = !text.is_empty() && text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| octal && *mode <= 0o777);
    mode.ok_or_else(|| invalid("listen_unix_mode", text, "0 to 777, in octal digits"))
}

fn parse_model(text: &str) -> Result<(Option<String>, PathBuf), Error> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => Ok((Some(name.to_owned()), path.into())),
        None if !text.is_empty() => Ok((None, text.into())),
        _ => Err(invalid("model", text, "PATH and NAME=PATH")),
    }
}

fn parse_isa(name: Option<&str>) -> Result<kernels::Isa, Error> {
    let Some(name) = name else { return Ok(kernels::Isa::detect()) };
    name.parse().map_err(|error: kernels::NoSuchIsa| invalid("isa", name, &format!("those of this machine: {error}")))
}

fn parse_kv_type(name: Option<&str>) -> Result<KvType, Error> {
    let Some(name) = name else { return Ok(KvType::default()) };
    name.parse().map_err(|error: NoSuchKvType| invalid("kv_cache_type", name, &error.to_string()))
}

fn parse_speculation(text: Option<&str>) -> Result<Speculation, Error> {
    let text = text.unwrap_or("auto");
    text.parse().map_err(|error: NoSuchSpeculation| invalid("speculation", text, &error.to_string()))
}

/// Where that is kept which can be found out again.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is where the environment is read")]
pub fn cache_folder() -> PathBuf {
    let folder = std::env::var_os("XDG_CACHE_HOME").filter(|folder| !folder.is_empty());
    folder.map_or_else(|| PathBuf::from("/var/cache"), PathBuf::from).join("bitnetd")
}

/// Where the measurements of this host are kept.
#[must_use]
pub fn default_tuning_cache() -> PathBuf {
    cache_folder().join("kernels.json")
}

fn parse_device(name: Option<&str>) -> Result<DevicePreference, Error> {
    match name.unwrap_or("auto") {
        "auto" => Ok(DevicePreference::Auto),
        "cpu" => Ok(DevicePreference::Cpu),
        "gpu" => Ok(DevicePreference::Gpu),
        other => Err(invalid("device", other, "auto, cpu and gpu")),
    }
}

fn parse_gpu(choice: Option<&str>) -> Result<GpuChoice, Error> {
    match choice.unwrap_or("auto") {
        "auto" => Ok(GpuChoice::Auto),
        "off" => Ok(GpuChoice::Off),
        other => match other.parse() {
            Ok(count @ 1..=GPUS_MAX) => Ok(GpuChoice::Count(count)),
            _ => Err(invalid("gpu", other, "auto, off and 1 to 64")),
        },
    }
}

fn parse_prompt_attention(name: Option<&str>, kv_type: KvType) -> Result<PromptAttention, Error> {
    // What tensor cores multiply of an int8 cache is exact.
    let (only_exact, name) = (kv_type == KvType::Int8, name.unwrap_or("exact"));
    let found = PromptAttention::ALL.into_iter().find(|form| form.name() == name);
    let allowed = if only_exact { "exact where `kv_cache_type` is int8" } else { "exact and tensor" };
    found
        .filter(|form| !only_exact || *form == PromptAttention::Exact)
        .ok_or_else(|| invalid("gpu_prompt_attention", name, allowed))
}

fn parse_io(name: Option<&str>) -> Result<IoChoice, Error> {
    match name.unwrap_or("auto") {
        "auto" => Ok(IoChoice::Auto),
        "io_uring" => Ok(IoChoice::IoUring),
        "epoll" => Ok(IoChoice::Epoll),
        "glommio" => Ok(IoChoice::Glommio),
        other => Err(invalid("io", other, "auto, io_uring, epoll and glommio")),
    }
}

fn parse_log_level(name: Option<&str>) -> Result<LogLevel, Error> {
    match name.unwrap_or("info") {
        "error" => Ok(LogLevel::Error),
        "warn" => Ok(LogLevel::Warn),
        "info" => Ok(LogLevel::Info),
        other => Err(invalid("log_level", other, "error, warn and info")),
    }
}

fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("true or false is wanted".into()),
    }
}

/// More than a machine has.
const KV_CACHE_MB_MAX: u64 = 16 << 20;
const GPUS_MAX: usize = 64;
/// Read elsewhere than in [`Settings`].
const OTHER_VARIABLES: [&str; 1] = ["BITNET_CONFIG_FILE"];

/// Models of one server.
const MODELS_MAX: usize = 16;
