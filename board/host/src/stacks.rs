//! Stacks of coroutines, kept from one life to the next and from one seed to the next: a new one costs some calls of the
//! system's, and its pages.

use std::cell::RefCell;

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};

thread_local! {
    /// Those that nobody uses, and their sizes.
    static SPARE: RefCell<Vec<(usize, DefaultStack)>> = const { RefCell::new(Vec::new()) };
}

/// A coroutine on a stack of so many bytes.
pub fn spawn<I: 'static, O: 'static>(
    bytes: usize, main: impl FnOnce(&Yielder<I, O>, I) + 'static,
) -> Coroutine<I, O, ()> {
    let spare = SPARE.with_borrow_mut(|spare| {
        let at = spare.iter().position(|(of, _)| *of == bytes)?;
        Some(spare.swap_remove(at).1)
    });
    match spare.map_or_else(|| DefaultStack::new(bytes), Ok) {
        Ok(stack) => Coroutine::with_stack(stack, main),
        Err(_) => Coroutine::new(main),
    }
}

/// The end of a coroutine from [`spawn`]: it gets its last input as often as it asks, up to `times`. One that
/// waits still, for what never comes, gives its stack up.
pub fn end<I: 'static, O: 'static>(mut life: Coroutine<I, O, ()>, bytes: usize, times: u32, last: impl Fn() -> I) {
    for _ in 0..times {
        if life.done() || matches!(life.resume(last()), CoroutineResult::Return(())) {
            break;
        }
    }
    if life.done() {
        SPARE.with_borrow_mut(|spare| spare.push((bytes, life.into_stack())));
    } else {
        std::mem::forget(life);
    }
}
