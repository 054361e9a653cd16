#!/usr/bin/env bash
#SBATCH --job-name=virnucpro
#SBATCH --cpus-per-task=8
#SBATCH --mem=8G
#SBATCH --time=04:00:00
#SBATCH --requeue
# One sample a task. The sheet has a header and lines of: sample<TAB>path[<TAB>path2]
#   sbatch --array=1-$(($(wc -l < samples.tsv) - 1)) predict_array.sh samples.tsv results
# A task that is stopped continues when it is submitted again: finished work is kept.
set -euo pipefail
sheet=$1 out=$2
IFS=$'\t' read -r sample path mate < <(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "$sheet") || [ -n "$sample" ]
input=("$path")
[ -z "${mate:-}" ] || input=(-1 "$path" -2 "$mate")
exec virnucpro predict "${input[@]}" --name "$sample" --output "$out/$sample" \
    --threads "${SLURM_CPUS_PER_TASK:-2}" --no-progress
