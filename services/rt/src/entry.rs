//! Where a service starts, and what happens when it panics.

use core::arch::global_asm;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use caisson_proto::supervisor::ExitKind;

// The kernel sets rsp to layout::STACK_TOP, which is 16-aligned, and leaves no return address.
global_asm!(".globl _start", "_start:", "xor ebp, ebp", "call {start}", "ud2", start = sym start);

unsafe extern "Rust" {
    /// Made by [`entry!`](crate::entry).
    safe fn __caisson_main() -> !;
}

extern "C" fn start() -> ! {
    #[cfg(feature = "heap")]
    crate::heap::init();
    __caisson_main()
}

/// Names the function that a service starts with: `fn() -> !`.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        /// What the runtime calls.
        #[unsafe(no_mangle)]
        fn __caisson_main() -> ! {
            let main: fn() -> ! = $main;
            main()
        }
    };
}

static PANICKING: AtomicBool = AtomicBool::new(false);

#[panic_handler]
fn panicked(info: &PanicInfo<'_>) -> ! {
    let line = info.location().map_or(0, |location| location.line());
    if !PANICKING.swap(true, Ordering::Relaxed) {
        let file = info.location().map_or("?", |location| location.file());
        let text = info.message().as_str().unwrap_or("");
        defmt::error!("panicked at {=str}:{=u32}: {=str}", file, line, text);
    }
    crate::exit(ExitKind::Panicked, [u64::from(line), 0, 0, 0, 0, 0])
}
