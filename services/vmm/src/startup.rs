//! INIT and start-up IPIs: how a guest starts its other processors (APM volume 2, section 16.5).

use caisson_proto::vcpu::{Groups, Resume, VcpuState};

use crate::boot::entry::{after_init, after_sipi};
use crate::platform::{Event, Platform};
use crate::vcpu::{Life, Nmis};
use crate::vmm::Vmm;

impl<P: Platform> Vmm<P> {
    pub(crate) fn receive_init(&mut self, at: usize) {
        let Some(vcpu) = self.vcpus.get_mut(at) else { return };
        vcpu.sipi = None;
        if vcpu.life == Life::Waiting {
            vcpu.apic.init();
            return;
        }
        // It is in its guest or parked: it takes the INIT at its next exit.
        vcpu.init = true;
        self.wake(at);
    }

    pub(crate) fn receive_startup(&mut self, at: usize, vector: u8) {
        let Some(vcpu) = self.vcpus.get_mut(at) else { return };
        if vcpu.init {
            vcpu.sipi = vcpu.sipi.or(Some(vector));
            return;
        }
        if vcpu.life != Life::Waiting {
            return;
        }
        vcpu.life = Life::Running;
        let offset = vcpu.tsc_offset;
        self.platform.store(at as u8, Groups::all(), &after_sipi(vector, offset));
        self.note(Event::Started { vcpu: at as u8, vector });
        self.platform.run(at as u8);
    }

    /// Takes a pending INIT, and the start-up that may have followed it.
    pub(crate) fn take_init(&mut self, at: usize, state: &mut VcpuState) -> Resume {
        let Some(vcpu) = self.vcpus.get_mut(at) else { return self.stop() };
        vcpu.init = false;
        (vcpu.nmi, vcpu.nmis) = (0, Nmis::Open);
        self.aside.forget(at);
        vcpu.eoi_armed = false;
        vcpu.apic.init();
        // The boot processor goes to the reset vector, where there is nothing: it waits like the others.
        match vcpu.sipi.take() {
            Some(vector) => {
                vcpu.life = Life::Running;
                *state = after_sipi(vector, vcpu.tsc_offset);
                Self::loaded(Groups::all())
            }
            None => {
                vcpu.life = Life::Waiting;
                *state = after_init(vcpu.tsc_offset);
                self.stop()
            }
        }
    }
}
