//! What can be said of the object without a kernel.

use std::collections::BTreeSet;
use std::net::IpAddr;

use aya_obj::generated::bpf_insn;
use weft_abi::{Address, PrefixKey};

use super::convert::{from_abi, prefix_from_abi, prefix_to_abi, to_abi};
use super::{OBJECT, Program, names};

/// The verifier allows 512 (`MAX_BPF_STACK`); some room is left for other versions of the compiler.
const STACK: i32 = 480;

const FRAME_POINTER: u8 = 10;
const CALL: u8 = 0x85;
const ADD_IMMEDIATE: u8 = 0x07;
/// `src_reg` of a call to a function of the object itself (`BPF_PSEUDO_CALL`).
const PSEUDO_CALL: u8 = 1;

pub(super) fn instructions(program: Program) -> Vec<bpf_insn> {
    let object = aya_obj::Object::parse(OBJECT).unwrap();
    let mut functions = object.functions.values();
    functions
        .find(|function| function.name == program.name())
        .unwrap()
        .instructions
        .clone()
}

/// How far below the frame pointer an instruction reaches, in bytes. Every sum with a negative constant is taken for an
/// address on the stack.
fn depth(instruction: &bpf_insn) -> i32 {
    let class = instruction.code & 0x07;
    let by_memory = (1..=3).contains(&class)
        && (instruction.src_reg() == FRAME_POINTER || instruction.dst_reg() == FRAME_POINTER);
    if by_memory {
        -i32::from(instruction.off)
    } else if instruction.code == ADD_IMMEDIATE {
        -instruction.imm
    } else {
        0
    }
}

#[test]
fn programs_are_whole_without_calls_to_memcpy_or_panics() {
    for program in Program::ALL {
        let calls = instructions(program)
            .iter()
            .filter(|i| i.code == CALL && i.src_reg() == PSEUDO_CALL)
            .count();
        assert_eq!(
            calls,
            0,
            "{} calls functions that the compiler put in",
            program.name()
        );
    }
}

#[test]
fn programs_keep_away_from_the_end_of_the_stack() {
    for program in Program::ALL {
        let deepest = instructions(program).iter().map(depth).max().unwrap();
        assert!(
            (8..STACK).contains(&deepest),
            "{} uses {deepest} bytes of stack",
            program.name()
        );
    }
}

#[test]
fn the_object_holds_the_maps_and_programs_that_are_looked_for_and_no_others() {
    let object = aya_obj::Object::parse(OBJECT).unwrap();
    let maps: BTreeSet<&str> = object.maps.keys().map(String::as_str).collect();
    assert_eq!(maps, BTreeSet::from(names::ALL));
    let programs: BTreeSet<&str> = object.programs.keys().map(String::as_str).collect();
    assert_eq!(programs, Program::ALL.map(Program::name).into());
    assert_eq!(object.license.to_str(), Ok("GPL"));
}

#[test]
fn addresses_and_prefixes_survive_the_way_into_a_map_and_back() {
    for address in [
        "10.244.1.2",
        "0.0.0.0",
        "255.255.255.255",
        "fd00::1",
        "2001:db8::ffff:a00:1",
    ] {
        let address: IpAddr = address.parse().unwrap();
        assert_eq!(from_abi(to_abi(address)), address);
    }
    for net in [
        "10.244.0.0/16",
        "10.244.1.2/32",
        "0.0.0.0/0",
        "fd00:1::/48",
        "::/0",
    ] {
        let net = net.parse().unwrap();
        assert_eq!(prefix_from_abi(prefix_to_abi(net)), Some(net), "{net}");
    }
    let longer_than_an_address = PrefixKey {
        bits: 129,
        network: Address::v4([10, 0, 0, 0]),
    };
    assert_eq!(prefix_from_abi(longer_than_an_address), None);
    let with_host_bits = prefix_to_abi("10.244.1.2/16".parse().unwrap());
    assert_eq!(
        with_host_bits,
        PrefixKey {
            bits: 112,
            network: Address::v4([10, 244, 0, 0])
        }
    );
}
