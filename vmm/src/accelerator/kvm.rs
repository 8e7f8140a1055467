//! The smallest guest there can be: 19 bytes in real mode that count down and say so. The only unsafe code of this crate,
//! because KVM's interface (the kernel's Documentation/virt/kvm/api.rst) is ioctl(2) and shared memory; the crates for it
//! leave both of these unsafe to their callers as well.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

const KVM_GET_API_VERSION: libc::c_ulong = 0xae00;

/// The version of the interface that a device speaks.
pub fn interface(device: &File) -> io::Result<i32> {
    // SAFETY: this request takes no argument; a device that is not KVM's refuses it or, knowing it as something else, would
    // take a 0.
    let answer = unsafe { libc::ioctl(device.as_raw_fd(), KVM_GET_API_VERSION as _, 0) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

/// How long the guest took to count to 100,000: the best of three, unless one is already `good`, since others want the
/// processor too.
#[cfg(target_arch = "x86_64")]
pub fn count(device: File, good: Duration, give_up: Duration) -> Result<Duration, String> {
    let (tell, told) = std::sync::mpsc::channel();
    // A thread that hangs in the kernel cannot be called back. It owns all that its guest uses.
    std::thread::spawn(move || {
        let mut best = Duration::MAX;
        let mut failure = None;
        for _ in 0..3 {
            match x86::count(&device) {
                Ok(took) => best = best.min(took),
                Err(why) => failure = Some(why),
            }
            // Clear in one direction or the other.
            if failure.is_some() || best <= good || best > good * 20 {
                break;
            }
        }
        // Nobody listens any more if it took too long.
        let _ = tell.send(failure.map_or(Ok(best), Err));
    });
    match told.recv_timeout(give_up) {
        Ok(took) => took,
        Err(_) => Err(format!("it did not end within {give_up:?}")),
    }
}

/// On other architectures there is no such guest yet: what is asked of the device must do.
#[cfg(not(target_arch = "x86_64"))]
pub fn count(_device: File, _good: Duration, _give_up: Duration) -> Result<Duration, String> {
    Ok(Duration::ZERO)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::fs::File;
    use std::io;
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    use std::ptr::{self, NonNull};
    use std::time::{Duration, Instant};

    // linux/kvm.h, as the preprocessor computes them.
    const KVM_CREATE_VM: libc::c_ulong = 0xae01;
    const KVM_GET_VCPU_MMAP_SIZE: libc::c_ulong = 0xae04;
    const KVM_CREATE_VCPU: libc::c_ulong = 0xae41;
    const KVM_SET_TSS_ADDR: libc::c_ulong = 0xae47;
    const KVM_RUN: libc::c_ulong = 0xae80;
    const KVM_SET_USER_MEMORY_REGION: libc::c_ulong = 0x4020_ae46;
    const KVM_SET_REGS: libc::c_ulong = 0x4090_ae82;
    const KVM_GET_SREGS: libc::c_ulong = 0x8138_ae83;
    const KVM_SET_SREGS: libc::c_ulong = 0x4138_ae84;
    const KVM_EXIT_IO: u32 = 2;

    const MEMORY: usize = 64 << 10;
    const BEGIN: usize = 0x1000;
    /// mov ecx, 100000; dec ecx; jnz back; mov al, 'A'; mov dx, 0x3f8; out dx, al; hlt
    const PROGRAM: [u8; 17] =
        [0x66, 0xb9, 0xa0, 0x86, 0x01, 0x00, 0x66, 0x49, 0x75, 0xfc, 0xb0, 0x41, 0xba, 0xf8, 0x03, 0xee, 0xf4];

    #[repr(C)]
    struct Region {
        slot: u32,
        flags: u32,
        guest: u64,
        size: u64,
        host: u64,
    }

    /// Memory that lives as long as this.
    struct Mapping {
        at: NonNull<u8>,
        length: usize,
    }

    impl Mapping {
        /// Of a descriptor, or of nothing.
        fn new(length: usize, of: Option<&OwnedFd>) -> io::Result<Self> {
            let (flags, descriptor) = match of {
                Some(of) => (libc::MAP_SHARED, of.as_raw_fd()),
                None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
            };
            // SAFETY: a new mapping where the kernel likes; nothing that exists is touched.
            let at = unsafe {
                libc::mmap(ptr::null_mut(), length, libc::PROT_READ | libc::PROT_WRITE, flags, descriptor, 0)
            };
            if at == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            NonNull::new(at.cast()).map(|at| Self { at, length }).ok_or_else(|| io::Error::other("mapped at 0"))
        }
    }

    impl Drop for Mapping {
        fn drop(&mut self) {
            // SAFETY: it is ours alone, and nobody has kept a pointer into it.
            unsafe { libc::munmap(self.at.as_ptr().cast(), self.length) };
        }
    }

    /// One ioctl with a pointer, or a number, as its argument.
    ///
    /// # Safety
    /// The argument is what the request takes: memory of the size that the request's number says, alive for the call.
    unsafe fn ask(descriptor: &impl AsRawFd, request: libc::c_ulong, argument: usize) -> io::Result<libc::c_int> {
        // SAFETY: the caller's promise.
        let answer = unsafe { libc::ioctl(descriptor.as_raw_fd(), request as _, argument) };
        if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
    }

    fn owned(descriptor: libc::c_int) -> OwnedFd {
        // SAFETY: KVM has just made it for us, and nobody else knows it.
        unsafe { OwnedFd::from_raw_fd(descriptor) }
    }

    /// One guest, from its making to its word.
    pub fn count(device: &File) -> Result<Duration, String> {
        let failed = |doing: &'static str| move |error: io::Error| format!("{doing}: {error}");
        // Declared before the machine, so that it outlives it.
        let memory = Mapping::new(MEMORY, None).map_err(failed("memory for it"))?;
        let begin = memory.at.as_ptr().wrapping_add(BEGIN);
        // SAFETY: the program ends far below the end of the memory, which nobody else has yet.
        unsafe { ptr::copy_nonoverlapping(PROGRAM.as_ptr(), begin, PROGRAM.len()) };
        // SAFETY: the kind of the machine, 0, is a number.
        let machine = unsafe { ask(device, KVM_CREATE_VM, 0) }.map(owned).map_err(failed("making it"))?;
        // Old processors of Intel want three pages for real mode; others do not know the request.
        // SAFETY: an address in the guest is a number.
        let _ = unsafe { ask(&machine, KVM_SET_TSS_ADDR, 0xfffb_d000) };
        let region =
            Region { slot: 0, flags: 0, guest: 0, size: MEMORY as u64, host: memory.at.as_ptr() as usize as u64 };
        // SAFETY: the structure has the 32 bytes of the request, and the memory in it outlives the machine.
        unsafe { ask(&machine, KVM_SET_USER_MEMORY_REGION, (&raw const region) as usize) }
            .map_err(failed("giving it memory"))?;
        // SAFETY: the number of the processor, 0.
        let processor =
            unsafe { ask(&machine, KVM_CREATE_VCPU, 0) }.map(owned).map_err(failed("making its processor"))?;
        // SAFETY: no argument.
        let size = unsafe { ask(device, KVM_GET_VCPU_MMAP_SIZE, 0) }.map_err(failed("asking for a size"))?;
        if size < 16 {
            return Err(format!("its state has {size} bytes"));
        }
        let state = Mapping::new(size as usize, Some(&processor)).map_err(failed("its state"))?;

        // struct kvm_sregs, of which we want the code segment alone: its base in the first 8 bytes, its selector in 2 at 12.
        let mut special = [0_u64; 39];
        // SAFETY: 312 bytes, as in the request's number.
        unsafe { ask(&processor, KVM_GET_SREGS, (&raw mut special) as usize) }.map_err(failed("its registers"))?;
        special[0] = 0;
        special[1] &= !(0xffff << 32);
        // SAFETY: as before.
        unsafe { ask(&processor, KVM_SET_SREGS, (&raw const special) as usize) }.map_err(failed("its registers"))?;
        // struct kvm_regs: 16 registers, rip, rflags, of which one bit is always set.
        let mut registers = [0_u64; 18];
        registers[16] = BEGIN as u64;
        registers[17] = 2;
        // SAFETY: 144 bytes, as in the request's number.
        unsafe { ask(&processor, KVM_SET_REGS, (&raw const registers) as usize) }.map_err(failed("its registers"))?;

        let began = Instant::now();
        loop {
            // SAFETY: no argument.
            match unsafe { ask(&processor, KVM_RUN, 0) } {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(format!("running it: {error}")),
            }
        }
        let took = began.elapsed();
        let reason = state.at.as_ptr().wrapping_add(8).cast::<u32>();
        // SAFETY: the reason of the exit lies at 8 in struct kvm_run, which is longer than that; the kernel writes it only
        // while the processor runs.
        let reason = unsafe { reason.read_volatile() };
        if reason != KVM_EXIT_IO {
            return Err(format!("it stopped for another reason than its word (exit reason {reason})"));
        }
        Ok(took)
    }
}
