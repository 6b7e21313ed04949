//! The project's shape as a test: crate edges, orphan files, first lines, sizes, top level, leftovers.
#![expect(clippy::unwrap_used, reason = "a tree that cannot be read fails the test")]
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a crate may depend on within the workspace.
const EDGES: [(&str, &[&str]); 6] = [
    ("gguf", &[]),
    ("kernels", &[]),
    ("tuning", &[]),
    ("net", &[]),
    ("runtime", &["net", "gguf", "kernels", "tuning"]),
    ("bench", &["net", "gguf", "kernels", "tuning", "runtime"]),
];

const TOP_LEVEL: [&str; 18] = [
    ".ci",
    ".clippy.toml",
    ".gitignore",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "bench",
    "deny.toml",
    "docs",
    "fuzz",
    "gguf",
    "kernels",
    "net",
    "runtime",
    "rustfmt.toml",
    "systemd",
    "tuning",
];

const LINES_MAX: usize = 700;

/// Kinds of text in which nothing may be left over from the making.
const TEXT_EXTENSIONS: [&str; 11] = ["rs", "toml", "md", "cu", "cuh", "service", "sh", "html", "js", "css", "yml"];

/// Spelled in parts, so that this file does not contain them.
const LEFTOVERS: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("/wo", "rk/")];

#[test]
fn project_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let findings = findings(root);
    assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
}

#[test]
fn every_kind_of_disorder_is_found() {
    let root = std::env::temp_dir().join(format!("tidy-{}", std::process::id()));
    let write = |path: &str, text: &str| {
        fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
        fs::write(root.join(path), text).unwrap();
    };
    for (name, _) in EDGES {
        write(&format!("{name}/Cargo.toml"), "[package]\n");
        write(&format!("{name}/src/lib.rs"), "//! Root.\nmod a;\n");
        write(&format!("{name}/src/a.rs"), "//! Folder.\npub(crate) mod b;\n");
        write(&format!("{name}/src/a/b.rs"), "//! Leaf.\n");
    }
    assert_eq!(findings(&root), Vec::<String>::new());
    write("gguf/Cargo.toml", "[dev-dependencies]\nkernels.workspace = true\n");
    write(
        "net/Cargo.toml",
        "[target.'cfg(unix)'.dependencies]\nalias = { package = \"tuning\", path = \"../tuning\" }\n",
    );
    write("gguf/src/a/orphan.rs", "//! Nobody imports this.\n");
    write("tuning/src/lib.rs", "// No purpose.\nmod a;\n");
    write("kernels/src/a/b.rs", &format!("//! Long.\n{}", "\n".repeat(LINES_MAX)));
    write("net/src/a/b.rs", &format!("//! Left over.\n// {} later\n", concat!("TO", "DO")));
    write("scratch.txt", "");
    let found = findings(&root);
    fs::remove_dir_all(&root).unwrap();
    for expected in [
        "gguf/Cargo.toml: gguf must not know kernels",
        "net/Cargo.toml: net must not know tuning",
        "gguf/src/a/orphan.rs: no mod declaration leads here",
        "tuning/src/lib.rs: the first line does not begin with //!",
        "kernels/src/a/b.rs: 701 lines, the most is 700",
        concat!("net/src/a/b.rs:2: contains ", "TO", "DO"),
        "scratch.txt: is no part of the top level",
    ] {
        assert!(found.iter().any(|finding| finding == expected), "{expected} is not among {found:#?}");
    }
    assert_eq!(found.len(), 7, "{found:#?}");
}

fn findings(root: &Path) -> Vec<String> {
    let mut findings = Vec::new();
    for (name, allowed) in EDGES {
        check_edges(root, name, allowed, &mut findings);
        check_orphans(root, name, &mut findings);
    }
    let top_level = top_level(root);
    for entry in &top_level {
        if !TOP_LEVEL.contains(&entry.as_str()) {
            findings.push(format!("{entry}: is no part of the top level"));
        }
    }
    for entry in top_level.iter().filter(|entry| TOP_LEVEL.contains(&entry.as_str())) {
        for path in files_under(&root.join(entry)) {
            check_text(root, &path, &mut findings);
        }
    }
    findings
}

fn check_edges(root: &Path, name: &str, allowed: &[&str], findings: &mut Vec<String>) {
    let manifest: toml::Table = fs::read_to_string(root.join(name).join("Cargo.toml")).unwrap().parse().unwrap();
    let targets = manifest.get("target").and_then(toml::Value::as_table).into_iter().flat_map(toml::Table::values);
    let sections = targets.filter_map(toml::Value::as_table).chain([&manifest]).flat_map(|table| {
        ["dependencies", "dev-dependencies", "build-dependencies"]
            .into_iter()
            .filter_map(|section| table.get(section)?.as_table())
    });
    for (key, value) in sections.flatten() {
        let package = value.get("package").and_then(toml::Value::as_str).unwrap_or(key);
        let is_ours = EDGES.iter().any(|(ours, _)| *ours == package);
        if is_ours && !allowed.contains(&package) {
            findings.push(format!("{name}/Cargo.toml: {name} must not know {package}"));
        }
    }
}

/// Files under `src` that no chain of `mod name;` from a crate root leads to.
fn check_orphans(root: &Path, name: &str, findings: &mut Vec<String>) {
    let source = root.join(name).join("src");
    let mut open: Vec<PathBuf> =
        ["lib.rs", "main.rs"].iter().map(|file| source.join(file)).filter(|path| path.exists()).collect();
    open.extend(files_under(&source.join("bin")).into_iter().filter(|path| is_rust(path)));
    let mut reached = BTreeSet::new();
    while let Some(path) = open.pop() {
        let text = fs::read_to_string(&path).unwrap();
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let folder = path.parent().unwrap();
        let is_root = matches!(stem, "mod" | "lib" | "main") || folder.ends_with("src/bin");
        let below = if is_root { folder.to_path_buf() } else { folder.join(stem) };
        for module in text.lines().filter_map(declared_module) {
            let candidates = [below.join(format!("{module}.rs")), below.join(module).join("mod.rs")];
            open.extend(candidates.into_iter().filter(|candidate| candidate.exists() && !reached.contains(candidate)));
        }
        reached.insert(path);
    }
    for path in files_under(&source).into_iter().filter(|path| is_rust(path) && !reached.contains(path)) {
        findings.push(format!("{}: no mod declaration leads here", relative(root, &path)));
    }
}

/// `name` of a line `mod name;`, whatever its visibility; modules in braces have no file.
fn declared_module(line: &str) -> Option<&str> {
    let declaration = line.trim().strip_suffix(';')?;
    let (before, name) = declaration.rsplit_once(' ')?;
    let is_module = before == "mod" || before.ends_with(" mod") && before.starts_with("pub");
    is_module.then_some(name)
}

fn check_text(root: &Path, path: &Path, findings: &mut Vec<String>) {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let is_script = path.ends_with(".ci/run");
    if !TEXT_EXTENSIONS.contains(&extension) && !is_script {
        return;
    }
    let Ok(text) = fs::read_to_string(path) else {
        findings.push(format!("{}: is no UTF-8", relative(root, path)));
        return;
    };
    if extension == "rs" {
        if !text.starts_with("//!") {
            findings.push(format!("{}: the first line does not begin with //!", relative(root, path)));
        }
        let lines = text.lines().count();
        if lines > LINES_MAX {
            findings.push(format!("{}: {lines} lines, the most is {LINES_MAX}", relative(root, path)));
        }
    }
    for (line, number) in text.lines().zip(1..) {
        for leftover in LEFTOVERS.iter().filter(|leftover| line.contains(**leftover)) {
            findings.push(format!("{}:{number}: contains {leftover}", relative(root, path)));
        }
    }
}

/// Tracked entries where git can tell, else what lies there, less what is built or belongs to git.
fn top_level(root: &Path) -> BTreeSet<String> {
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root).output();
    let from_git = listed.ok().filter(|output| output.status.success() && root.join(".git").exists());
    if let Some(output) = from_git {
        let names = String::from_utf8(output.stdout).unwrap();
        return names.split_terminator('\0').map(|path| path.split('/').next().unwrap().to_owned()).collect();
    }
    let entries = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    entries.filter(|name| !matches!(name.as_str(), ".git" | "target")).collect()
}

/// All files below a folder (or the file itself), in order; build folders and links are passed over.
fn files_under(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_path_buf()];
    }
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| !path.is_symlink() && !BUILT_FOLDERS.iter().any(|folder| path.ends_with(folder)));
    paths.sort();
    paths.iter().flat_map(|path| files_under(path)).collect()
}

fn is_rust(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "rs")
}

fn relative(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}

/// Left by cargo and the fuzzers, ignored by git.
const BUILT_FOLDERS: [&str; 4] = ["target", "fuzz/corpus", "fuzz/artifacts", "node_modules"];
