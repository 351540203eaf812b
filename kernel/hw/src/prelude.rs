//! The vocabulary of this crate in one import. What only one file needs, that file names itself.

pub(crate) use core::{arch::asm, cell::Cell, cell::UnsafeCell, mem::offset_of, sync::atomic::*};

pub(crate) use caisson_core::svm::{exits, npt, npt::Tables, npt::Tree, reset, state, state::*, vmcb::*};
pub(crate) use caisson_core::{boot::*, bundle::Bundle, context::Context, cpu::*, event::Event, here::Here};
pub(crate) use caisson_core::{ipc::Next, kernel::Kernel, machine::Machine, machine::*, schedule::Choice};
pub(crate) use caisson_proto::{prelude::*, rmp::Entry};
pub(crate) use spin::Once;

pub(crate) use x86_64::{VirtAddr, instructions::tlb, registers::control::*, structures::port::PortWrite};

pub(crate) use crate::cpu::{CR0, cpuid};
pub(crate) use crate::svm::{features, features::Features, vcpu, vcpu::vcpu};
pub(crate) use crate::{
    apic, boot, boot::Early, clock, cpu, epitaph, home, home::home, ioapic, kmap, kmap::CODE, kmap::DATA, kmap::DEVICE,
    kmap::Mapped, kmap::READ, layout::*, log, machine::*, mailbox,
};
pub(crate) use crate::{percpu::*, run, segments, segments::*, smp, space::*, syscall, translations};
pub(crate) use crate::{traps, traps::*, window};
