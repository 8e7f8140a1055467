#!/bin/bash
# title: git: commits, a merge with a conflict, clones over file and git://, gc, fsck, bundle, worktree
# packages: git
set -euo pipefail

export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.org
export GIT_AUTHOR_DATE='2001-02-03T04:05:06Z' GIT_COMMITTER_DATE='2001-02-03T04:05:06Z'
git config --global init.defaultBranch main
git config --global advice.detachedHead false

# try NAME COMMAND...: one result
try() {
    local name=$1
    shift
    if "$@" >&2; then echo "ok $name"; else echo "failed($?) $name"; fi
}
id_of() { echo "$(git rev-parse "$1") $2"; }

mkdir one
cd one
try init git init
for number in $(seq 200); do
    mkdir -p "d$((number % 10))"
    seq "$number" $((number * 20)) >"d$((number % 10))/f$number"
done
chmod +x d1/f1
ln -s d1/f1 link
try add git add .
try commit git commit -m first
id_of HEAD 'the first commit'
git checkout -q -b side
sed -i 1s/.*/side/ d2/f2
echo new >d3/new
try 'commit on a branch' git commit -am side
git checkout -q main
sed -i 1s/.*/main/ d2/f2
try 'commit on main' git commit -am main
try 'a merge that has a conflict' git merge side
echo both >d2/f2
git add d2/f2
try 'the merge resolved' git commit -m merged
id_of HEAD 'the merge'
try tag git tag -a -m tagged v1
try gc git gc --aggressive --prune=now
try fsck git fsck --full --strict
try repack git repack -adf
try bundle git bundle create ../all.bundle --all
try 'verify the bundle' git bundle verify ../all.bundle
try stash sh -c 'echo more >> d1/f1 && git stash && git stash pop && git checkout d1/f1'
try worktree git worktree add ../tree side
echo "$(git archive --format=tar v1 | sha256sum | cut -c1-64) an archive"
try 'a hook runs' sh -c 'printf "#!/bin/sh\ntouch hook-ran\n" > .git/hooks/pre-commit && chmod +x .git/hooks/pre-commit &&
    git commit --allow-empty -m hook && test -e hook-ran'
cd ..
try 'clone by hard links' git clone one two
try 'clone without links' git clone --no-local --bare one three.git
try 'clone the bundle' git clone all.bundle four
try 'a shallow clone' git clone --depth 1 "file://$PWD/one" five
touch three.git/git-daemon-export-ok
port=$((20000 + RANDOM % 10000))
git daemon --reuseaddr --listen=127.0.0.1 --port=$port --base-path="$PWD" --pid-file="$PWD/pid" --detach
try 'clone over git://' git clone "git://127.0.0.1:$port/three.git" six
kill "$(cat pid)"
for clone in two four six; do
    echo "$(git -C "$clone" rev-parse v1^0) v1 in clone $clone"
    try "fsck of clone $clone" git -C "$clone" fsck --full
done
echo "$(git -C two ls-files -s | sha256sum | cut -c1-64) the files of a clone"
try 'push' git -C six push ../three.git HEAD:refs/heads/pushed
