#!/usr/bin/env bash
# Every GPU measurement of this project, in calls of at most ten minutes on one H100 or H200:
#
#   bash benchmarks/gpu.sh draft  RESULTS               torch and transformers, no SGLang
#   bash benchmarks/gpu.sh worker RESULTS               SGLang 0.5.15.post1
#   bash benchmarks/gpu.sh steer  RESULTS --models 8b   SGLang 0.5.17 or later with FA3; also 4b, 14b
#
# Each leaves its JSON files in the folder RESULTS, also when another part fails; then the status
# is 1. More arguments go to the benchmark: --tiny-on-cpu tries worker and steer without a GPU,
# --hidden 64 --layers 2 --steps 2 tries draft.
set -uo pipefail
case ${1:-} in
draft | worker | steer) ;;
*) echo "gpu.sh: stage '${1:-}' is not draft, worker or steer" >&2 && exit 2 ;;
esac
[ $# -ge 2 ] || { echo "gpu.sh: no folder for the results; name one after the stage" >&2 && exit 2; }
stage=$1 results=$2
shift 2
mkdir -p "$results"
results=$(realpath "$results")
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
failed=0
case $stage in
draft)
    work=$(mktemp -d)
    python -m benchmarks.gpu.drafter --out "$work" "$@" || failed=1
    cp "$work/gpu_drafter.json" "$results" || failed=1
    ;;
worker)
    python -m benchmarks.gpu.worker -o "$results/gpu_worker.json" "$@" || failed=1
    kernels=(-o "$results/gpu_kernels.json")
    case " $* " in *" --tiny-on-cpu "*) kernels=(--tiny-on-cpu) ;; esac
    python -m benchmarks.gpu.kernels "${kernels[@]}" || failed=1
    ;;
steer)
    python -m benchmarks.gpu.steer -o "$results/gpu_steer.json" "$@" || failed=1
    ;;
esac
exit $failed
