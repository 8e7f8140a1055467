//! podman with its defaults, without a network, on a folder instead of an image.

use anchorhold_probe::observation::Launch;

use super::{Ground, Inside, Sandbox, in_own_mounts, line, rootfs, text, version_of};

/// `podman run`.
#[derive(Debug)]
pub struct Podman;

impl Sandbox for Podman {
    fn name(&self) -> String {
        "podman".into()
    }

    fn version(&self, _ground: &Ground) -> Result<String, String> {
        version_of("podman", &["--version"])
    }

    fn prepare(&self, ground: &Ground) -> Result<Inside, String> {
        rootfs::make(ground).map(|_| Inside::usual())
    }

    fn launch(&self, ground: &Ground, words: &[String]) -> Result<Launch, String> {
        let storage = ground.folder.join("podman");
        let mut all = in_own_mounts();
        all.push("podman".into());
        // Storage of our own: nothing of it is left in the host's.
        for (option, name) in [("--root", "storage"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            all.extend([option.into(), text(&storage.join(name))]);
        }
        all.extend(
            "--cgroup-manager cgroupfs --events-backend none run --rm --network none --cgroups disabled --ulimit nofile=1024:1024 --ulimit nproc=4096:4096"
                .split(' ')
                .map(str::to_owned),
        );
        all.extend([
            "--volume".into(),
            format!("{}:/audit:ro", text(&ground.shown)),
            "--tmpfs".into(),
            "/scratch".into(),
        ]);
        let (program, arguments) = words.split_first().ok_or("no command")?;
        all.extend(["--entrypoint".into(), program.clone(), "--rootfs".into(), text(&ground.folder.join("rootfs"))]);
        all.extend(arguments.iter().cloned());
        Ok(line(all))
    }
}
