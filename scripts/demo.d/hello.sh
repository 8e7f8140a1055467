#!/bin/bash
# Builds GNU Hello, the way its own INSTALL says. In the environment: toolchain, src, out.
set -eu
: "${toolchain:?}" "${src:?}" "${out:?}"

export PATH=$toolchain/bin
# /bin/sh is the configuration's; these make everything use the tool chain's shell.
export SHELL=$toolchain/bin/sh CONFIG_SHELL=$toolchain/bin/sh
jobs=${NIX_BUILD_CORES:-1}
if [ "$jobs" = 0 ]; then
    jobs=$(nproc)
fi

tar -xf "$src"
cd hello-*/
"$CONFIG_SHELL" ./configure --prefix="$out"
make -j"$jobs" SHELL="$SHELL"
make -j"$jobs" SHELL="$SHELL" check
make SHELL="$SHELL" install
