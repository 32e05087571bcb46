#!/usr/bin/env bash
# All that needs a GPU, inside ten minutes on a fresh machine with one H100 or H200: tests, speed, growth, a training.
#
#   bash scripts/on_gpu.sh                    from the repository, or from anywhere else
#   OUT=/results LIMIT=590 bash scripts/on_gpu.sh
#
# Needs:      torch with CUDA and Triton, torchvision, pytorch-lightning, opencv, timm, pytest, and coreutils' timeout.
# Wheels:     what else pyproject.toml names may lie in wheels/ (`pip download --no-deps -d wheels PACKAGE ...`); it is
#             installed from there without a network, and without the packages that it asks for.
# Data:       CamVid in datasets/camvid for the training, which is left out without it.
# Variables:  OUT     an empty or a new folder for logs, tables and the image; gpu-results by default
#             LIMIT   seconds for all of it; 590 by default. What is begun late has less, or is left out.
#             EPOCHS  of the training; 40 by default: 880 steps of the recipe's 4400, with its whole schedule
#             PYTHON  the interpreter; python by default
#
# Every step has its own limit of seconds, and the next one goes on after a failure. OUT/summary.md says how each ended;
# the exit status is the number of steps that failed.

set -u
cd "$(dirname "$0")/.." || exit 1

OUT=${OUT:-gpu-results}
LIMIT=${LIMIT:-590}
EPOCHS=${EPOCHS:-40}
PYTHON=${PYTHON:-python}
LEAST=15 # seconds: a step that would have less is left out

mkdir -p "$OUT" || exit 1
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" # nothing is installed of this repository
export PYTHONUNBUFFERED=1                           # what was printed before a limit is not lost
export TORCHINDUCTOR_CACHE_DIR="${TMPDIR:-/tmp}/segkit-inductor" # a network is compiled for time, and again for memory

failed=0
begun=$SECONDS

tell() {
    echo "$*" | tee -a "$OUT/summary.md"
}

# step NAME SECONDS COMMAND...: standard output to OUT/NAME.md, all else to OUT/NAME.log
step() {
    local name=$1 limit=$2 start=$SECONDS status
    shift 2
    local left=$((LIMIT - (SECONDS - begun)))
    ((limit > left)) && limit=$left
    if ((limit < LEAST)); then
        tell "| $name | left out: no time | |"
        return
    fi
    echo "--- $name, at most $limit s: $*"
    # SIGINT first: pytest then tells what it has found so far, and a training saves its state.
    timeout --signal=INT --kill-after=20 "$limit" "$@" >"$OUT/$name.md" 2>"$OUT/$name.log"
    status=$?
    case $status in
    0) tell "| $name | done | $((SECONDS - start)) |" ;;
    124 | 137) tell "| $name | stopped after its $limit s | $((SECONDS - start)) |" ;;
    *)
        tell "| $name | failed: exit status $status | $((SECONDS - start)) |"
        failed=$((failed + 1))
        tail -n 5 "$OUT/$name.md" "$OUT/$name.log"
        ;;
    esac
}

: >"$OUT/summary.md"
tell "| step | result | seconds |"
tell "|---|---|---|"

if compgen -G "wheels/*.whl" >/dev/null; then
    step wheels 60 "$PYTHON" -m pip install --no-index --find-links wheels --no-deps wheels/*.whl
fi

step machine 30 "$PYTHON" -c "
from segkit.evaluation.results import versions
print(versions())
"

# Versions, the GPU, and every kernel against PyTorch's operations; fails where one of them is wrong.
step doctor 60 "$PYTHON" -m segkit doctor

# Without the suite's own options, which want pytest-xdist.
step tests 160 "$PYTHON" -m pytest tests/gpu tests/ops/kernels -q -o addopts= --import-mode=importlib \
    -p no:cacheprovider --durations=10

# What matters most comes first: tables are printed one by one, and a limit costs the last ones.
step speed-ops 80 "$PYTHON" scripts/benchmark_speed.py --device cuda --only ceiling ops training --rounds 5
step speed-networks 120 "$PYTHON" scripts/benchmark_speed.py --device cuda --only image views --rounds 5
step growth 100 "$PYTHON" scripts/benchmark_growth.py --device cuda --most 12 --output "$OUT/growth.png"

if [[ -d datasets/camvid ]]; then
    step camvid 110 "$PYTHON" -m segkit fit --config camvid/deeplabv3_resnest50 \
        --run_dir "$OUT/camvid" --trainer.max_epochs "$EPOCHS" --data.num_workers 8
    if [[ -f "$OUT/camvid/checkpoints/last.ckpt" ]]; then
        step camvid-test 40 "$PYTHON" -m segkit test --config camvid/deeplabv3_resnest50 \
            --run_dir "$OUT/camvid-test" --ckpt_path "$OUT/camvid/checkpoints/last.ckpt"
    fi
else
    tell "| camvid | left out: no datasets/camvid | |"
fi

echo "$((SECONDS - begun)) s; logs and tables are in $OUT"
exit "$failed"
