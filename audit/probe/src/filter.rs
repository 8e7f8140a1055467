//! Whether a system call would come through the filters of a sandbox, without making it.
//!
//! An error number alone does not tell: ENOSYS may be the filter's answer or that of a kernel without the call. But of
//! all answers of all filters the kernel takes the strictest, and SECCOMP_RET_TRACE is less strict than an error. So a
//! child puts a filter of its own on top that traces every call whose fifth argument is a marker, and then makes the
//! call: the tracer hears of it exactly if no filter before refused it, and has it skipped.

use crate::calls;

/// By which entry a number is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The processor's own.
    Native,
    /// `int 0x80`.
    I386,
    /// The native one, with bit 30 of the number set.
    X32,
}

/// What became of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// It reaches the kernel.
    Through,
    /// A filter answered with this error number.
    Refused(i32),
    /// A filter killed the caller.
    Killed,
}

/// The fifth argument of calls that are only asked about.
const MARKER: u32 = 0x616e_6368;

/// The result that the tracer leaves in place of the call's own, which no kernel gives.
const HEARD: i32 = 4000;

/// The bit of x32 calls, asm/unistd.h.
const X32: u32 = 0x4000_0000;

/// `PTRACE_O_TRACESECCOMP | PTRACE_O_EXITKILL`, and the event, linux/ptrace.h.
const OPTIONS: usize = 0x80 | 0x10_0000;
const EVENT_SECCOMP: i32 = 7;

/// Those of the numbers that come through, by what became of each.
pub fn open(numbers: &[u32], passages: &[Passage]) -> Vec<u32> {
    let through = numbers.iter().zip(passages).filter(|(_, passage)| **passage == Passage::Through);
    through.map(|(number, _)| *number).collect()
}

/// What becomes of each of the numbers. The error says why it cannot be told here.
pub fn passages(entry: Entry, numbers: &[u32]) -> Result<Vec<Passage>, &'static str> {
    let mut found = Vec::new();
    while found.len() < numbers.len() {
        let before = found.len();
        let killed = ask(entry, &numbers[before..], &mut found)?;
        match (killed, found.len() == before) {
            (true, _) if found.len() < numbers.len() => found.push(Passage::Killed),
            (_, true) => return Err("the child that asks could not be set up"),
            _ => {}
        }
    }
    Ok(found)
}

/// Asks in one child, as far as it lives: whether it was killed by a filter.
fn ask(entry: Entry, numbers: &[u32], found: &mut Vec<Passage>) -> Result<bool, &'static str> {
    let [reader, writer] = calls::pipe().map_err(|_| "no pipe")?;
    let child = calls::spawn(|| child(entry, numbers, writer)).map_err(|_| "no process")?;
    calls::close(writer);
    let mut attached = false;
    let status = loop {
        let Ok(status) = calls::wait(child) else { break 0 };
        if !libc::WIFSTOPPED(status) {
            break status;
        }
        if status >> 16 == EVENT_SECCOMP {
            skip(child);
        } else if !attached {
            attached = ptrace(libc::PTRACE_SETOPTIONS, child, 0, OPTIONS).is_ok();
        }
        if ptrace(libc::PTRACE_CONT, child, 0, 0).is_err() {
            let _ = calls::kill(child, libc::SIGKILL);
        }
    };
    let mut bytes = [0; 4096];
    while let Ok(length @ 1..) = calls::read(reader, &mut bytes) {
        found.extend(bytes[..length].chunks_exact(2).map(|pair| match u16::from_ne_bytes([pair[0], pair[1]]) {
            0 => Passage::Through,
            errno => Passage::Refused(i32::from(errno)),
        }));
    }
    calls::close(reader);
    if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) != 0 {
        return Err(match libc::WEXITSTATUS(status) {
            2 => "the child cannot be traced",
            _ => "no filter can be added",
        });
    }
    Ok(libc::WIFSIGNALED(status))
}

/// The child: filters itself and calls. Each answer is two bytes, zero if the tracer heard.
fn child(entry: Entry, numbers: &[u32], writer: i32) -> i32 {
    calls::alarm(8);
    if ptrace(libc::PTRACE_TRACEME, 0, 0, 0).is_err() {
        return 2;
    }
    let own = calls::raw(libc::SYS_getpid, &[]).unwrap_or(0);
    let _ = calls::kill(own as i32, libc::SIGSTOP);
    if install().is_err() {
        return 3;
    }
    for &number in numbers {
        let result = match entry {
            Entry::Native => calls::raw(libc::c_long::from(number), &[0, 0, 0, 0, MARKER as usize]),
            Entry::X32 => calls::raw(libc::c_long::from(number | X32), &[0, 0, 0, 0, MARKER as usize]),
            Entry::I386 => calls::int80(number, [0, 0, 0, 0, MARKER]),
        };
        let answer = match result {
            Err(HEARD) => 0,
            Err(errno) => errno as u16,
            // Nobody skipped it, and yet it worked: a supervisor let it go on.
            Ok(_) => 0,
        };
        let _ = calls::write(writer, &answer.to_ne_bytes());
    }
    0
}

/// Puts the filter on this process.
fn install() -> Result<i64, i32> {
    calls::prctl(libc::PR_SET_NO_NEW_PRIVS, &[1])?;
    // Offset 48 of struct seccomp_data is the low half of the fifth argument on a little-endian machine.
    let program: [[u8; 8]; 4] = [
        instruction(0x20, 0, 48),          // BPF_LD | BPF_W | BPF_ABS
        instruction(0x15, 1, MARKER),      // BPF_JMP | BPF_JEQ | BPF_K: past the next one, if not equal
        instruction(0x06, 0, 0x7ff0_0000), // SECCOMP_RET_TRACE
        instruction(0x06, 0, 0x7fff_0000), // SECCOMP_RET_ALLOW
    ];
    let description = [program.len(), program.as_ptr() as usize];
    calls::raw(libc::SYS_seccomp, &[1, 0, description.as_ptr() as usize])
}

/// `struct sock_filter` with a jump only on "not".
fn instruction(code: u16, if_not: u8, k: u32) -> [u8; 8] {
    let (code, k) = (code.to_ne_bytes(), k.to_ne_bytes());
    [code[0], code[1], 0, if_not, k[0], k[1], k[2], k[3]]
}

/// Has the call that the child stopped in skipped, with our result.
#[cfg(target_arch = "x86_64")]
fn skip(child: i32) {
    // struct user_regs_struct: 27 words, rax the 11th, orig_rax the 16th.
    let mut registers = [0_u64; 27];
    if ptrace(libc::PTRACE_GETREGS, child, 0, registers.as_mut_ptr() as usize).is_ok() {
        registers[10] = -i64::from(HEARD) as u64;
        registers[15] = u64::MAX;
        let _ = ptrace(libc::PTRACE_SETREGS, child, 0, registers.as_ptr() as usize);
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn skip(child: i32) {
    let _ = calls::kill(child, libc::SIGKILL);
}

/// `ptrace`, as the kernel takes it.
pub fn ptrace(request: libc::c_uint, process: i32, address: usize, data: usize) -> Result<i64, i32> {
    calls::raw(libc::SYS_ptrace, &[request as usize, process as usize, address, data])
}

/// Ascending numbers as ranges: `0-2, 5`.
pub fn ranges(numbers: &[u32]) -> String {
    let mut text = String::new();
    let mut rest = numbers;
    while let Some(&first) = rest.first() {
        let length = (1..rest.len()).find(|&index| rest[index] != first + index as u32).unwrap_or(rest.len());
        let separator = if text.is_empty() { "" } else { ", " };
        text.push_str(&match rest[length - 1] {
            last if last == first => format!("{separator}{first}"),
            last => format!("{separator}{first}-{last}"),
        });
        rest = &rest[length..];
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_a_row_are_written_as_ranges() {
        assert_eq!(ranges(&[]), "");
        assert_eq!(ranges(&[3]), "3");
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2, 5, 7-8");
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_filter_is_told_from_a_kernel_without_the_call() {
        // exit(2), a number that no kernel has, and getpid(2).
        let numbers = [60, 900, 39];
        let open = passages(Entry::Native, &numbers);
        if let Err(reason) = open {
            println!("SKIP: {reason}");
            return;
        }
        assert_eq!(open, Ok(vec![Passage::Through; 3]));
        // The same below a filter that answers ENOSYS to number 900, as a ceiling does.
        let inside = calls::in_child(|| {
            let program: [[u8; 8]; 4] = [
                instruction(0x20, 0, 0),
                instruction(0x15, 1, 900),
                instruction(0x06, 0, 0x0005_0000 | libc::ENOSYS as u32),
                instruction(0x06, 0, 0x7fff_0000),
            ];
            let description = [program.len(), program.as_ptr() as usize];
            let ready = calls::prctl(libc::PR_SET_NO_NEW_PRIVS, &[1])
                .and_then(|_| calls::raw(libc::SYS_seccomp, &[1, 0, description.as_ptr() as usize]));
            let expected = [Passage::Through, Passage::Refused(libc::ENOSYS), Passage::Through];
            i32::from(ready.is_err() || passages(Entry::Native, &numbers).as_deref() != Ok(&expected[..]))
        });
        assert_eq!(inside, Ok(Some(0)));
    }
}
