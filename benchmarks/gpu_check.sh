#!/usr/bin/env bash
# Everything that only a machine with an NVIDIA GPU can show, in under 25 minutes on a bare one:
# correctness first, then times. Run it from anywhere; the report goes to benchmarks/results/gpu/.
#
#     bash benchmarks/gpu_check.sh            # installs into a new environment
#     PYTHON=python3 bash benchmarks/gpu_check.sh --here   # uses an environment that is there
set -uo pipefail
cd "$(dirname "$0")/.."
out=benchmarks/results/gpu
mkdir -p "$out"
if [ "${1:-}" = "--here" ]; then
    python=${PYTHON:-python3}
else
    driver=$(nvidia-smi | grep -o "CUDA Version: [0-9]*" | grep -o "[0-9]*$")
    extra=cuda12
    [ "${driver:-12}" -ge 13 ] && extra=cuda13
    python3 -m venv .venv-gpu && .venv-gpu/bin/pip install -q -e ".[$extra,test,bench,plot]" || exit 1
    python=.venv-gpu/bin/python
fi
failed=0
check() {  # name, seconds, command
    local name=$1 seconds=$2
    shift 2
    echo "== $name: $*"
    timeout "$seconds" "$@" >"$out/$name.txt" 2>&1
    local code=$?
    tail -n 5 "$out/$name.txt"
    [ $code -eq 0 ] || { echo "== $name FAILED with $code"; failed=1; }
}
nvidia-smi -q >"$out/device.txt" 2>&1
check info 60 "$python" -m nnbackend.cli info
check contract 240 env NN_TEST_BACKENDS=cuda "$python" -m pytest tests/test_conformance.py tests/test_gradients.py
check golden 300 env NN_TEST_BACKENDS=cuda "$python" -m pytest tests/test_golden.py
check model 240 env NN_TEST_BACKENDS=cuda "$python" -m pytest tests/test_model.py tests/test_training.py tests/test_bad_input.py
check gpu 300 "$python" -m pytest -m gpu tests/test_gpu.py
check bench 200 "$python" -m nnbackend.cli bench --backends numpy,cuda --json "$out/bench.json"
[ $failed -eq 0 ] && echo "all GPU checks passed" || { echo "some GPU checks failed; see $out"; exit 1; }
