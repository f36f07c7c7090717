#!/bin/bash
# The grid of docs/loops.md: rounds on own text from the demo's runs, with their controls. Ends where it is stopped and goes on from there.
#
#   benchmarks/loops.sh DEMO OUT [SEEDS]     DEMO: a folder made by `phf demo --seeds 3`; SEEDS: "0 1 2"
#
# conditional with four controls and every seed; quantile and RWR with the human one and the first seed, where DEMO has such runs.
set -euo pipefail
demo=$1 out=$2 seeds=${3:-0 1 2}

loop() {  # RUN NAME SEED [OPTION...]
    local run=$1 name=$2 seed=$3
    shift 3
    [ -f "$out/$name/online.json" ] || phf online "$run" -o "$out/$name" --rounds 4 --judge toxicity-lstm --seed "$seed" "$@"
}

for seed in $seeds; do
    run=$demo/runs/conditional-seed$seed
    loop "$run" "conditional-seed$seed" "$seed"
    for control in unscored shuffled own-token human; do
        loop "$run" "conditional-seed$seed-$control" "$seed" --control "$control"
    done
done
for kind in quantile rwr; do
    run=$demo/runs/$kind-seed${seeds%% *}
    [ -d "$run" ] || continue
    loop "$run" "$kind" "${seeds%% *}"
    loop "$run" "$kind-human" "${seeds%% *}" --control human
done
[ -f "$out/lemma/lemma.json" ] || phf online --check-lemma "$demo/runs/mle-seed${seeds%% *}" -o "$out/lemma"
mapfile -t loops < <(dirname "$out"/*/online.json)
phf report "${loops[@]}" -o "$out/loops.html"
phf compare "${loops[@]}"
