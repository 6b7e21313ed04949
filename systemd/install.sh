#!/bin/sh
# Installs bitnetd as a systemd service, or removes it. Run as root; running it again changes nothing that is in place.
#   systemd/install.sh [BINARY]      default: target/release/bitnetd
#   systemd/install.sh --uninstall   keeps /etc/bitnetd and /var/lib/bitnetd
# DESTDIR=/somewhere puts everything below that folder and leaves systemd alone.
set -eu

folder=$(dirname "$0")
destination=${DESTDIR:-}
binary_at=$destination/usr/local/bin/bitnetd
unit_at=$destination/etc/systemd/system/bitnetd.service
config_at=$destination/etc/bitnetd/bitnetd.toml

control() {
    if [ -z "$destination" ] && [ -d /run/systemd/system ]; then
        echo "systemctl $*"
        systemctl "$@"
    fi
}

put() { # MODE SOURCE TARGET
    if cmp -s "$2" "$3"; then
        echo "unchanged $3"
    else
        echo "install   $3"
        install -D -m "$1" "$2" "$3"
    fi
}

if [ "${1:-}" = --uninstall ]; then
    if [ -e "$unit_at" ]; then
        control disable --now bitnetd.service
    fi
    for path in "$unit_at" "$binary_at"; do
        echo "remove    $path"
        rm -f "$path"
    done
    control daemon-reload
    echo "kept      $config_at and $destination/var/lib/bitnetd"
    exit 0
fi

case ${1:-} in
-*)
    echo "install.sh: $1 is not known, but --uninstall is; see the head of this file" >&2
    exit 1
    ;;
esac

binary=${1:-$folder/../target/release/bitnetd}
if [ ! -x "$binary" ]; then
    echo "install.sh: no binary at $binary; build it with: cargo build --release" >&2
    exit 1
fi
put 0755 "$binary" "$binary_at"
put 0644 "$folder/bitnetd.service" "$unit_at"
if [ -e "$config_at" ]; then
    echo "kept      $config_at"
else
    put 0644 "$folder/bitnetd.toml" "$config_at"
fi
control daemon-reload
echo "start it with: systemctl enable --now bitnetd; one that runs goes on as it was until: systemctl restart bitnetd"
