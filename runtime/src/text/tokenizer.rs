//! Text to token ids and back, from the metadata of a GGUF file, with the ids that llama.cpp gives.

use gguf::Metadata;

use super::bpe::Bpe;
use super::load::{
    MERGES_MAX, SPACE_MARK, SPECIAL_BYTES_MAX, TOKENS_MAX, TURN_ENDS, byte_level_token, end_tokens, pre_tokenizer,
    read_merges, read_scores, read_vocabulary, sentencepiece_token, token_id,
};
use super::merge::Merger;
use super::pretokenize::PreTokenizer;
use super::special::{Fragment, SpecialTokens};
use super::spm::Spm;
use super::vocabulary::{TokenKind, Vocabulary};

/// A tokenizer: immutable, shared by reference between sequences and threads.
pub struct Tokenizer {
    vocabulary: Vocabulary,
    specials: SpecialTokens,
    model: Model,
    bos: Option<u32>,
    eos: Option<u32>,
    eot: Option<u32>,
    end_of_generation: Vec<u32>,
    add_bos: bool,
    add_eos: bool,
    add_space_prefix: bool,
    notes: Vec<Note>,
}

enum Model {
    Bpe(Bpe),
    Spm(Spm),
}

/// Something that a person should be told once about the tokenizer of a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Note {
    #[error("the file has no tokenizer.ggml.pre; llama-bpe splitting is used")]
    PreTokenizerMissing,
    #[error("{key} is {id}, the vocabulary has {tokens} tokens; the key is ignored")]
    TokenIdOutOfRange { key: &'static str, id: u32, tokens: usize },
}

/// Why a file gives no tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error(transparent)]
    Metadata(#[from] gguf::Error),
    #[error("the file has no {key}")]
    Missing { key: &'static str },
    #[error("tokenizer model `{found}` is not supported, only `gpt2` and `llama` are")]
    Model { found: String },
    #[error("pre-tokenizer `{found}` is not supported")]
    PreTokenizer { found: String },
    #[error("{key} has {found} entries, the vocabulary has {tokens} tokens")]
    Length { key: &'static str, found: usize, tokens: usize },
    #[error("the vocabulary has {found} tokens, allowed are 1 to {TOKENS_MAX}")]
    TokenCount { found: usize },
    #[error("{found} merges, limit {MERGES_MAX}")]
    MergeCount { found: usize },
    #[error("the texts of special tokens have {found} bytes, limit {SPECIAL_BYTES_MAX}")]
    SpecialBytes { found: usize },
}

impl Tokenizer {
    /// The tokenizer of a file. A byte-level BPE file without `tokenizer.ggml.pre` gets Llama 3's splitting, which is
    /// right for BitNet 2B-4T (bitnet.cpp uses `default` there), and a [`Note`].
    ///
    /// # Errors
    /// Keys that are missing, of another type or length, and models or pre-tokenizers that are not known.
    pub fn from_gguf(metadata: &Metadata<'_>) -> Result<Self, TokenizerError> {
        Self::from_gguf_with(metadata, None)
    }

    /// As [`from_gguf`](Self::from_gguf), with a splitting that replaces the file's.
    ///
    /// # Errors
    /// As [`from_gguf`](Self::from_gguf).
    pub fn from_gguf_with(metadata: &Metadata<'_>, pre: Option<PreTokenizer>) -> Result<Self, TokenizerError> {
        let model = metadata.str(MODEL)?.ok_or(TokenizerError::Missing { key: MODEL })?;
        let mut notes = Vec::new();
        let (vocabulary, model) = match model {
            "gpt2" => {
                let pre = match pre {
                    Some(pre) => pre,
                    None => pre_tokenizer(metadata, &mut notes)?,
                };
                let mut vocabulary = read_vocabulary(metadata, byte_level_token())?;
                let bpe = Bpe::new(&mut vocabulary, read_merges(metadata)?, pre);
                (vocabulary, Model::Bpe(bpe))
            }
            "llama" => {
                let vocabulary = read_vocabulary(metadata, sentencepiece_token)?;
                let scores = read_scores(metadata, vocabulary.len())?;
                let unknown = token_id(metadata, "tokenizer.ggml.unknown_token_id", vocabulary.len(), &mut notes)?;
                let spm = Spm::new(&vocabulary, &scores, unknown.or(Some(0)));
                (vocabulary, Model::Spm(spm))
            }
            other => return Err(TokenizerError::Model { found: other.chars().take(64).collect() }),
        };
        Self::assemble(metadata, vocabulary, model, notes)
    }

    fn assemble(
        metadata: &Metadata<'_>,
        mut vocabulary: Vocabulary,
        model: Model,
        mut notes: Vec<Note>,
    ) -> Result<Self, TokenizerError> {
        let tokens = vocabulary.len();
        let mut id = |key| token_id(metadata, key, tokens, &mut notes);
        let (bos, eos) = (id("tokenizer.ggml.bos_token_id")?, id("tokenizer.ggml.eos_token_id")?);
        let (eot, eom) = (id("tokenizer.ggml.eot_token_id")?, id("tokenizer.ggml.eom_token_id")?);
        let sentencepiece = matches!(model, Model::Spm(_));
        let (bos, eos) = if sentencepiece && tokens > 2 { (bos.or(Some(1)), eos.or(Some(2))) } else { (bos, eos) };
        let add_bos_default = match &model {
            Model::Bpe(bpe) => bpe.adds_bos(),
            Model::Spm(_) => true,
        };
        let end_of_generation = end_tokens(&mut vocabulary, [eos, eot, eom]);
        let eot = eot.or_else(|| TURN_ENDS[..4].iter().find_map(|text| vocabulary.find_token(text.as_bytes())));
        let special_bytes = SpecialTokens::text_bytes(&vocabulary);
        if special_bytes > SPECIAL_BYTES_MAX {
            return Err(TokenizerError::SpecialBytes { found: special_bytes });
        }
        let specials = SpecialTokens::new(&vocabulary);
        Ok(Self {
            specials,
            bos,
            eos,
            eot,
            end_of_generation,
            add_bos: metadata.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(add_bos_default),
            add_eos: metadata.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false),
            add_space_prefix: sentencepiece && metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true),
            vocabulary,
            model,
            notes,
        })
    }

    /// Appends the ids of `text` to `out`.
    ///
    /// `add_special` puts the tokens around it that the file asks for (begin, end). `parse_special` takes the text of
    /// control tokens for the tokens; leave it off for text that a client wrote. User-defined tokens are always found.
    /// Time is O(n log n) in the length of the text whatever it holds.
    ///
    /// # Panics
    /// For texts of 4 GiB and more.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool, out: &mut Vec<u32>) {
        if add_special && self.add_bos {
            out.extend(self.bos);
        }
        let mut merger = Merger::default();
        let mut after_token = true;
        self.specials.partition(&self.vocabulary, text, parse_special, |fragment| match fragment {
            Fragment::Token(id) => {
                out.push(id);
                after_token = true;
            }
            Fragment::Text(text) => {
                match &self.model {
                    Model::Bpe(bpe) => bpe.encode(&self.vocabulary, text, &mut merger, out),
                    Model::Spm(spm) => {
                        let prefix = self.add_space_prefix && after_token;
                        let text = with_plain_spaces(text, prefix);
                        spm.encode(&self.vocabulary, &text, &mut merger, out);
                    }
                }
                after_token = false;
            }
        });
        if add_special && self.add_eos {
            out.extend(self.eos);
        }
    }

    /// Appends the ids of a prompt that a chat template rendered: control tokens are parsed, and the token that begins a
    /// text is added only if the file asks for it and the template has not written it.
    pub fn encode_chat(&self, prompt: &str, out: &mut Vec<u32>) {
        let bos_text = self.bos.map_or(&b""[..], |id| self.token_text(id));
        if self.add_bos && !prompt.as_bytes().starts_with(bos_text) {
            out.extend(self.bos);
        }
        self.encode(prompt, false, true, out);
    }

    /// The bytes that a token adds to the output text: none for control and unknown tokens and for ids outside the
    /// vocabulary. Bytes of one code point may be spread over tokens: see [`Detokenizer`](super::Detokenizer).
    #[inline]
    pub fn piece(&self, id: u32) -> &[u8] {
        if self.vocabulary.kind(id).is_silent() { &[] } else { self.token_text(id) }
    }

    /// As [`piece`](Self::piece), but control and unknown tokens give their names, such as `<|eot_id|>`.
    #[inline]
    pub fn token_text(&self, id: u32) -> &[u8] {
        if (id as usize) < self.vocabulary.len() { self.vocabulary.bytes(id) } else { &[] }
    }

    /// The token that stands for exactly this text, control tokens included.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.vocabulary.find_token(text.as_bytes())
    }

    /// Whether a model that gives this token has finished: end of text, turn or message.
    #[inline]
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.end_of_generation.contains(&id)
    }

    /// Every token that ends a generation, ascending.
    pub fn end_of_generation(&self) -> &[u32] {
        &self.end_of_generation
    }

    /// Whether the token is never shown.
    pub fn is_control(&self, id: u32) -> bool {
        self.vocabulary.kind(id) == TokenKind::Control
    }

    /// What kind of token it is; `Unused` for ids outside the vocabulary.
    pub fn kind(&self, id: u32) -> TokenKind {
        self.vocabulary.kind(id)
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The token that ends a turn, if the vocabulary has one.
    pub fn eot(&self) -> Option<u32> {
        self.eot
    }

    /// Whether `encode` with `add_special` begins with [`bos`](Self::bos).
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    /// Whether `encode` puts a space before text that begins or follows a special token (SentencePiece).
    pub fn adds_space_prefix(&self) -> bool {
        self.add_space_prefix
    }

    /// Number of tokens; ids are below it.
    pub fn vocab_len(&self) -> usize {
        self.vocabulary.len()
    }

    /// What a person should know about how the file was read.
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }
}

/// A SentencePiece text as its tokens spell it: U+2581 is a space, and one goes first if `prefix`.
fn with_plain_spaces(text: &str, prefix: bool) -> std::borrow::Cow<'_, str> {
    if !prefix && !text.contains(SPACE_MARK) {
        return text.into();
    }
    let mut spaced = String::with_capacity(text.len() + 1);
    spaced.extend(prefix.then_some(' '));
    for (i, part) in text.split(SPACE_MARK).enumerate() {
        spaced.extend((i > 0).then_some(' '));
        spaced.push_str(part);
    }
    spaced.into()
}

const MODEL: &str = "tokenizer.ggml.model";
