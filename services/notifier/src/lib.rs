//! caisson-notifier
