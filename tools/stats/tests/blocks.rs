//! Blocks as services make them are read and accepted, and each rule is shown to bite.

use caisson_proto::stats::{Desc, Header, NAME, Stat, VCPU, VM, VcpuStat, block, data_word, id, kind, unit};
use caisson_stats::judge::{Rule, judge};
use caisson_stats::read::{Kind, Malformed, Unit, read};
use proptest::prelude::*;
use zerocopy::IntoBytes;

const DESCS: usize = size_of::<Header>() + NAME;

/// A vCPU's block with some values, no longer than it is.
fn sample() -> Vec<u8> {
    let mut page = block(VCPU, &id("guest", Some(1)));
    page[data_word(VCPU) + VcpuStat::Ports.word()] = 7;
    page[data_word(VCPU) + VcpuStat::HaltWait.word() + 12] = 3;
    let bytes = (data_word(VCPU) + VcpuStat::WORDS) * 8;
    page.as_bytes()[..bytes].to_vec()
}

/// The sample with a number put at an offset.
fn with(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut all = sample();
    all[offset..offset + bytes.len()].copy_from_slice(bytes);
    all
}

/// The sample with something changed in the descriptor of the ports.
fn desc(offset: usize, bytes: &[u8]) -> Vec<u8> {
    with(DESCS + VcpuStat::Ports as usize * size_of::<Desc>() + offset, bytes)
}

#[track_caller]
fn breaks(bytes: &[u8], rule: Rule) {
    assert_eq!(judge(bytes).map_err(|broken| broken.rule), Err(rule));
}

#[test]
fn what_services_publish_is_read_and_accepted() {
    judge(&sample()).unwrap();
    let block = read(&sample()).unwrap();
    assert_eq!((block.id.as_str(), block.bytes, block.stats.len()), ("kvm-guest/vcpu-1", sample().len(), VCPU.len()));
    assert_eq!((block.value("io_exits"), block.value("exits"), block.value("nothing")), (Some(7), Some(0), None));
    let latency = block.stats.last().unwrap();
    assert_eq!((latency.kind, latency.unit, latency.values[12]), (Kind::Log, Unit::Cycles, 3));
    let vm = caisson_proto::stats::block(VM, &id("guest", None));
    judge(vm.as_bytes()).unwrap();
    assert_eq!(read(vm.as_bytes()).unwrap().id, "kvm-guest");
}

#[test]
fn names_are_there_once() {
    for list in [VM, VCPU] {
        let mut names: Vec<&str> = list.iter().map(|stat| stat.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), list.len());
    }
}

#[test]
fn each_rule_of_the_header_bites() {
    breaks(&sample()[..23], Rule::Header);
    breaks(&sample()[..24 + NAME - 1], Rule::Id);
    breaks(&with(4, &u32::MAX.to_le_bytes()), Rule::Id);
    breaks(&with(24, b"KVM"), Rule::IdText);
    breaks(&with(24, &[b'k'; NAME]), Rule::IdText);
    breaks(&with(24, &[&b"kvm"[..], &[b'-'; NAME - 3]].concat()), Rule::IdText);
    breaks(&with(16, &23u32.to_le_bytes()), Rule::Offsets);
    breaks(&with(20, &0u32.to_le_bytes()), Rule::Offsets);
    breaks(&with(20, &(data_word(VCPU) as u32 * 8 - 1).to_le_bytes()), Rule::DescriptorsFirst);
    breaks(&with(8, &u32::MAX.to_le_bytes()), Rule::DescriptorsFirst);
    breaks(&with(20, &24u32.to_le_bytes()), Rule::ValuesFirst);
    let past = sample().len() as u32 - 64;
    let moved = [past.to_le_bytes(), 24u32.to_le_bytes()].concat();
    breaks(&with(16, &moved), Rule::Descriptors);
    // No statistics at all: the test says so and is content.
    judge(&with(8, &0u32.to_le_bytes())).unwrap();
}

#[test]
fn each_rule_of_a_descriptor_bites() {
    breaks(&desc(0, &5u32.to_le_bytes()), Rule::Kind);
    breaks(&desc(0, &(5u32 << 4).to_le_bytes()), Rule::Unit);
    breaks(&desc(0, &(2u32 << 8).to_le_bytes()), Rule::Base);
    breaks(&desc(4, &(-1i16).to_le_bytes()), Rule::Exponent);
    let seconds = |exponent: i16| desc(0, &[&unit::SECONDS.to_le_bytes()[..], &exponent.to_le_bytes()].concat());
    breaks(&seconds(1), Rule::Exponent);
    judge(&seconds(-9)).unwrap();
    breaks(&desc(16, &[b'n'; NAME]), Rule::Name);
    breaks(&desc(6, &0u16.to_le_bytes()), Rule::Size);
    breaks(&desc(12, &1u32.to_le_bytes()), Rule::BucketSize);
    breaks(&desc(0, &kind::LINEAR.to_le_bytes()), Rule::BucketSize);
    breaks(&desc(8, &(VcpuStat::WORDS as u32 * 8).to_le_bytes()), Rule::Offset);
    breaks(&desc(8, &(VcpuStat::WORDS as u32 * 8 - 1).to_le_bytes()), Rule::Values);
    breaks(&sample()[..sample().len() - 1], Rule::Values);
    // A rule that concerns a statistic names it.
    assert_eq!(judge(&desc(6, &[0; 2])).unwrap_err().to_string(), "rule Size is broken by descriptor 1");
}

#[test]
fn each_malformed_field_is_named() {
    let says = |bytes: &[u8], part: &str| {
        let error = read(bytes).unwrap_err().to_string();
        assert!(error.contains(part), "{error:?} lacks {part:?}");
    };
    assert_eq!(read(&[0; 5]), Err(Malformed::Header(5)));
    says(&with(12, &u32::MAX.to_le_bytes()), "the id, 48 bytes from 4294967295 on");
    says(&with(8, &u32::MAX.to_le_bytes()), "4294967295 descriptors from 72 on");
    says(&with(24, &[b'k'; NAME]), "the id is no text");
    says(&with(24, &[0xff, 0]), "the id is no text");
    says(&desc(16, &[b'n'; NAME]), "name of descriptor 1 is no text");
    says(&desc(0, &5u32.to_le_bytes()), "\"io_exits\": flags 0x5");
    says(&desc(6, &0u16.to_le_bytes()), "\"io_exits\" has no value");
    says(&desc(6, &u16::MAX.to_le_bytes()), "\"io_exits\": 65535 values from 8 on");
    says(&sample()[..sample().len() - 1], "\"halt_wait_hist\": 32 values");
}

#[test]
fn a_block_of_other_sizes_is_read_as_its_header_says() {
    // Names of 16 bytes, values before descriptors.
    let header = Header { flags: 0, name_size: 16, num_desc: 1, id_offset: 24, desc_offset: 48, data_offset: 40 };
    let mut bytes = [header.as_bytes(), b"kvm-1\0\0\0\0\0\0\0\0\0\0\0", &9u64.to_le_bytes()].concat();
    bytes.extend([&unit::BYTES.to_le_bytes()[..], &[0; 2], &[1, 0], &[0; 8], b"memory\0\0\0\0\0\0\0\0\0\0"].concat());
    judge(&bytes).unwrap();
    let block = read(&bytes).unwrap();
    assert_eq!((block.value("memory"), block.bytes, block.stats[0].unit), (Some(9), bytes.len(), Unit::Bytes));
}

proptest! {
    /// Nothing that the judge accepts is unreadable, and no bytes are fatal.
    #[test]
    fn whatever_is_accepted_can_be_read(changes in prop::collection::vec((0usize..2200, any::<u8>()), 0..4), cut in 0usize..2200) {
        let mut bytes = sample();
        for (at, value) in changes {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        bytes.truncate(bytes.len().saturating_sub(cut / 20));
        let (judged, found) = (judge(&bytes), read(&bytes));
        if let (Ok(()), Err(why)) = (&judged, &found) {
            // The test looks at no id_offset, and takes a name for bytes.
            prop_assert!(matches!(why, Malformed::Id { .. } | Malformed::Text(_) | Malformed::Descriptors { .. }), "{why}");
        }
        if let Ok(block) = found {
            prop_assert!(block.bytes <= bytes.len());
        }
    }

    /// Any statistics that a service may declare.
    #[test]
    fn any_list_is_accepted(sizes in prop::collection::vec(1u16..40, 1..8), name in "[a-z-]{0,60}") {
        let stats: Vec<Stat> = sizes.iter().map(|&size| Stat { name: "s", flags: kind::LOG, size }).collect();
        let page = block(&stats, &id(&name, Some(255)));
        prop_assert_eq!(judge(page.as_bytes()), Ok(()));
        let block = read(page.as_bytes()).unwrap();
        prop_assert!(block.stats.iter().map(|stat| stat.values.len() as u16).eq(sizes));
    }
}
