#!/usr/bin/env bash
# One command on a machine with a GPU: tests/gpu/run.sh [folder of results]
# Tests first, then figures; each result is named by GPU and commit.  Needs quietbeam with the
# CUDA build of torch, and TensorRT ('quietbeam[rtx]' or 'quietbeam[gpu]') for that engine.
set -uo pipefail
cd "$(dirname "$0")/../.."
results=${1:-tests/benchmarks/results}
python=${PYTHON:-.venv/bin/python}
mkdir -p "$results"
gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -1 | tr -cs '[:alnum:]' '-')
name="$results/${gpu%-}-$(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
nvidia-smi -q >"$name-nvidia-smi.txt"
"$python" -m quietbeam doctor --json >"$name-doctor.json"
"$python" -m pytest -m gpu tests/gpu --timeout 1800 -q --junitxml "$name-tests.xml"
tested=$?
"$python" -m quietbeam bench --gpu --size 512 2048 --training off process stream --json >"$name-bench.json"
measured=$?
echo "results: $name-*"
exit $((tested || measured))
