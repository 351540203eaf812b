//! The contract's vocabulary in one import, for those who speak all of it: `use caisson_proto::prelude::*`.

pub use crate::{abi::*, addr::*, bundle::*, kernel::*, vcpu::*, wire::*};
