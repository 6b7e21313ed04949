//! The official models' shapes, reduced to what is odd about their dimensions: each loads within the memory that is stated
//! for it, passes its self test and agrees with the pass in f64.

use gguf::Gguf;
use kernels::Isa;
use kernels::attention::KvType;
use runtime::cli::synth::{self, Preset};
use runtime::crossval::{Options, Reference, cross_validate};
use runtime::model::{HeadScreen, LoadOptions, Model, Source, footprint};
use runtime::selftest::self_test;

#[test]
fn every_official_shape_loads_answers_and_takes_what_is_stated() {
    for preset in Preset::ALL {
        let path = std::env::temp_dir().join(format!("bitnetd-shape-{}-{}.gguf", std::process::id(), preset.name()));
        synth::write_reduced(&path, preset, 3).unwrap();
        let source = Source::open(&path).unwrap();
        let header = source.header().unwrap();
        let stated = footprint(&source, &Gguf::parse(&header, source.bytes()).unwrap(), HeadScreen::Always).unwrap();
        let options = LoadOptions { threads: 2, node: None, context_max: 256, head_screen: HeadScreen::Always };
        let model = Model::load(&source, preset.name().into(), options, &|_, _| {}).unwrap();
        let packed = model.weights.packed_bytes() as u64;
        // The arena is whole pages.
        assert!(
            packed <= stated.bytes.next_multiple_of(2 << 20) + (4 << 20),
            "{}: {packed}, {}",
            preset.name(),
            stated.bytes
        );
        let passed = self_test(&model, Isa::detect(), KvType::F16, 2).unwrap();
        assert_eq!(passed.text.is_empty(), model.weights.params.pooling.is_some(), "{}", preset.name());
        let options = Options {
            min_accuracy: 0.97,
            samples: 1,
            positions_max: None,
            text: None,
            threads: 2,
            kv_type: KvType::F16,
            deadline: None,
        };
        let report = cross_validate(&source, &model, &Reference::Own, &options, &|_, _| {}).unwrap();
        assert_eq!(report.verdict(), Ok(()), "{}", preset.name());
        std::fs::remove_file(&path).unwrap();
    }
}
