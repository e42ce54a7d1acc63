//! Namespaces and programs inside them, compared with `ip netns` and `/proc`.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::namespaces::TestNs;
use crate::needs_root;
use weft_kernel::process::{Enter, ProcessId, enter, processes_in};
use weft_kernel::{NetNs, mount};

#[test]
fn a_named_namespace_is_the_one_that_ip_netns_knows() {
    needs_root!();
    let test = TestNs::new("named");
    assert!(NetNs::list_named().unwrap().contains(&test.name));
    assert_eq!(NetNs::named(&test.name).unwrap().id(), test.netns.id());
    let inode = test.exec("stat -Lc %i /proc/self/ns/net");
    assert_eq!(inode.trim(), test.netns.id().ino.to_string());
    let listed = Command::new("ip").args(["netns", "list"]).output().unwrap();
    assert!(
        String::from_utf8_lossy(&listed.stdout)
            .lines()
            .any(|line| line.starts_with(&test.name))
    );

    assert!(NetNs::create_named(&test.name).unwrap_err().is_exists());
    assert!(NetNs::delete_named(&test.name).unwrap());
    assert!(!NetNs::delete_named(&test.name).unwrap());
    assert!(NetNs::named(&test.name).unwrap_err().is_not_found());
}

#[test]
fn ip_netns_can_delete_what_was_made_here() {
    needs_root!();
    let test = TestNs::new("gone");
    let status = Command::new("ip")
        .args(["netns", "del", &test.name])
        .status()
        .unwrap();
    assert!(status.success());
    assert!(!NetNs::delete_named(&test.name).unwrap());
}

#[test]
fn a_closure_runs_inside_and_no_thread_of_the_caller_moves() {
    needs_root!();
    let test = TestNs::new("run");
    let before = NetNs::current().unwrap().id();
    let inside = test.netns.run(|| NetNs::current().unwrap().id()).unwrap();
    assert_eq!(inside, test.netns.id());
    assert_eq!(NetNs::current().unwrap().id(), before);

    let caught = std::panic::catch_unwind(|| test.netns.run(|| panic!("inside")));
    assert!(caught.is_err(), "a panic inside goes on in the caller");
    assert_eq!(NetNs::current().unwrap().id(), before);
}

#[test]
fn what_is_no_network_namespace_is_refused() {
    assert!(NetNs::open("/proc/self/status").is_err());
    for name in ["", ".", "..", "a/b", "a\0b"] {
        assert!(NetNs::named(name).is_err(), "{name:?}");
        assert!(NetNs::create_named(name).is_err(), "{name:?}");
    }
}

#[test]
fn a_mount_namespace_file_is_no_network_namespace() {
    assert!(NetNs::open("/proc/self/ns/mnt").is_err());
}

#[test]
fn a_program_with_its_own_sys_sees_the_links_of_its_namespace() {
    needs_root!();
    let test = TestNs::new("sys");
    let mut command = Command::new("ls");
    command.arg("/sys/class/net");
    let how = Enter {
        private_sys: true,
        ..Enter::default()
    };
    enter(&mut command, &test.netns, how).unwrap();
    let output = command.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "lo\n");

    let bpffs = Path::new("/sys/fs/bpf");
    let outside = mount::is_bpffs(bpffs).unwrap();
    let mut command = Command::new("stat");
    command.args(["-f", "-c", "%T", "/sys/fs/bpf"]);
    enter(&mut command, &test.netns, how).unwrap();
    let output = command.output().unwrap();
    assert_eq!(output.stdout == b"bpf_fs\n", outside, "{output:?}");
}

#[test]
fn processes_of_a_namespace_are_found_and_ended() {
    needs_root!();
    let test = TestNs::new("proc");
    let mut command = Command::new("sleep");
    command.arg("600").stdin(Stdio::null());
    enter(
        &mut command,
        &test.netns,
        Enter {
            new_session: true,
            ..Enter::default()
        },
    )
    .unwrap();
    let mut child = command.spawn().unwrap();
    let id = ProcessId::of(child.id()).unwrap();
    assert_eq!(processes_in(&test.netns).unwrap(), [id]);
    assert!(id.terminate(Duration::from_secs(5)).unwrap());
    child.wait().unwrap();
    assert_eq!(processes_in(&test.netns).unwrap(), []);
}
