"""The head: published shape, safe file, clear errors."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from virnucpro.errors import ModelError
from virnucpro.heads import MLPHead, PackedHead, load_head, save_head


@pytest.fixture
def head() -> MLPHead:
    torch.manual_seed(3)
    head = MLPHead(6, 4)
    with torch.no_grad():
        head.bn1.running_mean.copy_(torch.randn(4))
        head.bn1.running_var.copy_(torch.rand(4) + 0.5)
    return head


def test_has_the_names_of_the_published_heads(head):
    layers = {name.split(".")[0] for name in head.state_dict()}
    assert layers == {"hidden_layer", "bn1", "output_layer"}


def test_scores_are_the_formula_written_out(head):
    features = torch.randn(5, 6)
    scores = head.scores(features)
    hidden = features @ head.hidden_layer.weight.T + head.hidden_layer.bias
    norm = head.bn1
    hidden = (hidden - norm.running_mean) / torch.sqrt(norm.running_var + norm.eps) * norm.weight + norm.bias
    logits = hidden.clamp(min=0) @ head.output_layer.weight.T + head.output_layer.bias
    assert scores.dtype == torch.float32
    assert torch.allclose(scores, torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True), atol=1e-6)
    assert torch.allclose(scores.sum(1), torch.ones(5))


def test_scores_do_not_depend_on_the_batch_nor_on_training_mode(head):
    features = torch.randn(5, 6)
    whole = head.scores(features)
    head.train()
    alone = torch.cat([head.scores(row[None]) for row in features])
    assert torch.allclose(whole, alone, atol=1e-6)


@pytest.mark.parametrize("widths", [(6,), (1, 5), (2, 4), (3, 2, 1)])
def test_packed_scores_of_the_parts_are_those_of_the_whole(head, widths):
    head.bn1.weight.data.uniform_(0.5, 2)
    head.bn1.bias.data.normal_()
    features = torch.randn(5, 6)
    packed = PackedHead(head, widths)
    assert torch.allclose(packed.scores(*features.split(widths, dim=1)), head.scores(features), atol=1e-6)
    halves = features.half().split(widths, dim=1)
    assert torch.equal(packed.scores(*halves), packed.scores(*(part.float() for part in halves)))


def test_saved_and_loaded_is_the_same(head, tmp_path: Path):
    path = tmp_path / "head.safetensors"
    save_head(path, head, {"note": "test"})
    loaded = load_head(path)
    features = torch.randn(3, 6)
    assert loaded.input_width == 6
    assert torch.equal(loaded.scores(features), head.scores(features))


def test_a_missing_file_is_a_model_error(tmp_path: Path):
    with pytest.raises(ModelError, match="no such head"):
        load_head(tmp_path / "absent.safetensors")


def test_a_truncated_file_is_a_model_error(head, tmp_path: Path):
    path = tmp_path / "head.safetensors"
    save_head(path, head, {})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ModelError, match="not a readable"):
        load_head(path)


def test_other_tensors_are_a_model_error(head, tmp_path: Path):
    path = tmp_path / "head.safetensors"
    save_file({"weight": torch.zeros(2, 2)}, path)
    with pytest.raises(ModelError, match="hidden_layer"):
        load_head(path)
    tensors = head.state_dict()
    tensors["output_layer.weight"] = torch.zeros(3, 4)
    save_file(tensors, path)
    with pytest.raises(ModelError, match="do not fit"):
        load_head(path)


def test_features_of_another_width_are_a_model_error(head):
    with pytest.raises(ModelError, match="width 6"):
        head.scores(torch.zeros(2, 7))
    with pytest.raises(ModelError, match="widths 3, 2"):
        PackedHead(head, (3, 2))
