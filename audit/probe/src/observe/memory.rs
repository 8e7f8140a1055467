//! What processes of one IPC namespace, or of one /dev/shm, have in common: a System V segment, a POSIX message queue, a file
//! of shared memory. Each is of mode 0666 and holds the nonce.

use std::ffi::CString;
use std::path::PathBuf;

use anchorhold_probe::observation::SetUp;

use crate::calls;

/// The objects; taken away again when dropped.
pub struct Memory {
    segment: Option<i64>,
    queue: Option<CString>,
    file: Option<PathBuf>,
}

impl Memory {
    /// Makes them.
    pub fn make(nonce: &str, set_up: &mut SetUp) -> Self {
        let mut memory = Self { segment: None, queue: None, file: None };
        let key = nonce.bytes().fold(0x5eed_i32, |key, byte| key.wrapping_mul(31).wrapping_add(byte.into())) & i32::MAX;
        match segment(key, nonce) {
            Ok(id) => {
                memory.segment = Some(id);
                set_up.shared_memory_key = Some(key);
            }
            Err(errno) => set_up.miss("System V segment", errno),
        }
        let name = format!("anchorhold-{nonce}");
        let bare = CString::new(name.clone()).expect("a nonce has no zero byte");
        match queue(&bare, nonce) {
            Ok(()) => {
                memory.queue = Some(bare);
                set_up.message_queue = Some(format!("/{name}"));
            }
            Err(errno) => set_up.miss("message queue", errno),
        }
        let file = PathBuf::from("/dev/shm").join(&name);
        match calls::open(&file, libc::O_CREAT | libc::O_EXCL | libc::O_RDWR, 0o666) {
            Ok(descriptor) => {
                let _ = calls::write(descriptor, nonce.as_bytes());
                calls::close(descriptor);
                memory.file = Some(file);
                set_up.shared_memory_file = Some(name);
            }
            Err(errno) => set_up.miss("file in /dev/shm", errno),
        }
        memory
    }
}

fn segment(key: i32, nonce: &str) -> Result<i64, i32> {
    let flags = libc::IPC_CREAT | libc::IPC_EXCL | 0o666;
    let id = calls::raw(libc::SYS_shmget, &[key as usize, 4096, flags as usize])?;
    let address = calls::raw(libc::SYS_shmat, &[id as usize, 0, 0])?;
    // The text is put there by the kernel, from a pipe: no pointer of the segment is used here.
    let [reader, writer] = calls::pipe()?;
    let written = calls::write(writer, nonce.as_bytes())?;
    let _ = calls::raw(libc::SYS_read, &[reader as usize, address as usize, written]);
    calls::close(reader);
    calls::close(writer);
    let _ = calls::raw(libc::SYS_shmdt, &[address as usize]);
    Ok(id)
}

fn queue(name: &CString, nonce: &str) -> Result<(), i32> {
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR | libc::O_CLOEXEC;
    // mq_maxmsg and mq_msgsize; the rest is not read.
    let attributes: [i64; 8] = [0, 4, 256, 0, 0, 0, 0, 0];
    let queue =
        calls::raw(libc::SYS_mq_open, &[name.as_ptr() as usize, flags as usize, 0o666, attributes.as_ptr() as usize])?;
    let _ = calls::raw(libc::SYS_mq_timedsend, &[queue as usize, nonce.as_ptr() as usize, nonce.len(), 0, 0]);
    calls::close(queue as i32);
    Ok(())
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(id) = self.segment {
            let _ = calls::raw(libc::SYS_shmctl, &[id as usize, libc::IPC_RMID as usize, 0]);
        }
        if let Some(name) = &self.queue {
            let _ = calls::raw(libc::SYS_mq_unlink, &[name.as_ptr() as usize]);
        }
        if let Some(file) = &self.file {
            let _ = std::fs::remove_file(file);
        }
    }
}
