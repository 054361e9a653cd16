"""The report and the figures: they show what the tables hold, stand alone, and are safe with any name."""

from __future__ import annotations

import gzip
import json
import random
import re
import shutil
import subprocess
import tracemalloc
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import mixed_records, read_tsv, write_fasta

from virnucpro.errors import StoreError, UsageError
from virnucpro.results import plots
from virnucpro.results.calls import CALL_NAMES, STATUS_NAMES
from virnucpro.results.page import STATUS_MEANINGS, short_name, write_report
from virnucpro.results.results import CALLS, open_run, stems_of, tally_sequences
from virnucpro.results.tracks import read_proviruses, read_tracks

COLUMNS = (
    "name", "length", "num_fragments", "num_rows",
    "call", "p_virus", "fdr", "evidence", "top_region", "status", "reason",
)  # fmt: skip
OLDER_COLUMNS = tuple(column for column in COLUMNS if column not in ("fdr", "top_region"))
FRAGMENT_COLUMNS = ("name", "fragment", "start", "stop", "num_rows", "p_virus", "evidence")
REGION_COLUMNS = (
    "region", "sequence", "start", "stop", "length", "kind", "p_virus", "score", "num_fragments", "topology",
)  # fmt: skip
HOSTILE = (b"<script>alert(1)</script>", b"\"'&amp;{{7*7}}$x$", b"caf\xc3\xa9\xff\x00\x1b[31m", "\u202eevil".encode())
VOID = {"meta", "link", "br", "rect", "path", "use", "hr", "img", "input"}


def sequence(name, length, p_virus, call=None, num_fragments=None):
    """A line of the table of sequences."""
    call = call or ("virus" if p_virus >= 0.5 else "not_virus")
    num_fragments = max(1, length // 500) if num_fragments is None else num_fragments
    numbers = (length, num_fragments, 3)
    scores = (f"{p_virus:.4f}", f"{(1 - p_virus) / 2:.4f}", "protein+nucleotide")
    cells = (name, *numbers, call, *scores, "1-500", "ok", "NA")
    if call == "no_call":
        cells = (name, *numbers, call, "NA", "NA", "NA", "NA", "too_short", "shorter than 100 bases")
    return dict(zip(COLUMNS, as_bytes(cells), strict=True))


def as_bytes(cells):
    """Cells of a table; names are bytes already."""
    return [cell if isinstance(cell, bytes) else str(cell).encode() for cell in cells]


def windows(line):
    """Lines of the table of fragments of a sequence; the probability of a window tells its place."""
    for place in range(int(line["num_fragments"])):
        p = place / 100
        yield as_bytes((line["name"], place + 1, place * 500 + 1, place * 500 + 500, 1, f"{p:.4f}", "nucleotide"))


def table(columns, lines):
    """A table as bytes."""
    return b"\n".join([b"\t".join(cell.encode() for cell in columns), *(b"\t".join(line) for line in lines), b""])


def write_run(root, lines, *, columns=COLUMNS, regions=None, with_fragments=True, **summary):
    """The result files of a finished run of one input, ``in``."""
    root.mkdir(exist_ok=True)
    (root / "in.sequences.tsv").write_bytes(table(columns, ([line[name] for name in columns] for line in lines)))
    if with_fragments:
        cells = (window for line in lines for window in windows(line))
        (root / "in.fragments.tsv.gz").write_bytes(gzip.compress(table(FRAGMENT_COLUMNS, cells), mtime=0))
    if regions is not None:
        (root / "in.regions.tsv").write_bytes(table(REGION_COLUMNS, regions))
    calls = {call: sum(line["call"] == call.encode() for line in lines) for call in CALLS}
    base = {"input": "in.fasta", "model": "lite", "model_fingerprint": "ab" * 32, "threshold": 0.5}
    counts = {"num_sequences": len(lines), "sequences_by_call": calls, "bases_by_call": dict.fromkeys(CALLS, 0)}
    (root / "in.summary.json").write_text(json.dumps(base | counts | summary))
    return root


def write_record(root, **record):
    """The run record beside the results."""
    (root / "in.run.json").write_text(json.dumps(record))


def provirus(name, start, stop, score):
    """A line of the table of regions."""
    return as_bytes((name + b"|provirus", name, start, stop, stop - start + 1, "provirus", 0.9, score, 4, "NA"))


class Page(HTMLParser):
    """A page as elements, ids, links and text."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.ids, self.open, self.links = [], [], [], []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [attributes[name] for name in ("href", "src", "xlink:href", "action") if name in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def all(self, tag):
        """Attributes of all elements of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def full_run(tmp_path):
    """A run with all calls, hostile names, a name that occurs twice, proviruses and warnings."""
    lines = [
        *(sequence(name, 3000 + place, 0.9 + place / 100) for place, name in enumerate(HOSTILE)),
        *(sequence("twin", 4000 + 1000 * place, 0.95) for place in range(2)),
        sequence("host", 60_000, 0.1),
        sequence("unsure", 900, 0.6, "uncertain"),
        sequence("tiny", 20, 0, "no_call", 0),
    ]
    regions = [provirus(b"host", 10_001, 40_000, 7.5)]
    settings = {
        "preset": "balanced",
        "threshold": None,
        "threshold_virus": 0.8,
        "threshold_not_virus": 0.4,
        "prevalence": 0.2,
    }
    root = write_run(tmp_path / "full", lines, regions=regions, **settings, num_rows_failed=3)
    write_record(
        root,
        version="0.1.0",
        command=["/opt/bin/virnucpro", "predict", "in <1>.fasta"],
        started="2025-06-01T12:30:00+00:00",
        parameters={"fragment_length": 500},
        inputs=[{"source": "in.fasta", "stem": "in", "sha256": "c0ffee", "num_bases": 1234567}],
        model={"encoders": {"nucleotide": "dnabert_s", "protein": "esm2"}},
        seconds={"total": 5.0, "extract": 1.0, "embed": 3.0},
        warnings=["a <warning>"],
    )
    return root


def test_the_report_of_a_run_holds_what_its_tables_hold(virnucpro, tmp_path):
    """From the real program: counts, top hits, digests, settings, command and stages."""
    records = mixed_records(30) | {"short": "ACGT", '<b>"x"': mixed_records(1, 5)["seq_0"]}
    fasta = write_fasta(tmp_path / "mix.fasta", records)
    assert virnucpro("predict", fasta, "-o", tmp_path / "out", "--threads", 1).code == 0
    ended = virnucpro("report", tmp_path / "out")
    assert (ended.code, ended.out.strip()) == (0, str(tmp_path / "out" / "mix.report.html")), ended.err
    shown = Page(tmp_path / "out" / "mix.report.html")
    rows = read_tsv(tmp_path / "out" / "mix.sequences.tsv")
    record = json.loads((tmp_path / "out" / "mix.run.json").read_text())
    calls = [row["call"] for row in rows]
    total = " + ".join(f"{calls.count(call)} {call}" for call in CALLS)
    assert f"{len(rows)} sequences were read = {total}" in shown.text
    hits = [row for row in rows if row["call"] == "virus"]
    assert all(hit["name"] in shown.text and hit["p_virus"] in shown.text for hit in hits)
    for said in (record["model"]["fingerprint"], record["inputs"][0]["sha256"], "virnucpro predict", "embed"):
        assert said in shown.text
    assert "Li et al., 2025" in shown.text


def test_names_are_text_and_nothing_else(full_run):
    """Markup, quotes, template syntax, broken UTF-8, control and direction characters show as what they are."""
    shown = Page(write_report(full_run, "in"))
    assert "script" not in [tag for tag, _ in shown.elements]
    assert not any(name.startswith("on") for _, attributes in shown.elements for name in attributes)
    for text in ("<script>alert(1)</script>", "\"'&amp;{{7*7}}$x$", "café\\xff\\u0000\\u001b[31m", "\\u202eevil"):
        assert text in shown.text
    assert "a <warning>" in shown.text
    assert "'in <1>.fasta'" in shown.text
    assert shown.open == []


def test_the_page_loads_nothing(full_run):
    """No address but places on the page itself, and a policy that forbids the rest."""
    shown = Page(write_report(full_run, "in"))
    assert {link[0] for link in shown.links if link != "data:,"} == {"#"}
    policy = next(meta["content"] for meta in shown.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    text = (full_run / "in.report.html").read_text()
    assert "@import" not in text
    assert set(re.findall(r"url\(([^)]*)", text)) == {f"#{found}" for found in re.findall(r"url\(#([^)]*)", text)}


def test_the_page_can_be_read_without_seeing_it(full_run):
    """Language, one first heading, scopes of table headers, words for each figure, a link to the results."""
    shown = Page(write_report(full_run, "in"))
    assert shown.all("html")[0]["lang"] == "en"
    assert len(shown.all("h1")) == 1
    assert all(header.get("scope") in ("col", "row") for header in shown.all("th"))
    assert len(shown.all("figure")) == len(shown.all("figcaption")) == len(shown.all("svg")) > 3
    assert all(figure.get("aria-hidden") == "true" for figure in shown.all("svg"))
    assert all(attributes.get("aria-label") for _, attributes in shown.elements if attributes.get("role") == "img")
    assert len(shown.ids) == len(set(shown.ids))
    assert {link[1:] for link in shown.links if link != "data:,"} <= set(shown.ids)


def test_text_and_colours_stand_out_in_both_schemes():
    """WCAG 2.1 AA: 4.5 to 1 for text, 3 to 1 for what a figure is made of, on the page and on a card."""
    css = (Path(plots.__file__).parent / "templates" / "report.css").read_text()
    schemes = css.partition("* {")[0].split("@media screen")
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6})", scheme)) for scheme in schemes)
    for scheme in (light, dark):
        for ground in (scheme["page"], scheme["card"]):
            for name in ("ink", "soft", "link", "good", "virus-ink"):
                assert contrast(scheme[name], ground) >= 4.5, name
            for call in CALLS:
                assert contrast(scheme[call.replace("_", "-")], ground) >= 3, call
        assert contrast(scheme["warn-ink"], scheme["warn-page"]) >= 4.5
    assert {light[call.replace("_", "-")] for call in CALLS} == set(plots.CALL_COLOURS.values())


def contrast(one, other):
    """Contrast ratio of two colours, as WCAG 2.1 defines it."""

    def luminance(colour):
        parts = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_page_says_how_it_was_made(full_run):
    """Methods sentence with the settings of this run, its encoders' publications, the date that the record states."""
    text = " ".join(Page(write_report(full_run, "in")).text.split())
    assert "run on 2025-06-01 at 12:30 UTC" in text
    assert (
        "by the preset balanced (calibrated probability at equal prevalence of 0.8 or more, from 0.4 uncertain)" in text
    )
    assert "probabilities are for an expected share of viral sequences of 0.2." in text
    assert "3 rows could not be computed; in.failed.tsv lists them." in text
    assert "ESM-2 (Lin et al., 2023)" in text
    assert "DNABERT-S (Zhou et al., 2024)" in text
    assert "c0ffee" in text
    assert "1,234,567" in text


@pytest.mark.parametrize(
    ("settings", "lines", "rule"),
    [
        ({"threshold": 0.5}, (0.5,), "sequences with a calibrated probability of 0.5 or more were called viral."),
        (
            {"threshold_virus": 0.9, "threshold_not_virus": 0.9, "prevalence": 0.2},
            (0.9,),
            "of 0.9 or more were called viral; probabilities are for an expected share of viral sequences of 0.2.",
        ),
        (
            {"preset": "strict", "threshold_virus": 0.8, "threshold_not_virus": 0.5, "prevalence": 0.2},
            (0.2, 0.5),
            "by the preset strict (calibrated probability at equal prevalence of 0.8 or more, from 0.5 uncertain)",
        ),
        (
            {"threshold": None, "threshold_virus": None, "threshold_not_virus": None, "fdr": 0.05},
            (),
            "sequences were called viral up to an estimated false discovery rate of 0.05.",
        ),
    ],
)
def test_thresholds_are_drawn_on_the_scale_of_the_table(tmp_path, settings, lines, rule):
    """A preset holds at equal prevalence and is shifted by Bayes' rule: odds of 4 become 1 at one in five."""
    root = write_run(tmp_path / "run", [sequence("a", 900, 0.9)], **{"threshold": None} | settings)
    assert open_run(root, "in").thresholds == pytest.approx(lines)
    assert rule in " ".join(Page(write_report(root, "in")).text.split())


def test_every_call_and_status_has_its_words():
    """Those that the program gives are those that the page knows."""
    assert set(CALLS) == set(CALL_NAMES.values())
    assert set(STATUS_NAMES.values()) == set(STATUS_MEANINGS)


def test_the_same_run_gives_the_same_page(full_run, tmp_path):
    """Byte for byte, wherever it is written."""
    first = write_report(full_run, "in").read_bytes()
    assert write_report(full_run, "in", tmp_path / "again.html").read_bytes() == first


@pytest.mark.parametrize("file_format", plots.FORMATS)
def test_the_same_run_gives_the_same_figures(tmp_path, file_format):
    """Three over all sequences and one for each track, byte for byte."""
    root = write_run(tmp_path / "run", [sequence("a", 5000, 0.9), sequence("b", 400, 0.1)])
    first, second = (
        {path.name: path.read_bytes() for path in plots.write_plots(root, "in", file_format).iterdir()} for _ in "12"
    )
    assert first == second
    assert set(first) == {f"{name}.{file_format}" for name in ("scores", "lengths", "shares", "track_01_a")}


def test_names_of_figures_are_safe_and_short(full_run):
    """Whatever the sequence is called, its file has a plain name."""
    folder = plots.write_plots(full_run, "in", "svg")
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,80}", path.name) for path in folder.iterdir())
    assert all("<script" not in path.read_text() for path in folder.iterdir())


@pytest.mark.parametrize("columns", [COLUMNS, OLDER_COLUMNS])
def test_optional_columns_and_files_may_be_absent(tmp_path, columns):
    """No fdr, no regions, no fragments, no run record."""
    root = write_run(tmp_path / "run", [sequence("a", 5000, 0.9)], columns=columns, with_fragments=False)
    shown = Page(write_report(root, "in"))
    assert ("Estimated false calls" in shown.text) == ("fdr" in columns)
    assert "Proviruses" not in shown.text


def test_an_empty_input_has_a_report(tmp_path):
    """Header-only tables are no error."""
    shown = Page(write_report(write_run(tmp_path / "run", [], regions=[]), "in"))
    assert "0 sequences were read" in shown.text
    assert plots.write_plots(tmp_path / "run", "in", "png").is_dir()


def test_counts_that_do_not_add_up_are_refused(tmp_path):
    """A table with a line too few is not shown as if it were whole."""
    root = write_run(tmp_path / "run", [sequence("a", 500, 0.9)], num_sequences=2)
    with pytest.raises(StoreError, match="1 lines where 2 sequences were read"):
        write_report(root, "in")


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        ("sequences.tsv", b"name\tlength\na\t1\n"),
        ("sequences.tsv", table(COLUMNS, [[b"a", b"1"]])),
        ("sequences.tsv", table(COLUMNS, [[b"a", b"x", b"1", b"1", b"virus", *[b"NA"] * 6]])),
        ("sequences.tsv", table(COLUMNS, [[b"a", b"1", b"1", b"1", b"maybe", *[b"NA"] * 6]])),
        ("fragments.tsv.gz", gzip.compress(table(FRAGMENT_COLUMNS, []), mtime=0)),
        ("fragments.tsv.gz", gzip.compress(b"x" * 9999, mtime=0)[:60]),
        ("fragments.tsv.gz", b"no gzip"),
        ("regions.tsv", table(REGION_COLUMNS, [[b"provirus"] * len(REGION_COLUMNS)])),
        ("summary.json", b"{"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, suffix, content):
    """Which file it is, and what to do."""
    root = write_run(tmp_path / "run", [sequence("a", 5000, 0.9)])
    (root / f"in.{suffix}").write_bytes(content)
    with pytest.raises(StoreError, match=re.escape(f"in.{suffix}")):
        write_report(root, "in")


def test_a_directory_without_a_run_is_refused(virnucpro, tmp_path, full_run):
    """With what to name instead; and one page cannot hold two inputs."""
    with pytest.raises(UsageError, match="holds no finished run"):
        stems_of(tmp_path)
    assert virnucpro("report", tmp_path).code == 2
    for path in list(full_run.glob("in.*")):
        shutil.copy(path, full_run / path.name.replace("in.", "other.", 1))
    ended = virnucpro("report", full_run, "-o", tmp_path / "page.html")
    assert ended.code == 2
    assert "2 inputs" in ended.err


def test_tracks_are_found_by_place_and_not_by_name(full_run):
    """Each of two sequences of one name has its own windows; a provirus is drawn on its host, which comes first."""
    run = open_run(full_run, "in")
    proviruses = read_proviruses(run)
    tracks = read_tracks(run, tally_sequences(run, {b"host"}), proviruses)
    assert proviruses.num_found == 1
    assert [track.line.name for track in tracks[:3]] == [b"host", b"twin", b"twin"]
    assert tracks[0].proviruses == proviruses.best
    for track in tracks:
        assert len(track.starts) == track.line.num_fragments
        assert track.starts[0] == 1
        assert np.array_equal(track.p_virus, np.arange(track.line.num_fragments) / 100)


@pytest.mark.parametrize("num_windows", [2, 99, 100, 301, 5000])
def test_a_track_of_any_length_is_drawn_small(tmp_path, num_windows):
    """Thousands of windows are averaged: the page does not grow with the sequence."""
    root = write_run(tmp_path / "run", [sequence("long", num_windows * 500, 0.9)])
    assert write_report(root, "in").stat().st_size < 250_000


def test_bins_hold_every_sequence_once(tmp_path):
    """Histograms by score and length add up to the counts, at the edges too."""
    scores = [0, 0.0249, 0.025, 0.4999, 0.5, 0.975, 0.9999, 1]
    lines = [sequence(f"s{place}", 10**place, p) for place, p in enumerate(scores)]
    root = write_run(tmp_path / "run", [*lines, sequence("none", 0, 0, "no_call", 0)], with_fragments=False)
    tally = tally_sequences(open_run(root, "in"))
    assert tally.scores.sum() == len(scores)
    assert tally.scores.sum(axis=0)[[0, 1, 19, 20, 39]].tolist() == [2, 1, 1, 1, 3]
    assert tally.lengths.sum() == len(lines) + 1
    assert tally.calls == {"virus": 4, "uncertain": 0, "not_virus": 4, "no_call": 1}


def test_hits_are_the_best_of_the_whole_table(tmp_path):
    """Sorted by probability, then length, then place, however many batches the table is read in."""
    rng = random.Random(4)
    lines = [
        sequence(f"{'n' * 40}{place}", rng.randint(200, 900), rng.randint(40, 99) / 100) for place in range(30_000)
    ]
    root = write_run(tmp_path / "run", lines, with_fragments=False)
    tally = tally_sequences(open_run(root, "in"))
    order = sorted(range(len(lines)), key=lambda i: (-float(lines[i]["p_virus"]), -int(lines[i]["length"]), i))
    assert [hit.number for hit in tally.hits] == order[:50]


def test_memory_and_the_page_do_not_grow_with_the_table(tmp_path):
    """Seventy thousand sequences: under a megabyte, and no more memory than half of them need."""
    rng = random.Random(5)
    lines = [sequence(f"contig_{place}", rng.randint(200, 9000), rng.random()) for place in range(70_000)]
    peaks = []
    for number in (35_000, 70_000):
        root = write_run(tmp_path / str(number), lines[:number], with_fragments=False)
        tracemalloc.start()
        tally_sequences(open_run(root, "in"))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]
    assert write_report(root, "in").stat().st_size < 1_000_000


def test_a_long_name_is_cut_in_the_middle():
    """A name of a megabyte does not make a page of fifty."""
    assert len(short_name(b"x" * 1_000_000)) < 200
    assert short_name(b"start" + b"x" * 1000 + b"end").startswith("start")
    assert short_name(b"start" + b"x" * 1000 + b"end").endswith("end")


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FRAME = """<body><iframe src="{page}" width="{width}" height="900" onload="
  const page = this.contentDocument;
  const headings = [...page.querySelectorAll('h2')].map(heading => heading.innerText);
  document.title = page.documentElement.scrollWidth + ' ' + headings;
"></iframe></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("width", [375, 1280])
def test_a_browser_shows_the_page_without_complaint(full_run, tmp_path, width):
    """No message on the console, no scrolling sideways on a phone or a desktop, all headings there."""
    frame = tmp_path / "frame.html"
    frame.write_text(_FRAME.format(page=write_report(full_run, "in").as_uri(), width=width))
    quiet = ("quic", "background-networking", "component-update", "sync", "gpu")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--no-first-run", "--allow-file-access-from-files"]
    command += [f"--disable-{name}" for name in quiet]
    command += ["--enable-logging=stderr", f"--user-data-dir={tmp_path / 'chrome'}", "--dump-dom", frame.as_uri()]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert "CONSOLE" not in ended.stderr
    title = re.search(r"<title>(\d+) (.*?)</title>", ended.stdout)
    assert title, ended.stderr
    assert int(title[1]) <= width
    for heading in ("Counts", "Top hits", "Proviruses", "How it was run", "Methods and citation"):
        assert heading in title[2]
