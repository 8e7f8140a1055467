#!/bin/bash
# title: Go's own tests of os, os/exec, os/signal, net, syscall, runtime/pprof
# packages: golang-go golang-src gcc libc6-dev netbase
set -euo pipefail

export GOCACHE=$PWD/cache GOFLAGS=-mod=mod GOPROXY=off GOTOOLCHAIN=local
for package in os os/exec os/signal os/user net syscall io/ioutil internal/poll; do
    (go test -short -v "$package" 2>&1 || true) | tee /dev/stderr |
        awk -v package="$package" '/^ *--- (PASS|FAIL|SKIP): / {
            result = tolower($2); sub(/:/, "", result); print (result == "pass" ? "ok" : result == "skip" ? "skipped" : "failed"), package, $3 }
            /^(ok|FAIL|---)/ && $2 == package { print tolower($1), "package", package }'
done
