//! One operation through io_uring, past every system call filter.
//!
//! Nothing here touches the memory that is shared with the kernel: bytes are copied into it and out of it by pipes, so
//! that no unsafe code is needed.

use crate::calls;

/// Offsets in `struct io_uring_params` (linux/io_uring.h), in words of 32 bits.
mod parameters {
    pub const CQ_ENTRIES: usize = 1;
    pub const SQ_TAIL: usize = 11;
    pub const SQ_ARRAY: usize = 16;
    pub const CQES: usize = 25;
}

/// Where the queues are mapped from, linux/io_uring.h.
const OFFSET_QUEUES: usize = 0;
const OFFSET_ENTRIES: usize = 0x1000_0000;

/// `IORING_ENTER_GETEVENTS`: wait for the completion.
const GET_EVENTS: usize = 1;

/// The fields of a submission that the probes use.
#[derive(Default)]
pub struct Operation {
    /// `IORING_OP_*`.
    pub opcode: u8,
    /// The descriptor, or what the operation takes in its place.
    pub descriptor: i32,
    /// `off`, also `addr2`.
    pub offset: u64,
    /// `addr`.
    pub address: u64,
    /// `len`.
    pub length: u32,
    /// The operation's own flags.
    pub flags: u32,
}

impl Operation {
    /// `struct io_uring_sqe`.
    fn bytes(&self) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[0] = self.opcode;
        bytes[4..8].copy_from_slice(&self.descriptor.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.offset.to_ne_bytes());
        bytes[16..24].copy_from_slice(&self.address.to_ne_bytes());
        bytes[24..28].copy_from_slice(&self.length.to_ne_bytes());
        bytes[28..32].copy_from_slice(&self.flags.to_ne_bytes());
        bytes
    }

    /// Submits it and waits for its result. That there is no ring is an error like any other.
    pub fn perform(&self) -> Result<i64, i32> {
        let mut words = [0_u32; 30];
        let ring = calls::raw(libc::SYS_io_uring_setup, &[1, words.as_mut_ptr() as usize])? as usize;
        let word = |index: usize| words[index] as usize;
        let map = |length: usize, offset: usize| {
            let protection = (libc::PROT_READ | libc::PROT_WRITE) as usize;
            calls::raw(libc::SYS_mmap, &[0, length, protection, libc::MAP_SHARED as usize, ring, offset])
                .map(|address| address as usize)
        };
        // Both queues lie in one mapping since Linux 5.4.
        let completions = word(parameters::CQES);
        let queues =
            map((completions + 16 * word(parameters::CQ_ENTRIES)).max(word(parameters::SQ_ARRAY) + 4), OFFSET_QUEUES)?;
        put(map(64, OFFSET_ENTRIES)?, &self.bytes())?;
        put(queues + word(parameters::SQ_ARRAY), &0_u32.to_ne_bytes())?;
        put(queues + word(parameters::SQ_TAIL), &1_u32.to_ne_bytes())?;
        calls::raw(libc::SYS_io_uring_enter, &[ring, 1, 1, GET_EVENTS])?;
        let completion = calls::memory(queues + completions, 16)?;
        let result: [u8; 4] = completion.get(8..12).and_then(|bytes| bytes.try_into().ok()).ok_or(libc::EIO)?;
        match i32::from_ne_bytes(result) {
            errno @ ..0 => Err(-errno),
            result => Ok(i64::from(result)),
        }
    }
}

/// Copies bytes to an address that the kernel gave.
fn put(address: usize, bytes: &[u8]) -> Result<(), i32> {
    let [reader, writer] = calls::pipe()?;
    let result = calls::write(writer, bytes)
        .and_then(|length| calls::raw(libc::SYS_read, &[reader as usize, address, length]).map(|_| ()));
    calls::close(reader);
    calls::close(writer);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_through_a_ring_has_its_own_result() {
        const NOP: u8 = 0;
        const CLOSE: u8 = 19;
        match (Operation { opcode: NOP, ..Operation::default() }).perform() {
            Err(libc::ENOSYS | libc::EPERM) => println!("SKIP: there is no io_uring here"),
            result => {
                assert_eq!(result, Ok(0));
                let close = Operation { opcode: CLOSE, descriptor: 9999, ..Operation::default() };
                assert_eq!(close.perform(), Err(libc::EBADF));
            }
        }
    }
}
