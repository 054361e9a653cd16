"""Train the bundled model, calibrate or evaluate a bundle: ``python -m virnucpro.training --help``."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

from virnucpro.bundles import load_bundle
from virnucpro.engine.threads import use_threads
from virnucpro.errors import VirNucProError
from virnucpro.training.datasets import load_dataset
from virnucpro.training.dev import DevSize
from virnucpro.training.fit import Recipe
from virnucpro.training.genomes import load_genomes
from virnucpro.training.lite import add_profiles, calibrate_bundle, evaluate_bundle, train_lite
from virnucpro.training.profiles import ProfileRecipe


def main(arguments: list[str]) -> int:
    """Run one of the commands; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        command = _COMMANDS.get(arguments[0]) if arguments else None
        if command is not None:
            return command(arguments[1:])
        return _train(arguments)
    except VirNucProError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code


def _train(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "python -m virnucpro.training",
        description="Train the bundled model from scratch and write a bundle folder. To resume, repeat the same "
        "command. 'python -m virnucpro.training evaluate --help', '... calibrate --help' and '... profiles --help' "
        "describe the other commands.",
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with train/, dev/ and manifest.tsv.gz")
    parser.add_argument("--output", type=Path, required=True, help="bundle folder to write")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--fragments", type=int, default=Recipe().fragments, help="fragments to train on (%(default)s)")
    budget.add_argument("--minutes", type=float, help="train for about this many minutes; depends on the machine")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of a step (%(default)s; one more makes batches)"
    )
    _add_dev_share(parser)
    options = parser.parse_args(arguments)
    use_threads(options.threads)
    recipe = replace(Recipe(), fragments=options.fragments, seed=options.seed)
    size = DevSize().scaled(options.dev_share)
    figures = train_lite(load_dataset([options.data]), options.output, recipe, size, options.minutes)
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    return 0


def _evaluate(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "python -m virnucpro.training evaluate",
        description="Measure a bundle on the dev part and write the figures as JSON.",
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with dev/ and manifest.tsv.gz")
    parser.add_argument("--bundle", type=Path, required=True, help="bundle folder")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--threads", type=int, default=2)
    _add_dev_share(parser)
    options = parser.parse_args(arguments)
    use_threads(options.threads)
    figures = evaluate_bundle(options.data, options.bundle, DevSize().scaled(options.dev_share))
    options.output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


def _calibrate(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "python -m virnucpro.training calibrate",
        description="Refit calibration and presets of a stored bundle on the dev part, write them into its "
        "bundle.yaml and print its dev figures.",
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with dev/ and manifest.tsv.gz")
    parser.add_argument("--bundle", type=Path, required=True, help="bundle folder, changed in place")
    parser.add_argument("--threads", type=int, default=1)
    _add_dev_share(parser)
    options = parser.parse_args(arguments)
    use_threads(options.threads)
    figures = calibrate_bundle(load_genomes(options.data, "dev"), options.bundle, DevSize().scaled(options.dev_share))
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    return 0


def _profiles(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "python -m virnucpro.training profiles",
        description="Recount profiles and conservation, train the network that weighs them, and write a calibrated "
        "bundle of them and of what --start has trained.",
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with train/, dev/ and manifest.tsv.gz")
    parser.add_argument("--start", default="lite", help="bundle of kind lite (%(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="bundle folder to write")
    parser.add_argument("--fragments", type=int, default=ProfileRecipe().fragments, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    _add_dev_share(parser)
    options = parser.parse_args(arguments)
    use_threads(options.threads)
    recipe = replace(Recipe(seed=options.seed), profiles=ProfileRecipe(fragments=options.fragments))
    size = DevSize().scaled(options.dev_share)
    figures = add_profiles(load_dataset([options.data]), load_bundle(options.start), options.output, recipe, size)
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    return 0


def _add_dev_share(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dev-share", type=float, default=1.0, help="share of the dev protocol's sequences to draw (for quick looks)"
    )


_COMMANDS = {
    "evaluate": _evaluate,
    "calibrate": _calibrate,
    "profiles": _profiles,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
