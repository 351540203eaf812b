//! Writes the certificates of an emulated chip into a folder: `ark.pem`, `ask.pem`, `vcek.pem`.

use std::path::Path;

use caisson_kds::{chain, pem};
use caisson_qemu_psp::Config;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, number] = arguments.as_slice() else {
        return Err("usage: caisson-kds FOLDER CHIP (a number below 256)".into());
    };
    let config = Config::emulated(1, number.parse()?);
    let chain = chain(&config.chip, config.tcb)?;
    std::fs::create_dir_all(folder)?;
    for (name, der) in [("ark", &chain.ark), ("ask", &chain.ask), ("vcek", &chain.vcek)] {
        std::fs::write(Path::new(folder).join(format!("{name}.pem")), pem(der)?)?;
    }
    Ok(())
}
