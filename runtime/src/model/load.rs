//! Packs the tensors of a GGUF file into a replica: plan first, memory next, then threads that read and pack.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use gguf::ternary::{BAND_ROWS, Tiled};
use gguf::{Gguf, TensorType};
use kernels::Isa;
use kernels::dense::DenseKind;
use kernels::rope::Rope;
use kernels::{screen, ternary};
use tuning::NodeId;
use tuning::memory::Arena;

use super::head_copy::copy_head;
use super::skips;
use super::stream::{self, Pass};
use super::tensors::Tensors;
use super::weights::{Layer, Linear, Screen, Storage, Weights};
use super::{Error, HyperParameters, Source};

/// How a replica is made.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Threads that read and pack.
    pub threads: usize,
    /// Node that the memory should lie on.
    pub node: Option<NodeId>,
    /// Most positions of a sequence; the model's own context if it is less.
    pub context_max: usize,
    /// Which heads get an int8 copy.
    pub head_screen: HeadScreen,
}

/// Which output heads get an int8 copy to be screened by: faster decoding for more memory, with the same results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadScreen {
    Off,
    /// Heads big enough, in steps of rows enough.
    WhereItPays,
    /// All that can have one, in all steps.
    Always,
}

impl HeadScreen {
    /// What comes of it for a model: one for embeddings has no head.
    fn of(self, params: &HyperParameters) -> Self {
        if params.pooling.is_some() { Self::Off } else { self }
    }
}

/// Loads the weights of `source`, whose parsed header is `gguf`, and hashes the file on the way if `hash`. `progress`
/// gets bytes done and bytes in all.
///
/// # Errors
/// When a tensor is missing, of another shape than the hyper-parameters say, of a type that isn't supported, or
/// holds bytes that are no weights.
pub fn load(
    source: &Source,
    gguf: &Gguf<'_>,
    options: LoadOptions,
    hash: bool,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<(Weights, Pass), Error> {
    let Planned { mut plan, params, embedding, layers, output_norm, head, rope, context } =
        plan_all(source, gguf, options.context_max)?;
    let screen = plan.screen(head.as_ref().unwrap_or(&embedding), options.head_screen.of(&params));
    let mut arena = Arena::zeroed(plan.bytes.max(1), options.node)?;
    let (done, total) = (AtomicU64::new(0), plan.bytes as u64);
    let progress = |bytes| progress(done.fetch_add(bytes, Ordering::Relaxed) + bytes, total);
    let pass = stream::run(source, split_jobs(&plan, arena.as_mut_slice()), options.threads, hash, &progress)?;
    let skips = None;
    let screen = screen
        .map(|screen| copy_head(arena.as_mut_slice(), head.as_ref().unwrap_or(&embedding), screen, options.threads))
        .transpose()?;
    let mut weights = Weights { params, embedding, layers, output_norm, head, rope, context, arena, screen, skips };
    plan.settle_scales(&mut weights);
    if ternary::skips(Isa::detect()) {
        weights.pack_skips(options.threads, options.node)?;
    }
    weights.lock();
    Ok((weights, pass))
}

/// What a replica is and takes.
pub struct Footprint {
    pub params: HyperParameters,
    /// Packed weights, their second forms and the copy of the head.
    pub bytes: u64,
}

/// What [`load`] would take, from the header and the small tensors alone.
///
/// # Errors
/// As [`check`].
pub fn footprint(source: &Source, gguf: &Gguf<'_>, head_screen: HeadScreen) -> Result<Footprint, Error> {
    let Planned { mut plan, params, embedding, layers, head, .. } = plan_all(source, gguf, 1)?;
    plan.screen(head.as_ref().unwrap_or(&embedding), head_screen.of(&params));
    let forms = if ternary::skips(Isa::detect()) { skips::form_bytes(&params, &layers) } else { None };
    let form_bytes = forms.map_or(0, |(_, layer_bytes)| layer_bytes * layers.len());
    Ok(Footprint { params, bytes: (plan.bytes + form_bytes) as u64 })
}

/// Checks what [`load`] would of the header and the small tensors, and takes no memory for weights.
///
/// # Errors
/// As [`load`], but for bytes that are no weights.
pub fn check(source: &Source, gguf: &Gguf<'_>) -> Result<HyperParameters, Error> {
    plan_all(source, gguf, 1).map(|planned| planned.params)
}

/// All of the weights but their arena, and what goes where in it.
struct Planned {
    plan: Plan,
    params: HyperParameters,
    embedding: Linear,
    layers: Vec<Layer>,
    output_norm: Vec<f32>,
    head: Option<Linear>,
    rope: Rope,
    context: usize,
}

fn plan_all(source: &Source, gguf: &Gguf<'_>, context_max: usize) -> Result<Planned, Error> {
    let file = Tensors::new(source, gguf)?;
    let embedding = file.info("token_embd.weight")?;
    let vocab = usize::try_from(embedding.rows()).map_err(|_| Error::BadShape("too many rows".into()))?;
    let params = HyperParameters::from_metadata(gguf.metadata(), vocab)?;
    let says_pooling = gguf.metadata().u32(&format!("{}.pooling_type", params.architecture))?.is_some();
    if params.pooling.is_some() && !says_pooling && !file.has("blk.0.attn_q_norm_in.weight") {
        let what = format!("a model of architecture `{}` that is none for embeddings", params.architecture);
        return Err(Error::Unsupported(what));
    }
    let mut plan = Plan::default();
    let embedding = plan.linear(&file, "token_embd", (vocab, params.hidden))?;
    if embedding.is_ternary() {
        return Err(Error::Unsupported("a ternary `token_embd.weight`".into()));
    }
    let layers = (0..params.layers).map(|i| plan_layer(&mut plan, &file, &params, i)).collect::<Result<_, Error>>()?;
    let untied = params.family.may_untie_head() && gguf.tensor("output.weight").is_some();
    let head = untied.then(|| plan.linear(&file, "output", (vocab, params.hidden))).transpose()?;
    let output_norm = file.vector("output_norm.weight", params.hidden)?;
    let context = params.context.min(context_max);
    let rope = rope(&file, &params)?;
    Ok(Planned { plan, params, embedding, layers, output_norm, head, rope, context })
}

fn plan_layer(plan: &mut Plan, file: &Tensors<'_, '_>, params: &HyperParameters, index: usize) -> Result<Layer, Error> {
    let (hidden, ffn, attention) = (params.hidden, params.feed_forward, params.attention_width());
    let kv = params.kv_heads * params.head_dim;
    let name = |part: &str| format!("blk.{index}.{part}");
    let norm = |part: &str, len| file.vector(&name(&format!("{part}.weight")), len);
    let embedding = params.family.is_embedding();
    let input_norm = |part: &str, len| {
        let part = format!("{part}_norm_in");
        (embedding && file.has(&name(&format!("{part}.weight")))).then(|| norm(&part, len)).transpose()
    };
    // The input norm of a projection that shares its input with none is a sub norm.
    let sub_norm = |part: &str, projection: &str, len| match params.family.has_sub_norms() {
        true => norm(part, len).map(Some),
        false => input_norm(projection, len),
    };
    let only = |wanted: bool, part, len| wanted.then(|| norm(part, len)).transpose();
    let mut linear = |part: &str, shape| plan.linear(file, &name(part), shape);
    let own = |part, linear: Linear| Ok::<_, Error>(Linear { input_norm: input_norm(part, linear.cols)?, ..linear });
    Ok(Layer {
        attn_norm: norm("attn_norm", hidden)?,
        q: own("attn_q", linear("attn_q", (attention, hidden))?)?,
        k: own("attn_k", linear("attn_k", (kv, hidden))?)?,
        v: own("attn_v", linear("attn_v", (kv, hidden))?)?,
        q_norm: only(embedding, "attn_q_norm", params.head_dim)?,
        k_norm: only(embedding, "attn_k_norm", params.head_dim)?,
        attn_sub_norm: sub_norm("attn_sub_norm", "attn_output", attention)?,
        o: linear("attn_output", (hidden, attention))?,
        attn_post_norm: only(params.family.has_post_norms(), "post_attention_norm", hidden)?,
        ffn_norm: norm("ffn_norm", hidden)?,
        gate: own("ffn_gate", linear("ffn_gate", (ffn, hidden))?)?,
        up: own("ffn_up", linear("ffn_up", (ffn, hidden))?)?,
        ffn_sub_norm: sub_norm("ffn_sub_norm", "ffn_down", ffn)?,
        down: linear("ffn_down", (hidden, ffn))?,
        ffn_post_norm: only(params.family.has_post_norms(), "post_ffw_norm", hidden)?,
    })
}

fn rope(file: &Tensors<'_, '_>, params: &HyperParameters) -> Result<Rope, Error> {
    let factors = match file.gguf.tensor("rope_freqs.weight") {
        Some(_) => Some(file.vector("rope_freqs.weight", params.rope_dims / 2)?),
        None => None,
    };
    if let Some(bad) = factors.iter().flatten().find(|f| !(f.is_finite() && **f > 0.0)) {
        return Err(Error::BadTensor { name: "rope_freqs.weight".into(), why: format!("it holds the factor {bad}") });
    }
    let (head_dim, dims) = (params.head_dim, params.rope_dims);
    Ok(Rope::new(head_dim, dims, params.rope_base, params.rope_scale, factors.map(Vec::into_boxed_slice)))
}

/// What goes where in the arena.
#[derive(Default)]
struct Plan {
    bytes: usize,
    parts: Vec<Part>,
}

/// One tensor: its place in the file, its form, its place in the arena.
pub(super) struct Part {
    name: String,
    kind: TensorType,
    offset: u64,
    file_bytes: usize,
    rows: usize,
    cols: usize,
    start: usize,
    packed_bytes: usize,
    /// Of TL1 and TL2.
    tiled: Option<Tiled>,
    /// Bits of the scale that packing found in the file.
    scale: AtomicU64,
}

impl Plan {
    fn linear(&mut self, file: &Tensors<'_, '_>, name: &str, (rows, cols): (usize, usize)) -> Result<Linear, Error> {
        let tensor = format!("{name}.weight");
        let info = file.matrix(&tensor, (rows, cols))?;
        let too_big = || Error::BadShape(format!("tensor `{tensor}` is beyond memory"));
        let file_bytes = usize::try_from(info.bytes).map_err(|_| too_big())?;
        let (storage, packed_bytes) = match info.kind {
            kind if kind.is_ternary() => (Storage::Ternary { scale: 0.0 }, ternary::packed_bytes(rows, cols)),
            kind => (Storage::Dense(dense_kind(kind, &tensor)?), file_bytes),
        };
        let tiled = info.kind.is_tiled().then(|| file.tiles.layout(info.kind, &tensor, (rows, cols))).transpose()?;
        let output_scale = match file.gguf.tensor(&format!("{name}.scale")) {
            Some(_) => Some(file.vector(&format!("{name}.scale"), 1)?[0]),
            None => None,
        };
        let start = self.bytes;
        self.bytes = (start + packed_bytes).next_multiple_of(PART_ALIGN_BYTES);
        self.parts.push(Part {
            name: tensor,
            kind: info.kind,
            offset: info.offset,
            file_bytes,
            rows,
            cols,
            start,
            packed_bytes,
            tiled,
            scale: AtomicU64::new(0),
        });
        Ok(Linear { rows, cols, storage, start, bytes: packed_bytes, output_scale, input_norm: None })
    }

    /// Takes memory for the int8 copy of `head`, if that is a head which the screen suits.
    fn screen(&mut self, head: &Linear, wanted: HeadScreen) -> Option<Screen> {
        // A factor could turn the order of the tokens round.
        let suits = !head.is_ternary() && head.output_scale.is_none() && head.cols <= screen::COLS_MAX;
        let rows_min = match wanted {
            HeadScreen::Off => return None,
            HeadScreen::WhereItPays if head.bytes < SCREENED_BYTES_MIN => return None,
            HeadScreen::WhereItPays if head.bytes < ONE_ROW_BYTES_MIN => SMALL_HEAD_ROWS_MIN,
            HeadScreen::WhereItPays | HeadScreen::Always => 1,
        };
        if !suits {
            return None;
        }
        let (start, bytes) = (self.bytes, screen::packed_bytes(head.rows, head.cols));
        self.bytes = (start + bytes).next_multiple_of(PART_ALIGN_BYTES);
        Some(Screen { start, bytes, weight_max: f32::INFINITY, rows_min })
    }

    /// Puts the scales that packing found into the linear layers.
    fn settle_scales(&self, weights: &mut Weights) {
        let layers = weights
            .layers
            .iter_mut()
            .flat_map(|l| [&mut l.q, &mut l.k, &mut l.v, &mut l.o, &mut l.gate, &mut l.up, &mut l.down]);
        for linear in layers.chain(weights.head.as_mut()) {
            let part = self.parts.binary_search_by_key(&linear.start, |part| part.start);
            if let (Ok(index), Storage::Ternary { scale }) = (part, &mut linear.storage) {
                *scale = f32::from_bits(self.parts[index].scale_bits());
            }
        }
    }
}

impl Part {
    fn scale_bits(&self) -> u32 {
        u32::try_from(self.scale.load(Ordering::Relaxed)).expect("written from 32 bits")
    }

    fn bad(&self, why: impl Into<String>) -> Error {
        Error::BadTensor { name: self.name.clone(), why: why.into() }
    }

    /// Packs the tensor `buffer` into `out`.
    fn pack(&self, buffer: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let scale = match (&self.tiled, self.kind) {
            (Some(layout), _) => self.pack_tiled(layout, buffer, out)?,
            (None, TensorType::I2S) => {
                ternary::pack_i2s(buffer, 0..self.rows, self.cols, out).map_err(|error| self.bad(error.to_string()))?;
                gguf::ternary::i2s_scale(buffer, self.rows * self.cols)
            }
            (None, _) => self.pack_block_ternary(buffer, out)?,
        };
        if !scale.is_finite() {
            return Err(self.bad(format!("its scale is {scale}")));
        }
        self.scale.store(u64::from(scale.to_bits()), Ordering::Relaxed);
        Ok(())
    }

    /// TL1 and TL2, a band of rows at a time.
    fn pack_tiled(&self, layout: &Tiled, data: &[u8], out: &mut [u8]) -> Result<f32, Error> {
        let mut codes = vec![0; BAND_ROWS * self.cols];
        for (band, out) in out.chunks_exact_mut(ternary::packed_bytes(BAND_ROWS, self.cols)).enumerate() {
            layout.codes(data, band, &mut codes);
            ternary::pack_codes(&codes, self.cols, out).map_err(|found| {
                self.bad(format!("row {} holds a code that means nothing", band * BAND_ROWS + found.row))
            })?;
        }
        Ok(layout.scale(data))
    }

    /// TQ1_0 and TQ2_0 keep a scale for each 256 weights; a ternary model has one for the tensor, so that all blocks
    /// which aren't zero carry the same.
    fn pack_block_ternary(&self, data: &[u8], out: &mut [u8]) -> Result<f32, Error> {
        let mut scale = None;
        let mut values = vec![0.0; self.cols];
        let tile_bytes = ternary::packed_bytes(ternary::TILE_ROWS, self.cols);
        let mut codes = vec![1_u8; ternary::TILE_ROWS * self.cols];
        let row_bytes = self.file_bytes / self.rows;
        for (tile, rows) in data.chunks(row_bytes * ternary::TILE_ROWS).enumerate() {
            let count = rows.len() / row_bytes;
            for (row, codes) in rows.chunks_exact(row_bytes).zip(codes.chunks_exact_mut(self.cols)) {
                gguf::blocks::dequantize_row(self.kind, row, self.cols, &mut values)
                    .map_err(|error| self.bad(error.to_string()))?;
                for (code, value) in codes.iter_mut().zip(&values) {
                    let size = value.abs();
                    if size > 0.0 && *scale.get_or_insert(size) != size {
                        return Err(self.bad("its blocks have different scales, so it is not one ternary matrix"));
                    }
                    *code = 1 + u8::from(*value > 0.0) - u8::from(*value < 0.0);
                }
            }
            let out = &mut out[tile * tile_bytes..][..tile_bytes];
            ternary::pack_codes(&codes[..count * self.cols], self.cols, out)
                .map_err(|error| self.bad(error.to_string()))?;
        }
        Ok(scale.unwrap_or(1.0))
    }
}

/// A part of the arena and what fills it.
pub(super) struct Job<'a> {
    part: &'a Part,
    /// First byte of the part that this job copies, for parts that are copied as they stand.
    from: usize,
    out: &'a mut [u8],
}

/// Cuts the arena into the parts of the plan, and those that are copied as they stand into pieces.
fn split_jobs<'a>(plan: &'a Plan, mut arena: &'a mut [u8]) -> Vec<Job<'a>> {
    let mut jobs = Vec::new();
    let mut at = 0;
    for part in &plan.parts {
        let (_, rest) = arena.split_at_mut(part.start - at);
        let (out, rest) = rest.split_at_mut(part.packed_bytes);
        (arena, at) = (rest, part.start + part.packed_bytes);
        if part.kind.is_ternary() {
            jobs.push(Job { part, from: 0, out });
        } else {
            let pieces = out.chunks_mut(COPY_BYTES_MAX).enumerate();
            jobs.extend(pieces.map(|(i, out)| Job { part, from: i * COPY_BYTES_MAX, out }));
        }
    }
    jobs
}

impl Job<'_> {
    /// What of the file it wants.
    pub(super) fn range(&self) -> Range<u64> {
        let len = if self.part.kind.is_ternary() { self.part.file_bytes } else { self.out.len() };
        let start = self.part.offset + self.from as u64;
        start..start + len as u64
    }

    /// What it fills.
    pub(super) fn packed_bytes(&self) -> usize {
        self.out.len()
    }

    /// Packs `bytes`, its range of the file.
    pub(super) fn run(self, bytes: &[u8]) -> Result<(), Error> {
        if self.part.kind.is_ternary() {
            return self.part.pack(bytes, self.out);
        }
        self.out.copy_from_slice(bytes);
        Ok(())
    }
}

fn dense_kind(kind: TensorType, name: &str) -> Result<DenseKind, Error> {
    Ok(match kind {
        TensorType::F32 => DenseKind::F32,
        TensorType::F16 => DenseKind::F16,
        TensorType::BF16 => DenseKind::Bf16,
        TensorType::Q8_0 => DenseKind::Q8_0,
        TensorType::Q6_K => DenseKind::Q6K,
        TensorType::Q4_0 => DenseKind::Q4_0,
        other => return Err(Error::Unsupported(format!("tensor `{name}` of type {}", other.name()))),
    })
}

/// A smaller head is done before a screen could pay for its phases, however many rows there are.
const SCREENED_BYTES_MIN: usize = 128 << 10;
/// A smaller one than that is done before they pay for a step of fewer rows.
const ONE_ROW_BYTES_MIN: usize = 8 << 20;
const SMALL_HEAD_ROWS_MIN: usize = 2;
/// Parts begin on cache lines, which the packed layout wants.
const PART_ALIGN_BYTES: usize = 64;
/// Size of the pieces in which a big table is read, so that all threads take part.
const COPY_BYTES_MAX: usize = 8 << 20;
