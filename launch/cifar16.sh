#!/usr/bin/env bash
# A real run on real colour images: CIFAR-10 made 16x16, a teacher, three students of it, all of them measured and drawn. Goes on where it
# stopped, or where the run that is kept in configs/results/cifar16 did. Ends by writing there what came of it.
#
#   bash launch/cifar16.sh --archive=cifar10_jpeg.tar.xz     # of train/CLASS/*.jpg and test/CLASS/*.jpg; needed once
#   bash launch/cifar16.sh --keep=yes                        # only store how far the run is, to go on elsewhere (it is not to save meanwhile)
#
# With --dry-run it prints what it would do. In the background, to be stopped at any time (SIGTERM saves):
#   nohup nice -n 19 bash launch/cifar16.sh --archive=cifar10_jpeg.tar.xz >runs/cifar16.log 2>&1 &
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh
source launch/environment.sh
options archive= keep=no -- "$@"
[ ${#arguments[@]} -eq 0 ] || refuse "${arguments[0]}: expected nothing behind a --"
[[ ${given[keep]} =~ ^(yes|no)$ ]] || refuse "--keep = ${given[keep]}: expected yes or no"

runs=runs/cifar16 kept=configs/results/cifar16
named=configs/results/weights/cifar16- # --model=cifar16-cd finds them
students=(cd ect sct)
if [ "${given[keep]}" = no ] && [ ! -e "$runs/images" ] && [ -z "${given[archive]}" ]; then
  refuse "missing: --archive, a tar of train/CLASS/*.jpg and test/CLASS/*.jpg"
fi
PYTHON=.venv/bin/python
[ -n "$dry" ] || environment demo

cm_jax() { run "$PYTHON" -m cm_jax "$@"; }

# split: its images as a zip of 16x16
data() {
  [ ! -e "$runs/${1}16.zip" ] || return 0
  if [ ! -e "$runs/images" ]; then
    run rm -rf "$runs/unpacking"
    run mkdir -p "$runs/unpacking"
    run tar -xf "${given[archive]}" -C "$runs/unpacking" train test
    run mv "$runs/unpacking" "$runs/images"
  fi
  cm_jax data prepare --source=folder:"$runs/images/$1" --crop=center --resolution=16 --out="$runs/${1}16.zip"
}

# from to: copy a folder that is not there yet
restore() {
  if [ -d "$1" ] && [ ! -e "$2" ]; then
    run mkdir -p "$(dirname "$2")"
    run cp -R "$1" "$2"
  fi
}

# method: train it to its end, unless its weights are there
train() {
  local from=()
  case $1 in
    cd) from=(--teacher="$runs/weights/edm") ;;
    ect | sct) from=(--init="$runs/weights/edm") ;;
  esac
  restore "$kept/$1" "$runs/$1"
  restore "$named$1" "$runs/weights/$1"
  [ ! -d "$runs/weights/$1" ] || return 0
  cm_jax train --config="configs/cifar16_$1.py" --workdir="$runs/$1" "${from[@]}"
  cm_jax convert --input="$runs/$1" --out="$runs/weights/$1"
}

evaluate() {
  cm_jax evaluate --model="$runs/weights/$1" --out="$runs/$1" --features="$runs/features" --reference="zip:$runs/train16.zip" \
    --train_source="zip:$runs/train16.zip" --test_source="zip:$runs/test16.zip" --metrics=fd,class_entropy,nn_distance,prdc --num=5000 \
    --seeds=0,1,2 "${@:2}"
}

# class task [flags]: edit eight test images of a class with every student; a row an image: input, what is known of it, three results
edit() {
  local inputs=$runs/edited/$1
  if [ ! -d "$inputs" ]; then
    run mkdir -p "$inputs"
    run cp "$runs/images/test/$1/"000[0-7].jpg "$inputs"
  fi
  for student in "${students[@]}"; do
    [ -e "$runs/edited/$student.$2" ] ||
      cm_jax edit --task="$2" --model="$runs/weights/$student" --input="$inputs" --resize --label="$1" --num=3 --out="$runs/edited/$student.$2" "${@:3}"
  done
}

# method: how far it is, so that the run goes on from a copy: its newest checkpoint, or the weights of one that is done
keep() {
  local newest=-1 path
  [ -d "$runs/$1" ] || return 0
  for path in "$runs/$1/checkpoints/"*; do
    if [[ ${path##*/} =~ ^[0-9]+$ && ${path##*/} -gt $newest ]]; then newest=${path##*/}; fi
  done
  [ -d "$runs/weights/$1" ] || [ "$newest" -ge 0 ] || return 0 # nothing to go on from yet
  run rm -rf "${kept:?}/$1" "${named:?}$1" "$kept/$1.png"
  run mkdir -p "$kept/$1"
  for path in config.json metrics.jsonl evaluations.jsonl; do
    [ ! -e "$runs/$1/$path" ] || run cp "$runs/$1/$path" "$kept/$1/$path"
  done
  if [ -d "$runs/weights/$1" ]; then
    restore "$runs/weights/$1" "$named$1"
    run sed -i.before 's/"licence": "yours"/"licence": "Apache-2.0"/' "$named$1/model.json" # this repository's
    run rm "$named$1/model.json.before"
    for path in "$named$1/"*.png; do
      [ ! -e "$path" ] || run mv "$path" "$kept/$1_${path##*/}" # how the noise levels were found
    done
    return 0
  fi
  run mkdir -p "$kept/$1/checkpoints"
  run cp -R "$runs/$1/checkpoints/$newest" "$kept/$1/checkpoints/$newest"
  run cp "$runs/$1/saved.json" "$kept/$1/saved.json"
  cm_jax sample --workdir="$kept/$1" --num=100 --out="$kept/$1.png" # a column a class; what was copied is read back
}

if [ "${given[keep]}" = yes ]; then
  restore "$runs/features" "$kept/features"
  there=()
  for method in edm "${students[@]}"; do
    keep "$method"
    [ ! -e "$kept/$method/metrics.jsonl" ] || there+=("$kept/$method")
  done
  [ ${#there[@]} -gt 0 ] || refuse "$runs: expected a run with a checkpoint to keep"
  run "$PYTHON" -c 'import os, sys; from cm_jax.evaluation.report import plot_losses, read_metrics
plot_losses({os.path.basename(path): read_metrics(path) for path in sys.argv[1:-1]}, sys.argv[-1])' "${there[@]}" "$kept/loss_curves.png"
  exit 0
fi

for split in train test; do data "$split"; done
train edm
# Networks this small do not fill two cores: side by side the students come a quarter sooner than one after the other.
cores=$(getconf _NPROCESSORS_ONLN)
jobs=$((cores < ${#students[@]} ? cores : ${#students[@]}))
[ -z "$dry" ] || jobs=1 # in order
export NPROC=$((cores / jobs)) PYTHON runs kept named dry
export -f train restore cm_jax run quoted
# shellcheck disable=SC2016 # the inner shell expands it
printf '%s\n' "${students[@]}" | xargs -P "$jobs" -I{} bash -c 'set -Eeuo pipefail; trap "exit 255" ERR; train "$1"' student {}
unset NPROC

restore "$kept/features" "$runs/features" # what was measured by one classifier is measured on by it
[ -d "$runs/features" ] || cm_jax train-features --source="zip:$runs/train16.zip" --name=cifar16 --out="$runs/features"
evaluate edm --num_steps=18
for student in "${students[@]}"; do
  [ -e "$kept/${student}_search_nfe_002.png" ] || # its levels came with the weights
    cm_jax search-steps --model="$runs/weights/$student" --nfe=2 --features="$runs/features" --reference="zip:$runs/train16.zip" --num=2000
  evaluate "$student" --nfe=1 --nfe=2
done
cm_jax report --folder="$runs"

cm_jax compare noise --teacher="$runs/weights/edm" --model="$runs/weights/cd" --model="$runs/weights/ect" --model="$runs/weights/sct" --nfe=1,2 \
  --num=1000 --out="$runs/same_noise.png"
run mkdir -p "$runs/edited"
if [ ! -e "$runs/edited/mask.png" ]; then # white is kept: the upper half
  run "$PYTHON" -c 'import sys; from PIL import Image; mask = Image.new("L", (16, 16)); mask.paste(255, (0, 0, 16, 8)); mask.save(sys.argv[1])' \
    "$runs/edited/mask.png"
fi
edit ship colorize
edit horse inpaint --mask="$runs/edited/mask.png"

run mkdir -p "$kept"
restore "$runs/features" "$kept/features"
for method in edm "${students[@]}"; do
  keep "$method"
  for path in "$runs/$method/samples/"nfe_*.png; do
    [ ! -e "$path" ] || run cp "$path" "$kept/${method}_${path##*/}"
  done
done
for path in "$runs/edited/"*/grid.png; do
  [ ! -e "$path" ] || run cp "$path" "$kept/$(basename "$(dirname "$path")").png"
done
run cp "$runs"/report.{md,json} "$runs"/{loss_curves.png,same_noise.png,same_noise.json} "$kept"
