#!/usr/bin/env bash
# Unpack RabbitMQ 4 for the tests, beside any RabbitMQ of this machine, and print the value for FEDMQ_RABBITMQ_SBIN.
#
#     tests/rabbitmq4.sh [FOLDER]      default ${XDG_CACHE_HOME:-~/.cache}/fedmq/rabbitmq-4
#
# The server comes from a Debian release that has it (FEDMQ_RABBITMQ4_SUITE, default trixie: RabbitMQ 4.0). debootstrap
# unpacks it from this system's own mirror once; that takes about 300 MB and one to two minutes. FOLDER/root is the
# unpacked system. FOLDER/sbin holds our commands. Each runs the command of its name with FOLDER/root/usr in the place
# of /usr. Only that process and its children see this mount, which ends with them. Every other path is the same inside
# and outside, and the process keeps its id.
#
# If this fails, the script says why, prints no folder and exits with 0, and the caller skips.
set -euo pipefail

folder=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/fedmq/rabbitmq-4}
suite=${FEDMQ_RABBITMQ4_SUITE:-trixie}
bin_in_root=usr/lib/rabbitmq/bin  # links to the sbin of the installed version

skip() {
    echo "NO RABBITMQ 4: $*. Nothing is tested on RabbitMQ 4." >&2
    exit 0
}

mirror() {  # the mirror from which apt gets Debian; nothing if apt has none, because debootstrap has a default
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null | grep -m 1 '/debian/*$' || true
}

build() {
    local new=$folder/root.new url
    rm -rf "$new"
    url=$(mirror)
    echo "fedmq: unpacking RabbitMQ 4 of $suite into $folder: once, one to two minutes" >&2
    # It runs in namespaces of its own, so everything that a package's script mounts or starts ends with it.
    if ! unshare --mount --pid --fork --kill-child --mount-proc \
        debootstrap --variant=minbase --include=rabbitmq-server "$suite" "$new" ${url:+"$url"} \
        >"$folder/build.log" 2>&1; then
        tail -n 5 "$folder/build.log" >&2
        rm -rf "$new"
        skip "debootstrap failed (no network?), see $folder/build.log"
    fi
    rm -rf "$new"/var/cache/apt/archives/*.deb
    mv "$new" "$folder/root"
}

write_commands() {
    local name
    mkdir -p "$folder/sbin"
    for name in rabbitmq-server rabbitmqctl rabbitmq-diagnostics rabbitmq-queues rabbitmq-env epmd; do
        write_command "$name"
    done
}

write_command() {
    local inside=/$bin_in_root/$1
    if [ "$1" = epmd ]; then inside=/usr/bin/epmd; fi
    cat >"$folder/sbin/$1.new" <<END
#!/bin/sh
# Written by tests/rabbitmq4.sh. A user who is not root becomes root in the namespace only, if the system allows that.
as_root=
[ "\$(id -u)" = 0 ] || as_root=--map-root-user
exec unshare --mount --propagation private \$as_root /bin/sh -c '
    mount --bind "\$0/usr" /usr || exit 78
    PATH=/usr/sbin:/usr/bin:/sbin:/bin
    exec $inside "\$@"
' "$folder/root" "\$@"
END
    chmod 755 "$folder/sbin/$1.new"
    mv "$folder/sbin/$1.new" "$folder/sbin/$1"
}

command -v unshare >/dev/null || skip "this needs unshare of util-linux"
[ -L /bin ] && [ -L /lib ] || skip "/bin and /lib are not links into /usr here"
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
case $folder in /usr/*) skip "$folder is below /usr, which the server does not see: name another folder" ;; esac

exec 9>"$folder/lock"
flock 9
if [ ! -x "$folder/root/$bin_in_root/rabbitmq-server" ]; then
    command -v debootstrap >/dev/null || skip "there is no debootstrap here (install the package debootstrap)"
    [ "$(id -u)" = 0 ] || skip "only root can unpack it"
    rm -rf "$folder/root"
    build
fi
write_commands
"$folder/sbin/rabbitmqctl" --version >/dev/null 2>&1 9>&- ||
    skip "the commands in $folder/sbin do not run: this user may not make a mount namespace"
echo "$folder/sbin"
