//! Register operands in a state page, and arithmetic with flags.

use caisson_proto::vcpu::VcpuState;
use iced_x86::Register;

/// RFLAGS bits that arithmetic sets: CF PF AF ZF SF OF.
const ARITHMETIC: u64 = 0x8d5;

/// All ones for an operand of this many bytes.
pub fn mask(bytes: usize) -> u64 {
    if bytes >= 8 { u64::MAX } else { (1 << (bytes * 8)) - 1 }
}

fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::BH | Register::CH | Register::DH)
}

/// The value of a general-purpose register; `None` for any other.
pub fn read_register(state: &VcpuState, register: Register) -> Option<u64> {
    if !register.is_gpr() {
        return None;
    }
    let full = *state.gpr.get(register.full_register().number())?;
    Some(if is_high_byte(register) { full >> 8 & 0xff } else { full & mask(register.size()) })
}

/// Sets a general-purpose register; the upper half is zeroed by a 32-bit write. `None` for any other.
pub fn write_register(state: &mut VcpuState, register: Register, value: u64) -> Option<()> {
    if !register.is_gpr() {
        return None;
    }
    let full = state.gpr.get_mut(register.full_register().number())?;
    *full = match register.size() {
        1 if is_high_byte(register) => *full & !0xff00 | (value & 0xff) << 8,
        1 => *full & !0xff | value & 0xff,
        2 => *full & !0xffff | value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    };
    Some(())
}

/// Two-operand arithmetic that devices meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alu {
    /// Addition.
    Add,
    /// Addition with carry.
    Adc,
    /// Subtraction with borrow.
    Sbb,
    /// Subtraction and comparison.
    Sub,
    /// Conjunction and test.
    And,
    /// Disjunction.
    Or,
    /// Exclusive or.
    Xor,
}

/// The result and the flags of `left` op `right`.
pub fn compute(alu: Alu, left: u64, right: u64, bytes: usize, rflags: u64) -> (u64, u64) {
    let mask = mask(bytes);
    let (left, right) = (left & mask, right & mask);
    let top = mask ^ (mask >> 1);
    let (result, carry, overflow) = match alu {
        Alu::Add => {
            let result = left.wrapping_add(right) & mask;
            (result, result < left, (left ^ result) & (right ^ result) & top != 0)
        }
        Alu::Sub => {
            let result = left.wrapping_sub(right) & mask;
            (result, left < right, (left ^ right) & (left ^ result) & top != 0)
        }
        Alu::Adc => {
            let sum = u128::from(left) + u128::from(right) + u128::from(rflags & 1);
            let result = sum as u64 & mask;
            (result, sum > u128::from(mask), (left ^ result) & (right ^ result) & top != 0)
        }
        Alu::Sbb => {
            let result = left.wrapping_sub(right).wrapping_sub(rflags & 1) & mask;
            let taken = u128::from(right) + u128::from(rflags & 1);
            (result, u128::from(left) < taken, (left ^ right) & (left ^ result) & top != 0)
        }
        Alu::And => (left & right, false, false),
        Alu::Or => (left | right, false, false),
        Alu::Xor => (left ^ right, false, false),
    };
    let adjust = matches!(alu, Alu::Add | Alu::Adc | Alu::Sub | Alu::Sbb) && (left ^ right ^ result) & 0x10 != 0;
    let flags = u64::from(carry)
        | u64::from((result as u8).count_ones().is_multiple_of(2)) << 2
        | u64::from(adjust) << 4
        | u64::from(result == 0) << 6
        | u64::from(result & top != 0) << 7
        | u64::from(overflow) << 11;
    (result, rflags & !ARITHMETIC | flags)
}
