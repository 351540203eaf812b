//! Where things are.

use std::path::{Path, PathBuf};

use crate::failure::{Context, Failure};

/// The folders that xtask works in.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The workspace.
    pub root: PathBuf,
    /// Where everything that is built goes.
    pub target: PathBuf,
}

impl Paths {
    /// Finds them from what cargo says.
    pub fn find() -> Result<Self, Failure> {
        let here =
            std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
        let root = here.ancestors().nth(2).unwrap_or(Path::new(".")).to_owned();
        let target = match std::env::var_os("CARGO_TARGET_DIR") {
            Some(folder) => std::path::absolute(PathBuf::from(folder)).context("CARGO_TARGET_DIR")?,
            None => root.join("target"),
        };
        Ok(Self { root, target })
    }

    /// The board's manifest.
    pub fn manifest(&self) -> PathBuf {
        self.root.join("board/qemu/system.toml")
    }

    /// The guest's kernel and programs, as the set-up unpacked them.
    pub fn guest(&self) -> PathBuf {
        self.target.join("guest")
    }

    /// Where running machines have their sockets.
    pub fn sockets(&self) -> PathBuf {
        self.target.join("run")
    }

    /// What `image` leaves.
    pub fn image(&self) -> PathBuf {
        self.target.join("image")
    }
}

/// The program `name` on the search path.
pub fn program(name: &str) -> Option<PathBuf> {
    let paths = std::env::var_os("PATH")?;
    std::env::split_paths(&paths).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// Makes a folder with its parents.
pub fn make_folder(path: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(path).about("make folder", path)
}

/// Writes a file, but leaves it alone if it has this content already.
pub fn write_if_changed(path: &Path, content: &[u8]) -> Result<(), Failure> {
    if std::fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    std::fs::write(path, content).about("write", path)
}
