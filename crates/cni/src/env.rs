//! The environment that a runtime calls the plugin with (CNI specification, section 2).

use std::ffi::OsString;
use std::path::PathBuf;

use weft_model::{AttachmentKey, UserError, codes};

use crate::protocol::Pod;
use crate::spec::{Failure, code};

/// What the environment asks for, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invocation {
    /// No `CNI_COMMAND`: a person called, to see what this is.
    About,
    /// VERSION
    Version,
    /// ADD
    Add(Sandbox),
    /// CHECK
    Check(Sandbox),
    /// DEL. Not even its `CNI_NETNS` is looked at: it may be empty, gone, or by now
    /// name somebody else's namespace.
    Del {
        /// The attachment.
        key: AttachmentKey,
        /// The pod, as far as `CNI_ARGS` can be read.
        pod: Pod,
    },
    /// GC
    Gc,
    /// STATUS
    Status,
}

/// What ADD and CHECK are called with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// `CNI_CONTAINERID` and `CNI_IFNAME`.
    pub key: AttachmentKey,
    /// `CNI_NETNS`.
    pub netns: PathBuf,
    /// `CNI_NETNS_OVERRIDE`: the plugin's own namespace is meant, should it be that.
    pub netns_override: bool,
    /// From `CNI_ARGS`.
    pub pod: Pod,
}

/// The variables, checked for being there only as far as a command needs them.
struct Variables<F> {
    lookup: F,
    command: String,
}

// === impl Invocation ===

impl Invocation {
    /// Reads the variables through `lookup`, usually [`std::env::var_os`]. Any that the
    /// specification or a runtime adds to them are ignored.
    ///
    /// # Errors
    /// 4, naming all missing variables at once, or the first invalid one.
    pub fn from_env(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Self, Failure> {
        let Some(command) = lookup("CNI_COMMAND").filter(|value| !value.is_empty()) else {
            return Ok(Self::About);
        };
        let command = command.to_string_lossy().into_owned();
        let variables = Variables { lookup, command };
        match variables.command.as_str() {
            "VERSION" => Ok(Self::Version),
            "STATUS" => Ok(Self::Status),
            "GC" => variables.need(&["CNI_PATH"]).map(|()| Self::Gc),
            "ADD" => variables.sandbox().map(Self::Add),
            "CHECK" => variables.sandbox().map(Self::Check),
            "DEL" => {
                variables.need(&["CNI_CONTAINERID", "CNI_IFNAME"])?;
                Ok(Self::Del {
                    key: variables.key()?,
                    pod: parse_args(&variables.get("CNI_ARGS")?).0,
                })
            }
            other => Err(invalid(format!(
                "CNI_COMMAND is {other:?} and none of ADD, DEL, CHECK, GC, STATUS, VERSION"
            ))),
        }
    }
}

// === impl Variables ===

impl<F: Fn(&str) -> Option<OsString>> Variables<F> {
    /// The specification lets `CNI_PATH` be absent but for GC, and this plugin
    /// never needs it: it calls no other.
    fn need(&self, names: &[&str]) -> Result<(), Failure> {
        let missing: Vec<_> = names
            .iter()
            .copied()
            .filter(|name| (self.lookup)(name).is_none_or(|value| value.is_empty()))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(invalid(format!(
            "{} has to be called with {}, missing or empty",
            self.command,
            missing.join(", ")
        )))
    }

    fn get(&self, name: &str) -> Result<String, Failure> {
        (self.lookup)(name)
            .unwrap_or_default()
            .into_string()
            .map_err(|value| invalid(format!("{name} is {value:?} and not UTF-8")))
    }

    fn key(&self) -> Result<AttachmentKey, Failure> {
        AttachmentKey::new(self.get("CNI_CONTAINERID")?, self.get("CNI_IFNAME")?)
            .map_err(|error| invalid(error.to_string()))
    }

    fn sandbox(&self) -> Result<Sandbox, Failure> {
        self.need(&["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"])?;
        let key = self.key()?;
        let (pod, readable) = parse_args(&self.get("CNI_ARGS")?);
        readable.map_err(invalid)?;
        let netns_override = self.get("CNI_NETNS_OVERRIDE")?;
        Ok(Sandbox {
            key,
            netns: (self.lookup)("CNI_NETNS").unwrap_or_default().into(),
            netns_override: truth(&netns_override).unwrap_or(false),
            pod,
        })
    }
}

/// Reads `CNI_ARGS`, `KEY=value` pairs between semicolons. A key that is not known is an
/// error unless `IgnoreUnknown` is true, as the reference implementation has it. What can
/// be read is read in any case.
fn parse_args(text: &str) -> (Pod, Result<(), String>) {
    let mut pod = Pod::default();
    let mut unknown = None;
    let mut ignore_unknown = false;
    let mut malformed = None;
    for pair in text.split(';').filter(|pair| !pair.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            malformed.get_or_insert_with(|| format!("CNI_ARGS has {pair:?}, which is not KEY=value"));
            continue;
        };
        let field = match key {
            "IgnoreUnknown" => {
                match truth(value) {
                    Some(value) => ignore_unknown = value,
                    None => {
                        malformed.get_or_insert_with(|| {
                            format!("CNI_ARGS has IgnoreUnknown={value:?}, which is neither true nor false")
                        });
                    }
                }
                continue;
            }
            "K8S_POD_NAMESPACE" => &mut pod.namespace,
            "K8S_POD_NAME" => &mut pod.name,
            "K8S_POD_UID" => &mut pod.uid,
            "K8S_POD_INFRA_CONTAINER_ID" => &mut pod.infra_container_id,
            _ => {
                unknown.get_or_insert_with(|| {
                    format!("CNI_ARGS has the unknown key {key:?} and not IgnoreUnknown=1")
                });
                continue;
            }
        };
        *field = (!value.is_empty()).then(|| value.to_owned());
    }
    let problem = malformed.or(unknown.filter(|_| !ignore_unknown));
    (pod, problem.map_or(Ok(()), Err))
}

fn truth(text: &str) -> Option<bool> {
    if text == "1" || text.eq_ignore_ascii_case("true") {
        Some(true)
    } else if text == "0" || text.eq_ignore_ascii_case("false") {
        Some(false)
    } else {
        None
    }
}

fn invalid(message: impl Into<String>) -> Failure {
    let next = "call the plugin through a runtime, or `cnitool add NETWORK NETNS`, which set its variables";
    Failure::new(
        code::ENVIRONMENT,
        &UserError::new(codes::CNI_ENVIRONMENT, message, next),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(variables: &[(&str, &str)]) -> Result<Invocation, Failure> {
        Invocation::from_env(|name| {
            let found = variables.iter().find(|(key, _)| *key == name)?;
            Some(found.1.into())
        })
    }

    fn pod(namespace: &str, name: &str) -> Pod {
        Pod {
            namespace: Some(namespace.to_owned()),
            name: Some(name.to_owned()),
            ..Pod::default()
        }
    }

    #[test]
    fn all_missing_variables_are_named_at_once() {
        let message = |variables: &[(&str, &str)]| {
            let failure = parse(variables).unwrap_err();
            assert_eq!(failure.code, 4);
            failure.msg
        };
        assert_eq!(
            message(&[("CNI_COMMAND", "ADD"), ("CNI_IFNAME", "")]),
            "WEFT-1401: ADD has to be called with CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME, missing or empty"
        );
        assert_eq!(
            message(&[
                ("CNI_COMMAND", "CHECK"),
                ("CNI_NETNS", "/n"),
                ("CNI_IFNAME", "eth0")
            ]),
            "WEFT-1401: CHECK has to be called with CNI_CONTAINERID, missing or empty"
        );
        assert_eq!(
            message(&[("CNI_COMMAND", "DEL")]),
            "WEFT-1401: DEL has to be called with CNI_CONTAINERID, CNI_IFNAME, missing or empty"
        );
        assert_eq!(
            message(&[("CNI_COMMAND", "GC")]),
            "WEFT-1401: GC has to be called with CNI_PATH, missing or empty"
        );
    }

    #[test]
    fn version_and_status_need_nothing_and_no_command_is_a_question() {
        assert_eq!(parse(&[("CNI_COMMAND", "VERSION")]), Ok(Invocation::Version));
        assert_eq!(parse(&[("CNI_COMMAND", "STATUS")]), Ok(Invocation::Status));
        assert_eq!(parse(&[]), Ok(Invocation::About));
        assert_eq!(parse(&[("CNI_COMMAND", "")]), Ok(Invocation::About));
    }

    #[test]
    fn names_that_break_the_rules_are_refused_with_their_value() {
        let message = |command: &str, id: &str, name: &str| {
            let variables = [
                ("CNI_COMMAND", command),
                ("CNI_CONTAINERID", id),
                ("CNI_NETNS", "/n"),
                ("CNI_IFNAME", name),
            ];
            parse(&variables).unwrap_err().msg
        };
        for command in ["ADD", "CHECK", "DEL"] {
            assert!(message(command, "../../etc", "eth0").contains("container ID \"../../etc\""));
            assert!(message(command, "a", "eth0:1").contains("interface name \"eth0:1\""));
        }
        assert!(message("add", "a", "eth0").contains("CNI_COMMAND is \"add\""));
    }

    #[test]
    fn args_name_the_pod_as_kubernetes_runtimes_do() {
        let (read, readable) = parse_args(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=4f1c;\
             K8S_POD_UID=4e7d;SOMETHING=new",
        );
        assert_eq!(readable, Ok(()));
        assert_eq!(
            read,
            Pod {
                uid: Some("4e7d".to_owned()),
                infra_container_id: Some("4f1c".to_owned()),
                ..pod("shop", "web-0")
            }
        );
    }

    #[test]
    fn an_unknown_arg_is_an_error_unless_it_is_to_be_ignored() {
        let add = |args: &str| {
            parse(&[
                ("CNI_COMMAND", "ADD"),
                ("CNI_CONTAINERID", "a"),
                ("CNI_NETNS", "/n"),
                ("CNI_IFNAME", "eth0"),
                ("CNI_ARGS", args),
            ])
            .map_err(|failure| (failure.code, failure.msg))
        };
        for args in [
            "",
            ";",
            "FOO=1;IgnoreUnknown=true",
            "IgnoreUnknown=TRUE;FOO=1",
            "FOO=a=b;IgnoreUnknown=1",
        ] {
            assert!(add(args).is_ok(), "{args}");
        }
        for (args, why) in [
            (
                "FOO=1",
                "CNI_ARGS has the unknown key \"FOO\" and not IgnoreUnknown=1",
            ),
            (
                "FOO=1;IgnoreUnknown=0",
                "CNI_ARGS has the unknown key \"FOO\" and not IgnoreUnknown=1",
            ),
            (
                "IgnoreUnknown=1;FOO",
                "CNI_ARGS has \"FOO\", which is not KEY=value",
            ),
            (
                "IgnoreUnknown=maybe",
                "CNI_ARGS has IgnoreUnknown=\"maybe\", which is neither true nor false",
            ),
        ] {
            assert_eq!(add(args), Err((4, format!("WEFT-1401: {why}"))));
        }
    }

    #[test]
    fn a_del_reads_what_it_can_of_its_args_and_ignores_the_namespace() {
        let del = parse(&[
            ("CNI_COMMAND", "DEL"),
            ("CNI_CONTAINERID", "a"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", "/gone"),
            (
                "CNI_ARGS",
                "broken;FOO=1;K8S_POD_NAME=web-0;K8S_POD_NAMESPACE=shop",
            ),
        ]);
        let key = AttachmentKey::new("a", "eth0").unwrap();
        assert_eq!(
            del,
            Ok(Invocation::Del {
                key,
                pod: pod("shop", "web-0")
            })
        );
    }
}
