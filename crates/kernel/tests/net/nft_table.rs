//! Weft's nftables table, as `nft` shows it and as others change it.

use std::time::Instant;

use weft_kernel::nft::{
    Action, Base, Chain, ChainKind, Hook, Nft, NftChange, NftMonitor, Rule, Table, WEFT_TABLE, weft_table,
};

use crate::namespaces::TestNs;
use crate::needs_root;
use crate::nft::{ruleset, wanted};

#[test]
fn nft_shows_the_table_as_it_was_meant() {
    needs_root!();
    let test = TestNs::new("list");
    Nft::open_in(&test.netns).unwrap().apply(&ruleset()).unwrap();
    let expected = r#"table ip weft {
	comment "made by the weft agent, replaced as a whole"
	chain guard {
		type filter hook postrouting priority srcnat + 10; policy accept;
		udp dport 8472 oifname != "weft*" ct original ip saddr 10.244.0.0/16 counter packets 0 bytes 0 drop comment "pod to tunnel port"
		udp dport 8472 oifname != "weft*" ct reply ip saddr 10.244.0.0/16 counter packets 0 bytes 0 drop comment "pod to tunnel port"
		ip saddr 10.244.0.0/16 oifname != "weft*" goto untranslated
	}

	chain untranslated {
		udp dport 8472 counter packets 0 bytes 0 drop comment "pod to tunnel port"
		ip daddr 10.1.0.0/16 return
		ip daddr 10.3.0.0/24 return
		counter packets 0 bytes 0 drop comment "pod source not translated"
	}

	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		oifname "weft0" goto overlay
		oifname "weft*" return
		ip saddr 10.244.0.0/16 goto outside
	}

	chain outside {
		ip daddr 10.1.0.0/16 return
		ip daddr 10.3.0.0/24 return
		ip daddr 10.244.0.0/16 return
		meta l4proto tcp counter packets 0 bytes 0 masquerade to :32768-65535 fully-random comment "pod to outside"
		meta l4proto udp counter packets 0 bytes 0 masquerade to :32768-65535 fully-random comment "pod to outside"
		counter packets 0 bytes 0 masquerade fully-random comment "pod to outside"
	}

	chain overlay {
		ip saddr 10.224.0.4 return
		ip saddr 10.244.1.0/24 return
		counter packets 0 bytes 0 masquerade fully-random comment "stranger to remote pod"
	}

	chain prerouting {
		type filter hook prerouting priority raw; policy accept;
		iifname "eth0" udp dport 8472 notrack
	}

	chain output {
		type filter hook output priority raw; policy accept;
		oifname "eth0" udp dport 8472 notrack
	}
}
"#;
    assert_eq!(test.exec("nft list table ip weft"), expected);
}

#[test]
fn every_interference_with_the_table_is_noticed_and_nothing_else() {
    needs_root!();
    let test = TestNs::new("drift");
    let mut nft = Nft::open_in(&test.netns).unwrap();
    let ruleset = ruleset();
    let mut applied = nft.apply(&ruleset).unwrap();
    assert!(nft.is_intact(&mut applied).unwrap());

    for harmless in [
        "add table ip other",
        "add chain ip other c",
        "delete table ip other",
    ] {
        test.exec(&format!("nft {harmless}"));
        assert!(nft.is_intact(&mut applied).unwrap(), "{harmless}");
    }
    for harm in [
        "flush ruleset",
        "delete table ip weft",
        "flush table ip weft",
        "flush chain ip weft postrouting",
        "delete rule ip weft guard handle",
        "insert rule ip weft postrouting accept",
        "add chain ip weft mine",
        "add chain ip weft guard { policy drop ; }",
        "insert rule ip weft outside ip daddr 192.0.2.0/24 return",
    ] {
        if harm.ends_with("handle") {
            let rules = test.exec("nft -a list chain ip weft guard");
            let rule = rules.lines().find(|line| line.contains("goto")).unwrap();
            let handle = rule.rsplit(' ').next().unwrap();
            test.exec(&format!("nft {harm} {handle}"));
        } else {
            test.exec(&format!("nft {harm}"));
        }
        assert!(!nft.is_intact(&mut applied).unwrap(), "{harm}");
        applied = nft.apply(&ruleset).unwrap();
        assert!(nft.is_intact(&mut applied).unwrap(), "after {harm}");
    }
    assert!(nft.has_table(WEFT_TABLE).unwrap());
    assert!(nft.delete_table(WEFT_TABLE).unwrap());
    assert!(!nft.delete_table(WEFT_TABLE).unwrap());
}

#[test]
fn a_flush_is_reported_with_its_author_and_undone() {
    needs_root!();
    let test = TestNs::new("flush");
    let mut nft = Nft::open_in(&test.netns).unwrap();
    let ruleset = ruleset();
    let mut applied = nft.apply(&ruleset).unwrap();
    let before = test.exec("nft list ruleset");
    let mut monitor = NftMonitor::open_in(&test.netns).unwrap();
    let mut gaps = Vec::new();
    for _ in 0..20 {
        test.exec("nft flush ruleset");
        let start = Instant::now();
        let changes = monitor.wait().unwrap();
        assert!(
            changes
                .iter()
                .any(|change| matches!(change, NftChange::Commit { program, .. } if program == "nft")),
            "{changes:?}"
        );
        assert!(!nft.is_intact(&mut applied).unwrap());
        applied = nft.apply(&ruleset).unwrap();
        gaps.push(start.elapsed());
        assert_eq!(test.exec("nft list ruleset"), before);
        let own = monitor.wait().unwrap();
        assert_eq!(own.len(), 1, "{own:?}");
    }
    gaps.sort();
    eprintln!(
        "notice, compare and restore: median {:?}, longest {:?}",
        gaps[10], gaps[19]
    );
}

#[test]
fn a_refused_table_changes_nothing_and_names_what_was_refused() {
    needs_root!();
    let test = TestNs::new("refuse");
    let mut nft = Nft::open_in(&test.netns).unwrap();
    let mut applied = nft.apply(&ruleset()).unwrap();
    let wrong = Table {
        name: WEFT_TABLE.to_owned(),
        comment: String::new(),
        chains: vec![Chain {
            name: "output",
            base: Some(Base {
                kind: ChainKind::Filter,
                hook: Hook::Output,
                priority: 0,
            }),
            rules: vec![Rule {
                comment: "",
                when: Vec::new(),
                counted: false,
                then: Action::Goto("missing"),
            }],
        }],
    };
    let error = nft.apply(&wrong.compile().unwrap()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "replace nftables table weft (rule 1 of chain output): No such file or directory (os error 2)"
    );
    assert!(nft.is_intact(&mut applied).unwrap());
}

#[test]
fn hundreds_of_exempt_ranges_fit_into_one_transaction() {
    needs_root!();
    let test = TestNs::new("many");
    let mut many = wanted();
    many.non_masquerade = (0..500u32)
        .map(|number| {
            ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::from_bits(0x0b00_0000 + number * 512), 24)
        })
        .collect();
    let mut nft = Nft::open_in(&test.netns).unwrap();
    let mut applied = nft.apply(&weft_table(&many).unwrap()).unwrap();
    assert!(nft.is_intact(&mut applied).unwrap());
    let shown = test.exec("nft list chain ip weft outside");
    assert_eq!(shown.matches("/24 return").count(), 500);
}
