//! The kernel's own vocabulary in one import. What only one file needs, that file names itself.

pub(crate) use core::{cell::Cell, mem::offset_of, ops::Deref};

pub(crate) use caisson_proto::{prelude::*, rmp::Entry};

pub(crate) use crate::{asids::*, batches::*, bells::*, boot::*, context::*, cpu::*, cpus::*, event::*, frames::*};
pub(crate) use crate::{here::*, ipc::*, kernel::*, machine::Machine, machine::*, svm::state::*, vms, vms::*};
pub(crate) use crate::{invalidation::*, rmp::Rmp, service::*, sync::*, turn::*, woken::*};
