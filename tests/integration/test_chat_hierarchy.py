"""A chat endpoint that is slow, busy, wrong or talks nonsense, asked over HTTP on this machine; and the command."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import start

from virnucpro.errors import UsageError
from virnucpro.hierarchy import (
    AnswerCache,
    BusyError,
    ChatResolver,
    NonsenseError,
    build_hierarchy,
    read_tree,
)
from virnucpro.parallel import RateLimit, Retry

KEY = "sk-secret-0123456789"
ABOVE = {"Tequatrovirus": "Straboviridae", "Dhakavirus": "Straboviridae", "Straboviridae": "Caudoviricetes"}
AGAIN = Retry(attempts=4, first_wait_seconds=0.01, on=(BusyError, NonsenseError))


class Chat(ThreadingHTTPServer):
    """Answers as a chat model would.

    Attributes:
        answers: of each name, what comes instead of its first answers: a status, or the text of the model.
        requests: (name or names asked about, headers) of each.
        most: requests that were under way at the same time.
        gate: requests wait for it.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.answers, self.requests, self.starts = {}, [], []
        self.now = self.most = 0
        self.seconds = 0.0
        self.gate = threading.Event()
        self.gate.set()
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def asked(self):
        return Counter(name for name, _ in self.requests)


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Say nothing."""

    def do_POST(self):
        server = self.server
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][1]["content"]
        subject, kind = self.subject(question)
        with server.lock:
            server.requests.append((str(subject), dict(self.headers)))
            server.starts.append(time.monotonic())
            server.now += 1
            server.most = max(server.most, server.now)
            planned = server.answers.get(subject if isinstance(subject, str) else "batch", [])
            special = planned.pop(0) if planned else None
        server.gate.wait(30)
        time.sleep(server.seconds)
        with server.lock:
            server.now -= 1
        if isinstance(special, int):
            self.reply(special, f"Incorrect API key provided: {KEY}".encode())
        elif special is not None:
            self.reply(200, special.encode())
        else:
            self.reply(200, envelope(json.dumps(self.content(kind, subject))))

    @staticmethod
    def subject(question):
        kinds = {"Which names": "siblings", "What is the accepted": "accepted", "Each pair": "evidence"}
        kind = next((kind for begin, kind in kinds.items() if question.startswith(begin)), "parents")
        text = question
        first = min(place for place in (text.find('"'), text.find("[")) if place >= 0)
        return json.JSONDecoder().raw_decode(text[first:])[0], kind

    @staticmethod
    def content(kind, subject):
        if kind == "parents":
            above = ABOVE.get(subject)
            parents = [{"name": above, "evidence": "ICTV", "confidence": 0.9}] if above else []
            return {"known": subject != "nobody", "rank": "genus", "parents": parents}
        if kind == "siblings":
            return {"names": [name for name, above in ABOVE.items() if above == subject]}
        if kind == "accepted":
            return {"names": subject}
        return {"claims": [{"parent": parent, "evidence": f"seen: {name}"} for name, parent in subject]}

    def reply(self, status, body):
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", "0.02")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # who asked may have been interrupted
            self.wfile.write(body)


def envelope(content):
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()


@pytest.fixture
def chat(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = Chat()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.gate.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def resolver(chat):
    with ChatResolver(chat.url, "made-up", timeout_seconds=30) as made:
        yield made


def test_a_tree_by_asking_a_model(chat, resolver):
    tree = build_hierarchy(["Tequatrovirus", "nobody"], resolver, with_siblings=True, with_evidence=True)
    assert tree.lineage("Dhakavirus") == ["Caudoviricetes", "Straboviridae", "Dhakavirus"]
    assert tree.find("Tequatrovirus").evidence == "seen: Tequatrovirus"
    assert [(decision.kind, decision.name) for decision in tree.decisions] == [("unknown", "nobody")]
    assert {headers["Authorization"] for _, headers in chat.requests} == {f"Bearer {KEY}"}


def test_requests_of_a_level_run_together_and_no_more_than_asked(chat, resolver):
    """The server waits until three are there, so one after the other would never end."""
    chat.gate.clear()

    def open_when_three():
        while chat.now < 3:
            time.sleep(0.001)
        chat.gate.set()

    threading.Thread(target=open_when_three, daemon=True).start()
    build_hierarchy([f"virus {number}" for number in range(9)], resolver, max_concurrent=3)
    assert chat.most == 3


def test_requests_a_minute_are_limited(chat, resolver):
    build_hierarchy([f"virus {n}" for n in range(5)], resolver, rate_limit=RateLimit(2, 0.1), batch_size=100)
    assert len(chat.starts) == 6
    assert max(chat.starts) - min(chat.starts) >= 0.15, "two at once, two after 0.1 s, two after 0.2 s"


@pytest.mark.parametrize(
    "trouble", [429, 500, 503, "<html>", envelope("I think so").decode(), envelope("[1]").decode()]
)
def test_trouble_that_passes_changes_nothing(chat, resolver, trouble):
    chat.answers = {"Tequatrovirus": [trouble, trouble], "batch": [trouble]}
    tree = build_hierarchy(["Tequatrovirus"], resolver, retry=AGAIN)
    assert tree.lineage("Tequatrovirus") == ["Caudoviricetes", "Straboviridae", "Tequatrovirus"]
    assert tree.decisions == ()
    assert chat.asked()["Tequatrovirus"] == 3


@pytest.mark.parametrize(
    "content",
    [
        *("{}", "null", "", "[" * 100_000, "```json\nnothing\n```", '{"parents": 7}', '{"parents": [7]}'),
        '{"parents": [{"name": null}]}',
        '{"parents": [{"name": "x", "confidence": "?"}]}',
        '{"parents": [{"name": "x", "confidence": 9}]}',
    ],
    ids=range(10),
)
def test_nonsense_that_stays_is_one_failed_question(chat, resolver, content):
    chat.answers = {"Dhakavirus": [envelope(content).decode()] * 4}
    tree = build_hierarchy(["Dhakavirus", "Tequatrovirus"], resolver, retry=AGAIN)
    assert [(decision.kind, decision.name) for decision in tree.decisions] == [("failed", "Dhakavirus")]
    assert tree.lineage("Tequatrovirus") == ["Caudoviricetes", "Straboviridae", "Tequatrovirus"]


def test_json_in_a_block_of_code_is_understood(chat, resolver):
    chat.answers = {"x": [envelope('```json\n{"parents": [{"name": "y"}]}\n```').decode()]}
    assert build_hierarchy(["x"], resolver).lineage("x") == ["y", "x"]


def test_a_model_in_a_loop_comes_to_an_end(chat, resolver, monkeypatch):
    monkeypatch.setitem(ABOVE, "Caudoviricetes", "Tequatrovirus")
    tree = build_hierarchy(["Tequatrovirus"], resolver)
    assert [decision.kind for decision in tree.decisions] == ["circle"]
    assert chat.asked()["Tequatrovirus"] == 1


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_key_ends_the_build_at_once(chat, resolver, status):
    chat.answers = {f"virus {number}": [status] for number in range(1000)}
    with pytest.raises(UsageError, match=str(status)) as raised:
        build_hierarchy([f"virus {number}" for number in range(1000)], resolver, retry=AGAIN, max_concurrent=2)
    assert KEY not in str(raised.value)
    assert len(chat.requests) < 1000


def test_an_endpoint_that_is_not_there_is_a_failed_question():
    with ChatResolver("http://127.0.0.1:9/v1", "m") as resolver:
        tree = build_hierarchy(["a"], resolver, retry=AGAIN)
    assert "cannot be reached" in tree.decisions[0].reason


def test_a_silent_endpoint_is_given_up(chat):
    chat.gate.clear()
    with ChatResolver(chat.url, "m", timeout_seconds=0.05) as resolver:
        tree = build_hierarchy(["a"], resolver)
    assert "cannot be reached" in tree.decisions[0].reason


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/v1", "http://user:pw@x/v1", "http://x/v1?key=1", ""])
def test_addresses_that_are_none_are_refused(url):
    with pytest.raises(UsageError, match="address"):
        ChatResolver(url, "m")


def test_the_key_is_nowhere(chat, resolver, tmp_path, caplog, monkeypatch):
    """Not in logs of any level, errors, the cache or the tree, even where the server repeats it."""
    monkeypatch.setattr(logging.getLogger("virnucpro"), "propagate", True)
    caplog.set_level(logging.DEBUG)
    chat.answers = {"a": [429, 500, 429, 500], "b": [500, 418]}
    with AnswerCache(tmp_path) as cache:
        tree = build_hierarchy("abc", resolver, cache=cache, retry=AGAIN)
    assert [decision.kind for decision in tree.decisions] == ["failed", "failed"]
    files = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert KEY not in caplog.text + repr(tree) + repr(resolver) + str(vars(resolver))
    assert KEY.encode() not in files


def test_the_command_asks_a_model_and_a_second_time_nobody(chat, virnucpro, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "other")
    (tmp_path / "names.txt").write_text("Tequatrovirus\n\nDhakavirus\n")
    command = ("hierarchy", tmp_path / "names.txt", "--chat", chat.url, "--chat-model", "m", "--key-variable", "MY_KEY")
    command += ("--cache", tmp_path / "cache", "--requests-per-minute", "1000", "--siblings", "--evidence")
    ended = virnucpro(*command, "-o", tmp_path / "tree.json")
    assert (ended.code, ended.err.count("Error")) == (0, 0)
    assert "4 names, 1 roots" in ended.out
    assert {headers["Authorization"] for _, headers in chat.requests} == {"Bearer other"}
    asked = len(chat.requests)
    assert virnucpro(*command, "-o", tmp_path / "again.json").code == 0
    assert len(chat.requests) == asked
    assert read_tree(tmp_path / "again.json") == read_tree(tmp_path / "tree.json")


def test_the_command_says_what_failed_and_ends_with_5(chat, virnucpro, tmp_path):
    chat.answers = {"a": [418]}
    (tmp_path / "names.txt").write_text("a\nb\n")
    command = ("hierarchy", tmp_path / "names.txt", "-o", tmp_path / "t.tsv", "--chat", chat.url, "--chat-model", "m")
    ended = virnucpro(*command, "-q")
    assert (ended.code, ended.out) == (5, "")
    assert "t.decisions.tsv" in ended.err
    assert (tmp_path / "t.decisions.tsv").read_text().splitlines()[1].split("\t")[:2] == ["failed", "a"]
    assert virnucpro(*command).code == 0
    chat.answers = {"a": [401]}
    ended = virnucpro(*command)
    assert (ended.code, KEY in ended.err) == (2, False)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ((), 2, "say who is asked"),
        (("--table", "a", "--ictv", "b"), 2, "say who is asked"),
        (("--chat", "http://x"), 2, "belong together"),
        (("--table", "missing.tsv"), 3, "missing.tsv"),
    ],
)
def test_the_command_refuses_what_it_cannot_follow(virnucpro, tmp_path, options, code, message):
    (tmp_path / "names.txt").write_text("a\n")
    ended = virnucpro("hierarchy", tmp_path / "names.txt", "-o", tmp_path / "t.json", *options)
    assert ended.code == code
    assert message in ended.err
    assert len(ended.err.strip().splitlines()) == 1


def test_the_command_refuses_files_without_names(virnucpro, tmp_path):
    (tmp_path / "table.tsv").write_text("name\tparent\na\tb\n")
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    for name in ("empty.txt", "binary.txt", "missing.txt"):
        ended = virnucpro("hierarchy", tmp_path / name, "-o", tmp_path / "t.json", "--table", tmp_path / "table.tsv")
        assert (ended.code, name in ended.err) == (3, True)
    (tmp_path / "names.txt").write_text("a\n")
    ended = virnucpro("hierarchy", tmp_path / "names.txt", "-o", tmp_path / "t.xml", "--table", tmp_path / "table.tsv")
    assert ended.code == 2


def test_an_interrupt_does_not_wait_for_the_server(chat, tmp_path):
    chat.gate.clear()
    (tmp_path / "names.txt").write_text("a\nb\n")
    program = start(
        *("hierarchy", tmp_path / "names.txt", "-o", tmp_path / "t.json", "--chat", chat.url, "--chat-model", "m")
    )
    while not chat.requests:
        assert program.poll() is None, program.stderr.read()
        time.sleep(0.01)
    program.send_signal(signal.SIGINT)
    assert program.wait(timeout=20) == 130
    assert "Interrupted" in program.stderr.read()
