//! The binary from outside: environment and standard input in, JSON and exit code out,
//! with an agent whose answers each test writes itself.

mod agent;
mod call;
mod cnitool;
mod environment;
mod faults;
mod garbage;
mod requests;
mod syscalls;
mod versions;
