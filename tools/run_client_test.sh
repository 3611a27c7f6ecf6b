#!/usr/bin/env bash
# Runs client_test.py in its own Python environment. usage: run_client_test.sh KVIST_BINARY
# Exit code 77: skipped, because Python or the openai package cannot be had.
set -euo pipefail
tools=$(cd "$(dirname "$0")" && pwd)
venv=$tools/../.venv
packages=$tools/requirements-client.txt

if ! cmp -s "$packages" "$venv/installed"; then
    python3 -m venv --clear "$venv" || exit 77
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$packages" || exit 77
    cp "$packages" "$venv/installed"
fi
"$venv/bin/python" -B -m doctest "$tools/attention_store_server.py"
exec "$venv/bin/python" -B "$tools/client_test.py" "$@"
