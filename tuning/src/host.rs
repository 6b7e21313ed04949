//! What the machine calls itself.
use std::fs;
use std::path::Path;

/// The cpu's name as its maker gives it; on machines that give none, the board's name or the architecture.
#[must_use]
pub fn cpu_model() -> String {
    cpu_model_of(Path::new("/proc"), Path::new("/sys"))
}

fn cpu_model_of(proc_root: &Path, sys: &Path) -> String {
    let cpuinfo = fs::read_to_string(proc_root.join("cpuinfo")).unwrap_or_default();
    let named = cpuinfo.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (matches!(key.trim(), "model name" | "cpu model" | "Processor") && !value.trim().is_empty())
            .then(|| value.trim().to_owned())
    });
    let board = || fs::read_to_string(sys.join("firmware/devicetree/base/model")).ok();
    let tidy = |name: String| name.trim_end_matches('\0').split_whitespace().collect::<Vec<_>>().join(" ");
    named.or_else(board).map_or_else(|| std::env::consts::ARCH.to_owned(), tidy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_has_a_name() {
        assert!(!cpu_model().is_empty());
    }

    #[test]
    fn without_files_the_architecture_stands_in() {
        let nowhere = Path::new("/nonexistent");
        assert_eq!(cpu_model_of(nowhere, nowhere), std::env::consts::ARCH);
    }
}
