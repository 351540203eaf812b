//! Where things lie in a service's address space. The same for every service, in bytes.
//!
//! A service has one slot of the top-level page table: 512 GiB from 0. Nothing is mapped below [`IMAGE`], so a
//! null pointer faults.

/// Where service images are linked.
pub const IMAGE: u64 = 0x40_0000;
/// The read-only [`ServiceInfo`](crate::info::ServiceInfo) page.
pub const INFO: u64 = 0x1000_0000;
/// Just above the highest byte of the stack; a guard page lies below its lowest.
pub const STACK_TOP: u64 = 0x1100_0000;
/// Heap of the services that have one.
pub const HEAP: u64 = 0x2000_0000;
/// Rings, one page each, in the order of the service's ring list.
pub const RINGS: u64 = 0x3000_0000;
/// State pages of the vCPUs of this vmm: page `index` for vCPU `index`.
pub const VCPU_STATE: u64 = 0x3210_0000;
/// Lease window: pages lent to this service for the call that it is serving.
pub const LEASE: u64 = 0x3200_0000;
/// The secure processor's registers, in the service that stands in for it: see [`crate::mailbox`].
pub const MAILBOX: u64 = 0x3220_0000;
/// Files from the bundle, read-only: file `n` at `FILES + n * FILE_STRIDE`.
pub const FILES: u64 = 0x10_0000_0000;
/// Distance of two files; so a file has at most 1 GiB.
pub const FILE_STRIDE: u64 = 0x4000_0000;
/// Shared memory of this vmm's guest: guest-physical address `a` at `GUEST + a`.
pub const GUEST: u64 = 0x20_0000_0000;
/// Just above the highest address of a service.
pub const USER_END: u64 = 0x80_0000_0000;
