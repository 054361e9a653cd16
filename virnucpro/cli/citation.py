"""``virnucpro citation``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import click

from virnucpro import __version__

if TYPE_CHECKING:
    from virnucpro.citation import Citation

_FORMATS = ("text", "bibtex", "cff", "methods")
_EPILOG = """\
The report of a run (virnucpro report) has a Methods sentence with the settings of that run.

\b
Examples:
  virnucpro citation
  virnucpro citation --format bibtex >> references.bib
"""


@click.command(epilog=_EPILOG)
@click.option(
    "--format",
    "style",
    type=click.Choice(_FORMATS),
    default="text",
    show_default=True,
    help="Form: plain text, BibTeX, the CITATION.cff, or sentences for Methods.",
)
def citation(style: str) -> None:
    """Print what to cite."""
    from virnucpro.citation import parse_cff, read_cff

    cff = read_cff()
    click.echo(cff.rstrip("\n") if style == "cff" else _render(parse_cff(cff), style))


def _render(works: Citation, style: str) -> str:
    from virnucpro.citation import ENCODER_NAMES, methods_sentence

    if style == "bibtex":
        return "\n\n".join(work.bibtex for work in (works.method, works.software, *works.encoders))
    if style == "methods":
        rule = "sequences were called viral at the default setting"
        sentence = partial(methods_sentence, works, version=__version__, rule=rule)
        lite = sentence(model="its bundled model lite", kinds=())
        published = sentence(model="the published model 500", kinds=tuple(ENCODER_NAMES))
        return f"With the bundled model:\n{lite}\n\nWith a published model:\n{published}"
    encoders = "\n".join(f"  {work.text}" for work in works.encoders)
    return (
        f"The method:\n  {works.method.text}\n\nThe software:\n  {works.software.text}\n\n"
        f"With a published model (300, 500), its encoders too:\n{encoders}"
    )
