//! `bitnetd generate`: one prompt on the terminal, streamed, without a server.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use tuning::Topology;

use super::load_model;
use crate::config;
use crate::forward::{Forward, Limits, Step};
use kernels::attention::KvType;

use crate::kv::{KvCache, blocks_for};
use crate::model::{HeadScreen, LoadOptions, Model};
use crate::sampler::{History, Sampler, SamplingParams};
use crate::team::Team;
use crate::text::{Detokenizer, Message};
use crate::tuned::Tuned;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Model file [default: the model inside the binary]
    #[arg(short, long)]
    model: Option<PathBuf>,
    /// What to continue, or with --chat what to answer
    #[arg(short, long)]
    prompt: String,
    /// Most tokens to generate
    #[arg(short = 'n', long, default_value_t = 256)]
    max_tokens: usize,
    /// 0 takes the best token every time
    #[arg(long = "temp", default_value_t = 0.7)]
    temperature: f32,
    #[arg(long, default_value_t = 0)]
    top_k: u32,
    #[arg(long, default_value_t = 0.9)]
    top_p: f32,
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Put the prompt into the model's chat format
    #[arg(long)]
    chat: bool,
    /// Kernel workers [default: one per core]
    #[arg(short, long)]
    workers: Option<usize>,
    /// Instruction set of the kernels: portable, avx2, avx-vnni, avx512, avx512-vnni, amx-int8, neon-dotprod or neon-i8mm
    /// [default: the best there is]
    #[arg(long)]
    isa: Option<kernels::Isa>,
    /// How keys and values are kept: f16 or int8
    #[arg(long, default_value = "f16")]
    kv_cache_type: KvType,
    /// One JSON object instead of the streamed text
    #[arg(long)]
    json: bool,
}

/// Everything that one sequence needs.
struct Session {
    model: Model,
    team: Team,
    forward: Forward,
    kv: KvCache,
}

/// Runs the command.
///
/// # Errors
/// Whatever is wrong with the arguments or the model.
pub(super) fn run(args: &Args) -> Result<ExitCode, Box<dyn std::error::Error>> {
    args.check()?;
    let mut session = Session::open(args)?;
    let prompt = session.prompt(args)?;
    let context = session.model.weights.context;
    if prompt.is_empty() || prompt.len() >= context {
        return Err(format!("the prompt has {} tokens, allowed are 1 to {}", prompt.len(), context - 1).into());
    }
    let started = Instant::now();
    let mut first = None;
    let mut text = String::new();
    let mut shown = 0;
    let (tokens, finish) = session.generate(args, &prompt, |model, token, detokenizer| {
        first.get_or_insert_with(|| started.elapsed());
        detokenizer.push(model.tokenizer.piece(token), &mut text);
        if !args.json {
            print!("{}", &text[shown..]);
            shown = text.len();
            // A terminal that went away ends the program by itself.
            let _ = std::io::stdout().flush();
        }
    })?;
    let (first, total) = (first.unwrap_or_default(), started.elapsed());
    let decode_seconds = (total - first).as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "token counts are small")]
    let rate = if decode_seconds > 0.0 { tokens.len().saturating_sub(1) as f64 / decode_seconds } else { 0.0 };
    if args.json {
        let answer = serde_json::json!({
            "model": session.model.name, "text": text, "tokens": tokens, "finish_reason": finish,
            "prompt_tokens": prompt.len(), "completion_tokens": tokens.len(), "seed": args.seed,
            "time_to_first_token_ms": first.as_secs_f64() * 1e3, "tokens_per_second": rate,
        });
        println!("{answer}");
    } else {
        println!();
        eprintln!(
            "[{} tokens, first after {:.0} ms, then {rate:.1} per second]",
            tokens.len(),
            first.as_secs_f64() * 1e3
        );
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    /// The limits that requests to a server have.
    fn check(&self) -> Result<(), String> {
        let within = |name: &str, value: f32, max: f32| match (0.0..=max).contains(&value) {
            true => Ok(()),
            false => Err(format!("--{name} is {value}, allowed are 0 to {max}")),
        };
        within("temp", self.temperature, 2.0)?;
        within("top-p", self.top_p, 1.0)?;
        if self.max_tokens == 0 { Err("--max-tokens is 0, allowed are 1 and more".to_owned()) } else { Ok(()) }
    }
}

impl Session {
    fn open(args: &Args) -> Result<Self, Box<dyn std::error::Error>> {
        let topology = Topology::read(Path::new("/sys"))?;
        let placement = tuning::plan(&topology, Some(1), args.workers)?;
        let cpus = placement.shards[0].workers.clone();
        let isa = args.isa.unwrap_or_else(kernels::Isa::detect);
        let options = LoadOptions {
            threads: cpus.len(),
            node: None,
            context_max: usize::MAX,
            head_screen: HeadScreen::WhereItPays,
        };
        let model = load_model(None, args.model.as_deref(), options)?;
        let params = &model.weights.params;
        if params.pooling.is_some() {
            return Err(format!("model `{}` gives embeddings and generates no text: serve it", model.name).into());
        }
        tuning::pin(&cpus[..1])?;
        let workers = cpus.len();
        let team = Team::start(workers, move |index| {
            // An unpinned worker computes the same.
            let _ = tuning::pin(&cpus[index..=index]);
        })?;
        let cache = args.isa.is_none().then(config::default_tuning_cache);
        let tuned = Tuned::read_or_say(cache.as_deref(), |line| eprintln!("{line}"));
        let limits = Limits { rows_max: PREFILL_ROWS, logits_max: 1 };
        let forward = Forward::new(isa, params, team.size(), limits).tuned(&tuned);
        let kv = KvCache::new(params, args.kv_cache_type, model.weights.context, 1, blocks_for(model.weights.context));
        Ok(Self { model, team, forward, kv })
    }

    fn prompt(&self, args: &Args) -> Result<Vec<u32>, Box<dyn std::error::Error>> {
        if args.chat {
            let rendered = self.model.template.render(&[Message::new("user", &args.prompt)], true)?;
            return Ok(self.model.template_tokens(&rendered));
        }
        let mut tokens = Vec::new();
        self.model.tokenizer.encode(&args.prompt, true, true, &mut tokens);
        Ok(tokens)
    }

    /// Tokens of the answer and why it ended.
    fn generate(
        &mut self,
        args: &Args,
        prompt: &[u32],
        mut each: impl FnMut(&Model, u32, &mut Detokenizer),
    ) -> Result<(Vec<u32>, &'static str), Box<dyn std::error::Error>> {
        let tokens_max = args.max_tokens.min(self.model.weights.context - prompt.len());
        self.kv.reserve(0, prompt.len() + tokens_max).map_err(|_| "the context does not fit the KV cache")?;
        let sampling = SamplingParams {
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            seed: args.seed,
            ..SamplingParams::default()
        };
        let mut history = History::with_capacity(prompt.len() + tokens_max);
        history.push_prompt(prompt);
        let mut sampler = Sampler::new(self.model.weights.params.vocab);
        let mut detokenizer = Detokenizer::new();
        let (mut answer, mut computed) = (Vec::with_capacity(tokens_max), 0);
        let mut pending = prompt.to_vec();
        let mut step = Step::default();
        while answer.len() < tokens_max {
            let position = (prompt.len() + answer.len()) as u64;
            while !pending.is_empty() {
                let chunk: Vec<u32> = pending.drain(..pending.len().min(PREFILL_ROWS)).collect();
                step.clear();
                step.push(0, computed, &chunk, pending.is_empty());
                if let (true, Some(reach)) = (pending.is_empty(), sampling.reach(position)) {
                    step.want_best(reach, sampling.changed(&history));
                }
                computed += chunk.len();
                self.forward.run(&self.team, &self.model.weights, &mut self.kv, &step, &|_, _, _| {});
            }
            let sampled = sampler.sample(self.forward.logits(0), &sampling, &history, position)?;
            if self.model.tokenizer.is_end_of_generation(sampled.token) {
                return Ok((answer, "stop"));
            }
            history.push_output(sampled.token);
            answer.push(sampled.token);
            pending.push(sampled.token);
            each(&self.model, sampled.token, &mut detokenizer);
        }
        Ok((answer, "length"))
    }
}

/// Rows of one step through the prompt.
const PREFILL_ROWS: usize = 512;
