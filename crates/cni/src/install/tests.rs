use std::os::unix::fs::symlink;

use super::*;

struct Fixture {
    dir: tempfile::TempDir,
    conf: ConfDir,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let conf = ConfDir::new(dir.path(), CONF_NAME.parse().unwrap());
        Self { dir, conf }
    }

    fn put(&self, name: &str, content: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn ours() -> Vec<u8> {
    conflist(
        Path::new("/run/weft/agent.sock"),
        Path::new("/var/lib/weft/intents"),
        &[],
        Version::LATEST,
    )
}

const BRIDGE: &str = r#"{"cniVersion":"1.0.0","name":"old","plugins":[{"type":"bridge"}]}"#;

#[test]
fn the_configuration_chains_what_was_asked_for_after_ours() {
    let list = conflist(
        Path::new("/s"),
        Path::new("/i"),
        &[Chained::Portmap],
        Version::V1_0_0,
    );
    let list: Value = serde_json::from_slice(&list).unwrap();
    assert_eq!(
        list,
        json!({"cniVersion": "1.0.0", "name": "weft", "plugins": [
            {"type": "weft-cni", "socket": "/s", "intentDir": "/i"},
            {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
        ]})
    );
}

#[test]
fn a_configuration_is_written_once_and_readable_by_root_alone() {
    let fixture = Fixture::new();
    assert!(fixture.conf.write(&ours()).unwrap());
    assert!(!fixture.conf.write(&ours()).unwrap());
    let mode = fs::metadata(fixture.conf.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(fixture.names(), [CONF_NAME]);

    fixture.put(CONF_NAME, "half of it");
    assert!(fixture.conf.write(&ours()).unwrap());
    assert_eq!(fs::read(fixture.conf.path()).unwrap(), ours());
}

#[test]
fn a_symbolic_link_at_the_target_is_replaced_and_what_it_leads_to_left_alone() {
    let fixture = Fixture::new();
    let elsewhere = fixture.put("precious", "precious");
    symlink(&elsewhere, fixture.conf.path()).unwrap();
    symlink(&elsewhere, fixture.dir.path().join(format!(".{CONF_NAME}.next"))).unwrap();
    assert!(fixture.conf.write(&ours()).unwrap());
    assert!(fs::symlink_metadata(fixture.conf.path()).unwrap().is_file());
    assert_eq!(fs::read(&elsewhere).unwrap(), b"precious");
    assert_eq!(fixture.names(), [CONF_NAME, "precious"]);
}

#[test]
fn a_directory_at_the_target_is_an_error_that_leaves_nothing() {
    let fixture = Fixture::new();
    fs::create_dir(fixture.conf.path()).unwrap();
    let error = fixture.conf.write(&ours()).unwrap_err();
    assert_eq!(error.code(), codes::CNI_INSTALL);
    assert!(error.message().contains(CONF_NAME), "{error}");
    assert_eq!(fixture.names(), [CONF_NAME]);
}

#[test]
fn another_plugins_configuration_counts_only_where_runtimes_would_take_it() {
    let fixture = Fixture::new();
    fixture.put("20-bridge.conflist", BRIDGE);
    fixture.put("05-bridge.conflist.disabled", BRIDGE);
    fixture.put("00-multus.conf", r#"{"type":"multus-shim"}"#);
    fixture.put("01-weft.conflist", std::str::from_utf8(&ours()).unwrap());
    fs::create_dir(fixture.dir.path().join("02-dir.conflist")).unwrap();
    assert_eq!(fixture.conf.shadowed_by().unwrap(), None);

    for (name, content) in [
        ("10-bridge.conf", r#"{"type":"bridge"}"#),
        ("09-x.json", "{"),
        ("05-b.conflist", BRIDGE),
    ] {
        let path = fixture.put(name, content);
        assert_eq!(fixture.conf.shadowed_by().unwrap(), Some(path.clone()));
        let error = fixture.conf.conflict(&path);
        assert_eq!(error.code(), codes::CNI_CONFLICT);
        assert!(error.message().contains(name), "{error}");
    }
}

#[test]
fn a_directory_that_is_not_there_shadows_nothing_and_is_made() {
    let fixture = Fixture::new();
    let conf = ConfDir::new(fixture.dir.path().join("net.d"), CONF_NAME.parse().unwrap());
    assert_eq!(conf.shadowed_by().unwrap(), None);
    assert_eq!(conf.remove().unwrap(), Vec::<PathBuf>::new());
    assert!(conf.write(&ours()).unwrap());
}

#[test]
fn our_configuration_has_one_name_and_only_ours_is_removed() {
    let fixture = Fixture::new();
    let earlier = fixture.put("05-weft.conflist", std::str::from_utf8(&ours()).unwrap());
    let other = fixture.put("99-bridge.conflist", BRIDGE);
    fixture.conf.write(&ours()).unwrap();
    assert!(!earlier.exists());
    assert_eq!(fixture.conf.remove().unwrap(), [fixture.conf.path()]);
    assert!(other.exists());
}

#[test]
fn the_plugin_is_replaced_only_if_it_is_another_and_can_be_executed() {
    let fixture = Fixture::new();
    let bin = fixture.dir.path().join("bin");
    let source = fixture.put("source", "program, version 1");
    assert!(install_plugin(&source, &bin).unwrap());
    assert!(!install_plugin(&source, &bin).unwrap());
    fixture.put("source", "program, version 2");
    assert!(install_plugin(&source, &bin).unwrap());
    let plugin = bin.join(PLUGIN);
    assert_eq!(fs::read(&plugin).unwrap(), b"program, version 2");
    assert_eq!(fs::metadata(&plugin).unwrap().permissions().mode() & 0o777, 0o755);
    assert!(remove_plugin(&bin).unwrap());
    assert!(!remove_plugin(&bin).unwrap());
    assert_eq!(
        install_plugin(Path::new("/nonexistent"), &bin)
            .unwrap_err()
            .code(),
        codes::CNI_INSTALL
    );
}

#[test]
fn a_loopback_is_added_and_brought_up_to_date_and_never_taken_from_another() {
    let fixture = Fixture::new();
    let bin = fixture.dir.path().join("bin");
    let loopback = bin.join(LOOPBACK);
    for version in ["1", "2"] {
        let source = fixture.put("source", &format!("weft-cni {version}: {ABOUT}\n"));
        assert!(install_loopback(&source, &bin).unwrap());
        assert!(!install_loopback(&source, &bin).unwrap());
        assert!(
            fs::read_to_string(&loopback)
                .unwrap()
                .starts_with(&format!("weft-cni {version}"))
        );
    }
    assert!(remove_plugin(&bin).unwrap());
    assert!(!loopback.exists());

    fs::write(&loopback, "the reference plugin").unwrap();
    let source = fixture.put("source", &format!("weft-cni 2: {ABOUT}\n"));
    assert!(!install_loopback(&source, &bin).unwrap());
    assert!(!remove_plugin(&bin).unwrap());
    assert_eq!(fs::read(&loopback).unwrap(), b"the reference plugin");
}

#[test]
fn a_name_that_runtimes_would_not_read_is_refused() {
    for name in ["10-weft.conflist", "x.conflist"] {
        assert!(name.parse::<ConfName>().is_ok(), "{name}");
    }
    for name in [
        "",
        "weft",
        "weft.conf",
        ".conflist",
        "../a.conflist",
        "a/b.conflist",
        "..conflist",
    ] {
        assert!(name.parse::<ConfName>().is_err(), "{name}");
    }
}
