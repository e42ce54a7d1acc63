//! Runs a program's bytecode without a kernel, counting what it executes: the same on every machine, unlike times.
//!
//! It knows what the programs use and panics at anything else.

use std::collections::{BTreeMap, HashSet};

use aya_obj::Object;
use aya_obj::generated::bpf_insn;

use super::{OBJECT, Program};

/// What one run of a program took and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Run {
    /// Value of the program.
    pub(super) action: i32,
    /// Instructions executed, helpers not looked into.
    pub(super) instructions: usize,
    /// Calls of helpers that look into a map, by map.
    pub(super) lookups: BTreeMap<String, usize>,
    /// Names of the other helpers called, in order.
    pub(super) helpers: Vec<&'static str>,
}

/// A map's contents by key; of a trie, keys are prefixes of the address that is looked for.
pub(super) type Contents = BTreeMap<Vec<u8>, Vec<u8>>;

/// A frame as a program finds it, and the maps around it.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) frame: Vec<u8>,
    pub(super) ifindex: u32,
    /// Sender and VNI, of a packet that comes out of the overlay device.
    pub(super) tunnel: Option<([u8; 4], u32)>,
    pub(super) maps: BTreeMap<&'static str, Contents>,
}

/// The machine's memory: pieces at addresses that have room in 32 bits, as the fields of the context have it.
struct Memory {
    pieces: BTreeMap<u64, Vec<u8>>,
    next_value: u64,
}

struct Machine {
    memory: Memory,
    world: World,
    names: Vec<String>,
    registers: [u64; 11],
    run: Run,
}

const CONTEXT: u64 = 0x1000_0000;
const STACK: u64 = 0x2000_0000;
const STACK_LEN: usize = 512;
const PACKET: u64 = 0x3000_0000;
const VALUES: u64 = 0x4000_0000;
/// Where programs see maps; they only hand it on.
const MAPS: u64 = 0x7000_0000;

// Offsets in struct __sk_buff (include/uapi/linux/bpf.h).
const SK_BUFF_LEN: usize = 192;
const LEN: usize = 0;
const PROTOCOL: usize = 16;
const IFINDEX: usize = 40;
const DATA: usize = 76;
const DATA_END: usize = 80;

const ETHERNET: usize = 14;
const OUTER: usize = 50;
const TC_ACT_REDIRECT: u64 = 7;
const ENOMEM: u64 = (-12_i64).cast_unsigned();
const ENOENT: u64 = (-2_i64).cast_unsigned();

/// Runs `program` once in `world`.
pub(super) fn run(program: Program, world: World) -> Run {
    let mut object = Object::parse(OBJECT).expect("an object");
    let maps = object.maps.clone();
    let named = maps.iter().enumerate();
    let names = maps.keys().cloned().collect();
    object
        .relocate_maps(
            named.map(|(number, (name, map))| (name.as_str(), i32::try_from(number).expect("few maps"), map)),
            &HashSet::new(),
        )
        .expect("maps that are known");
    let code = object
        .functions
        .values()
        .find(|function| function.name == program.name())
        .expect("the program")
        .instructions
        .clone();
    Machine::new(world, names).execute(&code)
}

// === impl Memory ===

impl Memory {
    fn at(&mut self, address: u64, len: usize) -> &mut [u8] {
        let (start, piece) = self
            .pieces
            .range_mut(..=address)
            .next_back()
            .unwrap_or_else(|| panic!("no memory at {address:#x}"));
        let offset = usize::try_from(address - start).expect("an offset");
        piece
            .get_mut(offset..offset + len)
            .unwrap_or_else(|| panic!("{len} bytes at {address:#x} are not memory"))
    }

    fn read(&mut self, address: u64, len: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes[..len].copy_from_slice(self.at(address, len));
        u64::from_le_bytes(bytes)
    }

    fn write(&mut self, address: u64, len: usize, value: u64) {
        self.at(address, len).copy_from_slice(&value.to_le_bytes()[..len]);
    }
}

// === impl Machine ===

impl Machine {
    fn new(world: World, names: Vec<String>) -> Self {
        let pieces = [(CONTEXT, vec![0; SK_BUFF_LEN]), (STACK, vec![0; STACK_LEN])];
        let mut machine = Self {
            memory: Memory {
                pieces: pieces.into(),
                next_value: VALUES,
            },
            world,
            names,
            registers: [0; 11],
            run: Run::default(),
        };
        machine.registers[1] = CONTEXT;
        machine.registers[10] = STACK + STACK_LEN as u64;
        let protocol = [machine.world.frame[12], machine.world.frame[13], 0, 0];
        machine
            .memory
            .at(CONTEXT + PROTOCOL as u64, 4)
            .copy_from_slice(&protocol);
        let ifindex = machine.world.ifindex;
        machine.memory.write(CONTEXT + IFINDEX as u64, 4, ifindex.into());
        let frame = machine.world.frame.clone();
        machine.set_frame(frame);
        machine
    }

    fn frame(&self) -> &Vec<u8> {
        &self.memory.pieces[&PACKET]
    }

    fn set_frame(&mut self, frame: Vec<u8>) {
        let len = frame.len() as u64;
        self.memory.pieces.insert(PACKET, frame);
        for (field, value) in [(LEN, len), (DATA, PACKET), (DATA_END, PACKET + len)] {
            self.memory.write(CONTEXT + field as u64, 4, value);
        }
    }

    fn execute(mut self, code: &[bpf_insn]) -> Run {
        let mut at = 0;
        loop {
            let instruction = &code[at];
            self.run.instructions += 1;
            assert!(self.run.instructions < 100_000, "the program does not end");
            let (class, op) = (instruction.code & 0x07, instruction.code & 0xf0);
            let (to, from) = (
                usize::from(instruction.dst_reg()),
                usize::from(instruction.src_reg()),
            );
            let immediate = i64::from(instruction.imm).cast_unsigned();
            let by_register = instruction.code & 0x08 != 0;
            let operand = if by_register {
                self.registers[from]
            } else {
                immediate
            };
            let target = |register: u64| register.wrapping_add_signed(instruction.off.into());
            let size = [4, 2, 1, 8][usize::from(instruction.code >> 3 & 3)];
            at += 1;
            match class {
                0 => {
                    assert_eq!(instruction.code, 0x18, "an old kind of load");
                    let high = u64::from(code[at].imm.cast_unsigned());
                    let low = u64::from(instruction.imm.cast_unsigned());
                    self.registers[to] = if from == 0 { high << 32 | low } else { MAPS + low };
                    at += 1;
                }
                1 => self.registers[to] = self.memory.read(target(self.registers[from]), size),
                2 => self.memory.write(target(self.registers[to]), size, immediate),
                3 => {
                    assert_eq!(instruction.code & 0xe0, 0x60, "no atomic operations");
                    self.memory
                        .write(target(self.registers[to]), size, self.registers[from]);
                }
                4 | 7 => {
                    let wide = class == 7;
                    let value = self.registers[to];
                    self.registers[to] = if op == 0xd0 {
                        swapped(value, instruction.imm, by_register)
                    } else {
                        computed(op, value, operand, wide)
                    };
                }
                _ if instruction.code == 0x95 => {
                    self.run.action = self.registers[0] as u32 as i32;
                    return self.run;
                }
                _ if instruction.code == 0x85 => self.call(instruction.imm),
                _ => {
                    assert_ne!(instruction.code, 0x06, "no long jumps");
                    if holds(op, self.registers[to], operand, class == 5) {
                        at = at
                            .checked_add_signed(instruction.off.into())
                            .expect("an instruction");
                    }
                }
            }
        }
    }

    /// A helper, by its number in include/uapi/linux/bpf.h.
    fn call(&mut self, helper: i32) {
        let [_, one, two, three, four, ..] = self.registers;
        let (name, value) = match helper {
            1..=3 => {
                let found = self.map(one, two, helper);
                self.finish(found);
                return;
            }
            9 => {
                let bytes = self.memory.at(three, four as usize).to_vec();
                self.memory.at(PACKET + two, bytes.len()).copy_from_slice(&bytes);
                ("skb_store_bytes", 0)
            }
            20 => ("skb_get_tunnel_key", self.tunnel_key(two)),
            21 => ("skb_set_tunnel_key", 0),
            23 => ("redirect", TC_ACT_REDIRECT),
            26 => ("skb_load_bytes", self.load(two, three, four)),
            34 => ("get_hash_recalc", 0x1234_5678),
            39 => (
                "skb_pull_data",
                if two as usize > self.frame().len() {
                    ENOMEM
                } else {
                    0
                },
            ),
            50 => ("skb_adjust_room", self.adjust(two as i32)),
            68 => (
                "skb_load_bytes_relative",
                self.load(two + ETHERNET as u64, three, four),
            ),
            152 => ("redirect_neigh", TC_ACT_REDIRECT),
            155 => ("redirect_peer", TC_ACT_REDIRECT),
            other => panic!("helper {other} is not known here"),
        };
        self.run.helpers.push(name);
        self.finish(value);
    }

    /// Registers 1 to 5 are the helper's to change.
    fn finish(&mut self, value: u64) {
        self.registers[0] = value;
        self.registers[1..=5].fill(0xdead_beef_dead_beef);
    }

    fn map(&mut self, map: u64, key: u64, helper: i32) -> u64 {
        let name = self.names[(map - MAPS) as usize].clone();
        *self.run.lookups.entry(name.clone()).or_default() += 1;
        assert_eq!(helper, 1, "{name} is only read on these paths");
        let contents = self.world.maps.get(name.as_str()).cloned().unwrap_or_default();
        let is_trie = name == "PREFIXES";
        let found = contents
            .iter()
            .filter(|(held, _)| {
                let asked = self.memory.at(key, held.len());
                if is_trie {
                    covers(held, asked)
                } else {
                    asked == *held
                }
            })
            .max_by_key(|(held, _)| if is_trie { held[0] } else { 0 });
        let Some((_, value)) = found else { return 0 };
        let address = self.memory.next_value;
        self.memory.next_value += 0x1_0000;
        self.memory.pieces.insert(address, value.clone());
        address
    }

    fn load(&mut self, offset: u64, to: u64, len: u64) -> u64 {
        let (offset, len) = (offset as usize, len as usize);
        let Some(bytes) = self.frame().get(offset..offset + len).map(<[u8]>::to_vec) else {
            return ENOENT;
        };
        self.memory.at(to, len).copy_from_slice(&bytes);
        0
    }

    fn tunnel_key(&mut self, to: u64) -> u64 {
        let Some((remote, vni)) = self.world.tunnel else {
            return ENOENT;
        };
        self.memory.write(to, 4, vni.into());
        self.memory.write(to + 4, 4, u32::from_be_bytes(remote).into());
        0
    }

    fn adjust(&mut self, by: i32) -> u64 {
        let mut frame = self.frame().clone();
        if by > 0 {
            frame.splice(ETHERNET..ETHERNET, [0; OUTER]);
        } else {
            frame.drain(ETHERNET..ETHERNET + OUTER);
        }
        self.set_frame(frame);
        0
    }
}

// === private ===

/// Whether a prefix of the trie, its length in bits first, covers the key that is asked for.
fn covers(held: &[u8], asked: &[u8]) -> bool {
    let bits = usize::from(held[0]);
    let bit = |bytes: &[u8], at: usize| bytes[4 + at / 8] >> (7 - at % 8) & 1;
    (0..bits).all(|at| bit(held, at) == bit(asked, at))
}

fn swapped(value: u64, bits: i32, to_big_endian: bool) -> u64 {
    match (bits, to_big_endian) {
        (16, true) => u64::from((value as u16).swap_bytes()),
        (32, true) => u64::from((value as u32).swap_bytes()),
        (64, true) => value.swap_bytes(),
        (16, false) => u64::from(value as u16),
        (32, false) => u64::from(value as u32),
        _ => value,
    }
}

fn computed(op: u8, value: u64, operand: u64, wide: bool) -> u64 {
    let narrow = |number: u64| if wide { number } else { u64::from(number as u32) };
    let (value, operand) = (narrow(value), narrow(operand));
    let bits = if wide { 63 } else { 31 };
    let shift = (operand & bits) as u32;
    narrow(match op {
        0x00 => value.wrapping_add(operand),
        0x10 => value.wrapping_sub(operand),
        0x20 => value.wrapping_mul(operand),
        0x40 => value | operand,
        0x50 => value & operand,
        0x60 => value << shift,
        0x70 => value >> shift,
        0x80 => value.wrapping_neg(),
        0xa0 => value ^ operand,
        0xb0 => operand,
        0xc0 if wide => (value.cast_signed() >> shift).cast_unsigned(),
        0xc0 => u64::from(((value as u32).cast_signed() >> shift).cast_unsigned()),
        other => panic!("operation {other:#x} is not known here"),
    })
}

fn holds(op: u8, value: u64, operand: u64, wide: bool) -> bool {
    let narrow = |number: u64| if wide { number } else { u64::from(number as u32) };
    let (a, b) = (narrow(value), narrow(operand));
    let signed = |number: u64| {
        if wide {
            number.cast_signed()
        } else {
            i64::from((number as u32).cast_signed())
        }
    };
    match op {
        0x00 => true,
        0x10 => a == b,
        0x20 => a > b,
        0x30 => a >= b,
        0x40 => a & b != 0,
        0x50 => a != b,
        0x60 => signed(a) > signed(b),
        0x70 => signed(a) >= signed(b),
        0xa0 => a < b,
        0xb0 => a <= b,
        0xc0 => signed(a) < signed(b),
        0xd0 => signed(a) <= signed(b),
        other => panic!("comparison {other:#x} is not known here"),
    }
}
