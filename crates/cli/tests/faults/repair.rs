//! What others change is named by an audit and put right by the agent, whether or not the kernel tells of it.

use weft_kernel::bpf::{Datapath, Options};
use weft_kernel::nft::Nft;
use weft_kernel::rtnl::{Address, Neighbour, Route, Rtnl};
use weft_kernel::sysctl::{self, Key};
use weft_kernel::target::Target;

use crate::bed::Bed;
use crate::invariants::Invariant;
use crate::support::is_root;

#[test]
fn whatever_somebody_else_changes_is_named_and_put_right() {
    if !is_root("whatever_somebody_else_changes_is_named_and_put_right") {
        return;
    }
    let bed = Bed::new("repair");
    let sandbox = bed.sandbox("a");
    let address = bed.add(&sandbox);
    let pins = bed.node_dir().join("bpf");
    let link = {
        let links = bed.node().run(|| Rtnl::open().unwrap().links().unwrap()).unwrap();
        let ours = |link: &&weft_kernel::rtnl::Link| {
            link.alias
                .as_deref()
                .is_some_and(|alias| alias.contains(&sandbox.id))
        };
        links.iter().find(ours).expect("the node's end").name.clone()
    };
    let rtnl = |change: &(dyn Fn(&mut Rtnl) + Sync)| {
        bed.node().run(|| change(&mut Rtnl::open().unwrap())).unwrap();
    };
    let set = |key: Key, value: &str| {
        sysctl::write(&bed.node(), &[(key, value.to_owned())]).unwrap();
    };
    let datapath = || Datapath::load(&Options::new(&pins)).unwrap();
    let strange = "02:00:00:00:00:09".parse().unwrap();

    bed.until("clean at first", |audit| audit.findings().is_empty());
    let faults: [(&str, &dyn Fn()); 20] = [
        ("nftables table weft is missing or was changed", &|| {
            bed.node()
                .run(|| Nft::open().unwrap().delete_table("weft").unwrap())
                .unwrap();
        }),
        ("interface weft0 is missing", &|| {
            rtnl(&|rtnl| _ = rtnl.delete_link("weft0").unwrap());
        }),
        ("interface weft0 is down", &|| {
            rtnl(&|rtnl| _ = rtnl.set_up("weft0", false).unwrap());
        }),
        ("weft0 has another Ethernet address", &|| {
            rtnl(&|rtnl| _ = rtnl.set_mac("weft0", strange).unwrap());
        }),
        ("MTU of weft0 is 1400", &|| {
            rtnl(&|rtnl| _ = rtnl.set_mtu("weft0", 1400).unwrap());
        }),
        ("route 10.244.0.0/16 dev weft0 is missing", &|| {
            rtnl(&|rtnl| {
                let overlay = rtnl.link_index("weft0").unwrap();
                let net: ipnet::Ipv4Net = "10.244.0.0/16".parse().unwrap();
                let held = rtnl.routes(weft_kernel::rtnl::RouteFilter::own()).unwrap();
                let route = held
                    .iter()
                    .find(|route| route.dst == net.into() && route.oif == Some(overlay))
                    .unwrap();
                rtnl.delete_route(route).unwrap();
            });
        }),
        ("eth0 of the node has the pod address", &|| {
            rtnl(&|rtnl| {
                let eth0 = rtnl.link_index("eth0").unwrap();
                rtnl.add_address(&Address::host(eth0, address)).unwrap();
            });
        }),
        ("its interface in the node and in the pod is gone", &|| {
            rtnl(&|rtnl| _ = rtnl.delete_link(link.as_str()).unwrap());
        }),
        ("is down", &|| {
            rtnl(&|rtnl| _ = rtnl.set_up(link.as_str(), false).unwrap());
        }),
        ("has another Ethernet address", &|| {
            rtnl(&|rtnl| _ = rtnl.set_mac(link.as_str(), strange).unwrap());
        }),
        ("permanent neighbour", &|| {
            rtnl(&|rtnl| {
                let index = rtnl.link_index(&link).unwrap();
                rtnl.delete_neighbour(index, address.into()).unwrap();
            });
        }),
        ("permanent neighbour", &|| {
            rtnl(&|rtnl| {
                let wrong = Neighbour {
                    link: rtnl.link_index(&link).unwrap(),
                    ip: address.into(),
                    mac: strange,
                };
                rtnl.replace_neighbour(&wrong).unwrap();
            });
        }),
        ("is missing or changed", &|| {
            rtnl(&|rtnl| {
                // Another tool's route takes the place of the pod's.
                let eth0 = rtnl.link_index("eth0").unwrap();
                let stolen = Route {
                    protocol: 4,
                    ..Route::link(ipnet::Ipv4Net::from(address), eth0)
                };
                rtnl.replace_route(&stolen).unwrap();
            });
        }),
        ("map ENDPOINTS lacks", &|| {
            datapath().endpoints().remove(&address.into()).unwrap();
        }),
        ("map PREFIXES lacks", &|| {
            datapath()
                .prefixes()
                .remove(&"10.244.0.0/16".parse().unwrap())
                .unwrap();
        }),
        ("map BLOCKS lacks", &|| {
            let own = datapath().blocks().list().unwrap();
            datapath().blocks().remove(own.keys().next().unwrap()).unwrap();
        }),
        ("map NODES has an entry that belongs to nobody", &|| {
            datapath()
                .nodes()
                .apply(&"10.224.0.99".parse().unwrap(), &())
                .unwrap();
        }),
        ("from_pod and to_pod not attached", &|| {
            bed.node()
                .run(|| {
                    let index = Rtnl::open().unwrap().link_index(&link).unwrap();
                    datapath().detach(index).unwrap();
                })
                .unwrap();
        }),
        ("from_overlay and to_overlay not attached", &|| {
            for entry in std::fs::read_dir(&pins).unwrap().flatten() {
                for link in std::fs::read_dir(entry.path().join("links"))
                    .into_iter()
                    .flatten()
                    .flatten()
                {
                    std::fs::remove_file(link.path()).unwrap();
                }
            }
        }),
        ("net/ipv4/ip_forward is not 1", &|| {
            set(Key::new("net/ipv4/ip_forward").unwrap(), "0");
        }),
    ];
    for (words, fault) in faults {
        let told = bed.log_len();
        fault();
        // An audit would have the agent look: its log tells when it saw by itself.
        let took = bed.until_logged(told, words);
        eprintln!("{words}: {took:?}");
        Invariant::Repair.took(true, took);
        let (_, audit) = bed.until(words, |audit| audit.findings().is_empty());
        assert!(
            audit.repaired().iter().any(|what| what.contains(words)),
            "{words}: {audit:?}"
        );
        assert_eq!(audit.held()[&sandbox.id], address, "{words}");
    }
    bed.delete(&sandbox);
    assert_eq!(bed.audit().findings(), [""; 0]);
}
