"""Studies of the recipe and makers of examples: ``python -m studies``, in the folder ``tests/``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping
from pathlib import Path

from studies import simulate, taxonomy
from studies.cascade import measure, write_cascade
from virnucpro.bundles.rules import DEFAULT_FIRST
from virnucpro.engine.threads import use_threads
from virnucpro.errors import VirNucProError
from virnucpro.text import aligned
from virnucpro.training.dev import DevSize
from virnucpro.training.genomes import load_genomes


def main(arguments: list[str]) -> int:
    """Run one of the studies; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if not arguments or arguments[0] not in _STUDIES:
        sys.stderr.write(f"usage: python -m studies {{{','.join(_STUDIES)}}} --help\n")
        return 2
    try:
        return _STUDIES[arguments[0]](arguments[1:])
    except VirNucProError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code


def _cascade(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "python -m studies cascade",
        description="Find the limits of 'predict --cascade' for a model on the dev part, and print what they cost and "
        "save at each length.",
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with dev/ and manifest.tsv.gz")
    parser.add_argument("--model", required=True, help="the full model, as in predict")
    parser.add_argument("--first", default=DEFAULT_FIRST, help="the model that looks first (%(default)s)")
    parser.add_argument(
        "--agreement",
        type=float,
        default=0.99,
        help="least share of sequences, of those that the full model scores, to be called as it calls them, at every "
        "length (%(default)s)",
    )
    parser.add_argument("--device", default="cpu", help="of the encoders (%(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="store the limits in the bundle.yaml of --model")
    parser.add_argument("--dev-share", type=float, default=1.0, help="share of the dev protocol's sequences to draw")
    options = parser.parse_args(arguments)
    if not 0 <= options.agreement <= 1:
        parser.error("--agreement: a share from 0 to 1")
    use_threads(options.threads)
    genomes, size = load_genomes(options.data, "dev"), DevSize().scaled(options.dev_share)
    found, figures = measure((options.first, options.model), genomes, size, options.agreement, options.device)
    sys.stdout.write(f"{cascade_table(figures)}\n\nlimits {found.low:g} and {found.high:g}: ")
    sys.stdout.write(f"agreement {found.agreement:.4f} at the worst length, {100 * found.share:.1f} % go on\n")
    if options.write:
        sys.stdout.write(f"{write_cascade(options.model, found)}\n")
    return 0


def cascade_table(lengths: Mapping[str, Mapping[str, float]]) -> str:
    """How a cascade does at each length, beside both of its models alone."""
    titles = {
        "agreement": "agreement with the full model",
        "share": "share that goes on",
        "auroc_first": "AUROC first",
        "auroc_full": "AUROC full",
        "auroc_cascade": "AUROC cascade",
    }
    rows = [[title, *(f"{of_length[name]:.4f}" for of_length in lengths.values())] for name, title in titles.items()]
    return aligned([["bases", *lengths], *rows])


_STUDIES = {"simulate": simulate.main, "cascade": _cascade, "taxonomy": taxonomy.main}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
