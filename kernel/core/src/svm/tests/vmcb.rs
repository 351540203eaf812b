//! Where the processor expects what: APM volume 2, appendix B.

use core::mem::offset_of;

use caisson_proto::vcpu::Save;

use crate::svm::vmcb::{Control, Vmcb};

macro_rules! at {
    ($($type:ident . $field:ident = $offset:literal;)*) => { $(
        assert_eq!(offset_of!($type, $field), $offset, concat!(stringify!($type), ".", stringify!($field)));
    )* };
}

#[test]
fn everything_lies_where_the_processor_looks() {
    at! {
        Control.cr = 0x00; Control.intercepts = 0x0c; Control.iopm = 0x40; Control.msrpm = 0x48; Control.tsc_offset = 0x50;
        Control.asid = 0x58; Control.tlb_control = 0x5c; Control.interrupt = 0x60; Control.shadow = 0x68;
        Control.exit_code = 0x70; Control.info1 = 0x78; Control.info2 = 0x80; Control.int_info = 0x88;
        Control.nested = 0x90; Control.event = 0xa8; Control.n_cr3 = 0xb0; Control.next_rip = 0xc8;
        Save.segments = 0; Save.gdtr = 0x60; Save.ldtr = 0x70; Save.idtr = 0x80; Save.tr = 0x90;
        Save.cpl = 0xcb; Save.efer = 0xd0; Save.cr4 = 0x148; Save.cr3 = 0x150; Save.cr0 = 0x158;
        Save.dr7 = 0x160; Save.dr6 = 0x168; Save.rflags = 0x170; Save.rip = 0x178; Save.rsp = 0x1d8; Save.rax = 0x1f8;
        Save.star = 0x200; Save.lstar = 0x208; Save.cstar = 0x210; Save.sfmask = 0x218; Save.kernel_gs_base = 0x220;
        Save.sysenter_cs = 0x228; Save.sysenter_esp = 0x230; Save.sysenter_eip = 0x238; Save.cr2 = 0x240; Save.pat = 0x268;
        Vmcb.control = 0; Vmcb.save = 0x400;
    }
    assert_eq!(size_of::<Vmcb>(), 4096);
}
