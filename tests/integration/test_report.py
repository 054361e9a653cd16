"""The report and the figures: they show what the tables hold, stand alone, and are safe with any name."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import mixed_records, read_tsv, write_fasta
from made_tables import RULES, line, table_of, write_run

from virnucpro.bundles.rules import Thresholds
from virnucpro.errors import StoreError, UsageError
from virnucpro.results import counts as counting
from virnucpro.results import drawing, figures
from virnucpro.results.called import InputResults
from virnucpro.results.calls import CALLS, STATUS_NAMES, Calling
from virnucpro.results.counts import overview
from virnucpro.results.finished import FinishedRun, open_run, open_runs, stems_of
from virnucpro.results.page import STATUS_MEANINGS, short_name, write_report
from virnucpro.sequence.table import Status

HOSTILE = (b"<script>alert(1)</script>", b"\"'&amp;{{7*7}}$x$", b"caf\xc3\xa9\xff\x00\x1b[31m", "\u202eevil".encode())
VOID = {"meta", "link", "br", "rect", "path", "use", "hr", "img", "input"}


def page_of(root, stem="in"):
    """The page of a finished run."""
    return Page(write_report(open_run(root, stem)))


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
    host = np.full(120, 0.04)
    host[20:80] = 0.97
    lines = [
        *(line(name, 3000 + place, 0.95 + place / 100) for place, name in enumerate(HOSTILE)),
        *(line("twin", 4000 + 1000 * place, 0.95 + 0.01 * place) for place in range(2)),
        line("host", 60_000, host),
        line("unsure", 900, 0.7),
        line("tiny", 20, np.nan, Status.TOO_SHORT),
    ]
    record = {
        "version": "0.1.0",
        "command": ["/opt/bin/virnucpro", "predict", "in <1>.fasta"],
        "started": "2025-06-01T12:30:00+00:00",
        "parameters": {"fragment_length": 500},
        "inputs": [{"source": "in.fasta", "stem": "in", "sha256": "c0ffee", "num_bases": 1234567}],
        "model": {"encoders": {"nucleotide": "dnabert_s", "protein": "esm2"}},
        "seconds": {"total": 5.0, "extract": 1.0, "embed": 3.0},
        "warnings": ["a <warning>"],
    }
    return write_run(tmp_path / "full", lines, calling=Calling(prevalence=0.2), record=record, num_rows_failed=3)


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
    shown = page_of(full_run)
    assert [tag for tag, _ in shown.elements].count("script") == 1  # the page's own
    assert not any(name.startswith("on") for _, attributes in shown.elements for name in attributes)
    for text in ("<script>alert(1)</script>", "\"'&amp;{{7*7}}$x$", "café\\xff\\u0000\\u001b[31m", "\\u202eevil"):
        assert text in shown.text
    assert "a <warning>" in shown.text
    assert "'in <1>.fasta'" in shown.text
    assert shown.open == []


def test_the_page_loads_nothing(full_run):
    """No address but places on the page itself, and a policy that forbids the rest."""
    shown = page_of(full_run)
    assert {link[0] for link in shown.links if link != "data:,"} == {"#"}
    policy = next(meta["content"] for meta in shown.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    text = (full_run / "in.report.html").read_text()
    script = text.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.endswith(f"; script-src 'sha256-{digest}'")  # the only one that a browser runs
    assert not re.search(r"fetch|XMLHttp|import|http|innerHTML|eval", script)
    assert "@import" not in text
    assert set(re.findall(r"url\(([^)]*)", text)) == {f"#{found}" for found in re.findall(r"url\(#([^)]*)", text)}


def test_the_page_can_be_read_without_seeing_it(full_run):
    """Language, one first heading, scopes of table headers, words for each figure, a link to the results."""
    shown = page_of(full_run)
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
    css = (Path(figures.__file__).parent / "templates" / "report.css").read_text()
    schemes = css.partition("* {")[0].split("@media screen")
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6})", scheme)) for scheme in schemes)
    for scheme in (light, dark):
        for ground in (scheme["page"], scheme["card"]):
            for name in ("ink", "soft", "link", "good", "virus-ink"):
                assert contrast(scheme[name], ground) >= 4.5, name
            for call in CALLS:
                assert contrast(scheme[call.replace("_", "-")], ground) >= 3, call
        assert contrast(scheme["warn-ink"], scheme["warn-page"]) >= 4.5
    assert {name: light[name.replace("_", "-")] for name in drawing.COLOURS} == drawing.COLOURS


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
    text = " ".join(page_of(full_run).text.split())
    assert "run on 2025-06-01 at 12:30 UTC" in text
    assert (
        "by the preset balanced (calibrated probability at equal prevalence of 0.9 or more, from 0.6 uncertain)" in text
    )
    assert "probabilities are for 20.0% viral sequences, as given." in text
    assert "3 rows could not be computed; in.failed.tsv lists them." in text
    assert "ESM-2 (Lin et al., 2023)" in text
    assert "DNABERT-S (Zhou et al., 2024)" in text
    assert "c0ffee" in text
    assert "1,234,567" in text


@pytest.mark.parametrize(
    ("calling", "lines", "rule"),
    [
        (
            Calling(threshold=0.5),
            (0.5,),
            "probability of 0.5 or more were called viral; probabilities are for 50% viral sequences, assumed",
        ),
        (
            Calling(threshold=0.9, prevalence=0.2),
            (0.9,),
            "of 0.9 or more were called viral; probabilities are for 20.0% viral sequences, as given.",
        ),
        (
            Calling("sensitive", prevalence=0.2),
            (0.2, 0.5),
            "by the preset sensitive (calibrated probability at equal prevalence of 0.8 or more, from 0.5 uncertain)",
        ),
        (
            Calling(fdr=0.05),
            (),
            "sequences were called viral up to an estimated false discovery rate of 0.05; ",
        ),
    ],
)
def test_thresholds_are_drawn_on_the_scale_of_the_table(tmp_path, calling, lines, rule):
    """A preset holds at equal prevalence and is shifted by Bayes' rule: odds of 4 become 1 at one in five."""
    rules = replace(RULES, presets=RULES.presets | {"sensitive": Thresholds(0.5, 0.8)})
    root = tmp_path / "run"
    root.mkdir()
    results = InputResults.of(table_of([line("a", 900, 0.9)], rules), calling)
    summary = counting.summary(results, counting.Counts.of(results, {}), "in.fasta", None)
    run = FinishedRun(root, "in", {}, summary, results)
    assert run.thresholds == pytest.approx(lines)
    assert rule in " ".join(Page(write_report(run)).text.split())


def test_every_call_and_status_has_its_words():
    """Those that the program gives are those that the page knows."""
    assert set(CALLS) == set(figures.CALL_TITLES)
    assert set(STATUS_NAMES.values()) == set(STATUS_MEANINGS)


def test_the_same_run_gives_the_same_page(full_run, tmp_path):
    """Byte for byte, wherever it is written."""
    first = write_report(open_run(full_run, "in")).read_bytes()
    assert write_report(open_run(full_run, "in"), tmp_path / "again.html").read_bytes() == first


@pytest.mark.parametrize("file_format", drawing.FORMATS)
def test_the_same_run_gives_the_same_figures(tmp_path, file_format):
    """Three over all sequences and one for each track, byte for byte."""
    root = write_run(tmp_path / "run", [line("a", 5000, 0.95), line("b", 400, 0.1)])
    first, second = (
        {path.name: path.read_bytes() for path in figures.write_plots(open_run(root, "in"), file_format).iterdir()}
        for _ in "12"
    )
    assert first == second
    assert set(first) == {f"{name}.{file_format}" for name in ("scores", "lengths", "shares", "track_01_a")}


def test_names_of_figures_are_safe_and_short(full_run):
    """Whatever the sequence is called, its file has a plain name."""
    folder = figures.write_plots(open_run(full_run, "in"), "svg")
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,80}", path.name) for path in folder.iterdir())
    assert all("<script" not in path.read_text() for path in folder.iterdir())


def test_an_empty_input_has_a_report(tmp_path):
    """No sequences are no error."""
    root = write_run(tmp_path / "run", [])
    assert "0 sequences were read" in page_of(root).text
    assert figures.write_plots(open_run(root, "in"), "png").is_dir()


def test_a_run_is_opened_once_for_all_its_inputs(full_run):
    """Its table is as large as the run, and checking it takes as long as reading it."""
    one, other = open_runs(full_run, ["in", "in"])
    assert np.shares_memory(one.results.table.fragments, other.results.table.fragments)
    assert one.record is other.record


def test_records_of_another_run_are_refused(tmp_path):
    """A summary with other counts than the table is not shown as if they agreed."""
    root = write_run(tmp_path / "run", [line("a", 500, 0.9)], num_sequences=2)
    with pytest.raises(StoreError, match="counts 2 sequences where 1 were read"):
        open_run(root, "in")


@pytest.mark.parametrize("name", ["in.summary.json", "run/table/fragments.npy", "run/table/table.json"])
def test_a_damaged_file_is_named(tmp_path, name):
    """Which file it is."""
    root = write_run(tmp_path / "run", [line("a", 5000, 0.9)])
    (root / name).write_bytes(b"{")
    with pytest.raises(StoreError, match=re.escape(Path(name).name)):
        open_run(root, "in")


def test_a_directory_without_a_run_is_refused(virnucpro, tmp_path, full_run):
    """With what to name instead; and one page cannot hold two inputs."""
    with pytest.raises(UsageError, match="holds no finished run"):
        stems_of(tmp_path)
    assert virnucpro("report", tmp_path).code == 2
    shutil.copy(full_run / "in.summary.json", full_run / "other.summary.json")
    ended = virnucpro("report", full_run, "-o", tmp_path / "page.html")
    assert ended.code == 2
    assert "2 inputs" in ended.err


def test_tracks_are_found_by_place_and_not_by_name(full_run):
    """Each of two sequences of one name has its own windows; a provirus is drawn on its host, which comes first."""
    results = open_run(full_run, "in").results
    shown = overview(results)
    assert shown.counts.regions["provirus"] == 1
    assert [track.line.name for track in shown.tracks[:3]] == [b"host", b"twin", b"twin"]
    assert shown.tracks[0].proviruses == tuple(shown.proviruses)
    assert [len(track.starts) for track in shown.tracks[:3]] == [120, 10, 8]
    assert all(track.starts[0] == 1 and track.stops[-1] == track.line.length for track in shown.tracks)


@pytest.mark.parametrize("num_windows", [2, 99, 100, 301, 5000])
def test_a_track_of_any_length_is_drawn_small(tmp_path, num_windows):
    """Thousands of windows are averaged: the page does not grow with the sequence."""
    p_virus = np.where(np.arange(num_windows) % 7, 0.97, 0.3)
    p_virus[num_windows // 2] = np.nan
    root = write_run(tmp_path / "run", [line("long", num_windows * 500, p_virus)])
    assert write_report(open_run(root, "in")).stat().st_size < 250_000


def test_bins_hold_every_sequence_once():
    """Histograms by score and length add up to the counts, at the edges too."""
    scores = [0, 0.0249, 0.025, 0.4999, 0.5, 0.975, 0.9999, 1]
    lines = [line(f"s{place}", 10 ** min(place, 5), p) for place, p in enumerate(scores)]
    shown = overview(InputResults.of(table_of([*lines, line("none", 0, np.nan)]), Calling(threshold=0.5)))
    assert shown.scores.sum() == len(scores)
    assert shown.scores.sum(axis=0)[[0, 1, 19, 20, 39]].tolist() == [2, 1, 1, 1, 3]
    assert shown.lengths.sum() == len(lines) + 1
    assert shown.counts.calls == {"virus": 4, "uncertain": 0, "not_virus": 4, "no_call": 1}


def test_hits_are_the_best_of_the_whole_table():
    """Sorted by probability, then length, then place."""
    rng = random.Random(4)
    lines = [line(f"n{place}", rng.randint(200, 499), rng.randint(91, 99) / 100) for place in range(70_000)]
    shown = overview(InputResults.of(table_of(lines), Calling()))
    order = sorted(range(len(lines)), key=lambda i: (-lines[i][2], -lines[i][1], i))
    assert [hit.position for hit in shown.hits] == order[:50]


def test_the_page_lists_few_sequences_whole_and_of_many_what_may_be_viral():
    """By call, then probability, then length."""
    rest = [line(f"host{place}", 600, 0.01) for place in range(198)]
    few = overview(InputResults.of(table_of([*rest, line("b", 900, 0.99), line("a", 800, 0.99)]), Calling()))
    assert [hit.name for hit in few.listed[:3]] == [b"b", b"a", b"host0"]
    assert len(few.listed) == 200
    unsure = line("unsure", 900, 0.7)
    many = overview(InputResults.of(table_of([*rest, unsure, *rest, line("a", 800, 0.99)]), Calling()))
    assert [(hit.name, hit.call) for hit in many.listed] == [(b"a", "virus"), (b"unsure", "uncertain")]


def test_the_list_can_be_searched(full_run):
    """A box with a label, lines that the page's script can find, and how many are shown."""
    shown = page_of(full_run)
    assert {"search", "found", "listed"} <= set(shown.ids)
    (label,) = shown.all("label")
    (box,) = shown.all("input")
    assert (label["for"], box["type"]) == ("search", "search")


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
    frame.write_text(_FRAME.format(page=write_report(open_run(full_run, "in")).as_uri(), width=width))
    quiet = ("quic", "background-networking", "component-update", "sync", "gpu")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--no-first-run", "--allow-file-access-from-files"]
    command += [f"--disable-{name}" for name in quiet]
    command += ["--enable-logging=stderr", f"--user-data-dir={tmp_path / 'chrome'}", "--dump-dom", frame.as_uri()]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert "CONSOLE" not in ended.stderr
    title = re.search(r"<title>(\d+) (.*?)</title>", ended.stdout)
    assert title, ended.stderr
    assert int(title[1]) <= width
    for heading in ("Counts", "Sequences", "Proviruses", "How it was run", "Methods and citation"):
        assert heading in title[2]


def test_the_page_says_what_to_do_next_and_no_setting_that_nobody_gave(tmp_path):
    """Which programs take the sequences on; null stands for what was left to the program and is not shown."""
    root = write_run(
        tmp_path / "run", [line("a", 1000, 0.99)], record={"parameters": {"layout_rows": None, "fragment_length": 500}}
    )
    shown = page_of(root)
    assert all(tool in shown.text for tool in ("CheckV", "geNomad", "pharokka", "in.virus.fna.gz"))
    assert "layout rows" not in shown.text
    assert "fragment length" in shown.text


def test_uncertain_has_a_pattern_besides_its_colour(tmp_path):
    """Readers who see no colours tell it from virus: swatch and share are striped."""
    root = write_run(tmp_path / "run", [line("a", 1000, 0.99), line("b", 1000, 0.7)])
    shown = page_of(root)
    assert [e["class"] for e in shown.all("span") if "uncertain" in e.get("class", "").split()]
    css = (Path(figures.__file__).parent / "templates" / "report.css").read_text()
    assert ".share .uncertain" in css
    assert "repeating-linear-gradient" in css
    drawn = figures.score_figure(overview(open_run(root, "in").results), ())
    virus, uncertain, stripes = (shape for shape in drawn.shapes[:3] if isinstance(shape, drawing.Shape))
    assert (virus.fill, uncertain.fill, stripes.fill) == ("virus", "uncertain", "")
    assert len(stripes.points) > 10
    places = [{x for x, _ in shape.points} for shape in (uncertain, stripes)]
    assert places[0] == places[1]  # within the bar
