//! The `weft` command.

#![forbid(unsafe_code)]

mod args;
mod cluster;
mod cni;
mod explain;
mod install;
mod lab;
mod log;
mod node;
mod out;

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser};
use serde_json::json;
use weft_model::{Code, UserError, codes};

use crate::args::{Cli, Command, Output};
use crate::log::LogFormat;

/// Everything was as it should be.
pub(crate) const OK: u8 = 0;
/// It was carried out, and something is not as it should be.
const DEGRADED: u8 = 1;
/// It was not understood, or can't be carried out as asked.
const USAGE: u8 = 2;
/// Ended by SIGINT, as shells count it.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    out::set_no_color(false);
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return ExitCode::from(not_understood(&error)),
    };
    out::set_no_color(cli.no_color);
    match run(cli.command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            out::error(&error);
            ExitCode::from(exit_code(&error))
        }
    }
}

fn run(command: Command) -> Result<u8, UserError> {
    match command {
        Command::Lab(command) => lab::run(*command),
        Command::Install(args) => install::run(&args),
        Command::Uninstall(args) => install::uninstall::run(&args),
        Command::Status(args) => cluster::status::run(&args),
        Command::Audit(args) => cluster::audit::run(&args),
        Command::Ip(command) => cluster::ip::run(&command),
        Command::Agent(args) => service(args.log_format, weft_agent::run(args.args)),
        Command::Operator(args) => service(args.log_format, weft_operator::run(args.args)),
        Command::Cni(command) => cni::run(&command),
        Command::Node(command) => node::run(&command),
        Command::Explain { code } => explain::run(code.as_deref()),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "weft", &mut script);
            out::raw(&script);
            Ok(OK)
        }
        Command::Version { output } => version(output),
    }
}

/// Runs what runs until it is told to end.
fn service(
    log_format: LogFormat,
    running: impl Future<Output = anyhow::Result<()>>,
) -> Result<u8, UserError> {
    log::start(log_format);
    runtime()?
        .block_on(running)
        .map(|()| OK)
        .map_err(|error| match error.downcast::<UserError>() {
            Ok(error) => error,
            Err(error) => UserError::new(codes::AGENT_NOT_READY, format!("{error:#}"), "read the log above"),
        })
}

pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, UserError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| {
            UserError::new(
                codes::LAB_STATE,
                format!("can't start threads: {error}"),
                "check ulimit -u",
            )
        })
}

fn version(output: Output) -> Result<u8, UserError> {
    let version = env!("CARGO_PKG_VERSION");
    match output {
        Output::Table | Output::Wide => out::line(format!("weft {version}")),
        Output::Json | Output::Yaml => {
            let value = json!({"apiVersion": "weft.dev/v1alpha1", "kind": "Version", "version": version});
            out::document(&value, output)?;
        }
    }
    Ok(OK)
}

fn exit_code(error: &UserError) -> u8 {
    const NOTHING_TO_DO_IT_ON: [Code; 12] = [
        codes::NO_SUCH_CLUSTER,
        codes::CLUSTER_EXISTS,
        codes::LAB_DAEMON_GONE,
        codes::VNET_MISMATCH,
        codes::NO_SUCH_NODE,
        codes::NO_SUCH_POD,
        codes::UNKNOWN_FAULT,
        codes::VNET_FULL,
        codes::API_UNREACHABLE,
        codes::API_FORBIDDEN,
        codes::KUBECONFIG,
        codes::CRD_MISSING,
    ];
    let code = error.code();
    if code == codes::INTERRUPTED {
        INTERRUPTED
    } else if NOTHING_TO_DO_IT_ON.contains(&code) || (1000..1100).contains(&code.number()) {
        USAGE
    } else {
        DEGRADED
    }
}

/// Help and version are no errors; an unknown flag is one with the nearest known flag.
fn not_understood(error: &clap::Error) -> u8 {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => texts.last().cloned(),
        _ => None,
    };
    let argument = context(ContextKind::InvalidArg).unwrap_or_default();
    let usage = || format!("{} --help", command_path());
    let nearest = |kind| context(kind).map_or_else(usage, |nearest| format!("did you mean {nearest}?"));
    let found = match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let text = error.render();
            let colored = !error.use_stderr() && !out::tone("", out::Tone::Strong).is_empty();
            out::raw(
                if colored {
                    text.ansi().to_string()
                } else {
                    text.to_string()
                }
                .as_bytes(),
            );
            return if error.use_stderr() { USAGE } else { OK };
        }
        ErrorKind::UnknownArgument => {
            let what = if argument.starts_with('-') {
                "flag"
            } else {
                "argument"
            };
            UserError::new(
                codes::UNKNOWN_FLAG,
                format!("unknown {what} {argument:?}"),
                match context(ContextKind::SuggestedArg) {
                    Some(nearest) => format!("did you mean {nearest}?"),
                    // What runs a command has it behind two dashes.
                    None if what == "argument" && command_path().ends_with("exec") => {
                        format!("write -- before the command: -- {argument} …")
                    }
                    None => usage(),
                },
            )
        }
        ErrorKind::InvalidSubcommand => UserError::new(
            codes::UNKNOWN_FLAG,
            format!(
                "unknown command {:?}",
                context(ContextKind::InvalidSubcommand).unwrap_or_default()
            ),
            nearest(ContextKind::SuggestedSubcommand),
        ),
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            let value = context(ContextKind::InvalidValue).unwrap_or_default();
            let why = std::error::Error::source(error)
                .map(|why| format!(": {why}"))
                .unwrap_or_default();
            let message = if value.is_empty() {
                format!("{argument} needs a value")
            } else {
                format!("{argument} can't be {value:?}{why}")
            };
            let next = match error.get(ContextKind::ValidValue) {
                Some(ContextValue::Strings(valid)) if !valid.is_empty() => {
                    format!("choose one of {}", valid.join(", "))
                }
                _ => usage(),
            };
            UserError::new(codes::OUT_OF_RANGE, message, next)
        }
        ErrorKind::ArgumentConflict => {
            let other = context(ContextKind::PriorArg).unwrap_or_default();
            UserError::new(
                codes::CONFLICTING_FLAGS,
                format!("{argument} and {other} exclude each other"),
                "leave one of them out",
            )
        }
        ErrorKind::MissingRequiredArgument => {
            let missing = match error.get(ContextKind::InvalidArg) {
                Some(ContextValue::Strings(missing)) => missing.join(", "),
                _ => argument,
            };
            UserError::new(codes::INCOMPLETE_COMMAND, format!("missing: {missing}"), usage())
        }
        _ => {
            let text = error.render().to_string();
            let first = text
                .lines()
                .next()
                .unwrap_or_default()
                .trim_start_matches("error: ")
                .to_owned();
            UserError::new(codes::INCOMPLETE_COMMAND, first, usage())
        }
    };
    out::error(&found);
    USAGE
}

/// `weft lab create` of a command line that begins with it, as far as the words are commands.
fn command_path() -> String {
    let mut command = Cli::command();
    let mut path = "weft".to_owned();
    for word in std::env::args().skip(1) {
        let Some(next) = command.find_subcommand(&word).cloned() else {
            break;
        };
        path = format!("{path} {word}");
        command = next;
    }
    path
}
