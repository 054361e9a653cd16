"""What is asked of a run, in a form that can be stored and asked again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, TypedDict

from virnucpro.atomic import check_json
from virnucpro.errors import StoreError, UsageError
from virnucpro.samples import Sample
from virnucpro.settings import Settings, TableFormat, make_settings
from virnucpro.stored_json import Few


@dataclass(frozen=True)
class Options:
    """What a run writes beside the ordinary results, and what it must know of its inputs.

    Attributes:
        keep_intermediate: write ``.rows.tsv.gz``, every kept frame with its scores.
        keep_embeddings: keep embeddings and merged features in ``run/``.
        legacy_output: also write the published program's two files.
        is_length_meant: cut fragments of the configured length though the model was trained on others.
        table_format: of the result tables: tsv, parquet or jsonl.
        reference: FASTA file that the reads of CRAM inputs were aligned to.
        with_report: write ``.report.html`` and the files for MultiQC (of TSV tables).
        plots: also write figures as png, svg or pdf.
        with_taxonomy: say which viruses the hits are.
    """

    keep_intermediate: bool = False
    keep_embeddings: bool = False
    legacy_output: bool = False
    is_length_meant: bool = False
    table_format: TableFormat = "tsv"
    reference: str | None = None
    with_report: bool = True
    plots: str | None = None
    with_taxonomy: bool = False


class _StoredSample(TypedDict):
    name: str
    paths: Annotated[list[str], Few]
    named: Annotated[list[str], Few]


class _Stored(TypedDict):
    directory: str
    samples: list[_StoredSample]
    settings: dict[str, Any]
    options: dict[str, Any]


@dataclass(frozen=True)
class Request:
    """Inputs, settings and options of a run."""

    samples: tuple[Sample, ...]  # what is read, in order
    settings: Settings = field(default_factory=Settings)  # of the run
    options: Options = field(default_factory=Options)  # what else is wanted

    @property
    def sources(self) -> tuple[str, ...]:
        """Files of all samples, in order."""
        return tuple(path for sample in self.samples for path in sample.paths)

    @property
    def stems(self) -> list[str]:
        """Prefix of each sample's results."""
        return [sample.name for sample in self.samples]

    @property
    def run_stem(self) -> str:
        """Prefix of the files of the run as a whole."""
        return self.stems[0] if len(self.samples) == 1 else "all"

    def changed(self, **values: Any) -> Request:  # noqa: ANN401 - each has its own type
        """The same with other settings, by their names."""
        return replace(self, settings=self.settings.changed(**values))

    def as_record(self) -> dict[str, Any]:
        """As JSON, with paths that hold in any folder, and as they were named in the present one."""
        settings, options = self.settings, self.options
        if Path(settings.science.model).exists():
            settings = settings.changed(model=_absolute(settings.science.model))
        if options.reference is not None:
            options = replace(options, reference=_absolute(options.reference))
        return {
            "directory": str(Path.cwd()),
            "samples": [
                {"name": sample.name, "paths": [_absolute(path) for path in sample.paths], "named": [*sample.paths]}
                for sample in self.samples
            ],
            "settings": {
                f"{kind}.{name}": value for kind, part in asdict(settings).items() for name, value in part.items()
            },
            "options": asdict(options),
        }

    @classmethod
    def read(cls, path: Path, *, as_named: bool = False) -> tuple[Request, str]:
        """What a file holds that ``as_record`` gave, and the folder of then; see ``from_record``.

        Raises:
            StoreError: it is missing or damaged.
        """
        record = check_json(path, _Stored)
        try:
            return cls.from_record(record, as_named=as_named), record["directory"]
        except (TypeError, ValueError, UsageError) as error:
            raise StoreError(path, f"is damaged ({error})") from error

    @classmethod
    def from_record(cls, record: dict[str, Any], *, as_named: bool = False) -> Request:
        """From what ``as_record`` gave; ``as_named`` for results that hold the names of then, in the folder of then."""
        paths = "named" if as_named else "paths"
        return cls(
            tuple(_sample(item["name"], item[paths]) for item in record["samples"]),
            make_settings(None, record["settings"]),
            Options(**record["options"]),
        )


def _sample(name: str, paths: Sequence[str]) -> Sample:
    first, *mate = paths
    return Sample(name, (first, mate[0]) if mate else (first,))


def _absolute(path: str) -> str:
    return path if path == "-" else str(Path(path).absolute())
