//! The files generated from the types are those in the repository. `WEFT_BLESS=1 cargo test -p weft-api` writes them.

mod reference;

use std::fs;
use std::path::PathBuf;

#[test]
fn the_charts_definitions_are_up_to_date() {
    for crd in weft_api::crds() {
        let path = format!("deploy/helm/weft/crds/{}.yaml", crd.spec.names.plural);
        let yaml = serde_saphyr::to_string(&crd).unwrap();
        compare(
            &path,
            &format!("# Generated from crates/api; see crates/api/tests/generated.\n{yaml}"),
        );
    }
}

#[test]
fn the_reference_of_the_types_is_up_to_date() {
    compare("docs/reference/crds.md", &reference::page(&weft_api::crds()));
}

/// The file at `path` below the repository's root holds `expected`.
fn compare(path: &str, expected: &str) {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    if std::env::var_os("WEFT_BLESS").is_some() {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, expected).unwrap();
        return;
    }
    let present = fs::read_to_string(&file).unwrap_or_default();
    assert!(
        present == expected,
        "{path} is not what crates/api generates: run WEFT_BLESS=1 cargo test -p weft-api and look at the difference"
    );
}
