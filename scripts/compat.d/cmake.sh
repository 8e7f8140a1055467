#!/bin/bash
# title: jsoncpp: cmake, ninja, ctest
# packages: build-essential cmake ninja-build python3
# sources: libjsoncpp
set -euo pipefail

mkdir source
tar -C source --strip-components=1 -xf /sources/libjsoncpp.tar
if cmake -S source -B build -G Ninja -DJSONCPP_WITH_POST_BUILD_UNITTEST=OFF >&2; then echo 'ok configure'; else echo 'failed configure'; fi
if cmake --build build -j2 >&2; then echo 'ok build'; else echo 'failed build'; fi
(cd build && ctest --output-on-failure) 2>&1 | tee /dev/stderr |
    awk '/ Test +#[0-9]+: / { name = $0; sub(/^.*Test +#[0-9]+: /, "", name); sub(/ .*/, "", name)
        print (/Passed/ ? "ok" : "failed"), "ctest " name }'
# The unit tests one by one.
build/bin/jsoncpp_test --list-tests | while read -r test; do
    if build/bin/jsoncpp_test --test "$test" >&2; then echo "ok $test"; else echo "failed $test"; fi
done
if cmake --install build --prefix "$PWD/out" >&2; then echo 'ok install'; else echo 'failed install'; fi
