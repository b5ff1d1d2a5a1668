#!/usr/bin/env bash
# Installs Patroni 4.1.5 from its Python package into a virtual environment below DIR (cargo's target directory), once, for the
# tests that compare Regent with it; prints where. Regent itself never needs it.
#   tests/install-peer.sh DIR
set -euo pipefail

venv=${1:?usage: install-peer.sh DIR}/patroni-4.1.5
mkdir -p "$1"
# Two tests may want it at once.
exec 9>"$venv.lock"
flock 9
if [ ! -f "$venv/complete" ]; then
    rm -rf "$venv"
    python3 -m venv "$venv" >&2
    "$venv/bin/pip" install --quiet --disable-pip-version-check 'patroni[etcd3]==4.1.5' psycopg2-binary >&2
    touch "$venv/complete"
fi
echo "$venv"
