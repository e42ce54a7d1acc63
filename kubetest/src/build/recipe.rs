//! Which program comes from which Go module. Versions are written in the modules' `go.mod` alone.

use std::fs;

use anyhow::{Context, Result};

use crate::build::go;

/// A project, built by a module of ours that requires it.
#[derive(Debug)]
pub(super) struct Module {
    /// Its directory below `kubetest/go`.
    pub(super) dir: &'static str,
    /// The module path of the project.
    pub(super) requires: &'static str,
    /// Variables that the linker sets: `@` stands for the version.
    pub(super) variables: &'static [(&'static str, &'static str)],
    pub(super) programs: &'static [Program],
}

#[derive(Debug)]
pub(super) struct Program {
    pub(super) name: &'static str,
    /// Import path, or `./…` for one of ours.
    pub(super) package: &'static str,
    pub(super) part: Part,
    kind: Kind,
}

/// What a program is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Cluster,
    E2e,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Command,
    /// Goes to where CNI plugins are looked for.
    Plugin,
    /// A test binary, made by `go test -c`.
    Test,
}

pub(super) const MODULES: [Module; 6] = [
    Module {
        dir: "kubernetes",
        requires: "k8s.io/kubernetes",
        variables: &[
            ("k8s.io/component-base/version.gitVersion", "@"),
            ("k8s.io/component-base/version.gitMajor", "1"),
            ("k8s.io/component-base/version.gitMinor", "36"),
            ("k8s.io/component-base/version.gitTreeState", "clean"),
        ],
        programs: &[
            command("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
            command(
                "kube-controller-manager",
                "k8s.io/kubernetes/cmd/kube-controller-manager",
            ),
            command("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
            command("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
            command("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
            command("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
            command("agnhost", "k8s.io/kubernetes/test/images/agnhost"),
            command("agnhost-connect", "./agnhost"),
            command(
                "regression-issue-74839",
                "k8s.io/kubernetes/test/images/regression-issue-74839",
            ),
            command("pause", "./pause"),
            command("names", "./names"),
            Program {
                name: "ginkgo",
                package: "github.com/onsi/ginkgo/v2/ginkgo",
                part: Part::E2e,
                kind: Kind::Command,
            },
            Program {
                name: "e2e.test",
                package: "k8s.io/kubernetes/test/e2e",
                part: Part::E2e,
                kind: Kind::Test,
            },
        ],
    },
    Module {
        dir: "etcd",
        requires: "go.etcd.io/etcd/server/v3",
        variables: &[],
        programs: &[command("etcd", "go.etcd.io/etcd/server/v3")],
    },
    Module {
        dir: "containerd",
        requires: "github.com/containerd/containerd/v2",
        variables: &[("github.com/containerd/containerd/v2/version.Version", "@")],
        programs: &[
            command("containerd", "github.com/containerd/containerd/v2/cmd/containerd"),
            command(
                "containerd-shim-runc-v2",
                "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
            ),
            command("ctr", "github.com/containerd/containerd/v2/cmd/ctr"),
        ],
    },
    Module {
        dir: "cri-tools",
        requires: "sigs.k8s.io/cri-tools",
        variables: &[("sigs.k8s.io/cri-tools/pkg/version.Version", "@")],
        programs: &[command("crictl", "sigs.k8s.io/cri-tools/cmd/crictl")],
    },
    Module {
        dir: "coredns",
        requires: "github.com/coredns/coredns",
        variables: &[],
        programs: &[command("coredns", "github.com/coredns/coredns")],
    },
    Module {
        dir: "plugins",
        requires: "github.com/containernetworking/plugins",
        variables: &[(
            "github.com/containernetworking/plugins/pkg/utils/buildversion.BuildVersion",
            "@",
        )],
        programs: &[
            plugin(
                "bridge",
                "github.com/containernetworking/plugins/plugins/main/bridge",
            ),
            plugin(
                "loopback",
                "github.com/containernetworking/plugins/plugins/main/loopback",
            ),
            plugin(
                "host-local",
                "github.com/containernetworking/plugins/plugins/ipam/host-local",
            ),
            plugin(
                "portmap",
                "github.com/containernetworking/plugins/plugins/meta/portmap",
            ),
        ],
    },
];

// === impl Module ===

impl Module {
    /// The version that its `go.mod` requires, such as `v1.36.3`.
    pub(super) fn version(&self) -> Result<String> {
        let path = go::modules().join(self.dir).join("go.mod");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        text.lines()
            .find_map(|line| {
                let mut words = line
                    .trim()
                    .trim_start_matches("require ")
                    .split_ascii_whitespace();
                (words.next()? == self.requires).then(|| words.next())?
            })
            .filter(|version| version.starts_with('v'))
            .map(str::to_owned)
            .with_context(|| format!("{} requires no version of {}", path.display(), self.requires))
    }
}

// === impl Program ===

impl Program {
    /// Where it is put, below the directory of results.
    pub(super) fn file(&self) -> String {
        let dir = if self.kind == Kind::Plugin { "cni" } else { "bin" };
        format!("{dir}/{}", self.name)
    }

    pub(super) fn is_test(&self) -> bool {
        self.kind == Kind::Test
    }

    /// True for a program of the project's own, which a `tool` line names.
    #[cfg(test)]
    pub(super) fn is_tool(&self) -> bool {
        !self.is_test() && !self.package.starts_with("./")
    }
}

const fn command(name: &'static str, package: &'static str) -> Program {
    Program {
        name,
        package,
        part: Part::Cluster,
        kind: Kind::Command,
    }
}

const fn plugin(name: &'static str, package: &'static str) -> Program {
    Program {
        name,
        package,
        part: Part::Cluster,
        kind: Kind::Plugin,
    }
}
