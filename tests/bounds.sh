#!/usr/bin/env bash
# The oldest and the newest of every direct dependency that pyproject.toml allows, in a fresh environment; needs uv.
#   tests/bounds.sh lowest-direct 3.11
#   tests/bounds.sh highest 3.14
# UV_FIND_LINKS or UV_INDEX say where a CPU build of torch is, if the CUDA build (5 GB) is not wanted.
set -euo pipefail
cd "$(dirname "$0")/.."
resolution=$1 python=$2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

uv venv --quiet --python "$python" "$folder/env"
export VIRTUAL_ENV="$folder/env" PATH="$folder/env/bin:$PATH" NUMBA_CACHE_DIR="$folder/kernels"
uv pip compile --quiet pyproject.toml --extra parquet --resolution "$resolution" --python "$folder/env" \
    --no-annotate --no-header --output-file "$folder/versions.txt"
uv pip install --quiet --requirements "$folder/versions.txt"
uv pip install --quiet --constraints "$folder/versions.txt" \
    biopython dnaio fair-esm==2.0.0 hypothesis pyrodigal pytest pytest-timeout
uv pip install --quiet --no-deps .
grep -vE '^(nvidia|cuda)' "$folder/versions.txt" | tr '\n' ' '
python --version

(cd "$folder" && virnucpro --version && virnucpro predict "$OLDPWD/examples/metagenome.fasta" -o results --no-progress)
pytest -q -p no:cacheprovider --timeout 600 \
    tests/unit/test_{fasta,extract,store,formats,fragment_table,nearest,heads,kernels}.py \
    tests/integration/test_inputs.py
pytest -q -p no:cacheprovider --timeout 600 tests/integration/test_predict.py -k "golden or same_bytes or serial"
