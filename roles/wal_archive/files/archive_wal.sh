#!/bin/sh
# Managed by Ansible (pgfleet.ops.wal_archive).
# What PostgreSQL calls for each segment, as archive_command = 'archive_wal.sh DIRECTORY "%p" "%f"'.
# It succeeds only if the segment is in the directory: whole, under its own name and on disk. It never replaces a file.
set -eu
LC_ALL=C
export LC_ALL
umask 027

fail() {
    echo "archive_wal: $*" >&2
    exit 1
}

[ $# -eq 3 ] || fail 'call it with a directory, the path of a segment (%p) and its name (%f)'
directory=$1 source=$2 name=$3
case $name in
    '' | .* | *[!0-9A-Za-z.]*) fail "\"$name\" is no name of a WAL file" ;;
esac
target=$directory/$name
[ -f "$source" ] || fail "$source is not there"
# Never made here: while a file system is not mounted, the directory is missing, and archiving waits until it is back.
[ -d "$directory" ] || fail "the directory $directory is not there; is its file system mounted?"

if [ -e "$target" ] || [ -L "$target" ]; then
    # After a crash PostgreSQL offers a segment again that is archived already.
    cmp -s -- "$source" "$target" || fail "$target is there with another content; do two clusters archive to this directory?"
    sync -- "$target" "$directory" || fail "$target cannot be synced"
    exit 0
fi

temporary=$directory/.$name.$$.tmp
# What an attempt has left that was killed.
rm -f -- "$directory/.$name."*.tmp
trap 'rm -f -- "$temporary"' EXIT
trap 'exit 1' HUP INT TERM
dd if="$source" of="$temporary" bs=1M iflag=fullblock conv=excl,fsync status=none || fail "$source cannot be copied to $directory"
# A link, as a rename would replace what another server has put there meanwhile.
ln -- "$temporary" "$target" || fail "$target cannot be made"
rm -f -- "$temporary"
sync -- "$directory" || fail "$directory cannot be synced"
