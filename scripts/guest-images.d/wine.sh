#!/usr/bin/env bash
# Part of scripts/guest-images, which sources it: the stand-in with Debian's Wine in it, as an image that is disk and media in one.
# shellcheck disable=SC2154  # what has no value here has one there

# Counted up when what is put into the image changes.
wine_edition=1

# Where Wine is in the packages, and in the image.
wine_programs=/usr/lib/wine

# Wine's libraries of its own kind, and what they load by name when they run. Those that want sound, a camera, a screen and the like
# stay away with the half that is of Windows' kind: half a driver makes Wine try for ever.
take_wine() {
    local root=$1 library name needs
    take "$root" "$wine_programs/wine64" "$wine_programs/wineserver64"
    mkdir -p "$root$folder/x86_64-unix" "$root$folder/x86_64-windows"
    for library in "$all$folder"/x86_64-windows/*; do
        name=${library##*/}
        needs=$(readelf --dynamic "$all$folder/x86_64-unix/${name%.*}.so" 2>/dev/null |
            sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | grep -vxE 'ntdll\.so|win32u\.so|lib(c|m|unwind)\.so\.[0-9]+' || true)
        if [[ -z $needs ]]; then
            # Three quarters of them are for debuggers.
            strip -o "$root$folder/x86_64-windows/$name" "$library"
        fi
    done
    for library in "$all$folder"/x86_64-unix/*.so; do
        name=${library##*/}
        # Not by `take`: they find one another where they lie.
        if compgen -G "$root$folder/x86_64-windows/${name%.so}.*" >/dev/null; then
            cp "$library" "$root$folder/x86_64-unix"
        fi
    done
    # The first is what threads end by. Without the second, win32u ends in the middle of its start, and everything waits for a desktop.
    take "$root" libgcc_s.so.1 libfontconfig.so.1 libfreetype.so.6 libgnutls.so.30 libunwind.so.8 libm.so.6
    mkdir -p "$root/etc/fonts" "$root/usr/share" "$root/usr/lib/locale"
    echo '<fontconfig><cachedir>/tmp/fonts</cachedir></fontconfig>' >"$root/etc/fonts/fonts.conf"
    cp -a "$all/usr/share/wine" "$root/usr/share"
    # Of the only locale with all of Unicode that needs no tables made.
    cp -a "$all/usr/lib/locale/C.utf8" "$root/usr/lib/locale"
    # Debian builds Wine with a library of another package, which nothing names.
    cp -L "$all/usr/x86_64-w64-mingw32/lib/zlib1.dll" "$root$folder/x86_64-windows"
}

# A prefix, made by Wine itself in a sandbox, without the copies that it has of what lies in the image already.
make_prefix() {
    local root=$1 file copy
    mkdir -p "$root/prefix/drive_c/windows/system32"
    cp "$root$folder/x86_64-windows/zlib1.dll" "$root/prefix/drive_c/windows/system32"
    # As root in there, whoever it is here: a prefix has a folder of whom it was made by, and the guest's programs run as root.
    timeout --kill-after=5 300 bwrap --unshare-all --unshare-user --uid 0 --gid 0 --die-with-parent --bind "$root" / \
        --dev /dev --proc /proc --ro-bind /sys /sys --tmpfs /tmp --clearenv --setenv PATH /bin --setenv HOME /tmp \
        --setenv WINEPREFIX /prefix --setenv WINEDEBUG -all --setenv WINESERVER "$wine_programs/wineserver64" \
        --setenv WINEDLLOVERRIDES mscoree,mshtml= \
        /bin/sh -c "$wine_programs/wine64 wineboot --init && $wine_programs/wineserver64 -w" >"$work/log" 2>&1 || {
        tail -n 3 "$work/log" >&2
        die "Wine could not make its prefix"
    }
    [[ -f $root/prefix/system.reg && -e $root/prefix/drive_c/windows/system32/cmd.exe ]] || die "Wine made no whole prefix"
    find "$root/prefix/drive_c" -type f -size +0 -print0 | while IFS= read -r -d '' file; do
        for copy in "$folder/x86_64-windows" /usr/share/wine/nls; do
            copy+=/${file##*/}
            if [[ -f $root$copy ]] && cmp -s "$file" "$root$copy"; then
                ln -sf "$copy" "$file"
                break
            fi
        done
    done
    # Temporary files are where the variables of a build say.
    sed -i -E '/^"TE?MP"=/d' "$root"/prefix/*.reg
    rm -rf "$root/prefix/dosdevices" "$root/prefix/wineserver"
    mv "$root/prefix" "$root$wine_programs/prefix"
}

make_wine() {
    local work all triplet_folders folder root
    [[ $(dpkg --print-architecture) == amd64 ]] || die "the packages of Wine that are known here are amd64's"
    need apt-get bwrap cmp dpkg-deb mkfs.erofs readelf strip
    work=$(mktemp -d "$directory.XXXXXX")
    # shellcheck disable=SC2064  # now: the name must not change
    trap "rm -rf '$work'" EXIT
    all=$work/all
    root=$work/wine
    download base-files bash-static busybox-static dropbear-bin e2fsprogs fdisk libc-bin wine64
    unpack
    folder=$triplet_folders/wine
    standin "$root"
    installer "$root"
    take_wine "$root"
    make_prefix "$root"
    install -m 755 "$scripts"/guest-images.d/{windows,cygpath} "$root/usr/bin"
    install -m 755 "$scripts/guest-images.d/wine-begin" "$root/usr/sbin"
    # The same machine to whoever logs in as the stand-in of this folder.
    sed -n 's/^host-key=//p' "$directory/answers" | base64 -d >"$root/etc/dropbear/dropbear_ed25519_host_key"
    cp "$directory/key.pub" "$root/root/.ssh/authorized_keys"
    chmod 600 "$root/root/.ssh/authorized_keys"
    image "$root" "$work/wine.erofs" -zlz4hc
    chmod 644 "$work/wine.erofs"
    echo "$edition.$wine_edition" >"$work/wine.edition"
    # An edition counts when the image that it is of is there.
    rm -f "$directory/wine.edition"
    mv -T "$work/wine.erofs" "$directory/wine.erofs"
    mv -T "$work/wine.edition" "$directory/wine.edition"
    rm -rf "$work"
    trap - EXIT
}
