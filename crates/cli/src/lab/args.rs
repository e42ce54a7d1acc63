//! Arguments of `weft lab`.

use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, Subcommand};

use weft_lab::faults::FaultKind;
use weft_model::TransportChoice;

use crate::args::{OutputArgs, parse_duration};

#[derive(Debug, Subcommand)]
pub(crate) enum LabCommand {
    /// Make a cluster; flags have the names and meanings of `az aks create`
    Create(Box<CreateArgs>),
    /// List the clusters of this machine
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show a cluster: nodes, addresses, blocks, pods
    #[command(after_help = "Exit code: 0 healthy, 1 degraded or being made, 2 unreachable")]
    Status {
        #[command(flatten)]
        cluster: ClusterArg,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Remove clusters and everything that belongs to them
    #[command(visible_alias = "rm")]
    Delete {
        /// Names of the clusters
        #[arg(value_name = "NAME", required_unless_present = "all")]
        names: Vec<String>,
        /// All clusters of this machine
        #[arg(long, conflicts_with = "names")]
        all: bool,
        /// Accepted for `az aks delete`'s sake: there is no question to answer
        #[arg(long, short, hide = true)]
        yes: bool,
    },
    /// Change the number of nodes
    Scale {
        #[command(flatten)]
        cluster: ClusterArg,
        /// How many nodes there shall be
        #[arg(long, short = 'c', value_name = "N", allow_negative_numbers = true)]
        node_count: u32,
    },
    /// Print the path of a cluster's kubeconfig
    #[command(after_help = "Example: KUBECONFIG=$(weft lab kubeconfig blue) kubectl get pods -A -o wide")]
    Kubeconfig {
        #[command(flatten)]
        cluster: ClusterArg,
    },
    /// Apply Kubernetes objects from YAML or JSON files
    #[command(after_help = "Example: weft lab apply blue -f examples/shop")]
    Apply {
        #[command(flatten)]
        cluster: ClusterArg,
        /// A file, a directory of .yaml, .yml and .json files, or - for standard input
        #[arg(long, short, value_name = "FILE|DIR", required = true)]
        filename: Vec<String>,
        /// Namespace of objects that name none
        #[arg(long, short, default_value = "default")]
        namespace: String,
    },
    /// Run a command of this machine in a pod's network namespace
    #[command(after_help = "Example: weft lab exec blue shop/deploy/web -- ip address")]
    Exec {
        #[command(flatten)]
        cluster: ClusterArg,
        /// The pod: [NAMESPACE/]NAME, or deploy/NAME and the like for one of its pods
        #[arg(value_name = "[NAMESPACE/]POD")]
        pod: String,
        /// Namespace of the pod, where its name has none
        #[arg(long, short, value_name = "NAMESPACE")]
        namespace: Option<String>,
        /// The command and its arguments
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<String>,
    },
    /// Run a command of this machine in a node's network namespace
    #[command(after_help = "Example: weft lab node-exec blue node-1 -- ip route")]
    NodeExec {
        #[command(flatten)]
        cluster: ClusterArg,
        /// The node
        node: String,
        /// The command and its arguments
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<String>,
    },
    /// Run a command of this machine on a host of the VNet that is no node
    #[command(after_help = "Example: weft lab vnet-exec blue -- curl -s http://10.224.0.4:30080/clientip")]
    VnetExec {
        #[command(flatten)]
        cluster: ClusterArg,
        /// Where in the VNet
        #[arg(long, value_enum, default_value_t)]
        on: VnetPlace,
        /// The command and its arguments
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<String>,
    },
    /// Run the connectivity suite: every check named, with the value it measured
    #[command(after_help = "Exit code: 0 only if every check passes")]
    Check {
        #[command(flatten)]
        cluster: ClusterArg,
        /// Run only checks whose name contains this text; may be given several times
        #[arg(long, value_name = "TEXT")]
        test: Vec<String>,
        /// List the checks and run none
        #[arg(long)]
        list: bool,
        /// Leave the probe pods for a look
        #[arg(long)]
        keep: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Break something on purpose
    #[command(after_help = fault_help())]
    Fault {
        #[command(flatten)]
        cluster: ClusterArg,
        /// What to break, see below; `list` prints the same as a table
        kind: String,
        /// On which nodes; all, where none is named
        nodes: Vec<String>,
        /// Mend it after this time, such as 10s or 2m; where absent it stays broken until `--clear`, unless it is over at once
        #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
        duration: Option<Duration>,
        /// Percentage for loss, bytes for mtu, seconds for api-rewind
        #[arg(long, value_name = "NUMBER")]
        value: Option<u32>,
        /// Mend what an earlier fault of this kind broke
        #[arg(long, conflicts_with = "duration")]
        clear: bool,
    },
    /// Change how packets get to other nodes; flows that are open stay so
    #[command(
        after_help = "Examples:\n  weft lab transport blue direct\n  weft lab transport blue device node-1"
    )]
    Transport {
        #[command(flatten)]
        cluster: ClusterArg,
        /// direct, device, or auto
        #[arg(value_name = "TRANSPORT")]
        transport: TransportChoice,
        /// On which nodes; all, where none is named
        nodes: Vec<String>,
    },
    /// Serve one cluster; started by `create`
    #[command(hide = true)]
    Daemon { name: String },
}

#[derive(Debug, Args)]
pub(crate) struct ClusterArg {
    /// Name of the cluster
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// Where in the virtual network a command runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum VnetPlace {
    /// The host that is no node.
    #[default]
    Host,
    /// Beyond the VNet's router.
    Internet,
    /// The switch and router itself.
    Switch,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Name of the cluster: a DNS label
    #[arg(value_name = "NAME", required_unless_present = "name_flag")]
    pub name: Option<String>,
    /// The same, as `az aks create` has it
    #[arg(
        long = "name",
        short = 'n',
        value_name = "NAME",
        conflicts_with = "name",
        hide = true
    )]
    pub name_flag: Option<String>,
    /// Number of nodes
    #[arg(
        long,
        short = 'c',
        value_name = "N",
        default_value_t = 2,
        allow_negative_numbers = true
    )]
    pub node_count: u32,
    /// Range that pods get their addresses from; other clusters may use the same
    #[arg(long, value_name = "CIDR", default_value = "10.244.0.0/16")]
    pub pod_cidr: String,
    /// Prefix length of the block of pod addresses a node gets at a time, 20 to 30
    #[arg(
        long,
        value_name = "LENGTH",
        default_value_t = 24,
        allow_negative_numbers = true
    )]
    pub block_size: u8,
    /// Largest number of pods on a node, 10 to 250
    #[arg(
        long,
        short = 'm',
        value_name = "N",
        default_value_t = 250,
        allow_negative_numbers = true
    )]
    pub max_pods: u32,
    /// Virtual network of the nodes; clusters that name the same one share it [default: the cluster's own]
    #[arg(long, value_name = "NAME")]
    pub vnet: Option<String>,
    /// The nodes' subnet in the virtual network [default: 10.224.0.0/16]
    #[arg(long, value_name = "CIDR")]
    pub vnet_subnet_prefix: Option<String>,
    /// Range of the Services' virtual addresses
    #[arg(long, value_name = "CIDR", default_value = "10.0.0.0/16")]
    pub service_cidr: String,
    /// Address of the cluster's DNS Service [default: the tenth of the service CIDR]
    #[arg(long, value_name = "ADDRESS")]
    pub dns_service_ip: Option<String>,
    /// Let the number of nodes follow the pods
    #[arg(long, help_heading = "Cluster autoscaler")]
    pub enable_cluster_autoscaler: bool,
    /// Fewest nodes the autoscaler leaves
    #[arg(
        long,
        help_heading = "Cluster autoscaler",
        value_name = "N",
        allow_negative_numbers = true
    )]
    pub min_count: Option<u32>,
    /// Most nodes the autoscaler makes
    #[arg(
        long,
        help_heading = "Cluster autoscaler",
        value_name = "N",
        allow_negative_numbers = true
    )]
    pub max_count: Option<u32>,
    /// How long a node has no pods before the autoscaler removes it, such as 20s or 10m [default: 20s]
    #[arg(long, help_heading = "Cluster autoscaler", value_name = "TIME", value_parser = parse_duration)]
    pub scale_down_unneeded_time: Option<Duration>,
    /// How packets get to other nodes: direct, past the VXLAN device; device; or auto, the first where it is possible
    #[arg(
        long,
        value_name = "auto|direct|device",
        env = "WEFT_TRANSPORT",
        default_value_t
    )]
    pub transport: TransportChoice,
    /// Network plugin; the lab's is Weft, in the place of azure
    #[arg(long, help_heading = "As in az aks create", value_name = "PLUGIN", value_parser = ["azure", "none"])]
    pub network_plugin: Option<String>,
    /// Mode of the network plugin
    #[arg(long, help_heading = "As in az aks create", value_name = "MODE", value_parser = ["overlay"])]
    pub network_plugin_mode: Option<String>,
    /// Resource ID of a subnet; the VNet's name in it is taken for --vnet
    #[arg(
        long,
        help_heading = "As in az aks create",
        value_name = "ID",
        conflicts_with = "vnet"
    )]
    pub vnet_subnet_id: Option<String>,
    #[command(flatten)]
    pub azure: AzureFlags,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Flags of `az aks create` that do not concern the network, as they were given.
#[derive(Debug, Default)]
pub(crate) struct AzureFlags {
    /// Their names, without dashes.
    pub given: Vec<&'static str>,
}

/// Flags of `az aks create` that take values and mean nothing in a lab.
const AZURE_VALUES: &[&str] = &[
    "aad-admin-group-object-ids",
    "aad-tenant-id",
    "admin-username",
    "aks-custom-headers",
    "api-server-authorized-ip-ranges",
    "assign-identity",
    "assign-kubelet-identity",
    "attach-acr",
    "auto-upgrade-channel",
    "client-secret",
    "cluster-autoscaler-profile",
    "dns-name-prefix",
    "edge-zone",
    "enable-addons",
    "fqdn-subdomain",
    "kubelet-config",
    "kubernetes-version",
    "linux-os-config",
    "load-balancer-sku",
    "location",
    "node-osdisk-size",
    "node-osdisk-type",
    "node-os-upgrade-channel",
    "node-resource-group",
    "node-vm-size",
    "nodepool-labels",
    "nodepool-name",
    "nodepool-tags",
    "nodepool-taints",
    "os-sku",
    "pod-identity",
    "resource-group",
    "service-principal",
    "snapshot-id",
    "ssh-key-value",
    "subscription",
    "tags",
    "tier",
    "vm-set-type",
    "workspace-resource-id",
    "zones",
];

/// The same for flags without a value.
const AZURE_SWITCHES: &[&str] = &[
    "disable-local-accounts",
    "disable-rbac",
    "enable-aad",
    "enable-azure-rbac",
    "enable-defender",
    "enable-encryption-at-host",
    "enable-fips-image",
    "enable-keda",
    "enable-managed-identity",
    "enable-oidc-issuer",
    "enable-private-cluster",
    "enable-secret-rotation",
    "enable-ultra-ssd",
    "enable-vpa",
    "enable-workload-identity",
    "generate-ssh-keys",
    "no-ssh-key",
    "no-wait",
    "only-show-errors",
    "yes",
];

/// All kinds of fault, and examples.
fn fault_help() -> String {
    let width = FaultKind::ALL
        .iter()
        .map(|kind| kind.name().len())
        .max()
        .unwrap_or(0);
    let kinds: Vec<String> = FaultKind::ALL
        .iter()
        .map(|kind| format!("  {:<width$}  {}", kind.name(), kind.describe()))
        .collect();
    format!(
        "Faults:\n{}\n\nExamples:\n  weft lab fault blue loss node-1 --value 5 --for 30s\n  weft lab fault blue freeze-agent \
         --clear\n  weft lab fault blue api-rewind --value 60",
        kinds.join("\n")
    )
}

// === impl AzureFlags ===

impl Args for AzureFlags {
    fn augment_args(command: Command) -> Command {
        let values = AZURE_VALUES.iter().map(|name| {
            let arg = Arg::new(*name)
                .long(*name)
                .hide(true)
                .num_args(1..)
                .action(ArgAction::Append);
            match *name {
                "resource-group" => arg.short('g'),
                "location" => arg.short('l'),
                "kubernetes-version" => arg.short('k'),
                "node-vm-size" => arg.short('s'),
                _ => arg,
            }
        });
        let switches = AZURE_SWITCHES
            .iter()
            .map(|name| Arg::new(*name).long(*name).hide(true).action(ArgAction::SetTrue));
        command.args(values).args(switches)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for AzureFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        let values = AZURE_VALUES.iter().filter(|name| matches.contains_id(name));
        let switches = AZURE_SWITCHES.iter().filter(|name| matches.get_flag(name));
        self.given = values.chain(switches).copied().collect();
        Ok(())
    }
}
