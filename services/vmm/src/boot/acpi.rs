//! ACPI tables: what a hardware-reduced machine with a local APIC each and one I/O APIC needs.
//!
//! Hardware-reduced, so that Linux skips the 8259 pair, the PIT and the SCI at boot. No HPET and no PM timer are
//! described: kvmclock and the TSC-deadline timer are better.

use alloc::vec;
use alloc::vec::Vec;

use acpi_tables::aml::{Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate, Scope};
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};

use crate::dev::power::{PANIC, RESET, RESET_VALUE, S5, SLEEP_CONTROL, SLEEP_STATUS};
use crate::dev::{ioapic, lapic, uart};
use crate::virtio;

const OEM: [u8; 6] = *b"CAISSN";
const TABLE: [u8; 8] = *b"CAISSON ";
/// IA-PC boot flags: no VGA (bit 2), no MSI restriction; no 8042 (bit 1 clear), no other legacy device.
const BOOT_FLAGS: u16 = 1 << 2;

struct Sink(Vec<u8>);

impl AmlSink for Sink {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }
}

fn bytes(aml: &dyn Aml) -> Vec<u8> {
    let mut sink = Sink(Vec::new());
    aml.to_aml_bytes(&mut sink);
    sink.0
}

/// A device by virtio, as Linux's driver looks for it.
fn virtio(number: u8) -> Vec<u8> {
    let place = virtio::PLACE.start as u32 + u32::from(number) * 4096;
    let registers = Memory32Fixed::new(true, place, 4096);
    // Level-triggered and active high.
    let interrupt = Interrupt::new(true, false, false, false, u32::from(virtio::FIRST_PIN + number));
    let resources = ResourceTemplate::new(vec![&registers, &interrupt]);
    let hid = Name::new("_HID".into(), &"LNRO0005");
    let uid = Name::new("_UID".into(), &number);
    let crs = Name::new("_CRS".into(), &resources);
    let name = [b'V', b'I', b'O', b'0' + number];
    bytes(&Device::new(core::str::from_utf8(&name).unwrap_or("VIO_").into(), vec![&hid, &uid, &crs]))
}

/// What was made before, among other things.
struct Made(Vec<u8>);

impl Aml for Made {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

fn dsdt(virtio_devices: usize) -> Vec<u8> {
    let (hid, crs, path) = (|| "_HID".into(), || "_CRS".into(), |name: &str| -> Path { name.into() });
    let mut body = Vec::new();
    let s5 = Package::new(vec![&S5, &0_u8]);
    body.extend(bytes(&Name::new(path("_S5_"), &s5)));

    let uart_id = EISAName::new("PNP0501");
    let uart_hid = Name::new(hid(), &uart_id);
    let uart_uid = Name::new(path("_UID"), &0_u8);
    let uart_ports = IO::new(uart::BASE, uart::BASE, 1, 8);
    let uart_irq = Interrupt::new(true, true, false, false, u32::from(uart::IRQ));
    let uart_resources = ResourceTemplate::new(vec![&uart_ports, &uart_irq]);
    let uart_crs = Name::new(crs(), &uart_resources);
    let uart = Device::new(path("COM1"), vec![&uart_hid, &uart_uid, &uart_crs]);

    let rtc_id = EISAName::new("PNP0B00");
    let rtc_hid = Name::new(hid(), &rtc_id);
    let rtc_ports = IO::new(0x70, 0x70, 1, 2);
    let rtc_resources = ResourceTemplate::new(vec![&rtc_ports]);
    let rtc_crs = Name::new(crs(), &rtc_resources);
    let rtc = Device::new(path("RTC_"), vec![&rtc_hid, &rtc_crs]);

    let panic_hid = Name::new(hid(), &"QEMU0001");
    let panic_ports = IO::new(PANIC, PANIC, 1, 1);
    let panic_resources = ResourceTemplate::new(vec![&panic_ports]);
    let panic_crs = Name::new(crs(), &panic_resources);
    let panic = Device::new(path("PEVT"), vec![&panic_hid, &panic_crs]);

    let virtio = Made((0..virtio_devices.min(virtio::MAX_DEVICES) as u8).flat_map(virtio).collect());
    body.extend(bytes(&Scope::new(path("_SB_"), vec![&uart, &rtc, &panic, &virtio])));
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, 1);
    table.append_slice(&body);
    bytes(&table)
}

fn fadt(dsdt: u64) -> Vec<u8> {
    let port = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port));
    let mut fadt = FADTBuilder::new(OEM, TABLE, 1)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Headless)
        .preferred_pm_profile(PmProfile::EnterpriseServer);
    fadt.iapc_boot_arch = BOOT_FLAGS.into();
    fadt.reset_reg = port(RESET);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port(SLEEP_CONTROL);
    fadt.sleep_status_reg = port(SLEEP_STATUS);
    bytes(&fadt.finalize())
}

fn madt(vcpus: u8) -> Vec<u8> {
    let address = LocalInterruptController::Address(lapic::MMIO as u32);
    let mut madt = MADT::new(OEM, TABLE, 1, address);
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, ioapic::MMIO as u32, 0));
    bytes(&madt)
}

/// All tables for `vcpus` vCPUs and so many virtio devices as they lie at `at`, the RSDP first.
pub fn tables(at: u64, vcpus: u8, virtio_devices: usize) -> Vec<u8> {
    let mut out = vec![0; 64];
    let place = |out: &mut Vec<u8>, table: &[u8]| {
        out.resize(out.len().next_multiple_of(16), 0);
        let here = at + out.len() as u64;
        out.extend_from_slice(table);
        here
    };
    let dsdt_at = place(&mut out, &dsdt(virtio_devices));
    let mut xsdt = XSDT::new(OEM, TABLE, 1);
    for table in [fadt(dsdt_at), madt(vcpus)] {
        xsdt.add_entry(place(&mut out, &table));
    }
    let xsdt_at = place(&mut out, &bytes(&xsdt));
    let rsdp = bytes(&Rsdp::new(OEM, xsdt_at));
    for (target, byte) in out.iter_mut().zip(rsdp) {
        *target = byte;
    }
    out
}
