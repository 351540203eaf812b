//! Where an identity survives a shutdown: in the chip, or in memory that the host keeps for it (55766 section 5.2, INIT_EX).
//!
//! What the host keeps is sealed with a key of the chip. Its layout is ours; the host only stores it.

use caisson_proto::addr::Spa;

use crate::board::{Board, Fault};
use crate::buffer::field;
use crate::config::Chip;
use crate::crypto;
use crate::identity::{Identity, STORED};
use crate::status::Status;

/// Bytes that INIT_EX takes.
pub const LENGTH: u64 = 32 * 1024;
const MAGIC: [u8; 8] = *b"CAISSON1";
const NONCE: usize = 8;
const TAG: usize = NONCE + 12;
const SEALED: usize = TAG + 16;

fn key(chip: &Chip) -> [u8; 32] {
    crypto::derive(&chip.secret, "caisson-storage", &chip.id)
}

/// Reads the identity that the host kept. None if the host says that it is new, by filling it with ones.
pub fn load(board: &mut impl Board, at: Spa, chip: &Chip) -> Result<Option<Identity>, Status> {
    let mut head = [0; SEALED];
    board.read(at, &mut head).map_err(hardware)?;
    if head == [0xff; SEALED] {
        return Ok(None);
    }
    if field::<8>(&head, 0) != MAGIC {
        return Err(Status::SecureDataInvalid);
    }
    let mut sealed = [0; STORED];
    board.read(Spa(at.0 + SEALED as u64), &mut sealed).map_err(hardware)?;
    if !crypto::open(&key(chip), &field(&head, NONCE), &MAGIC, &mut sealed, &field(&head, TAG)) {
        return Err(Status::SecureDataInvalid);
    }
    Identity::from_bytes(&sealed).map(Some).ok_or(Status::SecureDataInvalid)
}

/// Gives the identity to the host to keep.
pub fn store(board: &mut impl Board, at: Spa, chip: &Chip, identity: &Identity) -> Result<(), Status> {
    let mut nonce = [0; 12];
    board.random(&mut nonce);
    let mut sealed = identity.bytes();
    let tag = crypto::seal(&key(chip), &nonce, &MAGIC, &mut sealed).ok_or(Status::HardwareErrorPlatform)?;
    board.write(at, &MAGIC).map_err(hardware)?;
    board.write(Spa(at.0 + NONCE as u64), &nonce).map_err(hardware)?;
    board.write(Spa(at.0 + TAG as u64), &tag).map_err(hardware)?;
    board.write(Spa(at.0 + SEALED as u64), &sealed).map_err(hardware)
}

/// The board can't do what it said that it could.
pub fn hardware(_: Fault) -> Status {
    Status::HardwareErrorPlatform
}
