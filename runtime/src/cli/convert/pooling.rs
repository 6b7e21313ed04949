//! How a checkpoint says that texts become vectors: modules.json of sentence-transformers, and the file it points to.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::Error;
use super::json;

#[derive(Deserialize)]
struct Module {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: String,
}

/// llama.cpp's number of the pooling in `folder`; `None` where it says nothing.
pub(super) fn read(folder: &Path) -> Result<Option<u32>, Error> {
    let modules: Option<Vec<Module>> = json::read_optional(&folder.join("modules.json"))?;
    let Some(module) = modules.iter().flatten().find(|module| module.kind.ends_with("Pooling")) else {
        return Ok(None);
    };
    let found = || Error::Config { key: "modules.json", found: module.path.chars().take(64).collect() };
    // A name with a folder in it could lead anywhere.
    if module.path.contains('/') || module.path.starts_with('.') || module.path.is_empty() {
        return Err(found());
    }
    let modes: Value = json::read(&folder.join(&module.path).join("config.json"))?;
    let on = |mode: &&(&str, u32)| modes[mode.0] == true;
    match MODES.iter().filter(on).collect::<Vec<_>>()[..] {
        [(_, number)] => Ok(Some(*number)),
        _ => Err(Error::Config { key: "pooling_mode", found: modes.to_string().chars().take(256).collect() }),
    }
}

const MODES: [(&str, u32); 3] =
    [("pooling_mode_mean_tokens", 1), ("pooling_mode_cls_token", 2), ("pooling_mode_lasttoken", 3)];
