#!/bin/sh
# Makes a tool chain of Debian packages that lives in the store, at $out. The builder is busybox, and nothing of the
# packages is run before it has been unpacked here: no maintainer script, ever.
#
# In the environment: debs (the package files), out.
set -eu
: "${debs:?}" "${out:?}"

mkdir -p "$out/usr/bin" "$out/usr/sbin" "$out/usr/lib" "$out/usr/lib64"
# Packages still name both /bin and /usr/bin. Links that are there before them make one of the two.
for name in bin sbin lib lib64; do
    ln -s "usr/$name" "$out/$name"
done

# shellcheck disable=SC2086 # one word for each package: store paths hold no blanks
set -- $debs
echo "unpacking $# packages"
for deb; do
    dpkg-deb -x "$deb" "$out"
done
cd "$out"
for name in bin sbin lib lib64; do
    [ -L "$name" ] || { echo "$name is no longer a link: a package brought a directory of its own" >&2; exit 1; }
done
# What no build reads. /etc and /var are a machine's, not a tool chain's.
rm -rf etc var boot dev home media mnt opt proc root run srv sys tmp \
    usr/games usr/local usr/share/doc usr/share/doc-base usr/share/man usr/share/info usr/share/locale usr/share/lintian \
    usr/share/bug usr/share/gdb

echo "links: absolute ones now lead into the store"
find . -type l | while read -r link; do
    target=$(readlink "$link")
    case $target in
    /*)
        if [ -e "$out$target" ] || [ -L "$out$target" ]; then
            ln -sfn "$out$target" "$link"
        else
            rm "$link"
        fi
        ;;
    esac
done
# Names that maintainer scripts would have made (update-alternatives).
alias_of() { if [ -e "usr/bin/$2" ] && [ ! -e "usr/bin/$1" ]; then ln -sfn "$2" "usr/bin/$1"; fi; }
alias_of sh bash
alias_of awk gawk
alias_of cc gcc
alias_of c++ g++
alias_of which which.debianutils

# patchelf and what it needs aside: it could not write to a program that runs, and that is itself among them.
libraries=$(dirname "$(find usr/lib -name libc.so.6 | head -n 1)")
loader=$(find "$libraries" -name 'ld-linux*.so.*' -o -name 'ld64.so.*' | head -n 1)
aside=$NIX_BUILD_TOP/patchelf
mkdir "$aside"
cp -L "$loader" "$aside/ld.so"
cp usr/bin/patchelf "$aside/"
for name in libc.so.6 libm.so.6 libgcc_s.so.1 libstdc++.so.6; do
    cp -L "$libraries/$name" "$aside/"
done
patchelf() { "$aside/ld.so" --library-path "$aside" "$aside/patchelf" "$@"; }
run_path=$out/$libraries
interpreter=$(patchelf --print-interpreter usr/bin/patchelf)

echo "programs and libraries: the loader and the libraries of the store"
# The pattern only narrows the search: the magic number must be at the very beginning.
find usr -type f -exec grep -l "$(printf '^\177ELF')" {} + >"$NIX_BUILD_TOP/elf"
programs=0 shared=0
while read -r file; do
    [ "$(head -c 4 "$file" | tail -c 3)" = ELF ] || continue
    case ${file##*/} in
    *.o | ld-linux* | ld64*) ;;
    *.so | *.so.*)
        # The program's loader has libc there already. libc and its own parts need no one else, and are better left alone.
        if patchelf --print-needed "$file" | grep -qvE '^(libc\.so\.6|ld-linux.*|ld64.*)$'; then
            patchelf --set-rpath "$run_path" "$file"
            shared=$((shared + 1))
        fi
        ;;
    *)
        if patchelf --print-interpreter "$file" >/dev/null 2>&1; then
            patchelf --set-interpreter "$out$interpreter" --set-rpath "$run_path" "$file"
            programs=$((programs + 1))
        fi
        ;;
    esac
done <"$NIX_BUILD_TOP/elf"
echo "  $programs programs, $shared libraries"

echo "scripts: the interpreter of the store"
find usr/bin usr/sbin usr/lib/gcc* -type f -perm -100 -exec grep -lE '^#! ?/' {} + | while read -r file; do
    first=$(head -n 1 "$file" | tr -d '\000')
    case $first in '#!'*) ;; *) continue ;; esac
    program=$(echo "$first" | sed 's/^#! *//; s/ .*//')
    if [ -e "$out$program" ]; then
        sed -i "1s|^#! *|#!$out|" "$file"
    fi
done

# The compiler reads this file before every run; it must be whole, so its own specs come first. It finds its own parts
# beside itself. --sysroot leads it to the headers, and the linker's scripts to the libraries.
for directory in usr/lib/gcc/*/*/; do
    compiler=usr/bin/gcc-$(basename "$directory")
    [ -e "$compiler" ] || continue
    echo "compiler: $compiler compiles and links for the store"
    "./$compiler" -dumpspecs >"$NIX_BUILD_TOP/specs"
    cat - >>"$NIX_BUILD_TOP/specs" <<SPECS
*self_spec:
+ %{!-sysroot=*:--sysroot=$out}

*link:
+ --sysroot=%R %{!static:%{!static-pie:%{!shared:%{!r:-dynamic-linker $out$interpreter}} %{!r:-rpath $run_path}}}

SPECS
    mv "$NIX_BUILD_TOP/specs" "${directory}specs"
    for name in as ld; do
        ln -s "$out/usr/bin/$name" "$directory$name"
    done
done

# Two programs that have paths of a whole system built in.
if [ -e usr/bin/file ] && [ -e usr/lib/file/magic.mgc ]; then
    mv usr/bin/file usr/lib/file/file
    # shellcheck disable=SC2016 # the dollars are the script's
    printf '#!%s/bin/sh\nMAGIC=${MAGIC-%s} exec %s "$@"\n' "$out" "$out/usr/lib/file/magic.mgc" "$out/usr/lib/file/file" \
        >usr/bin/file
    chmod 755 usr/bin/file
fi
if [ -e usr/bin/ldd ]; then
    sed -i "s|^RTLDLIST=.*|RTLDLIST=$out$interpreter|" usr/bin/ldd
fi
