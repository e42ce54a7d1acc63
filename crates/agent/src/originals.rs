//! The values that kernel parameters of the whole node had before an agent changed them, so that `weft node cleanup` can
//! put them back. Those of an interface go with it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use weft_cni::install::{open_own, place};
use weft_kernel::sysctl::{self, Key};
use weft_model::{UserError, codes};

pub const FILE: &str = "sysctls.json";

/// The record in a state directory.
#[derive(Clone, Debug)]
pub struct Originals {
    dir: PathBuf,
}

/// What a parameter was, and what the agent made of it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Change {
    was: String,
    made: String,
}

// === impl Originals ===

impl Originals {
    pub fn of(state_dir: &Path) -> Self {
        Self {
            dir: state_dir.to_owned(),
        }
    }

    /// Sets a parameter, after its value was noted on disk. Returns whether it had another one.
    ///
    /// # Errors
    /// The value can't be noted, in which case it is not changed, or not be set.
    pub fn set(&self, key: &Key, value: &str) -> Result<bool, UserError> {
        let was = sysctl::read_current(key).map_err(|error| refused(&error))?;
        if was == value {
            return Ok(false);
        }
        let mut noted = self.read()?;
        noted.entry(key.to_string()).or_insert_with(|| Change {
            was,
            made: value.to_owned(),
        });
        let text = serde_json::to_vec(&noted).map_err(|error| self.unusable(&error.into()))?;
        place(&self.dir, FILE, &text, 0o600).map_err(|error| self.unusable(&error))?;
        sysctl::write_current(&[(key.clone(), value.to_owned())])
            .map(|changed| !changed.is_empty())
            .map_err(|error| refused(&error))
    }

    /// Puts back what is as the agent made it; a parameter that somebody changed since is theirs. Returns what it put
    /// back.
    ///
    /// # Errors
    /// The record can't be read, or a parameter not be set.
    pub fn restore(&self) -> Result<Vec<Key>, UserError> {
        let mut restored = Vec::new();
        for (name, change) in self.read()? {
            let put_back = move || -> Result<Option<Key>, weft_kernel::Error> {
                let key = Key::new(name)?;
                if sysctl::read_current(&key)? != change.made {
                    return Ok(None);
                }
                sysctl::write_current(&[(key.clone(), change.was)])?;
                Ok(Some(key))
            };
            restored.extend(put_back().map_err(|error| refused(&error))?);
        }
        Ok(restored)
    }

    fn read(&self) -> Result<BTreeMap<String, Change>, UserError> {
        match open_own(&self.dir.join(FILE)).and_then(io::read_to_string) {
            Ok(text) => serde_json::from_str(&text).map_err(|error| self.unusable(&error.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(self.unusable(&error)),
        }
    }

    fn unusable(&self, error: &io::Error) -> UserError {
        let path = self.dir.join(FILE);
        UserError::new(
            codes::STATE_DIRECTORY,
            format!("{}: {error}", path.display()),
            format!(
                "remove {}; its parameters are then not put back at the end",
                path.display()
            ),
        )
    }
}

fn refused(error: &weft_kernel::Error) -> UserError {
    UserError::new(
        codes::SYSCTL,
        error.to_string(),
        "in a container, mount the node's /proc/sys at /host/proc/sys and say --proc-sys /host/proc/sys",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_kernel::NetNs;

    #[test]
    fn a_parameter_is_put_back_unless_somebody_else_changed_it_since() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: making a network namespace needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let originals = Originals::of(dir.path());
        let netns = NetNs::create().unwrap();
        netns
            .run(|| {
                let forward = Key::new("net/ipv4/ip_forward").unwrap();
                sysctl::write_current(&[(forward.clone(), "0".into())]).unwrap();
                assert!(originals.set(&forward, "1").unwrap());
                assert!(!originals.set(&forward, "1").unwrap());
                assert_eq!(originals.restore().unwrap(), std::slice::from_ref(&forward));
                assert_eq!(sysctl::read_current(&forward).unwrap(), "0");
                assert_eq!(originals.restore().unwrap(), []);
            })
            .unwrap();
    }
}
