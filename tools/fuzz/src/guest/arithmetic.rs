//! Arithmetic on devices, against 128-bit numbers.

use arbitrary::{Arbitrary, Unstructured};
use caisson_proto::vcpu::VcpuState;
use caisson_vmm::insn::operand::{Alu, compute, mask, read_register, write_register};
use iced_x86::Register;

use super::act::number;

const CARRY: u64 = 1;
const ZERO: u64 = 1 << 6;
const SIGN: u64 = 1 << 7;
const OVERFLOW: u64 = 1 << 11;

#[derive(Debug, Arbitrary)]
struct Input {
    alu: u8,
    size: u8,
    #[arbitrary(with = number)]
    left: u64,
    #[arbitrary(with = number)]
    right: u64,
    rflags: u64,
    register: u8,
}

/// Sign-extends a number of so many bytes.
fn signed(value: u64, bytes: usize) -> i128 {
    let unused = 64 - 8 * bytes as u32;
    i128::from((value << unused) as i64 >> unused)
}

/// Results and flags are what they are in wider numbers; a register holds what was written to it.
pub fn arithmetic(data: &[u8]) {
    let mut input = Unstructured::new(data);
    while !input.is_empty() {
        let Ok(input) = input.arbitrary() else { return };
        one(&input);
    }
}

fn one(input: &Input) {
    let all = [Alu::Add, Alu::Adc, Alu::Sbb, Alu::Sub, Alu::And, Alu::Or, Alu::Xor];
    let alu = all[usize::from(input.alu) % all.len()];
    let bytes = 1 << (input.size % 4);
    let (left, right) = (input.left & mask(bytes), input.right & mask(bytes));
    let carry = i128::from(input.rflags & CARRY);
    let wide = |left: i128, right: i128| match alu {
        Alu::Add => left + right,
        Alu::Adc => left + right + carry,
        Alu::Sub => left - right,
        Alu::Sbb => left - right - carry,
        Alu::And => left & right,
        Alu::Or => left | right,
        Alu::Xor => left ^ right,
    };
    let unsigned = wide(left.into(), right.into());
    let exact = wide(signed(left, bytes), signed(right, bytes));
    let (result, flags) = compute(alu, input.left, input.right, bytes, input.rflags);
    assert_eq!(result, unsigned as u64 & mask(bytes), "{input:?}");
    let expected = |condition: bool, flag: u64| if condition { flag } else { 0 };
    assert_eq!(flags & CARRY, expected(unsigned < 0 || unsigned > i128::from(mask(bytes)), CARRY), "{input:?}");
    assert_eq!(flags & ZERO, expected(result == 0, ZERO), "{input:?}");
    assert_eq!(flags & SIGN, expected(signed(result, bytes) < 0, SIGN), "{input:?}");
    assert_eq!(flags & OVERFLOW, expected(signed(result, bytes) != exact, OVERFLOW), "{input:?}");

    let Some(register) = Register::values().nth(usize::from(input.register)) else { return };
    let mut state = VcpuState { gpr: [input.right; 16], ..VcpuState::default() };
    let written = write_register(&mut state, register, input.left);
    assert_eq!(written.is_some(), register.is_gpr());
    let kept = written.and_then(|()| read_register(&state, register));
    assert_eq!(kept, register.is_gpr().then_some(input.left & mask(register.size())), "{register:?}");
}
