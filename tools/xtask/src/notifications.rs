//! `cargo xtask bench notifier`: what notifications cost, measured by a small program.

use crate::cli::NotifierArgs;
use crate::failure::Failure;
use crate::paths::Paths;
use crate::program;

/// Measures; tables or JSON go to standard output.
pub fn notifier(paths: &Paths, args: &NotifierArgs) -> Result<(), Failure> {
    let mut arguments = vec!["--rounds".to_owned(), args.rounds.to_string()];
    if args.json {
        arguments.push("--json".into());
    }
    if args.book {
        arguments.extend(["--book".into(), paths.root.join("docs/src").display().to_string()]);
    }
    program::run(
        paths,
        "caisson-notifier-bench",
        arguments,
        "an event took a lock, allocated memory, or flushed more than once",
    )
}
