#!/usr/bin/env bash
# Installs what building and testing Regent needs and this machine lacks, from the distribution's own packages:
# a C compiler, protoc, etcd, PostgreSQL, pgBackRest, HAProxy, and Python's venv (for the tests against the peer's control tool).
#
# Works as root and as a user with sudo. Stops and changes no service. With nothing missing it is done at once.
#   deploy/install-packages.sh            install
#   deploy/install-packages.sh --check    only say what is missing; exit 1 if anything is
# WITH_BROWSER=yes adds Chromium, which is large, for the test of the status page (make ui-test).
set -euo pipefail

PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin:$HOME/.cargo/bin"

say() { printf 'packages: %s\n' "$*"; }
die() { printf 'packages: %s\n' "$*" >&2; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }
# The answer is read to its end first: a pipe that `grep -q` closes early would fail under pipefail.
package_exists() { local answer; answer=$(apt-cache policy "$1" 2>/dev/null); [[ $answer =~ Candidate:\ [0-9] ]]; }

# The newest of the PostgreSQL versions that Regent serves, if one is there.
postgres() {
    local major
    for major in 18 17 16 15 14 13; do
        [ -x "/usr/lib/postgresql/$major/bin/initdb" ] && return 0
        [ -x "/usr/pgsql-$major/bin/initdb" ] && return 0
    done
    [ -n "${PG_BIN:-}" ] && [ -x "$PG_BIN/initdb" ]
}

# The .proto files that come with protoc on most systems, and in a package of their own on Debian.
well_known_types() { [ -f /usr/include/google/protobuf/empty.proto ] || [ -f /usr/local/include/google/protobuf/empty.proto ]; }

# Fills MISSING with the packages that would bring what is not there.
MISSING=()
look() {
    MISSING=()
    has cc && has make || MISSING+=(build-essential)
    has pkg-config || MISSING+=(pkg-config)
    has curl || MISSING+=(curl ca-certificates)
    has protoc || MISSING+=(protobuf-compiler)
    well_known_types || MISSING+=(libprotobuf-dev)
    has etcd || MISSING+=(etcd-server)
    has etcdctl || MISSING+=(etcd-client)
    has haproxy || MISSING+=(haproxy)
    has pgbackrest || MISSING+=(pgbackrest)
    has openssl || MISSING+=(openssl)
    has setpriv || MISSING+=(util-linux)
    postgres || MISSING+=(postgresql)
    python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || MISSING+=(python3-venv)
    [ -z "${WITH_BROWSER:-}" ] || has chromium || MISSING+=(chromium)
    has cargo || MISSING+=(rustup)
}

# Only the pinned toolchain builds Regent, so the distribution's own, older Rust will not do. Where there is no rustup package,
# its authors' installer is run as they describe it, for this user alone.
rust_from_its_authors() {
    local url=https://sh.rustup.rs script
    say "cargo is missing and the distribution has no rustup package: installing it from $url into ~/.cargo"
    if script=$(curl --proto '=https' --tlsv1.2 --retry 2 -sSf --max-time 60 "$url") \
        && sh -s -- -y --profile minimal --default-toolchain none --no-modify-path <<<"$script"; then
        has cargo && return
    fi
    die "cargo is missing, and $url could not be reached or did not work. Install Rust by rustup
and run this again (~/.cargo/bin need not be on PATH)."
}

look
if [ ${#MISSING[@]} -eq 0 ]; then
    say "nothing is missing"
    exit 0
fi
say "missing: ${MISSING[*]}"
[ "${1:-}" = --check ] && exit 1

if [ "${MISSING[*]}" = rustup ] && ! has apt-get; then rust_from_its_authors; exit 0; fi
has apt-get || die "this script knows apt only. Install with your package manager what Debian calls: ${MISSING[*]}"

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    has sudo || die "not root, and there is no sudo: run as root once: deploy/install-packages.sh"
    say "installing needs root: using sudo"
    as_root=(sudo)
fi
apt() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@" </dev/null
}

say "reading the package lists"
apt update || say "the package lists could not be refreshed; going on with those that are there"
wanted=()
own_rust=
for package in "${MISSING[@]}"; do
    case $package in
        # By its version where that exists: the plain name would also pull the next one in, after an upgrade.
        postgresql) for major in 18 17 16 15 14 13; do
                if package_exists "postgresql-$major"; then package=postgresql-$major; break; fi
            done ;;
        etcd-server | etcd-client) package_exists "$package" || package=etcd ;;
        rustup) if ! package_exists rustup; then own_rust=yes; continue; fi ;;
    esac
    package_exists "$package" || die "the distribution has no package $package"
    wanted+=("$package")
done
if [ ${#wanted[@]} -gt 0 ]; then
    say "installing ${wanted[*]} (services that the packages themselves start are not touched and not used)"
    apt install -y --no-install-recommends "${wanted[@]}"
fi
[ -z "$own_rust" ] || rust_from_its_authors

look
[ ${#MISSING[@]} -eq 0 ] || die "installed, but still not found: ${MISSING[*]}"
say "done"
