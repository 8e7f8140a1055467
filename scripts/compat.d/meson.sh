#!/bin/bash
# title: bubblewrap: meson, ninja, its tests, and it at work
# packages: build-essential meson ninja-build pkg-config libcap-dev python3
# sources: bubblewrap
set -euo pipefail

mkdir source
tar -C source --strip-components=1 -xf /sources/bubblewrap.tar
if meson setup build source -Dman=disabled -Dselinux=disabled >&2; then echo 'ok setup'; else echo 'failed setup'; fi
if ninja -C build >&2; then echo 'ok compile'; else echo 'failed compile'; fi
meson test -C build --print-errorlogs >&2 || true
cat build/meson-logs/testlog.txt >&2
python3 - <<'PYTHON'
import json
for line in open("build/meson-logs/testlog.json"):
    test = json.loads(line)
    print(test["result"].lower(), test["name"])
PYTHON
if DESTDIR=$PWD/out meson install -C build --no-rebuild >&2; then echo 'ok install'; else echo 'failed install'; fi
if build/bwrap --ro-bind / / --unshare-pid --proc /proc true >&2; then echo 'ok a sandbox'; else echo 'failed a sandbox'; fi
