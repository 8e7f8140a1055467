#!/bin/bash
# title: PostgreSQL: its regression tests, pgbench over Unix socket and TCP, dump and restore
# packages: postgresql-15 postgresql-server-dev-15 build-essential
# sources: postgresql-15
set -euo pipefail

export PATH=/usr/lib/postgresql/15/bin:$PATH PGHOST=/tmp PGUSER=postgres PGPORT=$((20000 + RANDOM % 10000))
mkdir source
tar -C source --strip-components=1 -xf /sources/postgresql-15.tar
initdb -D data -U postgres --locale=C --encoding=UTF8 >&2
echo 'ok initdb'
pg_ctl -D data -w -l server.log -o "-p $PGPORT -k /tmp -c listen_addresses=127.0.0.1 -c shared_buffers=64MB" start >&2
echo 'ok start'
for setting in dynamic_shared_memory_type shared_memory_type wal_sync_method max_files_per_process; do
    echo "$(psql -AtXc "show $setting") setting $setting"
done
cd source/src/test/regress
gcc -shared -fPIC -O1 -I /usr/include/postgresql/15/server -I. -o regress.so regress.c >&2
/usr/lib/postgresql/15/lib/pgxs/src/test/regress/pg_regress --bindir=/usr/lib/postgresql/15/bin --host=/tmp --port="$PGPORT" \
    --user=postgres --inputdir=. --outputdir="$PWD" --dlpath="$PWD" --schedule=parallel_schedule --max-concurrent-tests=20 2>&1 |
    tee /dev/stderr | awk '
        / \.\.\. +(ok|FAILED)/ {
            line = $0; sub(/^test /, "", line); sub(/^ +/, "", line); name = line; sub(/ .*/, "", name)
            print (line ~ /\.\.\. +ok/ ? "ok" : "failed"), "regress " name }' || true
cat regression.diffs >&2 || true
cd ../../../..
createdb bench
pgbench -q -i -s 2 bench >&2 && echo 'ok pgbench -i'
if pgbench -n -c 4 -j 2 -t 200 bench >&2; then echo 'ok pgbench over a Unix socket'; else echo 'failed pgbench over a Unix socket'; fi
if pgbench -n -h 127.0.0.1 -c 4 -j 2 -t 200 bench >&2; then echo 'ok pgbench over TCP'; else echo 'failed pgbench over TCP'; fi
echo "$(psql -AtXc 'select count(*) from pgbench_history' bench) rows of the history"
psql -qXc 'create table t as select g, md5(g::text) from generate_series(1, 50000) g; create index on t (g)' bench >&2
pg_dump -Fd -j 2 -f dump bench >&2 && echo 'ok pg_dump'
createdb copy
pg_restore -j 2 -d copy dump >&2 && echo 'ok pg_restore'
# The history has times in it.
for database in bench copy; do
    pg_dump --inserts -t t -t pgbench_branches "$database" | grep -v '^--' | sort | sha256sum >"$database.sum"
done
if cmp bench.sum copy.sum; then echo 'ok the copy is the same'; else echo 'failed the copy is the same'; fi
pg_basebackup --checkpoint=fast -D backup >&2 && echo 'ok pg_basebackup'
pg_ctl -D data -w -m fast stop >&2 && echo 'ok stop'
pg_checksums --enable -D data >&2 && pg_checksums --check -D data >&2 && echo 'ok checksums'
