"""Settings: defaults, then a file, then options; what makes no sense is refused by name."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from virnucpro.errors import UsageError
from virnucpro.settings import Settings, make_settings


@pytest.fixture
def settings_file(tmp_path):
    """Writes a settings file."""

    def write(text):
        path = tmp_path / "settings.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_without_file_and_options_there_are_the_defaults():
    """An option that was not given is None and changes nothing."""
    assert (
        make_settings(None, {}) == make_settings(None, {"runtime.threads": None, "science.model": None}) == Settings()
    )


def test_options_win_over_the_file_and_the_file_over_defaults(settings_file):
    """Setting by setting; what neither names stays as it was."""
    path = settings_file("science: {fragment_length: 300, threshold: 0.7}\nruntime: {threads: 4, device: cpu}\n")
    config = make_settings(path, {"runtime.threads": 2, "science.threshold": None, "layout.unit_rows": 7})
    assert (config.science.fragment_length, config.science.threshold) == (300, 0.7)
    assert (config.runtime.threads, config.runtime.device, config.layout.unit_rows) == (2, "cpu", 7)
    default = asdict(Settings())
    changed = asdict(config)
    differing = {f"{k}.{n}" for k, part in default.items() for n, value in part.items() if changed[k][n] != value}
    assert differing == {
        *("science.fragment_length", "science.threshold"),
        *("runtime.threads", "runtime.device", "layout.unit_rows"),
    }


def test_an_option_of_zero_or_false_is_given():
    """Only None is not."""
    assert make_settings(None, {"science.threshold": 0.0}).science.threshold == 0.0
    assert make_settings(None, {"runtime.loader_workers": 0, "runtime.parallel": False}).runtime.loader_workers == 0


def test_every_setting_can_be_given_in_a_file(settings_file):
    """The file takes what a configuration holds."""
    import yaml

    settings = Settings()
    assert make_settings(settings_file(yaml.safe_dump(asdict(settings))), {}) == settings


def test_an_option_that_decides_on_calls_wins_over_the_way_the_file_names(settings_file):
    """There are three ways and one is taken; the prevalence goes with any."""
    path = settings_file("science: {threshold: 0.7, prevalence: 0.1}")
    science = make_settings(path, {"science.fdr": 0.05}).science
    assert (science.fdr, science.threshold, science.preset, science.prevalence) == (0.05, None, None, 0.1)
    assert make_settings(path, {"science.prevalence": 0.2}).science.threshold == 0.7


@pytest.mark.parametrize(
    "options",
    [
        {"science.preset": "strict", "science.threshold": 0.5},
        {"science.preset": "strict", "science.fdr": 0.1},
        {"science.threshold": 0.0, "science.fdr": 0.0},
    ],
    ids=" ".join,
)
def test_two_ways_to_call_are_refused(options):
    """Neither is silently dropped."""
    with pytest.raises(UsageError, match="give one"):
        make_settings(None, options)


def test_null_in_a_file_is_not_given(settings_file):
    """As an option that was not given."""
    assert make_settings(settings_file("runtime: {threads: , gpus: null}"), {}) == Settings()


@pytest.mark.parametrize("limits", [{"low": 0.9, "high": 0.1}, {"low": 0.5}, {"high": 0.5}])
def test_limits_of_a_cascade_are_two_and_ascend(limits):
    options = {f"science.cascade_{name}": value for name, value in limits.items()}
    with pytest.raises(UsageError, match="two ascending probabilities"):
        make_settings(None, options | {"science.cascade": True})


def test_limits_need_a_cascade():
    with pytest.raises(UsageError, match="limits of a cascade"):
        make_settings(None, {"science.cascade_low": 0.1, "science.cascade_high": 0.9})


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "{}", "science: {}"])
def test_an_empty_file_changes_nothing(settings_file, text):
    """So that one can begin with comments."""
    assert make_settings(settings_file(text), {}) == Settings()


@pytest.mark.parametrize(
    ("text", "unknown", "meant"),
    [
        ("runtime: {thread: 4}", "runtime.thread", "runtime.threads"),
        ("runtimes: {threads: 4}", "runtimes.threads", "runtime.threads"),
        ("science: {fragmentlength: 300}", "science.fragmentlength", "science.fragment_length"),
    ],
)
def test_an_unknown_name_is_refused_with_what_may_have_been_meant(settings_file, text, unknown, meant):
    """A misspelt setting is never ignored."""
    with pytest.raises(UsageError, match=f"unknown setting {unknown}; did you mean {meant}"):
        make_settings(settings_file(text), {})


def test_a_name_like_no_other_is_refused_without_a_guess():
    """Of an option too."""
    with pytest.raises(UsageError, match=r"unknown setting zzz\.qqq\.$"):
        make_settings(None, {"zzz.qqq": 1})


@pytest.mark.parametrize(
    ("text", "name", "wanted"),
    [
        ("runtime: {threads: four}", "runtime.threads", "int"),
        ("runtime: {threads: 4.0}", "runtime.threads", "int"),
        ("runtime: {threads: true}", "runtime.threads", "int"),
        ("runtime: {parallel: 1}", "runtime.parallel", "bool"),
        ("science: {model: 300}", "science.model", "str"),
        ("science: {threshold: high}", "science.threshold", "float"),
        ("science: {threshold: true}", "science.threshold", "float"),
        ("runtime: {gpus: [0, 1]}", "runtime.gpus", "str"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(settings_file, text, name, wanted):
    """With the setting, what it takes and what was given."""
    with pytest.raises(UsageError, match=f"^{name}: expected {wanted}.*, got "):
        make_settings(settings_file(text), {})


def test_a_whole_number_may_stand_for_a_float(settings_file):
    """YAML writes 1.0 as 1."""
    assert make_settings(settings_file("science: {threshold: 1}"), {}).science.threshold == 1.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("science.fragment_length", 2),
        ("science.fragment_length", -300),
        ("science.dtype", "float64"),
        ("science.threshold", 1.01),
        ("science.threshold", float("nan")),
        ("science.preset", "loose"),
        ("science.fdr", 1.01),
        ("science.fdr", float("nan")),
        ("science.prevalence", 0.0),
        ("science.prevalence", 1.0),
        ("science.prevalence", float("nan")),
        ("layout.unit_rows", 0),
        ("runtime.threads", -1),
        ("runtime.merge_threads", -1),
        ("runtime.token_budget", 0),
        ("runtime.threads", 0),
        ("runtime.threads", 10**30),
        ("runtime.compile", "sometimes"),
        ("science.cascade_low", -0.1),
        ("runtime.batch_size", 0),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_name(name, value):
    """With the rule it breaks."""
    with pytest.raises(UsageError, match=f"^{name}: "):
        make_settings(None, {name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("science.fragment_length", 3),
        ("science.threshold", 0.0),
        ("science.threshold", 1.0),
        ("science.preset", "strict"),
        ("science.fdr", 0.0),
        ("science.prevalence", 1e-6),
        ("layout.unit_rows", 1),
        ("runtime.token_budget", 1),
        ("runtime.batch_size", 1),
    ],
)
def test_a_value_on_its_bound_is_taken(name, value):
    """The bounds belong to the range."""
    kind, _, key = name.partition(".")
    assert getattr(getattr(make_settings(None, {name: value}), kind), key) == value


@pytest.mark.parametrize(
    "text", ["science: {threshold: 0.5", "\tscience:", "a: b: c", b"\xff\xfe\x00science", "!!x:y {"]
)
def test_a_file_that_is_not_yaml_is_refused(settings_file, text):
    """With its name."""
    path = settings_file(text)
    with pytest.raises(UsageError, match="is not YAML") as caught:
        make_settings(path, {})
    assert str(path) in str(caught.value)


def test_a_file_cannot_ask_for_python_objects(settings_file, tmp_path):
    """It is data and runs nothing."""
    path = settings_file(f"science: !!python/object/apply:os.mkdir ['{tmp_path}/made']")
    with pytest.raises(UsageError, match="is not YAML"):
        make_settings(path, {})
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("text", ["- science", "threads: 4", "science: 3", "just words", "science:"])
def test_a_file_of_another_shape_is_refused_with_the_one_it_should_have(settings_file, text):
    """Settings stand below their kind."""
    with pytest.raises(UsageError, match="expected 'science:', 'layout:' and 'runtime:'"):
        make_settings(settings_file(text), {})


def test_a_missing_file_is_refused(tmp_path):
    """With its name; a folder too."""
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UsageError, match=str(path)):
            make_settings(path, {})
