"""From names to one tree: levels, circles, several parents, merges, evidence, the cache, the tables that are asked."""

from __future__ import annotations

import doctest
import errno
import os
import sqlite3
import threading

import openpyxl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from virnucpro import hierarchy
from virnucpro.errors import InputError, StoreError, UsageError
from virnucpro.hierarchy import (
    AnswerCache,
    CallableResolver,
    Claim,
    HierarchyBuilder,
    Resolver,
    build_hierarchy,
    normalise_name,
    read_ictv,
    read_taxdump,
    read_tree,
    read_tsv,
    resolvers,
    write_tree,
)
from virnucpro.parallel import CallCancelledError, Retry

ABOVE = {
    "Tequatrovirus": "Straboviridae",
    "Dhakavirus": "Straboviridae",
    "Straboviridae": "Caudoviricetes",
    "Casjensviridae": "Caudoviricetes",
    "Caudoviricetes": None,
}


def knowing(find_parents, **methods) -> Resolver:
    """Asks a function for parents, and others for what else a resolver may know."""
    methods = {name: staticmethod(function) for name, function in methods.items()}
    return type("Knowing", (CallableResolver,), methods)(find_parents)


class Counting(Resolver):
    """Answers from ``ABOVE`` and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked = []

    def parents(self, name):
        self.asked.append(f"parent:{name}")
        return [Claim(ABOVE[name], f"{name} is listed")] if ABOVE[name] else []

    def siblings(self, parent):
        self.asked.append(f"siblings:{parent}")
        return [name for name, above in ABOVE.items() if above == parent]

    def accepted(self, names):
        self.asked.append("accepted")
        return names

    def evidence(self, edges):
        self.asked.append("evidence")
        return [None] * len(edges)


def kinds(tree):
    return [(decision.kind, decision.name) for decision in tree.decisions]


def test_each_name_is_asked_once_level_by_level():
    resolver = Counting()
    tree = build_hierarchy(["Tequatrovirus", "Dhakavirus"], resolver, max_concurrent=1)
    assert resolver.asked[:-1] == [
        f"parent:{n}" for n in ("Dhakavirus", "Tequatrovirus", "Straboviridae", "Caudoviricetes")
    ]
    assert tree.lineage("tequatrovirus") == ["Caudoviricetes", "Straboviridae", "Tequatrovirus"]
    assert [(depth, node.name, node.status) for depth, node in tree.walk()] == [
        (0, "Caudoviricetes", "ancestor"),
        (1, "Straboviridae", "ancestor"),
        (2, "Dhakavirus", "term"),
        (2, "Tequatrovirus", "term"),
    ]
    assert tree.find("Dhakavirus").evidence == "Dhakavirus is listed"
    assert tree.decisions == ()


def test_siblings_of_all_parents_are_taken_in_up_to_the_most():
    tree = build_hierarchy(["Tequatrovirus"], Counting(), with_siblings=True)
    assert tree.children("Straboviridae") == ["Dhakavirus", "Tequatrovirus"]
    assert tree.find("Casjensviridae").status == "sibling"
    tree = build_hierarchy(["Tequatrovirus"], Counting(), with_siblings=True, max_siblings=1)
    assert tree.children("Straboviridae") == ["Dhakavirus", "Tequatrovirus"]  # the term is kept whatever is cut
    assert ("cut", "Straboviridae") in kinds(tree)


def test_spellings_are_one_name():
    resolver = CallableResolver({"a b": "Root", "Root": None}.__getitem__)
    tree = build_hierarchy(["a b", "A_b", " a  B"], CallableResolver(lambda name: None if name == "Root" else "Root"))
    assert list(tree.nodes) == ["A_b", "Root"]
    assert build_hierarchy(["a b"], resolver).lineage("A_B") == ["Root", "a b"]


@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.lists(st.sampled_from("abcdefgh"), max_size=3)),
    st.lists(st.sampled_from("abcdefgh"), min_size=1),
    st.randoms(use_true_random=False),
)
def test_any_claims_give_one_forest_whatever_the_order_and_the_number_of_calls(claims, terms, rng):
    """Circles, several parents and names below themselves included."""
    resolver = CallableResolver(lambda name: claims.get(name, []))
    tree = build_hierarchy(terms, resolver, max_concurrent=1)
    assert {node.name for _, node in tree.walk()} == set(tree.nodes), "a name in a circle is below no root"
    shuffled = rng.sample(terms, len(terms))
    assert build_hierarchy(shuffled, resolver, max_concurrent=5) == tree
    for node in tree.nodes.values():
        others = {parent for parent in claims.get(node.name, []) if parent not in (node.name, node.parent)}
        said = {rejected for decision in tree.decisions if decision.name == node.name for rejected in decision.rejected}
        assert others <= said, "every parent that was not chosen is in a decision"


def test_a_circle_ends_and_is_recorded():
    tree = build_hierarchy(["a"], CallableResolver({"a": "b", "b": "c", "c": "a"}.get))
    assert tree.lineage("a") == ["c", "b", "a"]
    assert kinds(tree) == [("circle", "c")]


def test_of_several_parents_the_most_certain_is_chosen_then_the_one_shared_by_most():
    claims = {
        "x": [Claim("weak", "hearsay", confidence=0.2), Claim("strong", "a paper", confidence=0.9)],
        "y": ["shared", "alone"],
        "z": ["shared"],
    }
    tree = build_hierarchy("xyz", CallableResolver(claims.get))
    assert tree.find("x").parent == "strong"
    assert tree.find("y").parent == "shared"
    decision = next(decision for decision in tree.decisions if decision.name == "x")
    assert (decision.kind, decision.chosen, decision.rejected) == ("several_parents", "strong", ("weak",))
    assert "a paper" in decision.reason
    assert "hearsay" in decision.reason


def test_names_with_one_accepted_name_are_merged_in_batches():
    accepted, batches = {"T4 phage": "Tequatrovirus T4", "Phage T4": "T4 phage"}, []

    def find_accepted(names):
        batches.append(len(names))
        return [accepted.get(name, name) for name in names]

    resolver = knowing({"T4 phage": "Phages", "Phage T4": "Phages"}.get, accepted=find_accepted)
    tree = build_hierarchy(["T4 phage", "Phage T4"], resolver, batch_size=2)
    assert sorted(batches) == [1, 2]
    assert tree.find("phage t4").name == "Tequatrovirus T4"
    assert tree.find("phage t4").other_names == ("Phage T4", "T4 phage")
    assert tree.children("Phages") == ["Tequatrovirus T4"]
    assert [kind for kind, _ in kinds(tree)] == ["merged", "merged"]


def test_evidence_is_added_names_are_moved_and_a_failed_batch_keeps_what_was():
    def find_evidence(edges):
        if edges[0][0] == "a":
            raise OSError("no answer")
        return [
            {"b": Claim("p", "seen", confidence=0.7), "c": Claim("q", "better"), "d": Claim("nowhere"), "p": None}.get(
                name
            )
            for name, _ in edges
        ]

    above = {"a": "p", "b": "p", "c": "p", "d": "p", "q": "p"}
    tree = build_hierarchy("abcdq", knowing(above.get, evidence=find_evidence), with_evidence=True, batch_size=1)
    assert (tree.find("a").parent, tree.find("a").evidence) == ("p", "")
    assert (tree.find("b").evidence, tree.find("b").confidence) == ("seen", 0.7)
    assert tree.find("c").parent == "q"
    assert tree.find("d").parent == "p"
    assert kinds(tree) == [("kept", "a"), ("moved", "c"), ("kept", "d")]


def test_a_batch_with_too_few_answers_keeps_the_originals():
    resolver = knowing({"a": "p", "b": "p"}.get, accepted=lambda names: names[1:])
    tree = build_hierarchy("ab", resolver)
    assert tree.children("p") == ["a", "b"]
    assert {kind for kind, _ in kinds(tree)} == {"kept"}


def test_questions_that_fail_are_listed_and_the_rest_goes_on():
    def find(name):
        if name in "bc":
            raise KeyError("broken") if name == "b" else hierarchy.UnknownNameError(name)
        return "p"

    tree = build_hierarchy("abc", CallableResolver(lambda name: None if name == "p" else find(name)))
    assert tree.lineage("a") == ["p", "a"]
    assert kinds(tree) == [("failed", "b"), ("unknown", "c")]
    assert tree.roots == ["b", "c", "p"]


@pytest.mark.parametrize("answer", [7, [7], "", [""], "x" * 2000, Claim("p", confidence=7)])
def test_nonsense_is_a_failed_question_never_a_name(answer):
    tree = build_hierarchy(["a"], CallableResolver({"a": answer}.get))
    assert list(tree.nodes) == ["a"]
    assert kinds(tree) == ([] if answer == "" else [("failed", "a")])


def test_an_error_that_is_not_about_one_name_ends_the_build():
    asked = []

    def refuse(name):
        asked.append(name)
        raise UsageError("the key is refused")

    with pytest.raises(UsageError, match="refused"):
        build_hierarchy(map(str, range(1000)), CallableResolver(refuse), max_concurrent=2)
    assert len(asked) < 1000


def test_levels_are_bounded():
    """A resolver that always has one more parent comes to an end."""
    tree = build_hierarchy(["0"], CallableResolver(lambda name: str(int(name) + 1)), max_levels=10)
    assert len(tree.nodes) == 11
    assert kinds(tree) == [("too_deep", "10")]


def test_a_busy_resolver_is_asked_again():
    calls = []

    def find(name):
        calls.append(name)
        if len(calls) < 3:
            raise hierarchy.BusyError("later")

    retry = Retry(first_wait_seconds=0.001, on=(hierarchy.BusyError,))
    assert kinds(build_hierarchy(["a"], CallableResolver(find), retry=retry)) == []


def test_a_cancelled_build_keeps_its_answers(tmp_path):
    cancel = threading.Event()

    def find(name):
        cancel.set()
        return f"above {name}" if len(name) < 3 else None

    with AnswerCache(tmp_path) as cache:
        with pytest.raises(CallCancelledError):
            build_hierarchy("ab", CallableResolver(find), cache=cache, cancel=cancel, max_concurrent=1)
        assert cache.keys("callable") == ["parent:a"]


@pytest.mark.parametrize("terms", [[], [""], ["a", "  "], ["_"], ["x" * 1001], [None]])
def test_terms_that_are_no_names_are_refused(terms):
    with pytest.raises(UsageError, match="term"):
        build_hierarchy(terms, Counting())


@pytest.mark.parametrize("number", [5_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_many_terms(number):
    tree = build_hierarchy(
        (f"virus {index}" for index in range(number)),
        CallableResolver(lambda name: f"family {int(name[6:]) % 500}" if name.startswith("virus") else None),
        batch_size=1000,
    )
    assert len(tree.nodes) == number + 500
    assert len(tree.children("family 7")) == number // 500


def build_all(cache, resolver):
    return build_hierarchy(
        ["Tequatrovirus", "Dhakavirus"], resolver, cache=cache, with_siblings=True, with_evidence=True
    )


def test_a_second_run_asks_nothing(tmp_path):
    resolver = Counting()
    with AnswerCache(tmp_path) as cache:
        first = build_all(cache, resolver)
        keys = cache.keys("Counting")
    assert {"parent:tequatrovirus", "siblings:straboviridae"} <= set(keys)
    resolver.asked.clear()
    with AnswerCache(tmp_path) as cache:
        assert build_all(cache, resolver) == first
        assert resolver.asked == []
        cache.clear()
        assert build_all(cache, resolver) == first
        assert "parent:Tequatrovirus" in resolver.asked


def test_what_is_damaged_in_a_cache_is_asked_again(tmp_path):
    with AnswerCache(tmp_path) as cache:
        tree = build_all(cache, Counting())
    with sqlite3.connect(tmp_path / "hierarchy.sqlite") as database:
        database.execute("UPDATE answers SET answer='{' WHERE key='parent:tequatrovirus'")
        database.execute("UPDATE answers SET answer='[[7]]' WHERE key='parent:dhakavirus'")
        database.execute("UPDATE answers SET answer='{}' WHERE key='siblings:straboviridae'")
    database.close()
    resolver = Counting()
    with AnswerCache(tmp_path) as cache:
        assert build_all(cache, resolver) == tree
    assert sorted(resolver.asked) == ["parent:Dhakavirus", "parent:Tequatrovirus", "siblings:Straboviridae"]


def test_a_cache_that_cannot_grow_loses_no_answer(tmp_path, caplog, monkeypatch):
    """As on a full disk: SQLite is given no further page."""
    import logging

    monkeypatch.setattr(logging.getLogger("virnucpro"), "propagate", True)
    with AnswerCache(tmp_path) as cache:
        cache._database.execute("PRAGMA max_page_count=3")  # noqa: SLF001
        tree = build_hierarchy(
            [f"virus {n}" for n in range(2000)], CallableResolver(lambda name: "p" * 100 if name else None), cache=cache
        )
        assert len(tree.nodes) == 2001
        assert cache.get("callable", "parent", "virus 1999") == [["p" * 100, "", "", 1.0]]
    assert sum("cannot be kept" in record.message for record in caplog.records) == 1


def test_threads_share_a_cache(tmp_path):
    with AnswerCache(tmp_path) as cache:
        threads = [
            threading.Thread(target=lambda n=n: [cache.put("r", "parent", f"{n} {k}", [k]) for k in range(100)])
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(cache.keys("r")) == 400
        assert cache.get("r", "parent", "3_99") == [99]


@given(st.text())
def test_normalising_twice_changes_nothing_more(name):
    once = normalise_name(name)
    assert normalise_name(once.upper()) == normalise_name(normalise_name(once.upper()))
    assert normalise_name(f"  {name} ") == once


@pytest.mark.parametrize("suffix", [".json", ".tsv", ".nwk"])
def test_files_of_a_tree(tmp_path, suffix):
    tree = build_hierarchy(["Tequatrovirus", "it's\todd", "nobody"], CallableResolver({**ABOVE, "it's odd": "q"}.get))
    written = write_tree(tree, tmp_path / f"tree{suffix}")
    text = written[0].read_text()
    if suffix == ".json":
        assert read_tree(written[0]) == tree
    elif suffix == ".nwk":
        assert text == "((('Tequatrovirus')'Straboviridae')'Caudoviricetes','nobody',('it''s odd')'q');\n"
    else:
        lines = [line.split("\t") for line in text.splitlines()]
        assert {len(line) for line in lines} == {8}
        assert lines[3][:3] == ["2", "Tequatrovirus", "Straboviridae"]
    assert [path.name for path in written[1:]] == ([] if suffix == ".json" else ["tree.decisions.tsv"])


def test_a_damaged_tree_and_an_unknown_format_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"\.json, \.tsv, \.nwk"):
        write_tree(build_hierarchy(["a"], CallableResolver({}.get)), tmp_path / "tree.txt")
    for text in ("{", "[]", '{"format": "virnucpro hierarchy", "version": 99}', '{"format": "x"}'):
        (tmp_path / "t.json").write_text(text)
        with pytest.raises(StoreError):
            read_tree(tmp_path / "t.json")


def test_a_table_of_names(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text(
        "name\tparent\trank\tsynonyms\tconfidence\nA\tB\tgenus\tOld A; a1\t0.5\nA\tC\t\t\t\nB\t\tfamily\t\t\n"
    )
    table = read_tsv(path)
    assert table.parents("a1") == [Claim("B", "t.tsv, line 2", "genus", 0.5), Claim("C", "t.tsv, line 3")]
    assert table.accepted(["old a", "b", "new"]) == ["A", "B", "new"]
    tree = build_hierarchy(["Old A"], table, with_siblings=True)
    assert tree.lineage("old a") == ["C", "A"], "said with more certainty than B"
    assert tree.find("A").rank == "genus"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no names"),
        ("name\nA\n", "line 2: expected the columns"),
        ("name\tparent\nA\tB\n\tC\n", "line 3: expected"),
        ("name\tparent\tconfidence\nA\tB\thigh\n", "'high' is not a number"),
        (b"name\tparent\n\xff\tB\n", "is not UTF-8"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(tmp_path, text, problem):
    path = tmp_path / "t.tsv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=problem):
        read_tsv(path)


VMR = [
    ["Sort", "Realm", "Class", "Family", "Genus", "Species", "Virus name(s)", "Virus name abbreviation(s)"],
    [
        1,
        "Duplodnaviria",
        "Caudoviricetes",
        "Straboviridae",
        "Tequatrovirus",
        "Tequatrovirus T4",
        "Escherichia phage T4",
        "T4",
    ],
    [2, "Duplodnaviria", "Caudoviricetes", None, "Casjensvirus", "Casjensvirus one", "phage one; phage uno", None],
]


@pytest.mark.parametrize("suffix", [".xlsx", ".csv", ".txt"])
def test_a_table_of_the_ictv(tmp_path, suffix):
    path = tmp_path / f"vmr{suffix}"
    if suffix == ".xlsx":
        book = openpyxl.Workbook()
        book.active.append(["read me"])
        sheet = book.create_sheet("VMR")
        for row in VMR:
            sheet.append(row)
        book.save(path)
    else:
        lines = [
            (";" if suffix == ".xlsx" else "," if suffix == ".csv" else "\t").join(str(c or "") for c in row)
            for row in VMR
        ]
        path.write_text("\ufeff" + "\n".join(lines))
    table = read_ictv(path)
    tree = build_hierarchy(["T4", "phage uno"], table)
    assert tree.lineage("T4")[-4:] == ["Straboviridae", "Tequatrovirus", "Tequatrovirus T4", "Escherichia phage T4"]
    assert tree.lineage("phage uno") == [
        "Duplodnaviria",
        "Caudoviricetes",
        "Casjensvirus",
        "Casjensvirus one",
        "phage uno",
    ]
    assert tree.find("Tequatrovirus").rank == "genus"
    assert tree.find("Caudoviricetes").evidence == f"vmr{suffix}, row 2"


def test_tables_that_are_none_of_the_ictv_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    (tmp_path / "a.xlsx").write_text("no workbook")
    for name in ("a.csv", "a.xlsx", "missing.csv"):
        with pytest.raises(InputError, match=name):
            read_ictv(tmp_path / name)


NODES = [
    (1, 1, "no rank"),
    (10239, 1, "superkingdom"),
    (2731619, 10239, "class"),
    (7, 2731619, "genus"),
    (8, 1, "genus"),
]
NAMES = [
    (1, "root", "", "scientific name"),
    (10239, "Viruses", "", "scientific name"),
    (10239, "Vira", "", "synonym"),
    (2731619, "Caudoviricetes", "", "scientific name"),
    (7, "Morus", "Morus <virus>", "scientific name"),
    (8, "Morus", "Morus <plant>", "scientific name"),
    (8, "Linnaeus 1753", "", "authority"),
]


def write_dump(directory):
    for name, rows in (("nodes.dmp", NODES), ("names.dmp", NAMES)):
        (directory / name).write_text("".join("\t|\t".join(map(str, row)) + "\t|\n" for row in rows))
    return directory


def test_ncbis_taxonomy(tmp_path):
    dump = read_taxdump(write_dump(tmp_path))
    assert dump.parents("VIRA") == [Claim("root", "NCBI:txid10239", "superkingdom")]
    assert dump.accepted(["vira", "nobody", "Morus"]) == ["Viruses", "nobody", "Morus"]
    assert dump.siblings("Caudoviricetes") == ["Morus <virus>"]
    tree = build_hierarchy(["Morus"], dump)
    assert [(d.kind, d.chosen, d.rejected) for d in tree.decisions] == [
        ("several_parents", "Caudoviricetes", ("root",))
    ]
    assert build_hierarchy(["Morus <plant>"], dump).lineage("morus <plant>") == ["root", "Morus <plant>"]
    with pytest.raises(hierarchy.UnknownNameError):
        dump.parents("Linnaeus 1753")


def test_a_taxdump_that_is_none_is_refused(tmp_path):
    with pytest.raises(InputError, match="nodes"):
        read_taxdump(tmp_path)
    write_dump(tmp_path)
    for name, text in (("names.dmp", "99\t|\tx\t|\t\t|\tscientific name\t|\n"), ("nodes.dmp", "1,1,no rank\n")):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=f"{name}, line 1"):
            read_taxdump(tmp_path)


def test_a_full_disk_is_said_where_the_tree_is_written(tmp_path, monkeypatch):
    from virnucpro.errors import DiskFullError

    def refuse(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(DiskFullError, match="no space"):
        write_tree(build_hierarchy(["a"], CallableResolver({}.get)), tmp_path / "tree.json")
    assert list(tmp_path.iterdir()) == []


def test_steps_can_be_taken_one_by_one():
    builder = HierarchyBuilder(["Tequatrovirus"], Counting())
    builder.climb()
    builder.reorganise()
    assert len(builder.tree().nodes) == 3


def test_the_examples_of_the_modules_are_true():
    assert doctest.testmod(hierarchy) == (0, 4)
    assert doctest.testmod(resolvers) == (0, 1)
