#!/usr/bin/env bash
# Installs Patroni 4.1.5 and check_patroni 2.2.0 from their Python packages into a virtual environment below DIR (cargo's target
# directory), once, for the tests that compare Regent with the one and are watched by the other; prints where. Regent itself
# never needs them.
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
    "$venv/bin/python3" -m pip install --quiet --disable-pip-version-check 'patroni[etcd3]==4.1.5' psycopg2-binary >&2
    touch "$venv/complete"
fi
if [ ! -f "$venv/complete-checks" ]; then
    "$venv/bin/python3" -m pip install --quiet --disable-pip-version-check 'check-patroni==2.2.0' >&2
    touch "$venv/complete-checks"
fi
echo "$venv"
