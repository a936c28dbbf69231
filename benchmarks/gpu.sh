#!/bin/sh
# What a machine with GPUs is to be measured on, in pieces of under ten minutes each:
#
#   sh benchmarks/gpu.sh FOLDER [--tiny] [PIECE…]
#
# Every piece writes FOLDER/PIECE.jsonl: objects of figures, with hardware and versions. A piece
# whose file is there is left out, so that an interrupted run goes on, and one that fails does not
# keep the others from running; its output is in FOLDER/PIECE.log. --tiny takes models that a
# processor measures in a minute or two: it tests this script, not a machine.
set -u
here=$(dirname "$0")
python=${PYTHON:-python}
folder=$1
shift

tiny=no
if [ "${1:-}" = --tiny ]; then tiny=yes; shift; fi
if [ "$tiny" = yes ]; then
    large=tiny small=tiny shapes="--rounds 2 --align 8 --length 32" length=32 steps=2 limit=300
    demo="--steps 2 --length 32 --calibration-sequences 2 --calibration-length 32 --context 32"
    demo="$demo --windows 1 --rounds 1"
    export="--shard 100KB"
else
    large=7B small=1B shapes="--rounds 15 --align 64" length=512 steps=4 limit=600
    demo="--minutes 3.5 --calibration-sequences 16 --windows 8"
    export="--shard 1GB"
fi
gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())')
pieces=${*:-demo learn learn-sharded export
    speed-small speed-small-compiled speed-large speed-large-compiled}

mkdir -p "$folder"

learn() {
    "$python" "$here/learning_memory.py" --sizes "$large" --length "$length" --steps "$steps" \
        --dtype bfloat16 --device auto --checkpointed yes "$@"
}

speed() {
    "$python" "$here/compact_speed.py" --device auto $shapes --shape "$@"
}

piece() {
    case $1 in
    demo)
        rm -rf "$folder/run"
        "$python" -m disp_llm prune smollm2-135m --text speeches --recipe domain --keep 0.5 \
            $demo --output-dir "$folder/run" --json ;;
    learn) learn --processes 1 ;;
    learn-sharded) learn --processes "$(($gpus > 1 ? $gpus : 2))" ;;
    export)
        rm -rf "$folder/export"
        "$python" "$here/streaming_export.py" --folder "$folder/export" --shape "$large" \
            --ways nothing streaming $export
        code=$?
        rm -rf "$folder/export"
        return $code ;;
    speed-small) speed "$small" ;;
    speed-small-compiled) speed "$small" --compile ;;
    speed-large) speed "$large" ;;
    speed-large-compiled) speed "$large" --compile ;;
    *) echo "no piece is called $1" ; return 2 ;;
    esac
}

failed=""
for name in $pieces; do
    if [ -s "$folder/$name.jsonl" ]; then continue; fi
    if [ "$name" = learn-sharded ] && [ "$tiny" = no ] && [ "$gpus" -lt 2 ]; then
        echo "learn-sharded: left out, there are fewer than two GPUs" >&2
        continue
    fi
    began=$(date +%s)
    if piece "$name" > "$folder/$name.part" 2> "$folder/$name.log"; then
        mv "$folder/$name.part" "$folder/$name.jsonl"
        echo "$name: $(($(date +%s) - began)) s" >&2
    else
        failed="$failed $name"
        echo "$name: failed, see $folder/$name.log" >&2
    fi
    if [ $(($(date +%s) - began)) -gt "$limit" ]; then
        echo "$name: took longer than the $limit s that a piece may take" >&2
    fi
done
[ -z "$failed" ]
