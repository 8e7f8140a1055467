//! Disks that guests write: qcow2 images, made here, so that no tool of QEMU's is needed beside QEMU.
//!
//! The format is `docs/interop/qcow2.txt` of QEMU, version 3: a header, one block of reference counts, an empty table of
//! clusters. Everything that is not written reads as zero, or as what is behind it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// 64 KiB, as QEMU does it.
const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// What one entry of the table of clusters stands for: a cluster full of entries of 8 bytes.
const PER_ENTRY: u64 = CLUSTER / 8 * CLUSTER;
/// The type of the header extension with the format of what is behind.
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// The longest name of what is behind.
const MAX_BACKING: usize = 1023;
/// The largest disk whose table fits into one cluster.
const MAX_SIZE: u64 = PER_ENTRY * (CLUSTER / 8);

/// Makes a disk of `size` bytes, which must be no file yet. What is not written on it is read from `backing`, a qcow2 image too;
/// a relative name is one beside the new disk.
///
/// # Errors
/// What the file system says, and a size or a name that cannot be.
pub fn create(path: &Path, size: u64, backing: Option<&Path>) -> io::Result<()> {
    let name = backing.map(|path| path.as_os_str().as_bytes()).unwrap_or_default();
    if size == 0 || !size.is_multiple_of(512) || size > MAX_SIZE {
        return Err(io::Error::other(format!("a disk cannot have {size} bytes: a multiple of 512, at most 4 TiB")));
    }
    if name.len() > MAX_BACKING {
        return Err(io::Error::other("the path of the disk behind it is longer than 1023 bytes"));
    }
    let mut header = Vec::new();
    let mut extensions = Vec::new();
    if backing.is_some() {
        extensions.extend(BACKING_FORMAT.to_be_bytes());
        extensions.extend(5_u32.to_be_bytes());
        extensions.extend(b"qcow2\0\0\0");
    }
    // The end of the extensions.
    extensions.extend([0; 8]);
    const LENGTH: u32 = 104;
    let name_at = if name.is_empty() { 0 } else { u64::from(LENGTH) + extensions.len() as u64 };
    header.extend(b"QFI\xfb");
    header.extend(3_u32.to_be_bytes());
    header.extend(name_at.to_be_bytes());
    header.extend((name.len() as u32).to_be_bytes());
    header.extend(CLUSTER_BITS.to_be_bytes());
    header.extend(size.to_be_bytes());
    // Not encrypted.
    header.extend(0_u32.to_be_bytes());
    header.extend((size.div_ceil(PER_ENTRY) as u32).to_be_bytes());
    // Where the table of clusters is, and the reference counts.
    header.extend((3 * CLUSTER).to_be_bytes());
    header.extend(CLUSTER.to_be_bytes());
    header.extend(1_u32.to_be_bytes());
    // No snapshots, no features of any kind.
    header.extend([0; 4 + 8 + 3 * 8]);
    // Reference counts have 16 bits.
    header.extend(4_u32.to_be_bytes());
    header.extend(LENGTH.to_be_bytes());
    header.extend(extensions);
    header.extend(name);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?;
    file.set_len(4 * CLUSTER)?;
    file.write_all_at(&header, 0)?;
    file.write_all_at(&(2 * CLUSTER).to_be_bytes(), CLUSTER)?;
    // The four clusters that there are, each once.
    file.write_all_at(&[0, 1, 0, 1, 0, 1, 0, 1], 2 * CLUSTER)
}

/// The size of the disk of a qcow2 image, in bytes.
///
/// # Errors
/// What the file system says, and when it is no qcow2 image.
pub fn size(path: &Path) -> io::Result<u64> {
    let mut header = [0; 32];
    File::open(path)?.read_exact_at(&mut header, 0)?;
    match header.split_at(4) {
        (b"QFI\xfb", _) => Ok(u64::from_be_bytes(*header.last_chunk().unwrap_or(&[0; 8]))),
        _ => Err(io::Error::other(format!("{} is no qcow2 image", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn qemus_own_tool_takes_it_for_a_disk() {
        let place = tempfile::tempdir().unwrap();
        let (below, above) = (place.path().join("below"), place.path().join("above"));
        create(&below, 1 << 30, None).unwrap();
        create(&above, 1 << 30, Some(Path::new("below"))).unwrap();
        assert_eq!(size(&above).unwrap(), 1 << 30);
        for (image, behind) in [(&below, None), (&above, Some("below"))] {
            let Ok(told) = Command::new("qemu-img").args(["info", "--output=json"]).arg(image).output() else {
                return println!("SKIP: there is no qemu-img here");
            };
            let told: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
            assert_eq!(told["virtual-size"], 1 << 30);
            assert_eq!(told["backing-filename"].as_str(), behind);
            assert_eq!(told["backing-filename-format"].as_str(), behind.map(|_| "qcow2"));
            let checked = Command::new("qemu-img").arg("check").arg(image).output().unwrap();
            assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
        }
    }

    #[test]
    fn what_cannot_be_a_disk_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("disk");
        assert!(create(&path, 1000, None).unwrap_err().to_string().contains("multiple of 512"));
        assert!(create(&path, u64::MAX / 512 * 512, None).is_err());
        assert!(!path.exists());
        std::fs::write(&path, [0; 64]).unwrap();
        assert!(size(&path).unwrap_err().to_string().contains("no qcow2"));
        assert!(create(&path, 1 << 20, None).is_err(), "a file was overwritten");
    }
}
