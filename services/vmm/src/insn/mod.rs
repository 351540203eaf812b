//! Instructions of the guest: finding their bytes, their length and their operands.

pub mod decode;
pub mod integer;
pub mod operand;
pub mod walk;
