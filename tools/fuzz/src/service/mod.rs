//! What services do with messages that anybody sends, bells that anybody rings, and bytes that come from outside.

mod console;
mod firmware;
mod manage;
mod manifest;
mod supervise;
mod switch;

pub use console::console;
pub use firmware::firmware;
pub use manage::{memory, notifier};
pub use manifest::{system, vm};
pub use supervise::supervisor;
pub use switch::switch;
