//! Whether AMX may be used, and how its tile registers are shaped.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::mem::MaybeUninit;
use std::sync::OnceLock;

/// Weight rows of a tile, and rows of activations that a tile register holds.
pub(super) const ROWS: usize = 16;

/// Whether the processor has AMX for bytes and the system lets this process use it.
pub(super) fn is_usable() -> bool {
    static USABLE: OnceLock<bool> = OnceLock::new();
    *USABLE.get_or_init(|| {
        // Leaf 7 is there where AVX2 is, and callers ask for AVX-512 first.
        #[allow(unused_unsafe, reason = "safe in newer compilers")]
        // SAFETY: the instruction exists on all of x86-64.
        let features = unsafe { __cpuid_count(7, 0) }.edx;
        let (tiles, bytes) = (1 << 24, 1 << 25);
        features & tiles != 0 && features & bytes != 0 && is_permitted()
    })
}

/// Whether the kernel lets this process's threads use the tile registers, once asked (Linux 5.16 and later,
/// Documentation/arch/x86/xstate.rst). It refuses, too, where it does not know them.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_PRCTL: isize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: a system call that reads no memory; it changes rcx and r11 only.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// Shapes of the tile registers as `ldtilecfg` takes them.
#[repr(C, align(64))]
pub(super) struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    n_rows: [u8; 16],
}

impl Config {
    /// Registers 0 to 3 hold results of `n_acts` rows of activations, 4 and 5 activations, 6 and 7 weights, of
    /// `n_cols` columns.
    pub(super) fn new(n_acts: usize, n_cols: usize) -> Self {
        let mut config =
            Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], n_rows: [0; 16] };
        for register in 0..8 {
            let (n_rows, row_bytes) = match register {
                0..4 => (n_acts, 4 * ROWS),
                4..6 => (n_acts, n_cols),
                _ => (n_cols / 4, 4 * ROWS),
            };
            config.n_rows[register] = n_rows as u8;
            config.row_bytes[register] = row_bytes as u16;
        }
        config
    }
}

/// What a thread's tile registers were set to before; they are so again when this is dropped.
pub(super) struct Configured(Config);

impl Configured {
    /// # Safety
    ///
    /// The processor must have AMX, and the registers must hold nothing that is still needed.
    pub(super) unsafe fn new(config: &Config) -> Self {
        let mut before = MaybeUninit::<Config>::uninit();
        // SAFETY: as promised by the caller; the first instruction writes 64 bytes, the second reads as many.
        unsafe {
            asm!(
                "sttilecfg [{before}]", "ldtilecfg [{config}]",
                before = in(reg) before.as_mut_ptr(), config = in(reg) config, options(nostack)
            );
            Self(before.assume_init())
        }
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        // SAFETY: AMX is there, as whoever made this promised. Palette 0, where nothing was set, frees the registers.
        unsafe { asm!("ldtilecfg [{before}]", before = in(reg) &raw const self.0, options(nostack)) }
    }
}
