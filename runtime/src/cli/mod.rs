//! The commands of the `bitnetd` binary.

pub mod convert;
mod crossval;
mod generate;
mod host;
pub mod inspect;
mod load;
mod placement;
mod serve;
pub mod synth;
mod tune;

use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use tuning::CpuId;

use crate::config::{self, Reload, Settings};
use crate::log;
use crate::signals;

pub use load::{load_model, progress_bar};

/// Inference server for ternary (BitNet b1.58) language models. Without a command it serves.
#[derive(Parser)]
#[command(name = "bitnetd", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(clap::Args)]
struct ServeArgs {
    /// Configuration file (TOML)
    #[arg(long, env = "BITNET_CONFIG_FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    /// Print the configuration that would be used, and end
    #[arg(long)]
    print_config: bool,
    /// Draw which threads would run where, and end
    #[arg(long, value_name = "FORMAT", num_args = 0..=1, require_equals = true, default_missing_value = "tree")]
    print_placement: Option<placement::Format>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve a model over HTTP (the default command)
    Serve(Box<ServeArgs>),
    /// Continue a prompt on the terminal; needs no server
    Generate(generate::Args),
    /// Check a GGUF file and say what is in it; exit code 0 ok, 1 I/O, 2 malformed, 3 unsupported, 4 strict finding
    Inspect {
        file: PathBuf,
        /// One JSON object
        #[arg(long)]
        json: bool,
        /// End with exit code 4 on any finding
        #[arg(long)]
        strict: bool,
        /// List every tensor
        #[arg(long)]
        tensors: bool,
        /// Read and hash the file again, also where its last report is kept and it has not changed since
        #[arg(long)]
        fresh: bool,
        /// No colours, also on a terminal
        #[arg(long, env = "NO_COLOR", hide_env = true, value_parser = clap::builder::FalseyValueParser::new())]
        no_color: bool,
    },
    /// Write a Hugging Face checkpoint of a ternary model as a GGUF file
    Convert(ConvertArgs),
    /// Compare a model with a reference: our own f64 forward pass, another model or recorded logits
    Crossval(crossval::Args),
    /// Look at what this host's settings cost, change them; measure which kernels are fastest, and keep it for `serve` and `generate`
    Tune {
        #[command(subcommand)]
        what: tune::What,
    },
    /// What a server starts for each GPU
    #[command(hide = true)]
    GpuWorker {
        #[arg(long, required_unless_present = "list")]
        device: Option<usize>,
        /// Where its own thread runs
        #[arg(long, requires = "other_cpus")]
        cpu: Option<u32>,
        /// Where those of the driver run
        #[arg(long)]
        other_cpus: Option<String>,
        /// Print the devices as JSON instead
        #[arg(long)]
        list: bool,
    },
    /// Write a model of random ternary weights in a real model's shape, for benchmarks
    Synth(SynthArgs),
}

impl Cli {
    /// Whether it does not end by itself, nor with who reads what it says.
    fn goes_on(&self) -> bool {
        let serves = |args: &ServeArgs| !args.print_config && args.print_placement.is_none();
        match &self.command {
            None => serves(&self.serve),
            Some(Command::Serve(args)) => serves(args),
            Some(Command::GpuWorker { .. }) => true,
            Some(_) => false,
        }
    }
}

#[derive(clap::Args)]
struct ConvertArgs {
    /// Folder with config.json, tokenizer.json and model.safetensors
    folder: PathBuf,
    out: PathBuf,
    /// Tensor type of the ternary weights: i2_s, tl1, tl2 or f16
    #[arg(long, default_value = "i2_s")]
    r#type: String,
    /// Tensor type of embedding and head: f16, q8_0 or q6_k
    #[arg(long, default_value = "f16")]
    embeddings: String,
}

#[derive(clap::Args)]
struct SynthArgs {
    out: PathBuf,
    /// tiny, wide (two wide layers), large (0.7B), 2b4t, 3b, 8b, falcon3-1b, -3b, -7b or -10b; of embedding models
    /// qwen3-0.6b, gemma3-270m, tiny-qwen3 or tiny-gemma3
    #[arg(long)]
    preset: String,
    /// Tensor type of the ternary weights: i2_s, tl1 or tl2
    #[arg(long, default_value = "i2_s")]
    r#type: String,
    /// Tensor type of embedding and head: f16, q8_0, q6_k or f32
    #[arg(long, default_value = "f16")]
    embeddings: String,
    #[arg(long, default_value_t = 42)]
    seed: u64,
}

/// Runs the command of the command line.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if !cli.goes_on() {
        signals::end_with_the_reader();
    }
    let code = run(cli).unwrap_or_else(|error| {
        log::say(format_args!("bitnetd: {}", chain(&*error)));
        ExitCode::FAILURE
    });
    log::finish();
    code
}

fn run(cli: Cli) -> Result<ExitCode, Box<dyn std::error::Error>> {
    match cli.command {
        None => run_serve(cli.serve),
        Some(Command::Serve(args)) => run_serve(*args),
        Some(Command::Generate(args)) => generate::run(&args),
        Some(Command::Inspect { file, json, strict, tensors, fresh, no_color }) => {
            let colour = !no_color && !json && io::stdout().is_terminal();
            let options = inspect::InspectOptions { json, strict, tensors, colour };
            let (text, code) = match fresh {
                true => inspect::report(&file, options),
                false => inspect::report_once(&config::cache_folder(), &file, options),
            };
            // A file that can't even be listed leaves one line that says why.
            if code != inspect::EXIT_OK && !json && text.lines().count() == 1 {
                eprint!("{text}");
            } else {
                print!("{text}");
            }
            Ok(ExitCode::from(code))
        }
        Some(Command::Convert(args)) => run_convert(&args),
        Some(Command::Crossval(args)) => crossval::run(&args),
        Some(Command::Tune { what }) => tune::run(&what),
        Some(Command::GpuWorker { device: Some(device), cpu, other_cpus, list: false }) => {
            let cpus = match cpu.zip(other_cpus) {
                Some((cpu, others)) => Some((CpuId(cpu), tuning::parse_cpus(&others)?)),
                None => None,
            };
            Ok(crate::gpu::worker::run(device, cpus.as_ref()))
        }
        Some(Command::GpuWorker { .. }) => {
            println!("{}", crate::gpu::worker::list());
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Synth(args)) => run_synth(&args),
    }
}

fn run_serve(args: ServeArgs) -> Result<ExitCode, Box<dyn std::error::Error>> {
    config::check_environment()?;
    let given = args.settings.or_shared_environment();
    let settings = match &args.config {
        Some(path) => given.clone().or_file(path)?,
        None => given.clone(),
    };
    if args.print_config {
        print!("{}", toml::to_string(&settings)?);
        println!("# {:#?}", settings.validate()?);
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(format) = args.print_placement {
        return serve::print_placement(&settings.validate()?, format);
    }
    let config = settings.clone().validate()?;
    serve::run(&config, &Reload::new(given, args.config, settings))
}

fn run_convert(args: &ConvertArgs) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let (kind, embeddings) = (tensor_type(&args.r#type)?, tensor_type(&args.embeddings)?);
    let bar = progress_bar("writing");
    let summary = convert::convert(&args.folder, &args.out, kind, embeddings, bar)?;
    println!("{}: {} tensors, {} bytes", args.out.display(), summary.tensor_count, summary.file_bytes);
    Ok(ExitCode::SUCCESS)
}

fn run_synth(args: &SynthArgs) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let preset = synth::Preset::from_name(&args.preset).ok_or_else(|| {
        let known: Vec<&str> = synth::Preset::ALL.iter().map(|preset| preset.name()).collect();
        format!("preset `{}` is not known, but {} are", args.preset, known.join(", "))
    })?;
    let kind = tensor_type(&args.r#type)?;
    let embeddings = tensor_type(&args.embeddings)?;
    let bar = progress_bar("writing");
    let summary = synth::write(&args.out, preset, kind, embeddings, args.seed, bar)?;
    println!("{}: {summary:?}", args.out.display());
    Ok(ExitCode::SUCCESS)
}

/// Has `fill` write a file beside `path`, which takes its name once it is whole and on the disk: `path` is never half a
/// file, and what was there stays where this fails.
fn replace_file<T, E>(
    path: &Path,
    fail: impl Fn(io::Error) -> E,
    fill: impl FnOnce(BufWriter<File>) -> Result<(BufWriter<File>, T), E>,
) -> Result<T, E> {
    let partial = partial_beside(path).map_err(&fail)?;
    let write = || {
        let file = File::create(&partial).map_err(&fail)?;
        let (out, filled) = fill(BufWriter::with_capacity(1 << 20, file))?;
        let file = out.into_inner().map_err(|error| fail(error.into_error()))?;
        file.sync_all().and_then(|()| fs::rename(&partial, path)).map_err(&fail)?;
        Ok(filled)
    };
    let written = write();
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&partial);
    }
    written
}

/// Where a file is written until it is whole and takes its name.
fn partial_beside(path: &Path) -> io::Result<PathBuf> {
    // A device or a pipe would be replaced by the file, not written to.
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    Ok(partial.into())
}

fn tensor_type(name: &str) -> Result<gguf::TensorType, String> {
    let known = (0..64).filter_map(gguf::TensorType::from_id);
    let wanted = name.to_ascii_lowercase();
    let mut matching = known.filter(|kind| kind.name().to_ascii_lowercase() == wanted);
    matching.next().ok_or_else(|| format!("tensor type `{name}` is not known"))
}

/// An error and what caused it, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let part = cause.to_string();
        if !text.ends_with(&part) {
            text = format!("{text}: {part}");
        }
        source = cause.source();
    }
    text
}
