//! One model in each ternary layout: the same weights give the same logits, bit for bit, and tiles that are not known are
//! refused.
#![expect(clippy::unwrap_used, reason = "a model that can't be made or loaded fails the test")]

mod harness;

use std::fs;
use std::path::{Path, PathBuf};

use gguf::writer::Writer;
use gguf::{Gguf, TensorType};
use harness::{ROWS_MAX, Rig, load};
use kernels::Isa;
use runtime::cli::synth::{self, Preset};
use runtime::model::{Error, HeadScreen, LoadOptions, Model, Source, TILES_FILE};

/// A folder of the test's own, gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("bitnetd-layouts-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A folder that is left over harms nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn logits(model: &Model) -> Vec<u32> {
    let mut rig = Rig::new(model, Isa::detect(), 2, 1, 64);
    let tokens: Vec<u32> = (0..40).map(|i| i * 7 % 300).collect();
    rig.feed(0, 0, &tokens, ROWS_MAX).concat().iter().map(|logit| logit.to_bits()).collect()
}

fn refusal(path: &Path) -> Error {
    let options = LoadOptions { threads: 1, node: None, context_max: usize::MAX, head_screen: HeadScreen::Off };
    Model::load(&Source::open(path).unwrap(), "refused".into(), options, &|_, _| {}).err().expect("it is refused")
}

/// Copies a model, its metadata through `keep`, its tensors through `kind`.
fn copy(from: &Path, to: &Path, keep: impl Fn(&str) -> bool, kind: impl Fn(TensorType) -> TensorType) {
    let bytes = fs::read(from).unwrap();
    let file = Gguf::parse(&bytes, bytes.len() as u64).unwrap();
    let mut writer = Writer::new(3);
    for (key, value) in file.metadata().iter().filter(|(key, _)| keep(key)) {
        writer.kv(key, *value);
    }
    for tensor in file.tensors() {
        writer.tensor(tensor.name, &tensor.dims[..tensor.dim_count as usize], kind(tensor.kind)).unwrap();
    }
    let mut body = writer.write_header(fs::File::create(to).unwrap()).unwrap();
    for tensor in file.tensors() {
        body.write_tensor(file.data(tensor).unwrap()).unwrap();
    }
    body.finish().unwrap();
}

#[test]
fn the_same_weights_give_the_same_logits_in_every_layout() {
    let folder = Folder::new("same");
    let mut seen: Option<Vec<u32>> = None;
    for kind in [TensorType::I2S, TensorType::Tl1, TensorType::Tl2] {
        let path = folder.path(kind.name());
        synth::write(&path, Preset::Tiny, kind, TensorType::F16, 3, |_, _| {}).unwrap();
        let model = load(Some(&path));
        assert_eq!(model.quantization, kind.name());
        let logits = logits(&model);
        assert!(*seen.get_or_insert_with(|| logits.clone()) == logits, "{}", kind.name());
    }
}

#[test]
fn tl2_files_of_bitnet_cpp_give_the_logits_of_their_i2_s_twins() {
    #[expect(clippy::disallowed_methods, reason = "a test's own switch, not configuration of the server")]
    let Some(oracle) = std::env::var_os("BITNETD_ORACLE").map(PathBuf::from) else {
        println!("skipped: BITNETD_ORACLE is not set");
        return;
    };
    for name in ["tiny-b158", "tiny-bitnet"] {
        let model = |layout: &str| load(Some(&oracle.join(format!("models/{name}-{layout}.gguf"))));
        assert!(logits(&model("i2_s")) == logits(&model("tl2")), "{name}");
    }
}

#[test]
fn tile_sizes_come_from_the_file_beside_or_the_model_is_refused() {
    let folder = Folder::new("beside");
    let (whole, bare) = (folder.path("whole.gguf"), folder.path("bare.gguf"));
    synth::write(&whole, Preset::Tiny, TensorType::Tl2, TensorType::F16, 3, |_, _| {}).unwrap();
    copy(&whole, &bare, |key| key != "bitnetd.tiles", |kind| kind);
    let error = refusal(&bare);
    assert!(matches!(&error, Error::NoTiles { kind: "TL2", .. }), "{error}");
    assert!(error.to_string().contains(TILES_FILE), "{error}");
    let section =
        |m: usize, k: usize, bm: usize| format!("[{m}x{k}]\nm = {m}\nk = {k}\nbm = {bm}\nbk = 96\nbmm = 32\n");
    let ini = [section(256, 256, 256), section(128, 256, 128), section(768, 256, 256), section(256, 768, 256)].concat();
    fs::write(folder.path(TILES_FILE), &ini).unwrap();
    let expected = logits(&load(Some(&whole)));
    assert!(logits(&load(Some(&bare))) == expected);
    // The id that a later bitnet.cpp gives TL2.
    let later = folder.path("later.gguf");
    let rename = |kind| if kind == TensorType::Tl2 { TensorType::Tl2Later } else { kind };
    copy(&bare, &later, |_| true, rename);
    assert!(logits(&load(Some(&later))) == expected);
    fs::write(folder.path(TILES_FILE), ini.replace("bk = 96", "bk = 100")).unwrap();
    let error = refusal(&bare);
    assert!(matches!(&error, Error::BadTensor { why, .. } if why.contains("multiple of 96")), "{error}");
    fs::write(folder.path(TILES_FILE), "no configuration").unwrap();
    assert!(matches!(refusal(&bare), Error::Tiles { .. }));
    // What a model says of itself goes first.
    assert!(logits(&load(Some(&whole))) == expected);
}
