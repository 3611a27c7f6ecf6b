#!/usr/bin/env bash
# Runs ecosystem_test.py and lm_eval_test.py in an environment of their own (litellm wants another openai package than
# client_test.py). usage: run_ecosystem_test.sh KVIST_BINARY
# Exit code 77: skipped, because the packages cannot be had. Without npm only the check with Node is left out.
set -euo pipefail
tools=$(cd "$(dirname "$0")" && pwd)
venv=$tools/../.venv-ecosystem
packages=$tools/requirements-ecosystem.txt

if ! cmp -s "$packages" "$venv/installed"; then
    python3 -m venv --clear "$venv" || exit 77
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$packages" || exit 77
    npm install --silent --no-audit --no-fund --prefix "$venv" openai@6.49.0 || echo "== without Node: npm cannot install openai"
    cp "$packages" "$venv/installed"
fi
export LITELLM_LOCAL_MODEL_COST_MAP=True HF_HUB_OFFLINE=1 TQDM_DISABLE=1
modules=()
if [ -d "$venv/node_modules/openai" ]; then
    modules=("$venv/node_modules")
fi
"$venv/bin/python" -B "$tools/ecosystem_test.py" "$1" "${modules[@]}"
"$venv/bin/python" -B "$tools/lm_eval_test.py" "$1"
