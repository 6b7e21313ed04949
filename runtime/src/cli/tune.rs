//! `bitnetd tune`: settings of the host (in `host.rs`), and `kernels`, which times what could multiply each shape of a model on this host, and keeps what is fastest.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use kernels::Isa;
use kernels::ternary::{self, Activations, TernaryMatrix};
use tuning::memory::Arena;

use super::{host, load_model};
use crate::config;
use crate::model::{HeadScreen, LoadOptions};
use crate::tuned::{Choice, Tuned};

#[derive(clap::Subcommand)]
pub(super) enum What {
    /// Say which settings of the host cost latency or speed, and why; exit code 1 where one matters
    Check {
        /// A JSON array
        #[arg(long)]
        json: bool,
    },
    /// Change those settings until the next boot, as root
    Apply,
    /// Print a shell script that changes them
    Script,
    /// Find the fastest instruction set for each ternary layer and number of rows
    Kernels(Args),
}

#[derive(clap::Args)]
pub(super) struct Args {
    /// Model file [default: the model inside the binary]
    #[arg(short, long)]
    model: Option<PathBuf>,
    /// File to write [default: bitnetd/kernels.json in $XDG_CACHE_HOME or /var/cache]
    #[arg(long)]
    cache: Option<PathBuf>,
    /// Time for each shape and number of rows, in milliseconds
    #[arg(long, default_value_t = 100)]
    budget_ms: u64,
}

/// Runs the command.
///
/// # Errors
/// When the model can't be loaded or the file can't be written.
pub(super) fn run(what: &What) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let args = match what {
        What::Check { json } => return host::check(*json),
        What::Apply => return host::apply(),
        What::Script => return host::script(),
        What::Kernels(args) => args,
    };
    let path = args.cache.clone().unwrap_or_else(config::default_tuning_cache);
    let topology = tuning::Topology::read(Path::new("/sys"))?;
    tuning::pin(&tuning::plan(&topology, Some(1), Some(1))?.shards[0].workers)?;
    let mut found = Vec::new();
    for (rows, cols) in shapes(args.model.as_deref())? {
        found.extend(tune(rows, cols, Duration::from_millis(args.budget_ms))?);
    }
    let mut tuned = Tuned::read_or_say(Some(&path), |line| eprintln!("{line}"));
    tuned.replace(&found);
    tuned.write(&path).map_err(|error| format!("can't write {}: {error}", path.display()))?;
    println!("{}: {} choices", path.display(), tuned.len());
    Ok(ExitCode::SUCCESS)
}

/// The shapes of the ternary layers, each once.
fn shapes(model: Option<&Path>) -> Result<Vec<(usize, usize)>, Box<dyn std::error::Error>> {
    let options = LoadOptions { threads: 1, node: None, context_max: CONTEXT_MIN, head_screen: HeadScreen::Off };
    let model = load_model(None, model, options)?;
    let linears = model.weights.layers.iter().flat_map(|l| [&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down]);
    let mut shapes: Vec<_> = linears.filter(|linear| linear.is_ternary()).map(|l| (l.rows, l.cols)).collect();
    shapes.sort_unstable();
    shapes.dedup();
    Ok(shapes)
}

/// The best for one shape, from each number of rows on. The sets take turns, so that what disturbs one disturbs all.
fn tune(rows: usize, cols: usize, budget: Duration) -> Result<Vec<Choice>, Box<dyn std::error::Error>> {
    let common = Isa::detect();
    let candidates: Vec<Isa> =
        Isa::available().into_iter().filter(|&isa| isa != Isa::Portable || isa == common).collect();
    let bytes = ternary::packed_bytes(rows, cols);
    let copies = COLD_BYTES.div_ceil(bytes);
    let mut memory = Arena::zeroed(bytes * copies, None)?;
    // Fields of two bits each: 0, 1, 2, 1.
    memory.as_mut_slice().fill(0b01_10_01_00);
    let mut found = Vec::new();
    // More rows go in panels where the common set prefers them, and nothing else is as fast there.
    for tokens in TOKENS.into_iter().filter(|&tokens| !ternary::prefers_panels(common, tokens)) {
        let stride = ternary::activation_stride(cols);
        let mut q = vec![0; tokens * stride];
        q.chunks_exact_mut(stride).for_each(|row| row[..cols].fill(3));
        let (scale, sum) = (vec![1.0; tokens], vec![i32::try_from(3 * cols)?; tokens]);
        let x = Activations { q: &q, stride, scale: &scale, sum: &sum };
        let mut out = vec![0.0; tokens * UNIT_ROWS];
        let mut times = vec![Vec::new(); candidates.len()];
        let (mut copy, started) = (0, Instant::now());
        while times[0].len() < ROUNDS_MIN || started.elapsed() < budget {
            for (&isa, times) in candidates.iter().zip(&mut times) {
                copy = (copy + 1) % copies;
                let w = TernaryMatrix::new(&memory.as_slice()[copy * bytes..][..bytes], rows, cols, 1.0)?;
                let before = Instant::now();
                for first in (0..rows).step_by(UNIT_ROWS) {
                    let range = first..rows.min(first + UNIT_ROWS);
                    ternary::linear(isa, w, range.clone(), x, black_box(&mut out[..tokens * range.len()]));
                }
                times.push(before.elapsed().as_secs_f64());
            }
        }
        let medians: Vec<f64> = times.iter_mut().map(|times| median(times)).collect();
        let isa = choose(&candidates, &medians, common);
        let shown: Vec<String> =
            candidates.iter().zip(&medians).map(|(isa, s)| format!("{} {:.1}", isa.name(), s * 1e6)).collect();
        println!("{rows}x{cols}, {tokens} rows: {} (us: {})", isa.name(), shown.join(", "));
        found.push(Choice { rows, cols, tokens, isa });
    }
    Ok(found)
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The fastest, if it is clearly faster than what would be used anyway.
fn choose(candidates: &[Isa], medians: &[f64], common: Isa) -> Isa {
    let of = |isa| candidates.iter().position(|&other| other == isa).map_or(f64::INFINITY, |at| medians[at]);
    let fastest = candidates.iter().copied().min_by(|&a, &b| of(a).total_cmp(&of(b))).unwrap_or(common);
    if of(fastest) < of(common) * CLEARLY { fastest } else { common }
}

/// Numbers of activation rows from which a choice holds.
const TOKENS: [usize; 6] = [1, 2, 4, 8, 16, 64];
/// Rows of a call, as a worker makes them.
const UNIT_ROWS: usize = 256;
/// Twice what a processor's last cache holds, in most cases.
const COLD_BYTES: usize = 256 << 20;
const ROUNDS_MIN: usize = 5;
const CLEARLY: f64 = 0.97;
/// Only the shapes of the model are wanted.
const CONTEXT_MIN: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_clearly_faster_replaces_the_common_set() {
        let sets = Isa::available();
        let (first, last) = (sets[0], sets[sets.len() - 1]);
        if first == last {
            return;
        }
        let pair = [first, last];
        assert_eq!(choose(&pair, &[0.98, 1.0], last), last);
        assert_eq!(choose(&pair, &[0.9, 1.0], last), first);
        assert_eq!(choose(&pair, &[2.0, 1.0], last), last);
    }
}
