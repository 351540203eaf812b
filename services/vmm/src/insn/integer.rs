//! Integer instructions with an operand in memory, beyond those that drivers use on devices: from the operand's value and
//! the registers to what is stored and what is changed.

use caisson_proto::vcpu::VcpuState;
use iced_x86::{ConditionCode, Instruction, Mnemonic, OpKind, Register};

use super::operand::{Alu, compute, mask, read_register, write_register};

const CF: u64 = 1;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const OF: u64 = 1 << 11;
/// What a shift sets.
const SHIFTED: u64 = CF | PF | ZF | SF | OF;

/// Whether it writes memory without reading it.
pub fn only_writes(instruction: &Instruction) -> bool {
    let stores = matches!(instruction.mnemonic(), Mnemonic::Smsw | Mnemonic::Movbe | Mnemonic::Movnti);
    instruction.op0_kind() == OpKind::Memory && (stores || is_conditional(instruction))
}

/// SETcc and CMOVcc: no other instruction with an operand in memory has a condition.
fn is_conditional(instruction: &Instruction) -> bool {
    instruction.condition_code() != ConditionCode::None
}

/// Executes it on an operand of so many bytes: changes `state`, and says what the operand becomes if it is stored.
/// `None` if it isn't known, and then nothing is changed.
pub fn execute(state: &mut VcpuState, instruction: &Instruction, memory: u64, bytes: usize) -> Option<Option<u64>> {
    let memory_first = instruction.op0_kind() == OpKind::Memory;
    let stored = |value: u64| Some(Some(value & mask(bytes)));
    match instruction.mnemonic() {
        Mnemonic::Inc | Mnemonic::Dec => {
            let alu = if instruction.mnemonic() == Mnemonic::Inc { Alu::Add } else { Alu::Sub };
            let (result, flags) = compute(alu, memory, 1, bytes, state.rflags);
            state.rflags = flags & !CF | state.rflags & CF;
            stored(result)
        }
        Mnemonic::Not => stored(!memory),
        Mnemonic::Neg => {
            let (result, flags) = compute(Alu::Sub, 0, memory, bytes, state.rflags);
            state.rflags = flags;
            stored(result)
        }
        Mnemonic::Xadd => {
            let other = read_register(state, instruction.op1_register())?;
            let (result, flags) = compute(Alu::Add, memory, other, bytes, state.rflags);
            write_register(state, instruction.op1_register(), memory)?;
            state.rflags = flags;
            stored(result)
        }
        Mnemonic::Cmpxchg => {
            let new = read_register(state, instruction.op1_register())?;
            let accumulator = accumulator(bytes);
            let expected = read_register(state, accumulator)?;
            (_, state.rflags) = compute(Alu::Sub, expected, memory, bytes, state.rflags);
            if expected == memory {
                return stored(new);
            }
            write_register(state, accumulator, memory)?;
            stored(memory)
        }
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc => {
            // The operand is the word in which the bit is, wherever the address was.
            let bit = 1 << (second(state, instruction)? & (8 * bytes as u64 - 1));
            state.rflags = state.rflags & !CF | u64::from(memory & bit != 0);
            match instruction.mnemonic() {
                Mnemonic::Bts => stored(memory | bit),
                Mnemonic::Btr => stored(memory & !bit),
                Mnemonic::Btc => stored(memory ^ bit),
                _ => Some(None),
            }
        }
        Mnemonic::Shl | Mnemonic::Sal | Mnemonic::Shr | Mnemonic::Sar | Mnemonic::Shld | Mnemonic::Shrd => {
            stored(shift(state, instruction, memory, bytes)?)
        }
        Mnemonic::Rol | Mnemonic::Ror | Mnemonic::Rcl | Mnemonic::Rcr => {
            stored(rotate(state, instruction, memory, bytes)?)
        }
        Mnemonic::Bsf | Mnemonic::Bsr | Mnemonic::Tzcnt | Mnemonic::Lzcnt | Mnemonic::Popcnt => {
            count(state, instruction, memory, bytes)?;
            Some(None)
        }
        Mnemonic::Mul | Mnemonic::Imul => {
            multiply(state, instruction, memory, bytes)?;
            Some(None)
        }
        Mnemonic::Smsw if memory_first => stored(state.cr0),
        Mnemonic::Movnti if memory_first => stored(read_register(state, instruction.op1_register())?),
        Mnemonic::Movbe if memory_first => {
            stored(read_register(state, instruction.op1_register())?.swap_bytes() >> (64 - 8 * bytes))
        }
        Mnemonic::Movbe => {
            write_register(state, instruction.op0_register(), memory.swap_bytes() >> (64 - 8 * bytes))?;
            Some(None)
        }
        _ if memory_first && is_conditional(instruction) => {
            stored(u64::from(holds(instruction.condition_code(), state.rflags)?))
        }
        _ if is_conditional(instruction) => {
            let target = instruction.op0_register();
            let own = read_register(state, target)?;
            let value = if holds(instruction.condition_code(), state.rflags)? { memory } else { own };
            // A move of 32 bits clears the upper half, whether it moves or not.
            write_register(state, target, value)?;
            Some(None)
        }
        _ => None,
    }
}

/// al, ax, eax or rax.
fn accumulator(bytes: usize) -> Register {
    match bytes {
        1 => Register::AL,
        2 => Register::AX,
        4 => Register::EAX,
        _ => Register::RAX,
    }
}

/// The second operand: a register or an immediate.
fn second(state: &VcpuState, instruction: &Instruction) -> Option<u64> {
    match instruction.op1_kind() {
        OpKind::Register => read_register(state, instruction.op1_register()),
        _ => instruction.try_immediate(1).ok(),
    }
}

/// Whether a condition holds.
fn holds(condition: ConditionCode, rflags: u64) -> Option<bool> {
    let is = |flag: u64| rflags & flag != 0;
    let less = is(SF) != is(OF);
    Some(match condition {
        ConditionCode::o => is(OF),
        ConditionCode::no => !is(OF),
        ConditionCode::b => is(CF),
        ConditionCode::ae => !is(CF),
        ConditionCode::e => is(ZF),
        ConditionCode::ne => !is(ZF),
        ConditionCode::be => is(CF | ZF),
        ConditionCode::a => !is(CF | ZF),
        ConditionCode::s => is(SF),
        ConditionCode::ns => !is(SF),
        ConditionCode::p => is(PF),
        ConditionCode::np => !is(PF),
        ConditionCode::l => less,
        ConditionCode::ge => !less,
        ConditionCode::le => less || is(ZF),
        ConditionCode::g => !less && !is(ZF),
        ConditionCode::None => return None,
    })
}

/// Flags of a result, without carry and overflow.
fn flags_of(result: u64, bytes: usize) -> u64 {
    compute(Alu::Or, result, result, bytes, 0).1 & (PF | ZF | SF)
}

fn is_negative(value: u64, bytes: usize) -> bool {
    value >> (8 * bytes - 1) & 1 == 1
}

/// The shift's last operand as the CPU takes it: five bits, six for 64-bit operands.
fn amount(state: &VcpuState, instruction: &Instruction, bytes: usize) -> Option<u32> {
    let last = instruction.op_count().checked_sub(1)?;
    let count = match instruction.op_kind(last) {
        OpKind::Register => read_register(state, instruction.op_register(last))?,
        _ => instruction.try_immediate(last).ok()?,
    };
    Some(count as u32 & if bytes == 8 { 63 } else { 31 })
}

fn shift(state: &mut VcpuState, instruction: &Instruction, memory: u64, bytes: usize) -> Option<u64> {
    let width = 8 * bytes as u32;
    let count = amount(state, instruction, bytes)?;
    if count == 0 {
        return Some(memory);
    }
    let other = match instruction.mnemonic() {
        Mnemonic::Shld | Mnemonic::Shrd => read_register(state, instruction.op1_register())?,
        _ => 0,
    };
    // What moves, in 128 bits, so that the bit that falls out is beside the result.
    let (result, carry) = match instruction.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal | Mnemonic::Shld => {
            let wide = (u128::from(memory) << width | u128::from(other)).unbounded_shl(count) >> width;
            let out = if count > width { 0 } else { memory >> (width - count) & 1 };
            (wide as u64 & mask(bytes), out)
        }
        Mnemonic::Sar => {
            let signed = ((memory << (64 - width)) as i64) >> (64 - width);
            (signed.unbounded_shr(count) as u64 & mask(bytes), signed.unbounded_shr(count - 1) as u64 & 1)
        }
        _ => {
            let wide = u128::from(other) << width | u128::from(memory);
            (wide.unbounded_shr(count) as u64 & mask(bytes), (wide.unbounded_shr(count - 1) & 1) as u64)
        }
    };
    let overflow = is_negative(result, bytes) != is_negative(memory, bytes) && instruction.mnemonic() != Mnemonic::Sar;
    let flags = carry | flags_of(result, bytes) | if overflow { OF } else { 0 };
    state.rflags = state.rflags & !SHIFTED | flags;
    Some(result)
}

fn rotate(state: &mut VcpuState, instruction: &Instruction, memory: u64, bytes: usize) -> Option<u64> {
    let width = 8 * bytes as u32;
    let count = amount(state, instruction, bytes)?;
    if count == 0 {
        return Some(memory);
    }
    let through = matches!(instruction.mnemonic(), Mnemonic::Rcl | Mnemonic::Rcr);
    // The carry is one bit more of what turns.
    let (ring, turning) = match through {
        true => (width + 1, u128::from(memory) | u128::from(state.rflags & CF) << width),
        false => (width, u128::from(memory)),
    };
    let left = matches!(instruction.mnemonic(), Mnemonic::Rol | Mnemonic::Rcl);
    let places = if left { count % ring } else { (ring - count % ring) % ring };
    let turned = (turning << places | turning >> (ring - places)) & ((1 << ring) - 1);
    let result = turned as u64 & mask(bytes);
    let carry = match (through, left) {
        (true, _) => (turned >> width) as u64 & 1,
        (false, true) => result & 1,
        (false, false) => u64::from(is_negative(result, bytes)),
    };
    let overflow = match left {
        true => is_negative(result, bytes) != (carry == 1),
        false => is_negative(result, bytes) != is_negative(result << 1, bytes),
    };
    state.rflags = state.rflags & !(CF | OF) | carry | if overflow { OF } else { 0 };
    Some(result)
}

fn count(state: &mut VcpuState, instruction: &Instruction, memory: u64, bytes: usize) -> Option<()> {
    let target = instruction.op0_register();
    let width = 8 * bytes as u64;
    let (trailing, leading) = match memory {
        0 => (width, width),
        _ => (memory.trailing_zeros().into(), u64::from(memory.leading_zeros()) - (64 - width)),
    };
    let zero = |is: bool| if is { ZF } else { 0 };
    match instruction.mnemonic() {
        Mnemonic::Bsf | Mnemonic::Bsr => {
            state.rflags = state.rflags & !ZF | zero(memory == 0);
            if memory == 0 {
                return Some(());
            }
            let found = if instruction.mnemonic() == Mnemonic::Bsf { trailing } else { width - 1 - leading };
            write_register(state, target, found)
        }
        Mnemonic::Popcnt => {
            state.rflags = state.rflags & !(CF | PF | AF | ZF | SF | OF) | zero(memory == 0);
            write_register(state, target, memory.count_ones().into())
        }
        mnemonic => {
            let value = if mnemonic == Mnemonic::Tzcnt { trailing } else { leading };
            state.rflags = state.rflags & !(CF | ZF) | u64::from(memory == 0) | zero(value == 0);
            write_register(state, target, value)
        }
    }
}

fn multiply(state: &mut VcpuState, instruction: &Instruction, memory: u64, bytes: usize) -> Option<()> {
    let unused = 64 - 8 * bytes as u32;
    let signed = |value: u64| i128::from((value << unused) as i64 >> unused);
    let one_operand = instruction.op_count() == 1;
    let other = match instruction.op_count() {
        1 => read_register(state, accumulator(bytes))?,
        2 => read_register(state, instruction.op0_register())?,
        _ => instruction.try_immediate(2).ok()?,
    };
    let (product, fits) = if instruction.mnemonic() == Mnemonic::Mul {
        let product = u128::from(memory) * u128::from(other);
        (product, product <= u128::from(mask(bytes)))
    } else {
        let product = signed(memory) * signed(other);
        (product as u128, product == signed(product as u64))
    };
    let low = product as u64 & mask(bytes);
    let high = (product >> (8 * bytes)) as u64 & mask(bytes);
    match (one_operand, bytes) {
        (false, _) => write_register(state, instruction.op0_register(), low)?,
        (true, 1) => write_register(state, Register::AX, high << 8 | low)?,
        (true, _) => {
            let upper = [Register::DX, Register::EDX, Register::RDX][bytes.trailing_zeros() as usize - 1];
            write_register(state, accumulator(bytes), low)?;
            write_register(state, upper, high)?;
        }
    }
    state.rflags = state.rflags & !(CF | OF) | if fits { 0 } else { CF | OF };
    Some(())
}
