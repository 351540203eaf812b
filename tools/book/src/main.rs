//! Builds a book: `caisson-book SOURCE TARGET`. mdBook is a library here, so that nothing has to be installed.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use mdbook_driver::MDBook;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(source), Some(target)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: caisson-book SOURCE TARGET");
        return ExitCode::from(5);
    };
    let built = MDBook::load(&source).and_then(|mut book| {
        book.config.build.build_dir = target;
        book.build()
    });
    match built {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error:?}", source.display());
            ExitCode::FAILURE
        }
    }
}
