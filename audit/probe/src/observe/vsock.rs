//! A vsock port, bound on any address: where it is taken inside as well, the port space is shared.

use anchorhold_probe::observation::SetUp;

use crate::calls;

/// The bound socket; the port is free again when dropped.
pub struct Port(i32);

impl Port {
    /// Binds it.
    pub fn bind(port: u32, set_up: &mut SetUp) -> Option<Self> {
        const ANY: u32 = u32::MAX;
        match calls::socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0) {
            Ok(descriptor) => {
                let bound = Self(descriptor);
                // struct sockaddr_vm: family, reserved, port, cid, flags and padding.
                let mut address = Vec::new();
                address.extend_from_slice(&(libc::AF_VSOCK as u16).to_ne_bytes());
                address.extend_from_slice(&[0; 2]);
                address.extend_from_slice(&port.to_ne_bytes());
                address.extend_from_slice(&ANY.to_ne_bytes());
                address.extend_from_slice(&[0; 4]);
                match calls::raw(libc::SYS_bind, &[descriptor as usize, address.as_ptr() as usize, address.len()]) {
                    Ok(_) => {
                        set_up.vsock_port = Some(port);
                        Some(bound)
                    }
                    Err(errno) => {
                        set_up.miss("vsock port", errno);
                        None
                    }
                }
            }
            Err(errno) => {
                set_up.miss("vsock port", errno);
                None
            }
        }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        calls::close(self.0);
    }
}
