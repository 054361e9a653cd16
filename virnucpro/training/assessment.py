"""What ``virnucpro evaluate`` measures of a bundle: figures by length, curves, and the panel of no organism."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.bundles import Bundle
from virnucpro.results.calls import probability
from virnucpro.training.dev import NOVEL, SEEN, DevSequences, DevSize, Model, score_dev
from virnucpro.training.evaluation import (
    average_precision,
    describe,
    last_where_unscored,
    precision_recall_curve,
    recall_at_fpr,
    reliability,
    roc_curve,
    score_at_fpr,
)
from virnucpro.training.genomes import Genomes
from virnucpro.training.panel import draw_panel, measure_panel
from virnucpro.training.records import Score

SCHEMA = 1
FALSE_POSITIVE_RATE = 0.01
_FEWEST_OF_A_FAMILY = 10


def assess(bundle: Bundle, model: Model, genomes: Genomes, size: DevSize, score: Score | None) -> dict[str, Any]:
    """Measure a bundle on the dev protocol; the same arguments give the same figures.

    Args:
        bundle: what is measured.
        model: its parts.
        genomes: the dev part.
        size: how many sequences, and the seed.
        score: what scores sequences of no organism; None leaves these out.
    """
    lengths = {}
    for length, scored in score_dev(genomes, bundle, size, model).items():
        dev, log_odds = scored.sequences, scored.log_odds(bundle)
        lengths[str(length)] = describe(scored, log_odds, bundle.presets) | {
            "by_virus": _by_virus(dev, log_odds),
            "by_host": _by_host(dev, np.where(scored.is_doubted, 0.0, probability(log_odds)), bundle),
            "by_family": _by_family(dev, log_odds),
            "curves": _curves(dev, log_odds),
        }
    return {
        "schema": SCHEMA,
        "model": {"name": bundle.name, "fingerprint": bundle.fingerprint},
        "protocol": {"num_host": size.num_host, "num_virus": size.num_virus, "seed": size.seed, "prevalence": 0.5},
        "lengths": lengths,
        "panel": measure_panel(score, draw_panel(genomes, size.seed)) if score else None,
    }


def _by_virus(dev: DevSequences, log_odds: NDArray[np.float64]) -> dict[str, dict[str, float]]:
    """Average precision and recall of novel and of seen families, each against all hosts."""
    ranked, figures = last_where_unscored(log_odds), {}
    for title, origin in (("novel", NOVEL), ("seen", SEEN)):
        some = ~dev.is_virus | (dev.origins == origin)
        if (dev.origins == origin).any():
            scores, is_virus, weights = ranked[some], dev.is_virus[some], dev.weights[some]
            # viruses weigh as much as hosts, also where a part of them is left out
            even = weights / np.where(is_virus, weights[is_virus].sum(), weights[~is_virus].sum())
            figures[title] = {
                "average_precision": round(average_precision(scores, is_virus, even), 4),
                "recall_at_1_percent_fpr": round(recall_at_fpr(scores, is_virus, FALSE_POSITIVE_RATE, weights), 4),
            }
    return figures


def _by_host(dev: DevSequences, p_virus: NDArray[np.float64], bundle: Bundle) -> dict[str, dict[str, float]]:
    """Share of each host class that each preset calls virus: its false positive rate."""
    names = list(bundle.presets) or ["threshold"]
    return {
        host: {
            name: round(float((p_virus[dev.origins == host] >= bundle.rules.thresholds(name).virus).mean()), 4)
            for name in names
        }
        for host in dev.hosts
    }


def _by_family(dev: DevSequences, log_odds: NDArray[np.float64]) -> dict[str, dict[str, Any]]:
    """Recall of each family where 1 % of the hosts are called, the best first."""
    ranked = last_where_unscored(log_odds)
    limit = score_at_fpr(ranked, dev.is_virus, dev.weights, FALSE_POSITIVE_RATE)
    found = {}
    for origin in (NOVEL, SEEN):
        for family in sorted(set(dev.groups[dev.origins == origin].tolist())):
            members = (dev.origins == origin) & (dev.groups == family)
            if members.sum() >= _FEWEST_OF_A_FAMILY:
                recall = round(float((ranked[members] > limit).mean()), 4)
                name = str(family) if origin == NOVEL else f"{family} (seen)"
                found[name] = {"is_novel": origin == NOVEL, "num": int(members.sum()), "recall": recall}
    return dict(sorted(found.items(), key=lambda item: (-item[1]["recall"], item[0])))


def _curves(dev: DevSequences, log_odds: NDArray[np.float64]) -> dict[str, Mapping[str, list[float]]]:
    ranked, known = last_where_unscored(log_odds), ~np.isnan(log_odds)
    fpr, recall = roc_curve(ranked, dev.is_virus, dev.weights)
    recalled, precision = precision_recall_curve(ranked, dev.is_virus, dev.weights)
    mean, share, mass = reliability(probability(log_odds[known]), dev.is_virus[known], dev.weights[known])
    return {
        "roc": {"fpr": _rounded(fpr), "recall": _rounded(recall)},
        "precision_recall": {"recall": _rounded(recalled), "precision": _rounded(precision)},
        "reliability": {"p_virus": _rounded(mean), "share_virus": _rounded(share), "weight": _rounded(mass)},
    }


def _rounded(values: NDArray[np.float64]) -> list[float]:
    return [round(float(value), 4) for value in values]
