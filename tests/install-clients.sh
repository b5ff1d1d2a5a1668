#!/usr/bin/env bash
# Installs the programs of the field that tests run against a cluster: Prometheus and promtool, PgBouncer, keepalived, jq, curl.
# Regent itself needs none of them. Works as deploy/install-packages.sh does: as root or with sudo, and at once if nothing is missing.
#   tests/install-clients.sh            install
#   tests/install-clients.sh --check    only say what is missing; exit 1 if anything is
set -euo pipefail

PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
say() { printf 'clients: %s\n' "$*"; }
die() { printf 'clients: %s\n' "$*" >&2; exit 1; }

missing=()
for pair in promtool:prometheus prometheus:prometheus pgbouncer:pgbouncer keepalived:keepalived jq:jq curl:curl; do
    command -v "${pair%:*}" >/dev/null 2>&1 || missing+=("${pair#*:}")
done
if [ ${#missing[@]} -eq 0 ]; then
    say "nothing is missing"
    exit 0
fi
say "missing: ${missing[*]}"
[ "${1:-}" = --check ] && exit 1
command -v apt-get >/dev/null || die "this script knows apt only. Install with your package manager what Debian calls: ${missing[*]}"

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || die "not root, and there is no sudo: run as root once: tests/install-clients.sh"
    as_root=(sudo)
fi
apt() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@" </dev/null
}
apt update || say "the package lists could not be refreshed; going on with those that are there"
# Services of theirs are not touched and not used: each test runs its own.
apt install -y --no-install-recommends "${missing[@]}"
say "done"
