//! A guest that does anything, by the fuzz targets: whatever leaves it, the vmm answers or ends the VM, and never panics,
//! overflows, or replies what the kernel would refuse. `cargo xtask fuzz` searches longer.

use caisson_fuzz::{devices, guest};
use proptest::prelude::*;

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..1500)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn the_vmm_outlives_any_guest(bytes in bytes()) {
        guest::anything(&bytes);
    }

    #[test]
    fn it_outlives_ports_strings_and_registers(bytes in bytes()) {
        guest::ports(&bytes);
        guest::strings(&bytes);
        guest::msrs(&bytes);
    }

    #[test]
    fn the_decoder_takes_any_bytes_in_any_state(bytes in bytes()) {
        guest::instructions(&bytes);
        guest::arithmetic(&bytes);
        guest::tables(&bytes);
    }

    #[test]
    fn any_image_boots_or_is_refused(bytes in bytes()) {
        guest::linux(&bytes);
        guest::multiboot(&bytes);
    }

    #[test]
    fn each_device_keeps_its_rules(bytes in bytes()) {
        devices::uart(&bytes);
        devices::pit(&bytes);
        devices::pics(&bytes);
        devices::ioapic(&bytes);
        devices::lapic(&bytes);
        devices::rtc(&bytes);
        devices::test_device(&bytes);
        devices::power(&bytes);
        devices::clock(&bytes);
    }
}
