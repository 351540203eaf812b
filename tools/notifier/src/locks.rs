//! Locks that count how often they are taken, by this thread.

use std::cell::Cell;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

thread_local! {
    static TAKEN: Cell<u64> = const { Cell::new(0) };
}

/// How many locks this thread took so far.
pub fn taken() -> u64 {
    TAKEN.get()
}

fn count() {
    TAKEN.set(TAKEN.get() + 1);
}

/// Several readers or one writer.
#[derive(Debug)]
pub struct Shared<T>(RwLock<T>);

impl<T> Shared<T> {
    /// Free.
    pub const fn new(of: T) -> Self {
        Self(RwLock::new(of))
    }
    /// To read.
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        count();
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
    /// To write.
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        count();
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One at a time.
#[derive(Debug)]
pub struct Alone<T>(Mutex<T>);

impl<T> Alone<T> {
    /// Free.
    pub const fn new(of: T) -> Self {
        Self(Mutex::new(of))
    }
    /// To use.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        count();
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
