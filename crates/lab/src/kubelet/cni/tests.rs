use super::*;

fn list(extra: &str) -> NetworkList {
    NetworkList::parse(&format!(
        r#"{{"cniVersion":"1.1.0","name":"net"{extra},"plugins":[
            {{"type":"one","capabilities":{{"portMappings":true,"mac":false}},"key":1}},{{"type":"two"}}]}}"#
    ))
    .unwrap()
}

fn attachment() -> Attachment {
    let Value::Object(capability_args) =
        json!({"portMappings": [{"hostPort": 80}], "bandwidth": {"ingressRate": 1}, "mac": "x"})
    else {
        unreachable!()
    };
    Attachment {
        container_id: "c0ffee".into(),
        netns: Some("/run/netns/x".into()),
        ifname: "eth0".into(),
        args: vec![
            ("IgnoreUnknown".into(), "1".into()),
            ("K8S_POD_NAME".into(), "web".into()),
        ],
        capability_args,
    }
}

#[test]
fn a_plugin_gets_name_version_previous_result_and_only_the_capabilities_it_declares() {
    let list = list("");
    let config = list.plugin_config(&list.plugins[0], Some(&json!({"ips": []})), Some(&attachment()));
    assert_eq!(
        Value::Object(config),
        json!({
            "type": "one", "key": 1, "name": "net", "cniVersion": "1.1.0", "prevResult": {"ips": []},
            "runtimeConfig": {"portMappings": [{"hostPort": 80}]},
        })
    );
    let plain = list.plugin_config(&list.plugins[1], None, Some(&attachment()));
    assert_eq!(
        Value::Object(plain),
        json!({"type": "two", "name": "net", "cniVersion": "1.1.0"})
    );
}

#[test]
fn the_highest_version_we_know_is_taken() {
    assert_eq!(list("").cni_version, "1.1.0");
    assert_eq!(
        list(r#","cniVersions":["0.4.0","1.0.0","1.2.0"]"#).cni_version,
        "1.0.0"
    );
    assert!(list("").at_least((0, 4, 0)));
    assert!(!list(r#","cniVersions":["0.3.1"]"#).at_least((0, 4, 0)));
}

#[test]
fn a_list_that_no_runtime_would_take_is_refused_with_the_reason() {
    let table = [
        (r#"{"name":"n","plugins":[]}"#, "no plugins in list"),
        (r#"{"name":"n","plugins":[{}]}"#, "a plugin has no \"type\""),
        (r#"{"plugins":[{"type":"x"}]}"#, "key \"name\" is missing"),
        (r#"{"name":"n"}"#, "key \"plugins\" is missing or no array"),
    ];
    for (text, error) in table {
        assert_eq!(NetworkList::parse(text).unwrap_err(), error);
    }
}

#[test]
fn the_environment_of_an_add() {
    let env = environment(Command::Add, Some(&attachment()), Path::new("/bin/cni"));
    let env: Vec<String> = env
        .iter()
        .filter(|(key, _)| *key != "PATH")
        .map(|(key, value)| format!("{key}={}", value.to_string_lossy()))
        .collect();
    assert_eq!(
        env,
        [
            "CNI_COMMAND=ADD",
            "CNI_PATH=/bin/cni",
            "CNI_CONTAINERID=c0ffee",
            "CNI_NETNS=/run/netns/x",
            "CNI_IFNAME=eth0",
            "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME=web",
        ]
    );
}

#[test]
fn failures_read_as_libcni_words_them() {
    use std::os::unix::process::ExitStatusExt;
    let output = |stdout: &str, stderr: &str| Output {
        status: std::process::ExitStatus::from_raw(1 << 8),
        stdout: stdout.into(),
        stderr: stderr.into(),
    };
    let table = [
        (
            output(r#"{"code":11,"msg":"no room","details":"block 10.0.0.0/24"}"#, ""),
            "no room; block 10.0.0.0/24",
        ),
        (output("", "boom\n"), "netplugin failed: \"boom\""),
        (
            output("", ""),
            "netplugin failed with no error message: exit status: 1",
        ),
    ];
    let list = list("");
    for (output, words) in table {
        let error = failed(&list, &list.plugins[0], Command::Add, plugin_failure(&output));
        assert_eq!(
            error.to_string(),
            format!("plugin type=\"one\" name=\"net\" failed (add): {words}")
        );
    }
}

#[test]
fn addresses_of_results_old_and_new() {
    let table = [
        (
            json!({"ips": [{"address": "fd00::1/128"}, {"address": "10.0.0.1/32"}]}),
            vec!["10.0.0.1", "fd00::1"],
        ),
        (json!({"ip4": {"ip": "10.0.0.2/24"}}), vec!["10.0.0.2"]),
        (json!({}), vec![]),
    ];
    for (result, expected) in table {
        let expected: Vec<IpAddr> = expected.iter().map(|ip| ip.parse().unwrap()).collect();
        assert_eq!(addresses(&result), expected);
    }
}
