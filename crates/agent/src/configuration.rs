//! The network configuration that sends a container runtime to this agent.
//!
//! It appears when the node serves pods for the first time, never before: a runtime that finds it reports the node ready.
//! Then it stays, also while the agent can't serve; STATUS tells runtimes of that.

use crate::Args;
use crate::chain::Asked;
use std::path::PathBuf;
use weft_cni::install::{Chained, ConfDir, conflist};
use weft_cni::spec::Version;
use weft_model::UserError;

/// Keeps our configuration in a runtime's directory.
#[derive(Debug)]
pub struct Configuration {
    conf: ConfDir,
    socket: PathBuf,
    intent_dir: PathBuf,
    bin_dir: PathBuf,
    /// Plugins to chain, and what they answered.
    chained: Vec<(Chained, Option<Asked>)>,
    /// What was found at the last look, so that only news are logged.
    state: State,
}

/// Whether runtimes find our configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Nobody asked for one, or the node has not served yet.
    #[default]
    Absent,
    /// It is there and the first.
    InPlace {
        /// A plugin that was to be chained and isn't there, or knows no version of CNI that Weft knows.
        missing: Option<UserError>,
    },
    /// Another plugin's is first.
    Shadowed(UserError),
    /// It can't be written.
    Failed(UserError),
}

// === impl Configuration ===

impl Configuration {
    /// As the command line has it; `None` where it wants none.
    pub fn of(args: &Args) -> Option<Self> {
        Some(Self {
            conf: ConfDir::new(args.cni_conf_dir.as_ref()?, args.cni_conf_name.clone()),
            socket: args.socket(),
            intent_dir: args.intent_dir(),
            bin_dir: args.cni_bin_dir.clone(),
            chained: args.cni_chain.iter().map(|plugin| (*plugin, None)).collect(),
            state: State::Absent,
        })
    }

    /// Looks, and puts the configuration in place where it is missing or another. It is not written while another
    /// plugin's is first: that one serves the node's pods.
    pub fn keep(&mut self) -> &State {
        let state = match self.look() {
            Ok(state) => state,
            Err(error) => State::Failed(error),
        };
        if state != self.state {
            match &state {
                State::Absent => {}
                State::InPlace { missing: None } => {
                    tracing::info!(path = %self.conf.path().display(), "runtimes find the network configuration");
                }
                State::InPlace { missing: Some(error) } | State::Shadowed(error) | State::Failed(error) => {
                    tracing::error!(code = %error.code(), next = error.next(), "{}", error.message());
                }
            }
            self.state = state;
        }
        &self.state
    }

    fn look(&mut self) -> Result<State, UserError> {
        if let Some(other) = self.conf.shadowed_by()? {
            return Ok(State::Shadowed(self.conf.conflict(&other)));
        }
        let (mut version, mut there, mut missing) = (Version::LATEST, Vec::new(), None);
        for (plugin, asked) in &mut self.chained {
            match Asked::newest(asked, &self.bin_dir.join(plugin.name())) {
                Ok(newest) => {
                    version = version.min(newest);
                    there.push(*plugin);
                }
                Err(error) => {
                    missing.get_or_insert(error);
                }
            }
        }
        self.conf
            .write(&conflist(&self.socket, &self.intent_dir, &there, version))?;
        Ok(State::InPlace { missing })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use weft_model::codes;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    struct Fixture {
        dir: tempfile::TempDir,
        configuration: Configuration,
    }

    impl Fixture {
        fn new(chain: &[&str]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let sub = |name| dir.path().join(name).to_string_lossy().into_owned();
            let flags = [
                "agent",
                "--node-name",
                "n1",
                "--cni-conf-dir",
                &sub("net.d"),
                "--cni-bin-dir",
                &sub("bin"),
            ];
            let command =
                Command::try_parse_from(flags.iter().chain(chain)).unwrap_or_else(|error| panic!("{error}"));
            fs::create_dir(dir.path().join("bin")).unwrap();
            let configuration = Configuration::of(&command.args).unwrap();
            Self { dir, configuration }
        }

        fn list(&self) -> serde_json::Value {
            let list = fs::read(self.dir.path().join("net.d/10-weft.conflist")).unwrap();
            serde_json::from_slice(&list).unwrap()
        }

        /// A plugin that answers VERSION with these.
        fn portmap(&self, versions: &str) {
            let script = format!(
                "#!/bin/sh\n[ $CNI_COMMAND = VERSION ] && echo '{{\"supportedVersions\": [{versions}]}}'\n"
            );
            let path = self.dir.path().join("bin/portmap");
            // Never written while it runs: replaced, as installers do it.
            let next = path.with_extension("next");
            fs::write(&next, script).unwrap();
            fs::set_permissions(&next, fs::Permissions::from_mode(0o755)).unwrap();
            fs::rename(next, path).unwrap();
        }

        fn types(&self) -> Vec<String> {
            let list = self.list();
            let plugins = list["plugins"].as_array().unwrap();
            plugins
                .iter()
                .map(|plugin| plugin["type"].as_str().unwrap().to_owned())
                .collect()
        }
    }

    #[test]
    fn it_is_written_once_no_other_plugin_comes_first_and_put_back_when_it_is_gone() {
        let mut fixture = Fixture::new(&[]);
        let net_d = fixture.dir.path().join("net.d");
        fs::create_dir(&net_d).unwrap();
        let bridge = net_d.join("05-bridge.conflist");
        fs::write(&bridge, "{}").unwrap();
        assert!(
            matches!(fixture.configuration.keep(), State::Shadowed(error) if error.code() == codes::CNI_CONFLICT)
        );
        assert!(!net_d.join("10-weft.conflist").exists());

        fs::remove_file(&bridge).unwrap();
        assert_eq!(fixture.configuration.keep(), &State::InPlace { missing: None });
        assert_eq!(fixture.types(), ["weft-cni"]);

        fs::remove_file(net_d.join("10-weft.conflist")).unwrap();
        fixture.configuration.keep();
        assert_eq!(fixture.types(), ["weft-cni"]);
    }

    #[test]
    fn a_plugin_is_chained_from_the_moment_it_is_there() {
        let mut fixture = Fixture::new(&["--cni-chain", "portmap"]);
        assert!(matches!(
            fixture.configuration.keep(),
            State::InPlace { missing: Some(error) } if error.code() == codes::CNI_CHAIN
        ));
        assert_eq!(fixture.types(), ["weft-cni"]);

        fixture.portmap(r#""1.0.0", "1.1.0""#);
        assert_eq!(fixture.configuration.keep(), &State::InPlace { missing: None });
        assert_eq!(fixture.types(), ["weft-cni", "portmap"]);
        assert_eq!(fixture.list()["cniVersion"], "1.1.0");
    }

    #[test]
    fn the_list_has_the_newest_version_that_the_whole_chain_knows() {
        let mut fixture = Fixture::new(&["--cni-chain", "portmap"]);
        // Release 1.1.1 of the reference plugins.
        fixture.portmap(r#""0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0""#);
        assert_eq!(fixture.configuration.keep(), &State::InPlace { missing: None });
        assert_eq!(fixture.types(), ["weft-cni", "portmap"]);
        assert_eq!(fixture.list()["cniVersion"], "1.0.0");

        fixture.portmap(r#""1.0.0", "1.1.0", "1.2.0""#);
        fixture.configuration.keep();
        assert_eq!(fixture.list()["cniVersion"], "1.1.0");

        fixture.portmap(r#""9.0.0""#);
        assert!(matches!(
            fixture.configuration.keep(),
            State::InPlace { missing: Some(error) } if error.message().contains("[\"9.0.0\"]")
        ));
        assert_eq!(fixture.types(), ["weft-cni"]);
        assert_eq!(fixture.list()["cniVersion"], "1.1.0");

        // Linked to libraries that the agent's container has not.
        fs::write(fixture.dir.path().join("bin/portmap"), "no program").unwrap();
        assert_eq!(fixture.configuration.keep(), &State::InPlace { missing: None });
        assert_eq!(fixture.types(), ["weft-cni", "portmap"]);
        assert_eq!(fixture.list()["cniVersion"], "1.0.0");
    }
}
