#!/usr/bin/env bash
# Everything that only a machine with an NVIDIA GPU can show, in under 25 minutes on a bare one:
# correctness first, then times. Run it from anywhere; reports go to benchmarks/results/gpu/, the
# figures to benchmarks/results/compare-cuda.json and gpu-limits.json.
#
#     bash benchmarks/gpu_check.sh            # installs into a new environment, PyTorch and JAX too
#     PYTHON=python3 bash benchmarks/gpu_check.sh --here   # uses an environment that is there
set -uo pipefail
cd "$(dirname "$0")/.."
out=benchmarks/results/gpu
mkdir -p "$out"
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
if [ "${1:-}" = "--here" ]; then
    python=${PYTHON:-python3}
else
    driver=$(nvidia-smi | grep -o "CUDA Version: [0-9]*" | grep -o "[0-9]*$")
    extra=cuda12
    [ "${driver:-12}" -ge 13 ] && extra=cuda13
    python=.venv-gpu/bin/python
    python3 -m venv .venv-gpu && $python -m pip install -q -e ".[$extra,test,bench,plot]" || exit 1
    # without them the comparison has less to compare
    check peers 200 $python -m pip install -q torch "jax[$extra]"
fi
tests() {  # name, seconds, files
    local name=$1 seconds=$2
    shift 2
    check "$name" "$seconds" env NN_TEST_BACKENDS=cuda "$python" -m pytest "$@"
}
check info 30 "$python" -m nnbackend.cli info
tests contract 120 tests/test_conformance.py tests/test_gradients.py
tests golden 150 tests/test_golden.py
tests model 120 tests/test_model.py tests/test_training.py tests/test_bad_input.py
tests gpu 210 -m gpu tests/test_gpu.py
check limits 120 "$python" benchmarks/gpu_limits.py
check compare 360 "$python" benchmarks/compare.py --backend cuda --kinds step --rounds 9 --seconds 0.05
[ $failed -eq 0 ] && echo "all GPU checks passed" || { echo "some GPU checks failed; see $out"; exit 1; }
