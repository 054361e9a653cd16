"""Snakemake wrapper: ``virnucpro predict`` of one sample (one file, or the two files of a pair)."""

from pathlib import Path
from shlex import quote

from snakemake.shell import shell

log = snakemake.log_fmt_shell(stdout=True, stderr=True)
folder = Path(snakemake.output.sequences).parent
sample = Path(snakemake.output.sequences).name.removesuffix(".sequences.tsv")
files = list(snakemake.input)
pair = f"-1 {quote(files[0])} -2 {quote(files[1])}" if len(files) == 2 else quote(files[0])
model = snakemake.params.get("model", "lite")
extra = snakemake.params.get("extra", "")

shell(
    "virnucpro predict {pair} --name {sample:q} --output {folder:q} --model {model:q} "
    "--threads {snakemake.threads} --no-progress {extra} {log}"
)
