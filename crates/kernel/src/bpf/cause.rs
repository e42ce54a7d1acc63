//! What aya says went wrong, as this crate's [`Cause`].

use std::io;

use aya::EbpfError;
use aya::maps::MapError;
use aya::pin::PinError;
use aya::programs::ProgramError;
use aya::programs::links::LinkError;
use aya::sys::SyscallError;

use crate::error::Cause;

/// An error of aya, or the object's lack of what the code expects in it.
#[derive(Debug, thiserror::Error)]
pub(super) enum AyaError {
    #[error("the embedded object does not have it")]
    Missing,
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

pub(super) fn missing() -> Cause {
    Cause::Malformed("the embedded object does not have it")
}

/// Finds the error number below an error, or spells out the whole chain.
fn cause_of(error: &(dyn std::error::Error + 'static)) -> Cause {
    let mut words = error.to_string();
    let mut link = Some(error);
    while let Some(current) = link {
        if let Some(verifier @ ProgramError::LoadError { io_error, .. }) = current.downcast_ref() {
            return Cause::Explained {
                errno: copy_of(io_error),
                text: verifier.to_string(),
            };
        }
        let errno = current.downcast_ref::<io::Error>().or_else(|| {
            current
                .downcast_ref::<SyscallError>()
                .map(|failed| &failed.io_error)
        });
        if let Some(errno) = errno.filter(|errno| errno.raw_os_error().is_some()) {
            return Cause::Errno(copy_of(errno));
        }
        link = current.source();
        if let Some(next) = link {
            let next = next.to_string();
            if !words.ends_with(&next) {
                words = format!("{words}: {next}");
            }
        }
    }
    Cause::Invalid(words)
}

fn copy_of(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(
        || io::Error::other(error.to_string()),
        io::Error::from_raw_os_error,
    )
}

impl From<AyaError> for Cause {
    fn from(error: AyaError) -> Self {
        match error {
            AyaError::Missing => missing(),
            AyaError::Program(error) => cause_of(&error),
            AyaError::Link(error) => cause_of(&error),
            AyaError::Pin(error) => cause_of(&error),
            AyaError::Io(error) => cause_of(&error),
        }
    }
}

macro_rules! causes {
    ($($error:ty),+) => {
        $(impl From<$error> for Cause {
            fn from(error: $error) -> Self {
                cause_of(&error)
            }
        })+
    };
}

causes!(EbpfError, MapError, ProgramError, LinkError, PinError);
