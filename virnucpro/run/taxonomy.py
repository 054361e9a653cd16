"""``virnucpro taxonomy``: which viruses the hits of a finished run are."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from virnucpro.atomic import write_json
from virnucpro.embeddings.taxa import Reference, name_by_reference
from virnucpro.logs import log_to
from virnucpro.nearest.table import load_table
from virnucpro.progress import Reporter
from virnucpro.request import Options
from virnucpro.results.called import InputResults
from virnucpro.results.finished import open_runs
from virnucpro.results.lineages import Hit, Lineages, find_lineages
from virnucpro.results.outputs import TAXONOMY_OUTPUTS
from virnucpro.results.pages import Pages, renew
from virnucpro.run_dir import RunDir
from virnucpro.stages import genes
from virnucpro.stages.call import finished_index, stored_results
from virnucpro.stages.tabulate import InputUnits
from virnucpro.stages.write import output_digests

_log = logging.getLogger(__name__)


def name_hits(
    root: Path,
    reference: Reference | None = None,
    *,
    devices: tuple[str, ...] = ("cpu",),
    num_threads: int = 1,
    show_bars: bool = False,
) -> dict[str, Lineages]:
    """Name the hits of each input, and write what ``predict --taxonomy`` writes.

    Returns:
        Prefix of each input's files to its hits.

    Raises:
        UsageError: there is no finished run in ``root``.
        ResourceError: another process works in it.
        StoreError: what it stored is damaged.
    """
    run_dir = RunDir(root)
    run_dir.check_is_run()
    reporter = Reporter(show_bars)
    named: dict[str, Lineages] = {}
    with run_dir.locked():
        index = finished_index(run_dir)
        find: Callable[[InputResults], Lineages]
        if reference is None:
            find = partial(find_lineages, table=load_table(genes.proteins_of(run_dir)), num_threads=num_threads)
        else:
            find = partial(_by_reference, reference=reference, devices=devices, num_threads=num_threads)
        with log_to(run_dir.result(index.run_stem, "log")), stored_results(run_dir, index, reporter) as (_, scores):
            _log.info("hits are named: %s", shlex.join(sys.argv))
            for item, finished in zip(index.inputs, open_runs(root, [item.stem for item in index.inputs]), strict=True):
                results = replace(finished.results, source=InputUnits(scores, index, item))
                named[item.stem] = find(results)
                results = replace(results, lineages=named[item.stem])
                for output in TAXONOMY_OUTPUTS:
                    output.write(results, root, item.stem, Options())
                record = finished.record
                record["outputs"] = record.get("outputs", {}) | output_digests(run_dir, [item])
                write_json(run_dir.result(index.run_stem, "run.json"), record)
                renew(replace(finished, results=results), Pages.there(root, item.stem))
    return named


def _by_reference(results: InputResults, reference: Reference, devices: tuple[str, ...], num_threads: int) -> Lineages:
    regions = results.regions
    sequences = ((place, bases) for place, _, bases in results.bases_of(regions))
    found = name_by_reference(sequences, reference, devices, num_threads)
    named = (found.get(place) for place in range(len(regions)))
    hits = [Hit() if each is None else Hit(each[0], int(bool(each[1])), each[1]) for each in named]
    return Lineages(regions, hits)
