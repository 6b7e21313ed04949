//! `bitnetd-bench kernels`: every kernel at the shapes of real models, beside what the machine can do.

mod attention;
mod left_out;
mod linear;
mod rest;
mod timing;

use std::process::ExitCode;
use std::time::Duration;

use kernels::Isa;
use serde_json::{Value, json};

use crate::limits::{Gauge, Limits};
use crate::model::session::{cores, start_team};
use timing::{Bench, Outcome};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Worker counts to measure [default: one, and one per core]
    #[arg(short, long, value_delimiter = ',')]
    workers: Vec<usize>,
    /// Shapes of 2b4t, large and default (the model inside the binary)
    #[arg(short, long, value_delimiter = ',', default_value = "2b4t,large,default")]
    shapes: Vec<String>,
    /// Which kernels: ternary, skips, dense, screen, attention, rows or barrier
    #[arg(short, long, value_delimiter = ',', default_value = "ternary,skips,dense,screen,attention,rows,barrier")]
    families: Vec<String>,
    /// Rows of activations that linear layers are measured with
    #[arg(short = 'b', long, value_delimiter = ',', default_value = "1,2,4,8,32,512")]
    rows: Vec<usize>,
    /// Time for each line, in milliseconds
    #[arg(long, default_value_t = 100)]
    budget_ms: u64,
    /// Instruction set of the kernels: portable, avx2, avx-vnni, avx512, avx512-vnni, amx-int8, neon-dotprod or neon-i8mm
    /// [default: the best there is]
    #[arg(long)]
    isa: Option<Isa>,
    /// Only check the answers of every instruction set of this machine; no timing
    #[arg(long)]
    check: bool,
    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
}

/// The layers of a model.
pub(crate) struct Shape {
    name: &'static str,
    hidden: usize,
    feed_forward: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocab: usize,
}

type Failure = Box<dyn std::error::Error>;

pub(crate) fn run(args: &Args) -> ExitCode {
    match measure(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bitnetd-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(args: &Args) -> Result<(), Failure> {
    if let Some(bad) = args.families.iter().find(|family| !FAMILIES.contains(&family.as_str())) {
        return Err(format!("no kernels `{bad}`, allowed are {}", FAMILIES.join(", ")).into());
    }
    if args.rows.contains(&0) || args.workers.contains(&0) {
        return Err("rows and workers are at least 1".into());
    }
    let shapes = args.shapes.iter().map(|name| shape(name)).collect::<Result<Vec<_>, _>>()?;
    if args.check {
        let mut bench = Bench::checking(start_team(cores()?)?);
        run_all(args, &shapes, &mut bench)?;
        let (count, sets) = bench.checked();
        for isa in sets {
            println!("check passed: {count} kernels agree with portable on {}", isa.name());
        }
        return Ok(());
    }
    let isa = args.isa.unwrap_or_else(Isa::detect);
    let mut workers = if args.workers.is_empty() { vec![1, cores()?] } else { args.workers.clone() };
    workers.dedup();
    let mut done = Vec::new();
    for &count in &workers {
        let team = start_team(count)?;
        let gauge = Gauge::new(isa);
        if !args.json {
            print_limits(isa, count, &gauge.limits(&team));
        }
        let mut bench = Bench::timing(isa, team, gauge, Duration::from_millis(args.budget_ms), !args.json);
        run_all(args, &shapes, &mut bench)?;
        done.push(bench);
    }
    if args.json {
        println!("{}", to_json(isa, &done));
    }
    Ok(())
}

fn run_all(args: &Args, shapes: &[Shape], bench: &mut Bench) -> Result<(), Failure> {
    for family in &args.families {
        for shape in shapes {
            match family.as_str() {
                "ternary" => linear::ternary(bench, shape, &args.rows)?,
                "skips" => left_out::skips(bench, shape)?,
                "screen" => left_out::screen(bench, shape, &args.rows)?,
                "dense" => linear::dense(bench, shape, &args.rows)?,
                "attention" => attention::all(bench, shape)?,
                "rows" => rest::rows(bench, shape)?,
                _ => {}
            }
        }
        if family == "barrier" {
            rest::barrier(bench)?;
        }
    }
    Ok(())
}

fn shape(name: &str) -> Result<Shape, Failure> {
    match name {
        "2b4t" => Ok(Shape {
            name: "2b4t",
            hidden: 2560,
            feed_forward: 6912,
            heads: 20,
            kv_heads: 5,
            head_dim: 128,
            vocab: 128_256,
        }),
        "large" => Ok(Shape {
            name: "large",
            hidden: 1536,
            feed_forward: 4096,
            heads: 16,
            kv_heads: 16,
            head_dim: 96,
            vocab: 32_002,
        }),
        "default" => {
            let options = runtime::model::LoadOptions {
                threads: 1,
                node: None,
                context_max: CONTEXT_MIN,
                head_screen: runtime::model::HeadScreen::Off,
            };
            let model = runtime::cli::load_model(None, None, options)?;
            let params = &model.weights.params;
            Ok(Shape {
                name: "default",
                hidden: params.hidden,
                feed_forward: params.feed_forward,
                heads: params.heads,
                kv_heads: params.kv_heads,
                head_dim: params.head_dim,
                vocab: params.vocab,
            })
        }
        _ => Err(format!("no shape `{name}`, allowed are 2b4t, large and default").into()),
    }
}

fn print_limits(isa: Isa, workers: usize, limits: &Limits) {
    println!("{}, {}, commit {}", tuning::host::cpu_model(), isa.name(), env!("BITNETD_COMMIT"));
    println!(
        "limits with {workers} workers at the start: read {:.1} GB/s, int8 {}, f32 {:.0} GFLOPS",
        limits.read_bytes_per_s / 1e9,
        limits.int8(),
        limits.float_operations_per_s / 1e9,
    );
    println!("{}", Outcome::HEADING);
}

fn to_json(isa: Isa, done: &[Bench]) -> Value {
    let by_workers = |value: fn(&Limits) -> Option<f64>| -> Value {
        Value::Object(done.iter().map(|bench| (bench.workers().to_string(), json!(bench.limit(value)))).collect())
    };
    json!({
        "machine": tuning::host::cpu_model(), "isa": isa.name(), "commit": env!("BITNETD_COMMIT"),
        "limits": {
            "read_gb_s": by_workers(|limits| Some(limits.read_bytes_per_s / 1e9)),
            "int8_gops": by_workers(|limits| limits.int8_operations_per_s.map(|rate| rate / 1e9)),
            "vnni_gops": by_workers(|limits| limits.vnni_operations_per_s.map(|rate| rate / 1e9)),
            "f32_gflops": by_workers(|limits| Some(limits.float_operations_per_s / 1e9)),
        },
        "results": done.iter().flat_map(Bench::to_json).collect::<Vec<_>>(),
    })
}

const FAMILIES: [&str; 7] = ["ternary", "skips", "dense", "screen", "attention", "rows", "barrier"];
/// Only the shape of the model is wanted.
const CONTEXT_MIN: usize = 32;
