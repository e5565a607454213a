#!/usr/bin/env bash
# Everything that only a machine with an NVIDIA GPU can show, in stages: see gpu_stages.py, whose
# arguments these are. Run it from anywhere.
#
#     bash benchmarks/gpu_check.sh                   # installs into a new environment, peers too
#     PYTHON=python3 bash benchmarks/gpu_check.sh --here first    # with what is there, no network
#     bash benchmarks/gpu_check.sh --stand-in first   # tries the stages themselves, without a GPU
set -uo pipefail
cd "$(dirname "$0")/.."
importable() {  # makes this checkout importable in $python, without installing anything
    here=$(mktemp -d)
    trap 'rm -rf "$here"' EXIT
    mkdir "$here/nnbackend"
    ln -s "$PWD"/nnbackend/* "$here/nnbackend/"
    ln -s "$PWD/kernels" "$here/nnbackend/kernels"
    # Python is not to look in the folder that it starts in: nnbackend/ there has no kernels
    export PYTHONSAFEPATH=1
    export PYTHONPATH="$here:$PWD/benchmarks:$PWD/tests/support${PYTHONPATH:+:$PYTHONPATH}"
}
case "${1:-}" in
--here)
    shift
    python=${PYTHON:-python3}
    importable
    ;;
--stand-in)
    shift
    python=${PYTHON:-python3}
    importable
    # the device of the tests is "cuda" in every process
    cat >"$here/sitecustomize.py" <<'END'
import nnbackend.backends
nnbackend.backends.registry._registry["cuda"] = "cuda_stand_in:StandInAsCuda"
END
    set -- --patience 6 "$@"  # its time costs nothing, and the machine may be busy
    ;;
-h | --help | --list)
    python=${PYTHON:-python3}
    ;;
*)
    driver=$(nvidia-smi | grep -o "CUDA Version: [0-9]*" | grep -o "[0-9]*$")
    extra=cuda12
    [ "${driver:-12}" -ge 13 ] && extra=cuda13
    python=.venv-gpu/bin/python
    python3 -m venv .venv-gpu && $python -m pip install -q -e ".[$extra,test,bench,plot]" || exit 1
    # without them the comparison has less to compare
    $python -m pip install -q torch "jax[$extra]"
    ;;
esac
"$python" benchmarks/gpu_stages.py "$@"
