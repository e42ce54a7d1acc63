//! Archives read back as an importer reads them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use weft_kubetest::oci::{Compression, Image, Tree};

fn image(source: &Path, compression: Compression) -> Image {
    let mut tree = Tree::default();
    tree.file("usr/bin/weft", source, 0o755);
    tree.symlink("/usr/bin/w", "weft");
    tree.directory("tmp", 0o1777);
    tree.bytes("etc/hosts", "127.0.0.1 localhost\n", 0o644);
    tree.bytes("etc/gone", "", 0o644);
    tree.remove("etc/gone");
    Image {
        names: vec!["localhost/weft:1.2".into(), "registry:5000/weft".into()],
        config: json!({"Entrypoint": ["/usr/bin/weft"]}),
        tree,
        compression,
    }
}

/// Name → content of every entry, in the order of a map: the layout gives them none.
fn unpack(archive: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut tar = tar::Archive::new(fs::File::open(archive).unwrap());
    tar.entries()
        .unwrap()
        .map(|entry| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (entry.path().unwrap().display().to_string(), content)
        })
        .collect()
}

fn parse(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

/// What a descriptor points to, its size and digest compared.
fn follow<'a>(blobs: &'a BTreeMap<String, Vec<u8>>, descriptor: &Value) -> &'a [u8] {
    let digest = descriptor["digest"].as_str().unwrap();
    let blob = &blobs[&format!("blobs/{}", digest.replace(':', "/"))];
    assert_eq!(descriptor["size"], blob.len());
    assert_eq!(digest, sha256(blob));
    blob
}

#[test]
fn an_importer_finds_every_part_under_its_digest() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::write(&source, b"\x7fELF").unwrap();
    for compression in [Compression::None, Compression::Gzip] {
        let archive = dir.path().join("image.tar");
        let digest = image(&source, compression).write(&archive).unwrap();

        let blobs = unpack(&archive);
        assert_eq!(
            blobs.len(),
            5,
            "layout, index, config, manifest, layer: {:?}",
            blobs.keys()
        );
        assert_eq!(
            parse(&blobs["oci-layout"]),
            json!({"imageLayoutVersion": "1.0.0"})
        );
        let index = parse(&blobs["index.json"]);
        let annotations: Vec<_> = index["manifests"]
            .as_array()
            .unwrap()
            .iter()
            .inspect(|manifest| assert_eq!(manifest["digest"], digest))
            .map(|manifest| manifest["annotations"].clone())
            .collect();
        assert_eq!(
            annotations,
            [
                json!({"io.containerd.image.name": "localhost/weft:1.2", "org.opencontainers.image.ref.name": "1.2"}),
                json!({"io.containerd.image.name": "registry:5000/weft", "org.opencontainers.image.ref.name": "latest"}),
            ]
        );
        let manifest = parse(follow(&blobs, &index["manifests"][0]));
        let config = parse(follow(&blobs, &manifest["config"]));
        assert_eq!(config["config"], json!({"Entrypoint": ["/usr/bin/weft"]}));
        assert_eq!(config["created"], "1970-01-01T00:00:00Z");
        let stored = follow(&blobs, &manifest["layers"][0]);
        let mut layer = Vec::new();
        match compression {
            Compression::None => layer.extend_from_slice(stored),
            Compression::Gzip => _ = GzDecoder::new(stored).read_to_end(&mut layer).unwrap(),
        }
        assert_eq!(config["rootfs"]["diff_ids"], json!([sha256(&layer)]));

        let mut tar = tar::Archive::new(layer.as_slice());
        let entries: Vec<_> = tar
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let header = entry.header();
                let owner = (
                    header.uid().unwrap(),
                    header.gid().unwrap(),
                    header.mtime().unwrap(),
                );
                assert_eq!(owner, (0, 0, 0));
                let path = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
                (path, header.mode().unwrap(), header.size().unwrap())
            })
            .collect();
        let expected = [
            ("etc/", 0o755, 0),
            ("etc/hosts", 0o644, 20),
            ("tmp/", 0o1777, 0),
            ("usr/", 0o755, 0),
            ("usr/bin/", 0o755, 0),
            ("usr/bin/w", 0o777, 0),
            ("usr/bin/weft", 0o755, 4),
        ];
        assert_eq!(
            entries,
            expected.map(|(path, mode, size)| (path.to_owned(), mode, size))
        );
    }
}

#[test]
fn equal_contents_give_equal_archives_at_any_time() {
    let dir = tempfile::tempdir().unwrap();
    let archives = ["one", "two"].map(|name| {
        // A new file each time, with an inode, a date and a mode of its own.
        let source = dir.path().join(format!("{name}.source"));
        fs::write(&source, b"\x7fELF").unwrap();
        let dated = fs::File::open(&source).unwrap();
        let date = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(name.len() as u64);
        dated.set_modified(date).unwrap();
        let archive = dir.path().join(name);
        image(&source, Compression::Gzip).write(&archive).unwrap();
        fs::read(archive).unwrap()
    });
    assert!(
        archives[0] == archives[1],
        "two archives of the same contents differ"
    );
}

#[test]
fn a_missing_file_is_named_and_leaves_no_archive() {
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("image.tar");
    let error = image(Path::new("/no/such/weft"), Compression::None)
        .write(&archive)
        .unwrap_err();
    assert!(format!("{error:#}").contains("/no/such/weft"), "{error:#}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
