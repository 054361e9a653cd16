"""Bundles: what is missing or does not fit is named before any work, and the fingerprint is what makes scores."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file
from safetensors.torch import save_file
from tiny_models import random_head

from virnucpro.bundles import load_bundle
from virnucpro.bundles.bundle import cache_dir, find_bundle
from virnucpro.encoders import read_config
from virnucpro.errors import ModelError
from virnucpro.heads import load_head, save_head
from virnucpro.settings import PRESETS


@pytest.fixture
def folder(tiny_bundle, tmp_path):
    """A bundle of one's own to damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def change(folder, **settings):
    """Set settings of ``bundle.yaml``; None drops one."""
    path = folder / "bundle.yaml"
    content = yaml.safe_load(path.read_text()) | settings
    path.write_text(yaml.safe_dump({name: value for name, value in content.items() if value is not None}))


def calibration(folder, **settings):
    """Set parts of the calibration; None drops one."""
    line = yaml.safe_load((folder / "bundle.yaml").read_text())["calibration"] | settings
    change(folder, calibration={name: value for name, value in line.items() if value is not None})


def refused(folder, *named):
    """The error of loading it: a ``ModelError`` with exit code 6 that names each of ``named``."""
    with pytest.raises(ModelError) as caught:
        load_bundle(str(folder))
    assert caught.value.exit_code == 6
    for name in named:
        assert str(name) in str(caught.value)


def test_a_bundle_is_what_its_file_says(folder):
    """Settings, and files by their roles."""
    bundle = load_bundle(str(folder))
    assert (bundle.name, bundle.folder, bundle.fragment_length, bundle.min_length) == ("tiny", folder, 300, 0)
    assert (bundle.scores_frameless, bundle.row_rule, bundle.threshold) == (False, "max", 0.5)
    assert bundle.encoder("nucleotide") == folder / "nucleotide.safetensors"
    assert bundle.encoder("protein") == folder / "protein.safetensors"
    assert bundle.head == folder / "head.safetensors"
    assert set(bundle.digests) == {"nucleotide", "protein", "head"}
    change(folder, frameless="score", rows="mean")
    assert (load_bundle(str(folder)).scores_frameless, load_bundle(str(folder)).row_rule) == (True, "mean")


def test_the_bundled_model_is_whole():
    """``lite`` needs nothing but this package."""
    bundle = load_bundle("lite")
    assert bundle.name == "lite"
    assert set(bundle.presets) == set(PRESETS)
    widths = [read_config(bundle.encoder(role)).width for role in ("nucleotide", "protein")]
    assert load_head(bundle.head).input_width == sum(widths)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    """With the models there are."""
    refused(tmp_path / "none", tmp_path / "none", "lite", "300", "500")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", tmp_path / "file")


@pytest.mark.parametrize("name", ["bundle.yaml", "nucleotide.safetensors", "protein.safetensors", "head.safetensors"])
def test_a_missing_file_is_named(folder, name):
    """Whichever of the four it is."""
    (folder / name).unlink()
    refused(folder, folder / name, "missing")


@pytest.mark.parametrize(
    "key",
    [
        *("schema", "name", "fragment_length", "min_length", "frameless", "rows", "nucleotide", "protein", "head"),
        *("threshold", "calibration"),
    ],
)
def test_a_missing_setting_is_named(folder, key):
    """None has a silent default."""
    change(folder, **{key: None})
    refused(folder, folder / "bundle.yaml", key)


@pytest.mark.parametrize("key", ["lengths", "slope", "intercept", "exponent"])
def test_a_missing_part_of_the_calibration_is_named(folder, key):
    """All four make the line."""
    calibration(folder, **{key: None})
    refused(folder, folder / "bundle.yaml", key)


def test_another_schema_is_refused(folder):
    """Both numbers are named."""
    change(folder, schema=2)
    refused(folder, folder / "bundle.yaml", "schema 2", "reads 1")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"frameless": "maybe"}, "frameless"),
        ({"rows": "median"}, "rows"),
        ({"repetitive": "drop"}, "repetitive"),
        ({"fragment_length": "long"}, "fragment_length"),
        ({"threshold": [0.5]}, "cannot be understood"),
        ({"calibration": 3}, "cannot be understood"),
        ({"presets": [0.5, 0.9]}, "cannot be understood"),
        ({"presets": {"strict": [0.5, 0.9]}}, "presets"),
        ({"presets": {name: [0.9, 0.5] for name in PRESETS}}, "presets"),
        ({"presets": {name: [0.9] for name in PRESETS}}, "cannot be understood"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(folder, settings, named):
    """With the file it stands in."""
    change(folder, **settings)
    refused(folder, folder / "bundle.yaml", named)


@pytest.mark.parametrize(
    "text", ["", "- a list", "just words", "{", "schema: 1\nname: !!python/object/apply:os.getcwd []"]
)
def test_a_file_of_another_shape_is_refused(folder, text):
    """And nothing in it is run."""
    (folder / "bundle.yaml").write_text(text)
    refused(folder, folder / "bundle.yaml")


def test_a_head_of_another_width_is_refused(folder):
    """With the width it takes and those the encoders give."""
    save_head(folder / "head.safetensors", random_head(60, 16, seed=0), {})
    refused(folder, "60 wide", "nucleotide 24", "protein 32")


def test_encoders_in_each_others_place_are_refused(folder):
    """Though their widths add up to the same."""
    change(folder, nucleotide="protein.safetensors", protein="nucleotide.safetensors")
    refused(folder, folder / "protein.safetensors", "reads aa", "its place is for nt")


@pytest.mark.parametrize("name", ["nucleotide.safetensors", "protein.safetensors", "head.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no safetensors at all"])
def test_a_damaged_file_is_named(folder, name, content):
    """Before any work is done with it."""
    (folder / name).write_bytes(content)
    refused(folder, folder / name)


def test_a_file_that_is_no_head_is_refused(folder):
    """An encoder in the head's place."""
    change(folder, head="protein.safetensors")
    refused(folder, folder / "protein.safetensors", "head")


def test_the_fingerprint_is_that_of_the_content(folder, tmp_path):
    """Not of the place."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert load_bundle(str(copy)).fingerprint == load_bundle(str(folder)).fingerprint


@pytest.mark.parametrize("role", ["nucleotide", "protein", "head"])
def test_the_fingerprint_changes_with_one_weight(folder, role):
    """Of any of the three files."""
    before = load_bundle(str(folder))
    path = folder / f"{role}.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    after = load_bundle(str(folder))
    assert after.fingerprint != before.fingerprint
    assert {name for name in before.digests if after.digests[name] != before.digests[name]} == {role}


@pytest.mark.parametrize(
    "part",
    [{"slope": [1.01]}, {"intercept": [0.1]}, {"exponent": 0.4}, {"lengths": [301]}],
    ids=lambda part: str(*part),
)
def test_the_fingerprint_changes_with_the_calibration(folder, part):
    """It changes probabilities."""
    before = load_bundle(str(folder)).fingerprint
    calibration(folder, **part)
    assert load_bundle(str(folder)).fingerprint != before


@pytest.mark.parametrize(
    "settings",
    [{"fragment_length": 301}, {"min_length": 1}, {"frameless": "score"}, {"rows": "mean"}, {"repetitive": "doubt"}],
    ids=lambda settings: str(*settings),
)
def test_the_fingerprint_changes_with_the_rules(folder, settings):
    """Whatever changes rows or scores."""
    before = load_bundle(str(folder)).fingerprint
    change(folder, **settings)
    assert load_bundle(str(folder)).fingerprint != before


def test_the_fingerprint_does_not_change_with_thresholds(folder):
    """They change calls, and no score: a run goes on with others."""
    before = load_bundle(str(folder))
    assert before.presets == {}
    change(folder, threshold=0.7, presets={"sensitive": [0.5, 0.6], "balanced": [0.5, 0.9], "strict": [0.5, 0.99]})
    after = load_bundle(str(folder))
    assert after.fingerprint == before.fingerprint
    assert after.rules.thresholds("balanced") == (0.5, 0.9)
    assert before.rules.thresholds("balanced") == (0.5, 0.5)


def test_the_fingerprint_does_not_change_with_prose(folder):
    """Nor with the order of settings, comments, and names of files."""
    before = load_bundle(str(folder)).fingerprint
    change(folder, name="another", provenance={"weights": "told at length"})
    (folder / "head.safetensors").rename(folder / "other.safetensors")
    change(folder, head="other.safetensors")
    content = yaml.safe_load((folder / "bundle.yaml").read_text())
    text = yaml.safe_dump(dict(reversed(content.items())), sort_keys=False)
    (folder / "bundle.yaml").write_text(f"# a remark\n{text}")
    assert load_bundle(str(folder)).fingerprint == before


def test_a_head_of_the_same_weights_is_the_same_head(folder):
    """Writing it again does not change who it is."""
    before = load_bundle(str(folder)).digests
    head = load_head(folder / "head.safetensors")
    save_head(folder / "head.safetensors", head, {})
    assert load_bundle(str(folder)).digests == before
    tensors = load_file(folder / "head.safetensors")
    assert all(np.array_equal(tensors[name], value.numpy()) for name, value in head.state_dict().items())


@pytest.mark.parametrize(
    "line",
    [
        "fragment_length: 1e300",
        "fragment_length: -5",
        "threshold: .nan",
        "min_length: {}",
        "calibration: 3",
        "presets: [1]",
        "provenance: " + "[" * 5000,
    ],
)
def test_a_setting_that_no_model_has_is_refused(folder, line):
    """As a model that cannot be understood, whatever is in it."""
    path = folder / "bundle.yaml"
    name = line.split(":")[0]
    lines = [kept for kept in path.read_text().splitlines() if not kept.startswith(f"{name}:")]
    path.write_text("\n".join([*lines, line]) + "\n")
    refused(str(folder), "cannot be understood")


def test_a_bundle_that_would_block_is_refused(folder):
    """A FIFO in the place of its settings is not waited for."""
    (folder / "bundle.yaml").unlink()
    os.mkfifo(folder / "bundle.yaml")
    refused(str(folder), "not a plain file")


def test_without_a_home_nothing_is_kept_and_nothing_raises(monkeypatch):
    """As of a user in a container that has no entry in the table of users."""
    for name in ("VIRNUCPRO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what it gives where there is no home
    assert not cache_dir().exists()
    with pytest.raises(ModelError, match="is not on this machine"):
        load_bundle("500")


def test_models_are_kept_where_the_user_says(folder, tmp_path, monkeypatch):
    """``VIRNUCPRO_CACHE`` first, then the user's cache folder; published models are found there."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("VIRNUCPRO_CACHE", raising=False)
    assert cache_dir() == tmp_path / "home" / ".cache" / "virnucpro"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "virnucpro"
    monkeypatch.setenv("VIRNUCPRO_CACHE", "")
    assert cache_dir() == tmp_path / "xdg" / "virnucpro"
    monkeypatch.setenv("VIRNUCPRO_CACHE", str(tmp_path / "models"))
    assert cache_dir() == tmp_path / "models"
    refused("500", tmp_path / "models" / "downloads", "--model lite")
    shutil.copytree(folder, tmp_path / "models" / "bundles" / "500")
    assert find_bundle("500") == tmp_path / "models" / "bundles" / "500"
    assert load_bundle("500").fingerprint == load_bundle(str(folder)).fingerprint


def test_a_head_without_its_hidden_layer_is_refused(folder):
    """Read from the header alone."""
    import torch

    save_file({"weight": torch.zeros(2, 2)}, folder / "head.safetensors")
    refused(folder, folder / "head.safetensors", "hidden_layer.weight")
