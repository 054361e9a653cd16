"""``virnucpro hierarchy``."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from virnucpro.cli.options import COUNT, FILE, FOLDER, SOURCE, output_option, terminal_options
from virnucpro.errors import IncompleteRunError, InputError, UsageError

if TYPE_CHECKING:
    from virnucpro.hierarchy import Resolver, Tree

_EPILOG = """\
TREE ends with .json (everything), .tsv or .nwk (Newick; both with TREE.decisions.tsv). Questions that fail are listed
there, and the exit code is 5.

\b
Examples:
  virnucpro hierarchy families.txt -o tree.json --ictv VMR_MSL40.xlsx
  virnucpro hierarchy names.txt -o tree.nwk --taxdump taxdump/ --siblings
  virnucpro hierarchy names.txt -o tree.tsv --chat http://localhost:8000/v1 --chat-model qwen3 --cache answers
"""


@click.command(epilog=_EPILOG)
@click.argument("terms", type=SOURCE, metavar="TERMS")
@output_option(FILE, "TREE", "File for the tree.", required=True)
@click.option("--table", type=FILE, metavar="FILE", help="Ask a table: TSV with the columns name and parent.")
@click.option("--taxdump", type=FOLDER, metavar="DIR", help="Ask NCBI's taxonomy: names.dmp and nodes.dmp.")
@click.option("--ictv", type=FILE, metavar="FILE", help="Ask an MSL or VMR table of the ICTV (.xlsx, .csv or text).")
@click.option("--chat", metavar="URL", help="Ask a model behind an OpenAI-compatible chat endpoint.")
@click.option("--chat-model", metavar="NAME", help="With --chat: name of the model.")
@click.option(
    "--key-variable",
    metavar="NAME",
    default="OPENAI_API_KEY",
    show_default=True,
    help="With --chat: environment variable that holds the key.",
)
@click.option(
    "--topic",
    metavar="TEXT",
    default="virus taxonomy",
    show_default=True,
    help="With --chat: what the names belong to.",
)
@click.option("--siblings", "with_siblings", is_flag=True, help="Also include the names directly below each parent.")
@click.option(
    "--evidence", "with_evidence", is_flag=True, help="Show every edge to the resolver at the end, in batches."
)
@click.option("--cache", type=FOLDER, metavar="DIR", help="Keep answers in this folder; a second run asks nothing.")
@click.option(
    "--max-concurrent", type=COUNT, metavar="N", default=8, show_default=True, help="Questions asked at the same time."
)
@click.option(
    "--requests-per-minute", type=COUNT, metavar="N", help="Largest number of questions a minute.  [default: no limit]"
)
@click.option(
    "--batch-size", type=COUNT, metavar="N", default=20, show_default=True, help="Names in one question about several."
)
@click.option(
    "--max-siblings",
    type=COUNT,
    metavar="N",
    default=100,
    show_default=True,
    help="Largest number of names taken in below a parent.",
)
@terminal_options("no_progress", "quiet", "verbose")
def hierarchy(
    terms: str,
    output: Path,
    table: Path | None,
    taxdump: Path | None,
    ictv: Path | None,
    chat: str | None,
    chat_model: str | None,
    key_variable: str,
    topic: str,
    cache: Path | None,
    requests_per_minute: int | None,
    show_bars: bool,
    **options: Any,  # noqa: ANN401 - Click's
) -> None:
    """Build a tree over names by asking for their parents.

    TERMS is a file with one name on each line, or - for standard input.
    """
    if sum(place is not None for place in (table, taxdump, ictv, chat)) != 1:
        raise UsageError("say who is asked: one of --table, --taxdump, --ictv and --chat.")
    if (chat is None) != (chat_model is None):
        raise UsageError("--chat and --chat-model belong together.")

    from virnucpro import hierarchy as room
    from virnucpro.hierarchy.tree import check_format
    from virnucpro.inputs import refuse_overwriting
    from virnucpro.parallel import RateLimit, Retry

    check_format(output)
    refuse_overwriting([terms, table, ictv], [output])
    names = _read_terms(terms)
    resolver: Resolver
    if table is not None:
        resolver = room.read_tsv(table)
    elif ictv is not None:
        resolver = room.read_ictv(ictv)
    elif taxdump is not None:
        resolver = room.read_taxdump(taxdump)
    else:
        resolver = room.ChatResolver(chat or "", chat_model or "", key_variable, topic)
    with room.AnswerCache(cache) if cache is not None else nullcontext() as kept:
        tree = room.build_hierarchy(
            names,
            resolver,
            cache=kept,
            desc="hierarchy" if show_bars else None,
            retry=Retry(attempts=5, first_wait_seconds=1.0, on=(room.BusyError, room.NonsenseError)),
            rate_limit=RateLimit(requests_per_minute) if requests_per_minute else None,
            **options,
        )
    written = room.write_tree(tree, output)
    _report(tree, written, quiet=click.get_current_context().params["quiet"])


def _read_terms(source: str) -> list[str]:
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(source, "is not UTF-8 text.") from error
    except OSError as error:
        raise InputError(source, f"{error.strerror}.") from error
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names:
        raise InputError(source, "holds no names.")
    return names


def _report(tree: Tree, written: list[Path], *, quiet: bool) -> None:
    """Say what was made; raises where questions failed."""
    kinds = Counter(decision.kind for decision in tree.decisions)
    if not quiet:
        counts = ", ".join(f"{number:,} {kind.replace('_', ' ')}" for kind, number in sorted(kinds.items()))
        click.echo(f"{', '.join(map(str, written))}: {len(tree.nodes):,} names, {len(tree.roots):,} roots")
        if counts:
            click.echo(f"decisions: {counts}")
    if kinds["failed"]:
        raise IncompleteRunError(
            f"{kinds['failed']:,} questions were not answered; they are listed in {written[-1]}. The same command asks "
            "again (with --cache those alone)."
        )
