//! The local APIC of a vCPU: registers, priorities, requests (APM volume 2, chapter 16).

use super::lapic_timer::Timer;
use super::vectors::Vectors;

/// APIC_BASE: this is the boot processor.
pub const BASE_BSP: u64 = 1 << 8;
/// APIC_BASE: x2APIC mode.
pub const BASE_X2: u64 = 1 << 10;
/// APIC_BASE: enabled.
pub const BASE_ENABLE: u64 = 1 << 11;
/// Where the registers lie in xAPIC mode, unless APIC_BASE is given another page.
pub const MMIO: u64 = 0xfee0_0000;

pub use super::lapic_registers as reg;

const LVT_MASK: u32 = 1 << 16;
const SVR_ENABLE: u32 = 1 << 8;
const ESR_BAD_VECTOR: u32 = 1 << 6;
/// Writable bits of the six LVT entries.
const LVT_BITS: [u32; 6] = [0x0007_00ff, 0x0001_07ff, 0x0001_07ff, 0x0001_a7ff, 0x0001_a7ff, 0x0001_00ff];
/// LVT index of LINT0.
const LINT0: usize = 3;

/// What a register write asks of the rest of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// A level-triggered interrupt ended: tell the I/O APIC.
    Ended(u8),
    /// Send an interrupt: the command in x2APIC's format, the destination in bits 63:32.
    Send(u64),
}

/// The access isn't allowed: #GP in x2APIC mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// One local APIC.
#[derive(Clone, Debug)]
pub struct Lapic {
    id: u32,
    base: u64,
    tpr: u8,
    ldr: u32,
    dfr: u32,
    svr: u32,
    esr: u32,
    esr_latched: u32,
    icr: u64,
    lvt: [u32; 6],
    irr: Vectors,
    isr: Vectors,
    tmr: Vectors,
    /// The timer.
    pub timer: Timer,
}

impl Lapic {
    /// The APIC with this id, as it is after power-on.
    pub fn new(id: u8) -> Self {
        let bsp = if id == 0 { BASE_BSP } else { 0 };
        let mut apic = Self {
            id: u32::from(id),
            base: MMIO | BASE_ENABLE | bsp,
            tpr: 0,
            ldr: 0,
            dfr: u32::MAX,
            svr: 0xff,
            esr: 0,
            esr_latched: 0,
            icr: 0,
            lvt: [LVT_MASK; 6],
            irr: Vectors::default(),
            isr: Vectors::default(),
            tmr: Vectors::default(),
            timer: Timer::default(),
        };
        // Firmware leaves virtual-wire mode on the boot processor: LINT0 is ExtINT, LINT1 NMI.
        if id == 0 {
            apic.svr |= SVR_ENABLE;
            apic.lvt = [LVT_MASK, LVT_MASK, LVT_MASK, 0x700, 0x400, LVT_MASK];
        }
        apic
    }

    /// INIT: all but id and APIC_BASE as after power-on (section 16.3.1).
    pub fn init(&mut self) {
        let (id, base) = (self.id as u8, self.base);
        *self = Self::new(id);
        self.base = base;
        self.svr = 0xff;
        self.lvt = [LVT_MASK; 6];
        self.set_x2_ldr();
    }

    fn set_x2_ldr(&mut self) {
        if self.is_x2() {
            self.ldr = (self.id >> 4) << 16 | 1 << (self.id & 15);
        }
    }

    /// Its id.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The APIC_BASE register.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// The page of its registers in xAPIC mode.
    #[inline]
    pub fn page(&self) -> u64 {
        self.base & !0xfff
    }

    /// Writes APIC_BASE (section 16.9, figure 16-34 for the modes). Addresses have `width` bits.
    ///
    /// # Errors
    /// [`Refused`] for a forbidden change of mode or a reserved bit.
    pub fn set_base(&mut self, value: u64, width: u32) -> Result<(), Refused> {
        let mode = value & (BASE_ENABLE | BASE_X2);
        let now = self.base & (BASE_ENABLE | BASE_X2);
        let leaves_x2 = now == BASE_ENABLE | BASE_X2 && mode == BASE_ENABLE;
        let skips = now == 0 && mode == BASE_ENABLE | BASE_X2;
        let reserved = value & 0x2ff & !BASE_BSP != 0 || value.unbounded_shr(width) != 0;
        if mode == BASE_X2 || leaves_x2 || skips || reserved {
            return Err(Refused);
        }
        if mode == 0 && now != 0 {
            self.init();
        }
        self.base = value & !0xfff | mode | self.base & BASE_BSP;
        self.set_x2_ldr();
        Ok(())
    }

    /// Whether it is on at all.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.base & BASE_ENABLE != 0
    }

    /// Whether it is in x2APIC mode.
    #[inline]
    pub fn is_x2(&self) -> bool {
        self.base & BASE_X2 != 0
    }

    fn accepts(&self) -> bool {
        self.is_on() && self.svr & SVR_ENABLE != 0
    }

    /// Whether interrupts of the 8259 pair come through: the APIC is off or LINT0 is an unmasked ExtINT.
    pub fn passes_extint(&self) -> bool {
        !self.is_on() || matches!(self.lvt.get(LINT0), Some(lint) if lint & (LVT_MASK | 0x700) == 0x700)
    }

    /// Whether LINT0 passes the PIT's interrupt as a fixed one through the 8259 pair; its vector.
    pub fn lint0_fixed(&self) -> Option<u8> {
        let lint = *self.lvt.get(LINT0)?;
        (self.accepts() && lint & (LVT_MASK | 0x700) == 0).then_some(lint as u8)
    }

    /// Requests a fixed interrupt. True if it wasn't requested already.
    #[inline]
    pub fn request(&mut self, vector: u8, level: bool) -> bool {
        if !self.accepts() {
            return false;
        }
        if vector < 16 {
            self.esr_latched |= ESR_BAD_VECTOR;
            return false;
        }
        let new = !self.irr.has(vector);
        self.irr.set(vector);
        if level {
            self.tmr.set(vector);
        } else {
            self.tmr.clear(vector);
        }
        new
    }

    /// Moves the timer on to `now` (machine's TSC); true if it requested its interrupt.
    pub fn tick(&mut self, now: u64) -> bool {
        let [lvt, ..] = self.lvt;
        self.timer.expire(now) && lvt & LVT_MASK == 0 && self.request(lvt as u8, false)
    }

    /// The processor's priority (section 16.6.4).
    #[inline]
    pub fn ppr(&self) -> u8 {
        let serving = self.isr.highest().unwrap_or(0);
        if self.tpr >> 4 >= serving >> 4 { self.tpr } else { serving & 0xf0 }
    }

    /// Whether no interrupt is requested.
    #[inline]
    pub fn is_quiet(&self) -> bool {
        self.irr.is_empty()
    }

    /// The interrupt that the processor may take now.
    #[inline]
    pub fn deliverable(&self) -> Option<u8> {
        if self.irr.is_empty() || !self.accepts() {
            return None;
        }
        let vector = self.irr.highest()?;
        (vector >> 4 > self.ppr() >> 4).then_some(vector)
    }

    /// The processor takes it.
    #[inline]
    pub fn take(&mut self, vector: u8) {
        self.irr.clear(vector);
        self.isr.set(vector);
    }

    /// The interrupt being served may be ended by the guest without telling: it is edge-triggered and nothing else
    /// is requested.
    pub fn may_skip_eoi(&self) -> bool {
        self.irr.is_empty() && self.isr.highest().is_some_and(|vector| !self.tmr.has(vector))
    }

    /// Ends the interrupt being served.
    #[inline]
    pub fn end(&mut self) -> Effect {
        let Some(vector) = self.isr.highest() else { return Effect::None };
        self.isr.clear(vector);
        if self.tmr.has(vector) { Effect::Ended(vector) } else { Effect::None }
    }

    /// CR8: the upper half of the task priority.
    pub fn cr8(&self) -> u64 {
        u64::from(self.tpr >> 4)
    }

    /// MOV to CR8.
    pub fn set_cr8(&mut self, value: u64) {
        self.tpr = (value as u8 & 15) << 4;
    }

    /// Whether a message to this destination is for this APIC (sections 16.6.1 and 16.13).
    pub fn is_addressed(&self, destination: u32, logical: bool, wide: bool) -> bool {
        if !self.is_on() {
            return false;
        }
        if destination == if wide { u32::MAX } else { 0xff } {
            return true;
        }
        if !logical {
            return self.id == destination;
        }
        if self.is_x2() {
            return self.ldr >> 16 == destination >> 16 && self.ldr & destination & 0xffff != 0;
        }
        let mine = self.ldr >> 24;
        if self.dfr >> 28 == 0xf {
            mine & destination & 0xff != 0
        } else {
            mine >> 4 == destination >> 4 & 0xf && mine & destination & 0xf != 0
        }
    }

    /// Reads a register. `now` and the result's time base are the machine's TSC.
    ///
    /// # Errors
    /// [`Refused`] if there is no such register or it can't be read.
    pub fn read(&self, register: u16, now: u64) -> Result<u64, Refused> {
        let x2 = self.is_x2();
        let low = match register {
            reg::ID => {
                if x2 {
                    self.id
                } else {
                    self.id << 24
                }
            }
            reg::VERSION => 0x0005_0014,
            reg::TPR => u32::from(self.tpr),
            reg::APR if !x2 => 0,
            reg::PPR => u32::from(self.ppr()),
            reg::EOI if !x2 => 0,
            reg::LDR => self.ldr,
            reg::DFR if !x2 => self.dfr,
            reg::SVR => self.svr,
            reg::ISR..reg::TMR => self.isr.register(register - reg::ISR),
            reg::TMR..reg::IRR => self.tmr.register(register - reg::TMR),
            reg::IRR..reg::ESR => self.irr.register(register - reg::IRR),
            reg::ESR => self.esr,
            reg::ICR if x2 => return Ok(self.icr),
            reg::ICR => self.icr as u32,
            reg::ICR_HIGH if !x2 => (self.icr >> 32) as u32,
            reg::LVT..reg::INITIAL => self.lvt.get(usize::from(register - reg::LVT)).copied().ok_or(Refused)?,
            reg::INITIAL => self.timer.initial(),
            reg::CURRENT => self.timer.current(now),
            reg::DIVIDE => self.timer.divide(),
            _ => return Err(Refused),
        };
        Ok(u64::from(low))
    }

    /// Writes a register.
    ///
    /// # Errors
    /// [`Refused`] if there is no such register, it can't be written, or the value isn't allowed.
    pub fn write(&mut self, register: u16, value: u64, now: u64) -> Result<Effect, Refused> {
        let x2 = self.is_x2();
        if x2 && register != reg::ICR && value >> 32 != 0 {
            return Err(Refused);
        }
        let low = value as u32;
        match register {
            reg::EOI if x2 && value != 0 => return Err(Refused),
            reg::EOI => return Ok(self.end()),
            reg::ICR => {
                self.icr = if x2 { value } else { self.icr & !0xffff_ffff | value & 0xffff_ffff } & !(1 << 12);
                let wide = if x2 { self.icr } else { self.icr & 0xffff_ffff | self.icr >> 56 << 32 };
                return Ok(Effect::Send(wide));
            }
            reg::SELF_IPI if x2 => {
                self.request(low as u8, false);
            }
            reg::ICR_HIGH if !x2 => self.icr = self.icr & 0xffff_ffff | value << 32,
            reg::ID if !x2 => {}
            reg::TPR => self.tpr = low as u8,
            reg::LDR if !x2 => self.ldr = low & 0xff00_0000,
            reg::DFR if !x2 => self.dfr = low | 0x0fff_ffff,
            reg::SVR => {
                self.svr = low & 0x3ff;
                if self.svr & SVR_ENABLE == 0 {
                    self.lvt.iter_mut().for_each(|entry| *entry |= LVT_MASK);
                }
            }
            reg::ESR => {
                self.esr = self.esr_latched;
                self.esr_latched = 0;
            }
            reg::LVT..reg::INITIAL => {
                let index = usize::from(register - reg::LVT);
                let (Some(entry), Some(bits)) = (self.lvt.get_mut(index), LVT_BITS.get(index)) else {
                    return Err(Refused);
                };
                *entry = low & bits | if self.svr & SVR_ENABLE == 0 { LVT_MASK } else { 0 };
                if index == 0 {
                    self.timer.set_mode(low >> 17 & 3);
                }
            }
            reg::INITIAL => self.timer.start(low, now),
            reg::DIVIDE => self.timer.set_divide(low, now),
            reg::VERSION | reg::PPR | reg::APR | reg::CURRENT | reg::ISR..reg::ESR if !x2 => {}
            _ => return Err(Refused),
        }
        Ok(Effect::None)
    }
}
