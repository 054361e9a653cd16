"""Devices: which ones, what is set on them, and what is tried before it is relied on. Cards are emulated here."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from virnucpro.bundles import load_bundle
from virnucpro.encoders import load_encoder
from virnucpro.encoders.attention import dense_attention, first_that_works
from virnucpro.encoders.device import choose_devices, describe, is_out_of_memory, prepare, visible_devices
from virnucpro.encoders.runner import _copy
from virnucpro.engine.batch import PackedBatch
from virnucpro.errors import UsageError
from virnucpro.executors.base import Kept, Worker
from virnucpro.run_dir import RunDir
from virnucpro.stages.base import ROLES
from virnucpro.stages.embed import EmbedSettings, EmbedWork, hand_out_order, notes, usual_token_budget

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda", 0), torch.device("mps")
GIB = 1 << 30


@dataclass
class RecordedTensor:
    """A tensor of another device, as far as copies go: writes down whether they were waited for."""

    non_blocking: list[bool] = field(default_factory=list)
    is_cuda: bool = False

    def __len__(self):
        return 3

    def __getitem__(self, place):
        del place
        return self

    def to(self, device, non_blocking=False):
        del device
        self.non_blocking.append(non_blocking)
        return self

    def copy_(self, other, non_blocking=False):
        del other
        self.non_blocking.append(non_blocking)


@pytest.fixture
def card(monkeypatch):
    """A card of 80 GiB as PyTorch's questions see it; this machine's settings are as before afterwards."""
    properties = SimpleNamespace(name="Card 80", total_memory=80 * GIB, major=9, minor=0)
    cudnn = torch.backends.cuda.cudnn_sdp_enabled()
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: setattr(properties, "chosen", device))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 6 * GIB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: pytest.fail("free memory differs from call to call"))
    yield properties
    torch.backends.cuda.enable_cudnn_sdp(cudnn)


@pytest.mark.parametrize(("device", "expected"), [(MPS, False), (CPU, False), (CUDA, True)])
def test_a_batch_is_copied_without_waiting_only_where_an_event_is_waited_for(device, expected):
    """On Apple's devices it was read before it was there."""
    tensor = RecordedTensor()
    PackedBatch(None, tensor, tensor, (3,)).to(device)
    assert tensor.non_blocking == [expected] * 2


def test_embeddings_are_copied_without_waiting_only_on_a_stream():
    host = RecordedTensor()
    _copy([RecordedTensor()], host)
    _copy([RecordedTensor()], host, stream=object())
    assert host.non_blocking == [False, True]


def test_a_card_is_prepared_before_its_first_kernel(card, monkeypatch, caplog):
    """Float32 means float32; no attention that plans every new shape; the log says what overrides."""
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    torch.set_float32_matmul_precision("high")
    prepare(CUDA)
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert card.chosen == CUDA
    assert "NVIDIA_TF32_OVERRIDE=1 is set" in caplog.text
    assert describe(CUDA) | {"name": "Card 80", "memory_gib": 80.0, "capability": "9.0"} == describe(CUDA)


def test_batches_follow_from_the_kind_of_card_and_not_from_what_is_free(card):
    """The same input is cut into the same batches on a card that others use too."""
    encoder = SimpleNamespace(kind="esm2", width=2560)
    assert usual_token_budget(encoder, CUDA, "bfloat16") == 65_536
    card.total_memory = 12 * GIB
    assert usual_token_budget(encoder, CUDA, "bfloat16") < 65_536


def attend(query, key, value, batch):
    return dense_attention(query, key, value, batch.runs())


def not_built():
    raise ImportError("libcudart.so.11: cannot open shared object file")


def unsupported(*_):
    raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")


def wrong(query, key, value, batch):
    return attend(query, key, value, batch).flip(0)


@pytest.mark.parametrize(
    ("kernels", "chosen", "said"),
    [
        ({"good": lambda: attend}, attend, ""),
        ({"old": not_built, "good": lambda: attend}, attend, "attention of old does not work"),
        ({"old": lambda: unsupported}, None, "attention of old does not work"),
        ({"odd": lambda: wrong}, None, "attention of odd on cpu is wrong"),
        ({}, None, ""),
    ],
)
def test_an_attention_kernel_is_used_only_where_it_works(kernels, chosen, said, caplog):
    """A package for other cards, or too old, costs one line and not the run."""
    with caplog.at_level(logging.INFO):
        name, kernel = first_that_works(kernels.items(), CPU, torch.float32, 2, 8)
    assert kernel is chosen
    assert name == ("good" if chosen else "dense, length by length")
    assert said in caplog.text


def test_what_is_no_lack_of_memory_is_not_taken_for_one():
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_cards_are_numbered_as_nvidia_smi_numbers_them(monkeypatch):
    """Before anything asks CUDA, which would number the fastest one first."""
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    choose_devices("cpu")
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_a_named_card_is_the_only_one_that_workers_see(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")))
    assert choose_devices(gpus="GPU-1f, MIG-2e") == ["cuda:0", "cuda:1"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-1f,MIG-2e"


@pytest.mark.parametrize(
    ("gpus", "visible", "num", "expected"),
    [
        ("2,3", None, 4, ["cuda:2", "cuda:3"]),
        ("3", "3,2", 2, ["cuda:0"]),
        ("2, 3", "3,2", 2, ["cuda:1", "cuda:0"]),
        ("0", "0", 1, ["cuda:0"]),
        ("GPU-1f-2", "GPU-0a,GPU-1f-2", 2, ["cuda:1"]),
        ("MIG-7c/1/0, 3", "3,MIG-7c/1/0", 2, ["cuda:1", "cuda:0"]),
    ],
)
def test_gpus_are_numbers_of_nvidia_smi_or_names(gpus, visible, num, expected):
    assert visible_devices(gpus, visible, num) == expected


@pytest.mark.parametrize(
    ("gpus", "visible", "num"),
    [
        ("4", None, 4),
        ("0", "3,2", 2),
        ("1,1", None, 2),
        ("a", None, 2),
        ("", None, 2),
        ("0", "", 0),
        ("2", "0,1,2", 2),
        ("GPU-1f", "GPU-2e", 1),
        ("GPU-1f", None, 1),
    ],
)
def test_a_gpu_that_is_not_there_is_refused(gpus, visible, num):
    with pytest.raises(UsageError, match=r"--gpus|GPU"):
        visible_devices(gpus, visible, num)


def test_cpu_is_always_there_and_the_choice_is_logged(caplog):
    with caplog.at_level(logging.INFO):
        assert choose_devices("cpu") == ["cpu"]
    assert "--device cpu" in caplog.text
    for device, gpus in (("cpu", "0"), ("cuda:99", None), ("tpu", None)):
        with pytest.raises(UsageError, match="--device"):
            choose_devices(device, gpus)


def test_compiled_kernels_are_kept_in_the_programs_cache(tmp_path, monkeypatch):
    """Where the next run finds them, unless the user named another place; a note says how this worker computes."""
    monkeypatch.setenv("VIRNUCPRO_CACHE", str(tmp_path / "cache"))
    for given, expected in (("", tmp_path / "cache" / "inductor"), ("/scratch/kernels", Path("/scratch/kernels"))):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", given)
        if not given:
            monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
        work = EmbedWork(RunDir(tmp_path), load_bundle("lite"), "float32", EmbedSettings({}, 0))
        with Kept() as kept:
            assert list(work.embeddings([], dict.fromkeys(ROLES), Worker(0, "cpu", 1, kept=kept))) == []
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(expected)
    (how,) = notes(RunDir(tmp_path))
    assert "cpu in float32; nucleotide: six_frame_profiles, batches of 65,536 tokens" in how


def test_small_encoders_keep_float32_whatever_is_asked_for():
    """They compute in it, on a card too."""
    encoder = load_encoder(load_bundle("lite").nucleotide, CPU, torch.bfloat16)
    assert {tensor.dtype for tensor in encoder.network.parameters()} == {torch.float32}


def test_the_last_units_are_handed_out_largest_first():
    """So that all devices end together."""
    assert hand_out_order([3, 4, 5, 6, 7], [9, 1, 2, 5, 3], tail=3) == [3, 4, 6, 7, 5]
    assert hand_out_order([3, 4], [1, 2], tail=8) == [4, 3]
