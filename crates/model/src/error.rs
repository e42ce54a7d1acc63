//! Errors a user can meet: a code, a sentence with the measured value, one next command.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// An error as it is shown to a user.
///
/// Displays as
///
/// ```text
/// error[WEFT-1003]: pod CIDR 10.224.0.0/12 overlaps VNet subnet 10.224.0.0/16
///   next: weft lab create blue --pod-cidr 10.244.0.0/16
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize)]
#[error("error[{code}]: {message}\n  next: {next}")]
pub struct UserError {
    code: Code,
    message: String,
    next: String,
}

/// A number that names one kind of [`UserError`] for good: it is never given to another.
///
/// 10xx input, 11xx lab, 12xx kernel and preflight, 13xx addresses, 14xx CNI,
/// 15xx agent, 16xx Kubernetes API.
#[derive(Clone, Copy)]
pub struct Code {
    number: u16,
    title: &'static str,
    explanation: &'static str,
}

/// A text that names no [`Code`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no error code \"{0}\": codes look like WEFT-1003")]
pub struct UnknownCode(String);

// === impl UserError ===

impl UserError {
    /// `message` is one sentence with the measured value and no full stop;
    /// `next` is one command to run or one thing to change.
    pub fn new(code: Code, message: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            next: next.into(),
        }
    }

    /// What kind of error this is.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The sentence, without code and next command.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The command to run, or the thing to change, next.
    pub fn next(&self) -> &str {
        &self.next
    }
}

// === impl Code ===

impl Code {
    /// All codes, in ascending order.
    pub const ALL: &'static [Self] = codes::ALL;

    /// The four digits.
    pub const fn number(self) -> u16 {
        self.number
    }

    /// A few words that name the error.
    pub const fn title(self) -> &'static str {
        self.title
    }

    /// What it means, why it can happen and what helps: the text of `weft explain`.
    pub const fn explanation(self) -> &'static str {
        self.explanation
    }
}

impl PartialEq for Code {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Code {}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WEFT-{:04}", self.number)
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for Code {
    type Err = UnknownCode;

    /// Reads `WEFT-1003`, in any case, or the bare number.
    fn from_str(text: &str) -> Result<Self, UnknownCode> {
        let upper = text.to_ascii_uppercase();
        upper
            .strip_prefix("WEFT-")
            .unwrap_or(&upper)
            .parse()
            .ok()
            .and_then(|number: u16| Self::ALL.iter().find(|code| code.number == number))
            .copied()
            .ok_or_else(|| UnknownCode(text.to_owned()))
    }
}

macro_rules! catalogue {
    ($($name:ident = $number:literal, $title:literal, $explanation:literal;)*) => {
        /// The catalogue. Append within a range; never renumber.
        pub mod codes {
            use super::Code;

            $(
                #[doc = $title]
                pub const $name: Code = Code {
                    number: $number,
                    title: $title,
                    explanation: $explanation,
                };
            )*

            pub(super) const ALL: &[Code] = &[$($name),*];
        }
    };
}

catalogue! {
    // 10xx: input
    MALFORMED_CIDR = 1001, "malformed CIDR",
        "A range is written as an IPv4 address, a slash and a prefix length, such as 10.244.0.0/16. The text given is something else.";
    NON_CANONICAL_CIDR = 1002, "CIDR with host bits",
        "Bits right of the prefix length are set, so that the text names one address and a range at once. Weft does not guess which one was meant: write the range with those bits zero, as the message shows.";
    CIDR_OVERLAP = 1003, "overlapping ranges",
        "Two ranges that have to be apart share addresses: pod CIDRs, the service CIDR, the VNet subnet of the nodes and networks routed to the nodes. A packet to a shared address could mean either owner. Clusters on their own overlay may use the same pod CIDR; within one cluster the ranges must differ.";
    BLOCK_SIZE = 1004, "block size out of range",
        "A block, the share of the pod CIDR one node gets at a time, may be /20 (4,096 addresses) to /30 (4 addresses). A node that fills its block gets further ones, so a small block does not limit the number of pods.";
    BLOCK_LARGER_THAN_POOL = 1005, "block larger than its pool",
        "The pod CIDR is smaller than one block, so that no node could get any. Use a shorter prefix for the CIDR or a longer one for the block.";
    NODE_COUNT = 1006, "node counts contradict each other",
        "The counts have to satisfy min-count <= node-count <= max-count, and min-count and max-count need the cluster autoscaler.";
    INVALID_NAME = 1007, "not a DNS label",
        "Names of clusters, VNets and nodes are DNS labels (RFC 1123): 1 to 63 lower-case letters, digits and hyphens, starting and ending with a letter or digit.";
    UNKNOWN_FLAG = 1008, "unknown flag",
        "The command has no such flag. Flags of `az aks create` that concern the network keep their name and meaning; others of it are accepted with a note.";
    MALFORMED_YAML = 1009, "YAML that does not parse",
        "The file is not valid YAML (or JSON) at the line and column given. Nothing of it was applied.";
    INVALID_OBJECT = 1010, "invalid Kubernetes object",
        "The document parses but is no object the API accepts: apiVersion, kind or metadata.name is missing, or a field has a value its type does not allow. The message names the field.";
    UNUSABLE_POD_CIDR = 1011, "range unusable for pods",
        "A pod CIDR is /8 to /30 and holds unicast addresses only: loopback (127.0.0.0/8), link-local (169.254.0.0/16, where the pods' gateway is), 0.0.0.0/8 and 224.0.0.0/3 can't be used.";
    UNREADABLE_FILE = 1012, "file can't be read",
        "The file or directory given does not exist or may not be read; the system's reason is in the message.";
    UNSATISFIABLE_POD = 1013, "pod asks for what can't be given",
        "The pod requests something no node of this cluster can have, such as a node selector nothing matches or more than a node's capacity. It would wait forever.";
    OUT_OF_RANGE = 1014, "value out of range",
        "The value lies outside of the range given in the message.";
    CONFLICTING_FLAGS = 1015, "flags contradict each other",
        "Two flags ask for things that exclude each other, or one needs another that is missing. The message names both.";
    ADDRESS_OUTSIDE_RANGE = 1016, "address outside its range",
        "An address has to lie in a range it does not lie in, such as the DNS service IP in the service CIDR.";
    POOL_TOO_SMALL = 1017, "pod CIDR too small for the nodes",
        "Every node needs at least one block, and the pod CIDR holds fewer blocks than there are nodes to be. Use a larger pod CIDR or smaller blocks.";
    INCOMPLETE_COMMAND = 1018, "command not understood",
        "The command line lacks something, or has it in the wrong place. The command named after \"next\" shows how it is written.";

    // 11xx: lab
    NO_SUCH_CLUSTER = 1101, "no such lab cluster",
        "No lab cluster of this name exists on this machine. `weft lab list` shows those that do.";
    CLUSTER_EXISTS = 1102, "lab cluster exists",
        "A lab cluster of this name exists already. Names are unique per machine.";
    LAB_DAEMON_GONE = 1103, "lab daemon does not answer",
        "Every lab cluster has one daemon process that serves its API. It has ended or does not answer on its socket; its log is in the cluster's directory. `weft lab delete` removes what is left of the cluster.";
    LAB_START_FAILED = 1104, "lab cluster did not start",
        "A step of creating the cluster failed; everything made up to then was taken away again. The message names the step and its cause.";
    VNET_MISMATCH = 1105, "VNet exists with another prefix",
        "Clusters that share a VNet share its subnet prefix. The VNet named exists with a different one.";
    NO_SUCH_NODE = 1106, "no such lab node",
        "The cluster has no node of this name. `weft lab status` lists them.";
    NO_SUCH_POD = 1107, "no such pod",
        "The cluster has no running pod of this name in this namespace. Without a namespace, \"default\" is meant.";
    LAB_TIMEOUT = 1108, "lab cluster is not ready in time",
        "The cluster did not reach the state waited for within the time given. The message says what was still missing.";
    CHECK_FAILED = 1109, "connectivity check failed",
        "At least one check of the suite failed. Each line of the table names the check and the value measured.";
    INTERRUPTED = 1110, "interrupted",
        "The command was interrupted and took back what it had made.";
    UNKNOWN_FAULT = 1111, "unknown fault",
        "`weft lab fault` has no fault of this name; the message lists those there are.";
    VNET_FULL = 1112, "VNet subnet is full",
        "The VNet's subnet has no free address for another node.";
    LAB_STATE = 1113, "lab state can't be read or written",
        "A file under the lab's run directory can't be read or written, or is not what this version writes. The system's reason is in the message.";

    // 12xx: kernel and preflight
    NOT_ROOT = 1201, "root needed",
        "Making network namespaces, links and eBPF programs needs root, or CAP_NET_ADMIN and CAP_SYS_ADMIN.";
    KERNEL_TOO_OLD = 1202, "kernel too old",
        "Weft needs Linux 5.15 or later.";
    KERNEL_FEATURE = 1203, "kernel feature missing",
        "The kernel lacks a feature that Weft can't do without; the message names it and the configuration option that brings it.";
    NETLINK = 1204, "kernel refused a network change",
        "A netlink request failed. The message has the operation, the object and the kernel's own text.";
    BPF_LOAD = 1205, "eBPF program refused",
        "The kernel did not load or attach an eBPF program. The message has the program and the end of the verifier's log.";
    BPFFS = 1206, "no BPF file system",
        "The programs and maps are pinned in a file system of type bpf, so that they outlive the agent. There is none at the directory given.";
    NAMESPACE = 1207, "network namespace can't be used",
        "A network namespace can't be made, opened or entered. The system's reason is in the message.";
    MTU_TOO_SMALL = 1208, "MTU too small",
        "The uplink's MTU less 50 bytes of VXLAN header leaves pods less than the 576 bytes every IPv4 host has to accept.";
    INTERFACE_CONFLICT = 1209, "interface name in use by something else",
        "An interface with a name Weft needs exists and was not made by Weft. Weft does not touch it.";
    ABI_MISMATCH = 1210, "pinned maps of another version",
        "The maps pinned on this node have a layout this binary does not know.";
    NO_UPLINK = 1211, "no uplink",
        "No interface carries the node's address, or there is no default route to tell which one leads out. Name it with --uplink.";
    NFTABLES = 1212, "nftables rules refused",
        "The kernel did not accept the rules of table \"ip weft\". The message has the kernel's text; a missing module is the usual cause.";
    MISSING_TOOL = 1213, "build tool missing",
        "Building the eBPF programs needs a tool that is not installed. `cargo xtask setup` installs it.";
    SYSCTL = 1214, "kernel parameter can't be set",
        "A parameter under /proc/sys can't be read or written. In a container that is not privileged the runtime mounts /proc/sys read-only: mount the node's (hostPath /proc/sys) at another place, such as /host/proc/sys, and name it with --proc-sys.";
    BLOCK_HELD = 1215, "node's block in use by another interface",
        "An interface that is not Weft's, such as the bridge of another plugin, has an address in a block that the node is to take into use. Its pods would lose their network, and their addresses would be given out again. Weft takes the block into use when the interface is gone: docs/operations/migration.md.";
    DIRECT_IMPOSSIBLE = 1216, "transport direct is impossible on this node",
        "Under `--transport direct` programs write and strip the headers between nodes, past the VXLAN device and the node's stack. This node was told to do so and can't: the message says what is in the way. Its packets go by the VXLAN device, as under `--transport device`; other nodes don't notice. `--transport auto` does the same without complaint.";

    // 13xx: addresses
    NO_BLOCK = 1301, "node has no block yet",
        "The node holds no block of pod addresses. The operator grants one as soon as the Node exists and a PodPool with room selects it.";
    NODE_FULL = 1302, "no free pod address on the node",
        "All addresses of the node's blocks are in use or cooling. An address rests 130 seconds after its pod is gone, longer than any half-open connection lives, before another pod gets it. The node asks for another block before the last is full; none has come, usually because the pool is exhausted.";
    POOL_EXHAUSTED = 1303, "pool exhausted",
        "All blocks of the pools that select this node belong to nodes. Add a CIDR to a PodPool (spec.cidrs; nothing has to restart), or remove nodes.";
    ATTACHMENT_EXISTS = 1304, "attachment exists",
        "The container ID and interface already have an address. A runtime has to send DEL before it may ADD the same attachment again (CNI specification 1.1).";
    NO_SUCH_ATTACHMENT = 1305, "no such attachment",
        "The ledger of this node has no record of this container ID and interface.";
    LEDGER_CORRUPT = 1306, "ledger is damaged",
        "The file that records which pod has which address can't be read. The agent keeps it beside the new one, which it makes from the pods that are attached to the node; all other addresses of the node's blocks rest for 130 seconds, and new pods get addresses of a further block meanwhile. Running pods go on. Send the file with a report: the message names it.";
    LEDGER_LOCKED = 1307, "ledger is in use",
        "Another process has the ledger open. One agent runs per node.";
    LEDGER_IO = 1308, "ledger can't be read or written",
        "The file system refused: full, read-only, wrong owner or mode, or a symbolic link where a file has to be. The system's reason is in the message.";
    DUPLICATE_ADDRESS = 1309, "address claimed twice",
        "Two attachments claim the same address. Both are quarantined: neither is given out again before both are gone. The rest of the node is served.";
    DUPLICATE_BLOCK = 1310, "block claimed by two nodes",
        "Two NodeNetworks hold blocks that share addresses. Weft never grants such blocks: an object was edited or restored by hand. Delete the NodeNetwork of the node that may be drained; the operator makes a fresh one.";
    BLOCK_IN_USE = 1311, "block still has pods",
        "A block can leave a node only when no address of it is in use or cooling.";
    LEDGER_VERSION = 1312, "ledger of another version",
        "The ledger was written by a newer version of Weft, in a layout this one does not know.";
    ADDRESS_NOT_FOUND = 1313, "address has no owner",
        "No node's blocks hold the address, or no attachment on the node has it.";

    // 14xx: CNI
    CNI_ENVIRONMENT = 1401, "CNI variable missing or invalid",
        "A runtime calls the plugin with CNI_* environment variables; the message names all that are missing or invalid (CNI specification 1.1, section 2).";
    CNI_CONFIG = 1402, "CNI configuration invalid",
        "The network configuration on standard input does not parse or lacks a key.";
    CNI_VERSION = 1403, "CNI version not supported",
        "The configuration asks for a version of the specification the plugin, or the command, does not have. Supported are 0.1.0 to 1.1.0; CHECK from 0.4.0, STATUS and GC from 1.1.0.";
    AGENT_UNREACHABLE = 1404, "agent does not answer",
        "The plugin could not reach the agent's socket, or got no answer in time. Pods that run go on; new ones wait. The runtime tries again by itself.";
    CNI_NETNS = 1405, "pod's network namespace unusable",
        "CNI_NETNS does not name a network namespace, or names the node's own.";
    INTERFACE_EXISTS = 1406, "interface exists in the pod",
        "The pod's namespace already has an interface of the name asked for.";
    CNI_CHECK = 1407, "attachment is not as it was made",
        "CHECK found a difference between what ADD set up and what is there now; the message names it. Recreating the pod sets it up anew.";
    CNI_INTENT = 1408, "DEL could not be recorded",
        "The agent is down and the plugin could not leave a note for it that this attachment is gone.";
    CNI_PROTOCOL = 1409, "plugin and agent disagree",
        "The agent's answer was not understood. Plugin and agent are installed together; one of them is of another version.";
    CNI_DEFECT = 1410, "defect in the plugin",
        "The plugin met a state that its authors held impossible. It answered with this error and ended; nothing was left half done that the agent would not undo.";
    CNI_CONFLICT = 1411, "another network configuration comes first",
        "Container runtimes take the file of their configuration directory (/etc/cni/net.d) whose name sorts first. One of another plugin sorts before Weft's, so that pods would not be Weft's. Weft does not fight for the place: move the other file away when its plugin is to serve no more pods, or give Weft's a name that sorts before it (--conf-name, --cni-conf-name).";
    CNI_INSTALL = 1412, "plugin or configuration can't be put in place",
        "The plugin's or the network configuration's file can't be read, written or removed. The system's reason is in the message; a directory that is mounted read-only is the usual cause.";
    CNI_CHAIN = 1413, "plugin to be chained is missing",
        "Weft was told to have the reference plugin portmap run after its own, for hostPort, and there is no such program in the runtime's plugin directory. Pods are served without it, their hostPorts are not. It is picked up when it appears.";

    // 15xx: agent
    AGENT_NOT_READY = 1501, "agent not ready",
        "The agent has started but does not serve new pods yet; the message says what it waits for.";
    NODE_NOT_REGISTERED = 1502, "Node object missing",
        "The API has no Node of the name the agent was started with (--node-name).";
    NODE_WITHOUT_ADDRESS = 1503, "node has no internal address",
        "The Node object has no InternalIP in status.addresses, so other nodes would not know where to send.";
    AGENT_SOCKET = 1504, "agent socket can't be served",
        "The agent can't listen on its socket. The system's reason is in the message.";
    STATE_DIRECTORY = 1505, "state directory unusable",
        "A directory the agent keeps state in can't be made or written. The system's reason is in the message.";
    RECONCILE = 1506, "node's network can't be brought up to date",
        "Desired and actual state of the node's network differ and the kernel refused the change. The agent tries again; pods that run go on.";
    NODE_UID_CHANGED = 1507, "node was registered anew",
        "The Node was deleted and made again while pods run under the old one's blocks. Those pods are served until they end; new ones get addresses from the new blocks.";

    AGENT_RUNS = 1508, "agent still runs on the node",
        "`weft node cleanup` takes away what the agent would put back at once. Stop the agent first: remove the DaemonSet, or keep it off this node.";
    PODS_ON_WEFT = 1509, "pods of the node are on Weft still",
        "`weft node cleanup` takes interfaces and addresses of pods away, which cuts those pods off. Drain the node first, or say --force.";
    PROBE_FAILED = 1510, "datapath does not pass the probe",
        "The agent makes an interface as a pod's and sends a packet to it and back, before it serves pods and from time to time. That failed: pods would not reach their node either. The message says which step; a firewall on the node that drops its own traffic to pods is one cause.";

    // 16xx: Kubernetes API
    API_UNREACHABLE = 1601, "Kubernetes API unreachable",
        "The API server does not answer. Pods that run go on, and new pods get addresses from the blocks the node has.";
    KUBECONFIG = 1602, "kubeconfig unusable",
        "The kubeconfig can't be read, or has no such context.";
    API_FORBIDDEN = 1603, "not allowed by the Kubernetes API",
        "The API server refused a request for lack of rights (RBAC). The message names verb and resource.";
    CRD_MISSING = 1604, "Weft's resource types are not installed",
        "The API server does not know a type of the group weft.dev. Apply the CustomResourceDefinitions first.";
    API_REJECTED = 1605, "Kubernetes API refused a change",
        "The API server did not accept an object; its own message follows.";
    OTHER_NETWORK = 1606, "another pod network is installed",
        "The cluster has another pod network, or what is left of one. Two of them on a node fight for its pods, so Weft is not installed beside it. Take the other one away first, or move node by node as the migration guide says.";
    ROLLOUT = 1607, "not rolled out in time",
        "Weft's objects are in the cluster, and not all of its processes are ready within the time given. The message says what is missing; the command may be repeated, and goes on from there.";
    PODS_WOULD_BREAK = 1608, "pods still have addresses of Weft",
        "Taking Weft off a node takes the network of its pods away. Drain the nodes first, or delete the pods; pods of host networks don't matter.";
    NODES_NOT_CLEAN = 1609, "nodes could not be cleaned up",
        "On some nodes Weft's traces could not be taken away, usually because the node does not answer. Objects of the cluster were left as they are, so that the command can be repeated.";
    KUBERNETES_TOO_OLD = 1610, "Kubernetes too old",
        "Weft needs Kubernetes 1.33 or later: it checks pools against ServiceCIDR objects, and keeps each agent to its own node by the node's name in its token.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_shows_its_code_its_sentence_and_the_next_command() {
        let error = UserError::new(codes::NOT_ROOT, "running as uid 1000", "sudo weft lab create t");
        assert_eq!(
            error.to_string(),
            "error[WEFT-1201]: running as uid 1000\n  next: sudo weft lab create t"
        );
        assert_eq!(
            serde_json::to_value(&error).unwrap(),
            serde_json::json!({
                "code": "WEFT-1201",
                "message": "running as uid 1000",
                "next": "sudo weft lab create t",
            })
        );
    }

    #[test]
    fn the_catalogue_ascends_and_every_entry_is_explained() {
        assert!(
            Code::ALL.windows(2).all(|pair| pair[0].number < pair[1].number),
            "codes out of order or given twice"
        );
        for code in Code::ALL {
            assert!((1000..1700).contains(&code.number), "{code} is in no range");
            assert!(!code.title.ends_with('.'), "{code}: a title is no sentence");
            assert!(
                code.explanation.ends_with('.'),
                "{code}: an explanation is made of sentences"
            );
        }
    }

    #[test]
    fn a_code_is_found_by_any_spelling_a_user_may_type() {
        for text in ["WEFT-1003", "weft-1003", "1003"] {
            assert_eq!(text.parse(), Ok(codes::CIDR_OVERLAP));
        }
        for text in ["", "WEFT-", "WEFT-9999", "1003x", "70000"] {
            assert_eq!(text.parse::<Code>(), Err(UnknownCode(text.to_owned())));
        }
    }
}
