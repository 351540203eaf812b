//! `cargo xtask bench flushes`: cache flushes under several policies, counted by a small program.

use crate::cli::FlushesArgs;
use crate::failure::Failure;
use crate::paths::Paths;
use crate::program;

/// Counts; tables or JSON go to standard output.
pub fn flushes(paths: &Paths, args: &FlushesArgs) -> Result<(), Failure> {
    let option = |name: &str, value: &dyn ToString| [name.to_owned(), value.to_string()];
    let mut arguments = Vec::from(option("--group", &args.group));
    arguments.extend(args.trace.iter().flat_map(|name| option("--trace", name)));
    arguments.extend(args.cpus.iter().flat_map(|cpus| option("--cpus", cpus)));
    arguments.extend(args.free.iter().flat_map(|free| option("--free", free)));
    if args.json {
        arguments.push("--json".into());
    }
    if args.book {
        arguments.extend(option("--book", &paths.root.join("docs/src").display()));
    }
    program::run(paths, "caisson-flushes", arguments, "a trace couldn't be played to its end, or a file not be written")
}
