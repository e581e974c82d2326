"""The memory of the detectors' networks, shown on small networks in a folder of weights made here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from annotators.networks import NetworkCache, find_weights
from core.errors import CheckpointMismatch, WeightsMissing


class Small(nn.Module):
    """A convolution with a normalisation, 4 * wide floats and a little more."""

    def __init__(self, wide: int = 256) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, wide, 1)
        self.norm = nn.BatchNorm2d(wide)


def build(metadata: Mapping[str, str]) -> Small:
    return Small(int(metadata.get("wide", 256)))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONTROLNET_CKPTS", str(tmp_path))
    return tmp_path


def write(folder: Path, name: str, net: nn.Module, prefix: str = "", **extra: torch.Tensor) -> None:
    state = {prefix + key: value for key, value in net.state_dict().items()}
    torch.save(state | extra, folder / name)


def cache(budget_bytes: int = 10**6) -> NetworkCache:
    made = NetworkCache(budget_bytes)
    made.configure(device="cpu", dtype="float32")
    return made


def test_a_network_is_loaded_once_and_holds_the_files_weights(folder: Path) -> None:
    torch.manual_seed(0)
    net = Small()
    write(folder, "upernet_global_small.pth", net)
    networks = cache()
    loaded = networks.get("uniformer", build)
    assert networks.get("uniformer", build) is loaded and "uniformer" in networks
    assert torch.equal(loaded.conv.weight, net.conv.weight) and not loaded.conv.weight.requires_grad
    assert not loaded.training
    assert loaded.norm(loaded.conv(torch.zeros(1, 1, 2, 2))).isfinite().all()


def test_prefixes_renames_and_keys_without_use_are_seen_to(folder: Path) -> None:
    net = Small()
    write(folder, "upernet_global_small.pth", net, "module.x.", **{"module.aux.w": torch.zeros(1)})
    loaded = cache().get(
        "uniformer", build, key_of=lambda key: f"x.{key}", ignored=lambda key: key.startswith("aux.")
    )
    assert torch.equal(loaded.state_dict()["conv.bias"], net.state_dict()["conv.bias"])


def test_a_file_without_the_batch_counters_loads(folder: Path) -> None:
    net = Small()
    state = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, folder / "upernet_global_small.pth")
    loaded = cache().get("uniformer", build)
    assert loaded.norm.num_batches_tracked is not None and not loaded.norm.num_batches_tracked.is_meta


def test_metadata_says_how_large_the_network_is(folder: Path) -> None:
    save_file(Small(8).state_dict(), folder / "upernet_global_small.pth", {"wide": "8"})
    assert cache().get("uniformer", build).conv.out_channels == 8


def test_the_network_longest_unused_makes_room(folder: Path) -> None:
    for file in ("upernet_global_small.pth", "body_pose_model.pth", "hand_pose_model.pth"):
        write(folder, file, Small())
    networks = cache(budget_bytes=2 * 6 * 256 * 4 + 100)  # two of them
    networks.get("uniformer", build)
    networks.get("openpose_body", build)
    networks.get("uniformer", build)
    networks.get("openpose_hand", build)
    assert "openpose_body" not in networks
    assert "uniformer" in networks and "openpose_hand" in networks


def test_one_network_is_kept_however_large(folder: Path) -> None:
    write(folder, "upernet_global_small.pth", Small())
    networks = cache(budget_bytes=1)
    networks.get("uniformer", build)
    assert "uniformer" in networks


def test_half_precision_is_taken_only_where_it_is_allowed(folder: Path) -> None:
    write(folder, "upernet_global_small.pth", Small())
    networks = NetworkCache()
    networks.configure(device="cpu", dtype="bfloat16")
    assert networks.get("uniformer", build).conv.weight.dtype == torch.bfloat16
    assert networks.get("uniformer", build, half=False).conv.weight.dtype == torch.float32


def test_missing_weights_are_named_with_size_licence_and_command(folder: Path) -> None:
    with pytest.raises(WeightsMissing) as caught:
        cache().get("openpose_body", build)
    text = str(caught.value)
    assert "209 MB" in text and "NOT for commercial use" in text
    assert "python -m core.weights get openpose_body" in text


def test_a_file_that_holds_something_else_is_named(folder: Path) -> None:
    write(folder, "upernet_global_small.pth", nn.Linear(2, 2))
    with pytest.raises(CheckpointMismatch) as caught:
        cache().get("uniformer", build)
    text = str(caught.value)
    assert "upernet_global_small.pth" in text and "conv.weight" in text
    assert "python -m core.weights get uniformer" in text


def test_a_wrong_device_is_refused_and_changes_nothing(folder: Path) -> None:
    networks = cache()
    with pytest.raises(ValueError, match="device is 'tpu'"):
        networks.configure(device="tpu")
    assert networks.device == "cpu"


def test_published_weights_go_before_the_stand_in(folder: Path) -> None:
    with pytest.raises(WeightsMissing, match="get uniformer"):
        find_weights("uniformer", "openpose_hand")
    write(folder, "hand_pose_model.pth", Small())
    assert find_weights("uniformer", "openpose_hand").demo
    write(folder, "upernet_global_small.pth", Small())
    found = find_weights("uniformer", "openpose_hand")
    assert (found.name, found.demo) == ("uniformer", False)


def test_a_stand_in_that_is_not_listed_is_none(folder: Path) -> None:
    with pytest.raises(WeightsMissing, match="get uniformer"):
        find_weights("uniformer", "not_in_the_registry")
    write(folder, "upernet_global_small.pth", Small())
    assert find_weights("uniformer", "not_in_the_registry").name == "uniformer"
