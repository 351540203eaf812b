//! The end of a launch, and the block by which the guest's owner vouches for it (56860 "SNP_LAUNCH_FINISH").

use p384::PublicKey;
use sha2::{Digest, Sha384};

use super::{State, Vouched};
use crate::access::Access;
use crate::board::Board;
use crate::buffer::{Buffer, field};
use crate::crypto;
use crate::processor::Processor;
use crate::status::Status;
use crate::storage::hardware;

/// Bytes of an ID block.
const BLOCK: usize = 96;
/// Bytes of the page that authenticates it.
const AUTH: usize = 4096;
/// Bytes of a public key there.
const KEY: usize = 0x404;
/// ECDSA over P-384 with SHA-384, the only algorithm.
const ALGORITHM: u32 = 1;

impl Processor {
    /// SNP_LAUNCH_FINISH: context, ID block, its authentication, flags, what the hypervisor adds.
    pub(crate) fn snp_launch_finish(&mut self, board: &mut impl Board, buffer: &Buffer) -> Result<(), Status> {
        let access = self.access();
        let guest = self.context(board, buffer.spa(0))?;
        if guest.state != State::Launch {
            return Err(Status::InvalidGuestState);
        }
        let flags = buffer.u64(24);
        if flags & !7 != 0 {
            return Err(Status::InvalidParam);
        }
        let vouched = if flags & 1 != 0 {
            let block: [u8; BLOCK] = read(access, board, buffer, 8)?;
            let auth: [u8; AUTH] = read(access, board, buffer, 16)?;
            check(&block, &auth, flags & 2 != 0, &guest.digest, guest.policy.bits())?
        } else {
            Vouched::default()
        };
        guest.vouched = vouched;
        guest.host_data = buffer.array(32);
        guest.vcek_disabled = flags & 4 != 0;
        guest.state = State::Running;
        Ok(())
    }
}

fn read<const N: usize>(
    access: Access, board: &mut impl Board, buffer: &Buffer, address_at: usize,
) -> Result<[u8; N], Status> {
    let at = buffer.spa(address_at);
    access.readable(board, at, N as u64)?;
    let mut bytes = [0; N];
    board.read(at, &mut bytes).map_err(hardware)?;
    Ok(bytes)
}

/// The block must name this digest and this policy, and be signed by the ID key; this by the author's, if there is one.
fn check(
    block: &[u8; BLOCK], auth: &[u8; AUTH], author: bool, digest: &[u8; 48], policy: u64,
) -> Result<Vouched, Status> {
    let version = u32::from_le_bytes(field(block, 80));
    let (id_algorithm, author_algorithm) = (u32::from_le_bytes(field(auth, 0)), u32::from_le_bytes(field(auth, 4)));
    if version != 1 || id_algorithm != ALGORITHM || author && author_algorithm != ALGORITHM {
        return Err(Status::InvalidParam);
    }
    if field::<48>(block, 0) != *digest {
        return Err(Status::BadMeasurement);
    }
    if u64::from_le_bytes(field(block, 88)) != policy {
        return Err(Status::PolicyFailure);
    }
    let id_key = signed(block, auth, 0x40, 0x240)?;
    let author_key = if author { Some(signed(&auth[0x240..0x240 + KEY], auth, 0x680, 0x880)?) } else { None };
    Ok(Vouched {
        family: field(block, 48),
        image: field(block, 64),
        svn: u32::from_le_bytes(field(block, 84)),
        id_key: Some(id_key),
        author_key,
    })
}

/// The digest of the key at `key_at`, if it made the signature at `signature_at`.
fn signed(message: &[u8], auth: &[u8; AUTH], signature_at: usize, key_at: usize) -> Result<[u8; 48], Status> {
    let key = public(auth, key_at).ok_or(Status::BadSignature)?;
    let (r, s) = (field(auth, signature_at), field(auth, signature_at + crypto::COMPONENT));
    if !crypto::verify(&key, &Sha384::digest(message), &r, &s) {
        return Err(Status::BadSignature);
    }
    Ok(Sha384::digest(&auth[key_at..key_at + KEY]).into())
}

fn public(auth: &[u8; AUTH], at: usize) -> Option<PublicKey> {
    if u32::from_le_bytes(field(auth, at)) != 2 {
        return None;
    }
    crypto::public_key(&field(auth, at + 4), &field(auth, at + 4 + crypto::COMPONENT))
}
