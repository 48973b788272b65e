#!/usr/bin/env bash
# All benchmarks on one GPU, from a copy of the tree; leaves $OUT/bench.json.
#
#   DATA_ROOT=.data/cifar10 recipes/benchmarks/gpu.sh           about 12 minutes
#   DEVICE=cpu recipes/benchmarks/gpu.sh                        the same steps at toy size, to test this file
#
# DEVICE     cuda (default) or cpu
# DATA_ROOT  folder of CIFAR-10; without it random images are used and the comparison is left out
# WHEELS     folder of wheels to install beside what Python has (default .whl); nothing is fetched
# PYTHON     (default python3)
# OUT        (default ./bench-gpu)
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
device=${DEVICE:-cuda} data=${DATA_ROOT:-} wheels=${WHEELS:-.whl} python=${PYTHON:-python3} out=${OUT:-./bench-gpu}
export PYTHONPATH="$PWD:$PWD/recipes${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$out"
rm -f "$out"/*.json

if ls "$wheels"/*.whl >/dev/null 2>&1; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install --quiet --no-index --no-deps --target "$site" "$wheels"/*.whl || exit 1
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi

root=()
if [ -n "$data" ]; then root=(--data-root "$data"); fi
if [ "$device" = cpu ]; then
    sync=(--steps 2)
    overhead=(--cases linear resnet8 --steps 2 --turns 1)
    selection=(--sizes 1000 20000 --repeats 1)
    saving=(--samples 128 --batch-size 32 --rounds 1)
    compare=(trainer.accelerator=cpu data.subset=256 data.batch_size=64 trainer.max_epochs=2)
    arena=(--network narrow --samples 256 --epochs 2 --seeds 1) masks=(--samples 256 --epochs 2 --seeds 1)
else
    sync=() overhead=(--steps 50 --turns 30) selection=()
    saving=(--samples 50000 --batch-size 512 --depth 56 --rounds 3)
    compare=(trainer.accelerator=gpu trainer.precision=bf16-mixed model.depth=20 data.batch_size=256 trainer.max_epochs=10)
    arena=(--network resnet20x4 --batch-size 512 --learning-rate 0.4 --epochs 15 --seeds 2 --minutes 4)
    masks=(--samples 50000 --batch-size 512 --learning-rate 0.4 --epochs 10 --seeds 1)
fi

failed=()
bench() { # bench NAME [options]
    local name=$1
    shift
    echo "== $name"
    "$python" -m "recipes.benchmarks.$name" --device "$device" --json "$out/$name.json" "$@" || failed+=("$name")
}
bench sync ${sync[@]+"${sync[@]}"}
bench overhead ${overhead[@]+"${overhead[@]}"}
bench selection ${selection[@]+"${selection[@]}"}
bench saving ${root[@]+"${root[@]}"} "${saving[@]}"
if [ -n "$data" ]; then # baseline and KAKURENBO on CIFAR-10
    echo "== compare"
    "$python" -m kakurenbo_recipes.train 'compare=[baseline,kakurenbo]' data=cifar10 "data.root=$data" "hydra.run.dir=$out/compare" \
        "${compare[@]}" && mv "$out/compare/results.json" "$out/compare.json" || failed+=(compare)
    rm -rf "$out/compare"
    # each beside random hiding of the same share and a baseline of equal time; then the half of each batch that a proxy chooses
    bench arena "${root[@]}" --folder "$out/arena" "${arena[@]}" --methods kakurenbo \
        "kakurenbo:max_fraction=0.5,fractions=[1.0],milestones=[],every_n_epochs=3"
    rm -rf "$out/arena"
    bench masks "${root[@]}" "${masks[@]}"
else
    echo "== compare, arena, masks: left out, DATA_ROOT is not set"
fi

"$python" - "$out" ${failed[@]+"${failed[@]}"} <<'PYTHON'
import json, pathlib, sys
out = pathlib.Path(sys.argv[1])
parts = {path.stem: json.loads(path.read_text()) for path in sorted(out.glob("*.json"))}
(out / "bench.json").write_text(json.dumps({**parts, "failed": sys.argv[2:]}, indent=2) + "\n")
for name in parts:
    (out / f"{name}.json").unlink()
print(f"results: {out / 'bench.json'}")
PYTHON
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}"
    exit 1
fi
