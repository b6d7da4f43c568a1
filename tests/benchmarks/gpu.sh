#!/usr/bin/env bash
# Everything that needs a GPU machine, in stages that can be run one by one and, if interrupted, again. Results go to $OUT
# (default out_gpu), unfinished training stays in $RUNS (default runs/gpu) and is resumed. The figures owed, with the commands,
# are listed in README.md beside this file. No hyper-parameters here: they are in bundle/configs.
#   bash tests/benchmarks/gpu.sh [--minutes N] STAGE...      N: minutes a stage may take, default 9
# Stages: install test  bench whole_scan waiting growth export  pretrain_vs train_vs localize_vs  pretrain_glioma
#   train_glioma source_glioma evaluate_glioma  weights
# Exit status 75: a stage ran into its limit; the same command takes it up where it stopped.
# Environment: PY (python3), OUT, RUNS, GLIOMA (a prepared data folder with datalist.json), PIECE (split weights, e.g. 15m).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PY=${PY:-python3}
case "$PY" in */*) PY=$(cd "$(dirname "$PY")" && pwd)/$(basename "$PY") ;; esac
OUT=$(mkdir -p "${OUT:-out_gpu}" && cd "${OUT:-out_gpu}" && pwd)
RUNS=$(mkdir -p "${RUNS:-runs/gpu}" && cd "${RUNS:-runs/gpu}" && pwd)
MINUTES=9
TRAIN="'configs/train.json'" EVALUATE="'configs/train.json','configs/evaluate.json'" PRETRAIN="'configs/pretrain.json'"
LOCALIZE="'configs/localize.json'"
G="'configs/glioma.yaml'" SOURCE_ONLY="$PRETRAIN,'configs/glioma.yaml','configs/experiments/source_only.yaml'"
export PYTHONUNBUFFERED=1

limited() { # limited LOG COMMAND...: run it, at most MINUTES, output also to $OUT/LOG
  local status=0
  timeout --signal=INT --kill-after=30 "$((MINUTES * 60))" "${@:2}" 2>&1 | tee -a "$OUT/$1" || status=$?
  if [ "$status" = 124 ] || [ "$status" = 137 ]; then
    echo "gpu.sh: stopped after $MINUTES minutes; run the same stage again to continue" >&2
    exit 75
  fi
  return "$status"
}

measured() { # measured NAME COMMAND...: a benchmark that writes $OUT/NAME.json, not run again where that is there
  [ -e "$OUT/$1.json" ] || limited bench.log "$PY" "${@:2}" --json "$OUT/$1.json"
}

bundle() { # bundle LOG ENTRY NAME DATA CONFIG OVERRIDE...: run a config with its output in $RUNS/NAME
  (cd bundle && limited "$1.log" "$PY" -m monai.bundle run $2 --config_file "$5" --bundle_root . --dataset_dir "$4" \
    --run_dir "$RUNS/$3" "${@:6}")
}

train() { # train NAME DATA CONFIG OVERRIDE...: resumed where it stopped, marked when complete
  local resume=False
  [ ! -e "$RUNS/$1/checkpoints/last.pt" ] || resume=True
  mkdir -p "$RUNS/$1"
  [ -e "$RUNS/$1/complete" ] || { bundle "$1" training "$@" --resume "$resume"; touch "$RUNS/$1/complete"; }
}

phantom() { # the vs phantom, made once
  [ -e "$RUNS/phantom/datalist.json" ] || (cd bundle && "$PY" -m scripts.prepare phantom --task vs --size real \
    --training 60 --validation 8 --testing 16 --output "$RUNS/phantom" --overwrite)
}

glioma() { # check that GLIOMA names prepared data
  [ -e "${GLIOMA:-}/datalist.json" ] || { echo "gpu.sh: GLIOMA must name a folder with datalist.json" >&2; exit 2; }
  GLIOMA=$(realpath "$GLIOMA")
}

weights() { # the best network so far of every run, as fp16; in pieces if PIECE is set (join them with cat)
  local best run file
  for best in "$RUNS"/*/checkpoints/best.pt; do
    run=$(dirname "$(dirname "$best")")
    (cd bundle && "$PY" -m scripts.weights export --run "$run" --output "$OUT/$(basename "$run").pt")
  done
  [ -z "${PIECE:-}" ] || rm -f "$OUT/weights.sha256"
  [ -z "${PIECE:-}" ] || for file in "$OUT"/*.pt; do
    split -b "$PIECE" "$file" "$file." && (cd "$OUT" && sha256sum "${file##*/}") >>"$OUT/weights.sha256" && rm "$file"
  done
}

while [ $# -gt 0 ]; do
  case "$1" in
    --minutes) MINUTES=$2; shift ;;
    install) [ ! -d wheels ] || "$PY" -m pip install -q --no-index --find-links wheels wheels/*.whl ;;
    test) limited pytest.log "$PY" -m pytest -m gpu ;;
    bench)
      for features in "16 32 64 128 256" "32 64 128 256 512"; do # words, not one argument
        measured "step_${features%% *}" tests/benchmarks/bench_step.py --device cuda --features $features
        measured "step_${features%% *}_cudnn" tests/benchmarks/bench_step.py --device cuda --features $features \
          --cudnn-benchmark
        measured "inference_${features%% *}" tests/benchmarks/bench_inference.py --device cuda --features $features
        measured "planar_${features%% *}" tests/benchmarks/bench_inference.py --device cuda --features $features --planar
      done ;;
    whole_scan) measured whole_scan tests/benchmarks/bench_inference.py --device cuda --whole-scan ;;
    waiting) phantom; measured waiting tests/benchmarks/bench_step.py --device cuda --waiting "$RUNS/phantom" ;;
    growth) limited bench.log "$PY" tests/benchmarks/growth.py --device cuda --large --output "$OUT/growth" ;;
    export) limited export.log "$PY" -W ignore tests/benchmarks/exports.py --device cuda ;;
    pretrain_vs) phantom; train "$1" "$RUNS/phantom" "[$TRAIN,$PRETRAIN]" ;;
    train_vs) phantom; train "$1" "$RUNS/phantom" "[$TRAIN]" --perceptor_path "$RUNS/pretrain_vs/checkpoints/best.pt" ;;
    localize_vs) phantom; train "$1" "$RUNS/phantom" "[$TRAIN,$PRETRAIN,$LOCALIZE]" ;;
    pretrain_glioma) glioma; train "$1" "$GLIOMA" "[$TRAIN,$PRETRAIN,$G]" ;;
    train_glioma) glioma; train "$1" "$GLIOMA" "[$TRAIN,$G]" --perceptor_path "$RUNS/pretrain_glioma/checkpoints/best.pt" ;;
    source_glioma) glioma; train "$1" "$GLIOMA" "[$TRAIN,$SOURCE_ONLY]" ;;
    evaluate_glioma)
      glioma
      bundle evaluate run train_glioma "$GLIOMA" "[$EVALUATE,$G]" \
        --perceptor_path "$RUNS/pretrain_glioma/checkpoints/best.pt"
      bundle evaluate run source_glioma "$GLIOMA" "[$EVALUATE,$SOURCE_ONLY]"
      (cd bundle && "$PY" -m scripts.report "$RUNS"/{train,source}_glioma --output "$OUT/glioma") ;;
    weights) weights ;;
    *) echo "gpu.sh: unknown stage '$1'; see the head of this file" >&2; exit 2 ;;
  esac
  shift
done
