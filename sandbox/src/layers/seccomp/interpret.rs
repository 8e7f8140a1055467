//! A small interpreter of the classic BPF that this layer generates.
//!
//! The supervisor needs it to learn which row refused a call: the kernel's notification holds the call but not what the
//! filter answered, and a second way to evaluate the table would one day disagree with the first. The tests check every
//! row with it, for machines other than the one they run on too.

/// Runs a program over one call. `None` if the program leaves itself, reads outside the call, or uses an instruction
/// that this layer does not generate. Ends: jumps only go forward.
pub fn run(program: &[libc::sock_filter], call: &libc::seccomp_data) -> Option<u32> {
    let mut accumulator = 0;
    let mut next = 0_usize;
    loop {
        let libc::sock_filter { code, jt, jf, k } = *program.get(next)?;
        next += 1;
        let chosen = |condition: bool| usize::from(if condition { jt } else { jf });
        match code {
            0x20 => accumulator = load(call, k)?,         // BPF_LD | BPF_W | BPF_ABS
            0x54 => accumulator &= k,                     // BPF_ALU | BPF_AND | BPF_K
            0x05 => next = next.checked_add(k as usize)?, // BPF_JMP | BPF_JA
            0x15 => next += chosen(accumulator == k),     // BPF_JMP | BPF_JEQ | BPF_K
            0x35 => next += chosen(accumulator >= k),     // BPF_JMP | BPF_JGE | BPF_K
            0x06 => return Some(k),                       // BPF_RET | BPF_K
            _ => return None,
        }
    }
}

/// One word of `struct seccomp_data` (linux/seccomp.h), on a little-endian machine.
fn load(call: &libc::seccomp_data, offset: u32) -> Option<u32> {
    let half = |value: u64, high: bool| (if high { value >> 32 } else { value }) as u32;
    match offset {
        0 => Some(call.nr as u32),
        4 => Some(call.arch),
        8 | 12 => Some(half(call.instruction_pointer, offset == 12)),
        16..64 if offset.is_multiple_of(4) => {
            Some(half(call.args[(offset as usize - 16) / 8], !offset.is_multiple_of(8)))
        }
        _ => None,
    }
}
