"""Downloads from a hub on this computer, by the command line in a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.weights.__main__ import main
from core.weights.download import DownloadError, Offer, download
from core.weights.registry import Registry
from tests.weights.hub import Hub, running_hub

MB = 2**20
CONTENT = random.Random(0).randbytes(25 * MB)  # more than two of huggingface_hub's blocks of 10 MB
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PLACE = "/me/weights/resolve/main/folder/a.safetensors"
RUN = "import sys; from pathlib import Path; from core.weights.__main__ import main; "
RUN += "sys.exit(main(sys.argv[2:], Path(sys.argv[1])))"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        hub.files[PLACE] = CONTENT
        yield hub


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONTROLNET_CKPTS", str(tmp_path / "ckpts"))
    return tmp_path / "ckpts"


@pytest.fixture
def registry_file(tmp_path: Path) -> Path:
    return write_registry(tmp_path)


def write_registry(tmp_path: Path, **changes: object) -> Path:
    row = {
        "title": "A file",
        "kind": "detector",
        "licence": "CMU OpenPose",
        "non_commercial": True,
        "repo": "me/weights",
        "file": "folder/a.safetensors",
        "path": "a.safetensors",
        "sha256": SHA256,
        "size_bytes": len(CONTENT),
    }
    path = tmp_path / "registry.yaml"
    path.write_text(json.dumps({"files": {"mine": row | changes}, "bundles": {"all": ["mine"]}}))
    return path


def run(
    hub: Hub, registry_file: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    env |= {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(registry_file.parent / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, "-c", RUN, str(registry_file), *arguments]
    root = Path(__file__).parents[2]
    return subprocess.run(
        command, cwd=root, env=env | environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_a_file_lands_under_its_published_name_and_leaves_nothing_else(
    hub: Hub, folder: Path, registry_file: Path
) -> None:
    done = run(hub, registry_file, "get", "all", HF_TOKEN="hf_secret")
    assert done.returncode == 0, done.stderr
    assert (folder / "a.safetensors").read_bytes() == CONTENT
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["a.safetensors"]
    assert hub.ranges == [""]
    assert "26.2 MB" in done.stdout and "NOT for commercial use" in done.stdout
    assert "sha256 is right" in done.stdout
    assert "Bearer hf_secret" in hub.tokens


def test_size_and_licence_are_shown_before_the_download(hub: Hub, folder: Path, registry_file: Path) -> None:
    hub.cut_at, hub.fail_after_cuts = [0], True
    done = run(hub, registry_file, "get", "mine")
    assert done.returncode == 1
    assert "26.2 MB, from me/weights" in done.stdout and "Licence: CMU OpenPose" in done.stdout


def test_a_broken_connection_is_continued_and_not_begun_anew(
    hub: Hub, folder: Path, registry_file: Path
) -> None:
    hub.cut_at = [15 * MB]
    done = run(hub, registry_file, "get", "mine")
    assert done.returncode == 0, done.stderr
    assert (folder / "a.safetensors").read_bytes() == CONTENT
    assert hub.ranges == ["", f"bytes={10 * MB}-"]


def test_a_second_command_continues_what_the_first_left(hub: Hub, folder: Path, registry_file: Path) -> None:
    hub.cut_at, hub.fail_after_cuts = [15 * MB], True
    first = run(hub, registry_file, "get", "mine")
    assert first.returncode == 1
    assert "500" in first.stderr and "Traceback" not in first.stderr
    assert not (folder / "a.safetensors").exists()
    hub.fail_after_cuts = False
    hub.ranges.clear()
    second = run(hub, registry_file, "get", "mine")
    assert second.returncode == 0, second.stderr
    assert (folder / "a.safetensors").read_bytes() == CONTENT
    assert hub.ranges == [f"bytes={10 * MB}-"]


def test_a_part_that_is_too_long_is_begun_anew(hub: Hub, folder: Path, registry_file: Path) -> None:
    (folder / ".downloads").mkdir(parents=True)
    (folder / ".downloads" / f"mine.{SHA256[:16]}.part").write_bytes(CONTENT + b"more")
    done = run(hub, registry_file, "get", "mine")
    assert done.returncode == 0, done.stderr
    assert (folder / "a.safetensors").read_bytes() == CONTENT
    assert not (folder / ".downloads").exists()


@pytest.mark.parametrize("known", [True, False])
def test_a_corrupt_file_is_deleted(hub: Hub, folder: Path, tmp_path: Path, known: bool) -> None:
    """The digest is the registry's, or else the one that the hub states."""
    hub.files[PLACE] = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    if not known:
        hub.claimed_sha256[PLACE] = SHA256
    registry_file = write_registry(tmp_path, **({} if known else {"sha256": None}))
    done = run(hub, registry_file, "get", "mine")
    assert done.returncode == 1
    assert "corrupt: its sha256 is" in done.stderr and "python -m core.weights get mine" in done.stderr
    assert not [path for path in folder.rglob("*") if path.is_file()]


def test_a_file_of_another_size_is_not_taken(hub: Hub, folder: Path, tmp_path: Path) -> None:
    registry_file = write_registry(tmp_path, sha256=None, size_bytes=len(CONTENT) + 1)
    done = run(hub, registry_file, "get", "mine")
    assert done.returncode == 1
    assert "it has 26,214,400 bytes, not 26,214,401" in done.stderr
    assert not [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"file": "none.pth"}, "has no such file"), ({"repo": "me/none"}, "has no such repository")],
)
def test_a_file_that_the_hub_has_not_is_told(
    hub: Hub, folder: Path, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    done = run(hub, write_registry(tmp_path, **changes), "get", "mine")
    assert done.returncode == 1
    assert said in done.stderr and "a.safetensors" in done.stderr and "Traceback" not in done.stderr


def test_a_gated_file_says_how_to_get_consent(hub: Hub, folder: Path, registry_file: Path) -> None:
    hub.gated = True
    done = run(hub, registry_file, "get", "mine")
    assert done.returncode == 1
    assert "consent" in done.stderr and "HF_TOKEN" in done.stderr


def test_offline_mode_asks_nobody(hub: Hub, folder: Path, registry_file: Path) -> None:
    done = run(hub, registry_file, "get", "mine", HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert "HF_HUB_OFFLINE is set" in done.stderr and "Traceback" not in done.stderr
    assert not hub.tokens


def test_no_connection_is_told(folder: Path, registry_file: Path) -> None:
    with running_hub() as gone:
        pass
    done = run(gone, registry_file, "get", "mine")
    assert done.returncode == 1
    assert "could not be reached" in done.stderr and "Traceback" not in done.stderr


def test_what_is_here_is_not_fetched_again(
    folder: Path, registry_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(b"anything")
    assert main(["get", "mine"], registry_file) == 0
    assert "already here" in capsys.readouterr().out


def test_a_bundled_stand_in_does_not_keep_the_published_file_from_being_fetched(
    hub: Hub, folder: Path, tmp_path: Path
) -> None:
    path = write_registry(tmp_path)
    content = json.loads(path.read_text())
    content["files"]["mine"]["alternatives"] = ["along.safetensors"]
    content["files"]["along"] = {
        key: value for key, value in content["files"]["mine"].items() if key in ("title", "kind", "licence")
    } | {"path": "along.safetensors"}
    path.write_text(json.dumps(content))
    (tmp_path / "along.safetensors").write_bytes(b"anything")
    assert Registry.load(path).find("mine") == tmp_path / "along.safetensors"
    done = run(hub, path, "get", "mine", "along")
    assert done.returncode == 0 and "along: already here" in done.stdout
    assert (folder / "a.safetensors").exists()


def test_one_file_that_fails_does_not_keep_the_others_back(hub: Hub, folder: Path, tmp_path: Path) -> None:
    content = json.loads(write_registry(tmp_path).read_text())
    content["files"] = {
        "lost": content["files"]["mine"] | {"file": "none", "path": "b", "sha256": None}
    } | content["files"]
    (tmp_path / "registry.yaml").write_text(json.dumps(content))
    done = run(hub, tmp_path / "registry.yaml", "get", "lost", "mine")
    assert done.returncode == 1
    assert (folder / "a.safetensors").exists()


def test_a_disk_that_is_too_full_is_told_before_the_download(
    folder: Path, registry_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    row = Registry.load(registry_file)["mine"]
    with pytest.raises(DownloadError, match="126 MB .* 1 MB are free.*CONTROLNET_CKPTS"):
        download(row, folder, Offer(len(CONTENT), SHA256))


def test_verify_tells_good_missing_and_corrupt(
    folder: Path, registry_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", "mine"], registry_file) == 1
    assert "missing  mine" in capsys.readouterr().out
    assert main(["verify"], registry_file) == 0  # nothing was asked for by name
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(CONTENT)
    assert main(["verify", "all"], registry_file) == 0
    assert "good     mine" in capsys.readouterr().out
    (folder / "a.safetensors").write_bytes(b"x" + CONTENT[1:])
    assert main(["verify"], registry_file) == 1
    assert "corrupt  mine" in capsys.readouterr().out
    (folder / "a.safetensors").write_bytes(CONTENT[:1000])
    assert main(["verify", "mine"], registry_file) == 1
    assert "1,000 bytes, not 26,214,400" in capsys.readouterr().out


def test_verify_finds_a_cut_off_file_without_a_known_digest(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry_file = write_registry(tmp_path, sha256=None, size_bytes=None)
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert main(["verify", "mine"], registry_file) == 1
    assert "git-lfs pointer" in capsys.readouterr().out


def test_list_shows_every_file_with_size_and_licence(
    folder: Path, registry_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list"], registry_file) == 0
    shown = capsys.readouterr().out
    assert "- mine" in shown and "26.2 MB" in shown and "NOT for commercial use" in shown
    folder.mkdir()
    (folder / "a.safetensors").touch()
    main(["list"], registry_file)
    assert "+ mine" in capsys.readouterr().out


def test_unknown_names_are_misuse_and_list_near_matches(
    folder: Path, registry_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("get", "verify"):
        assert main([command, "mime"], registry_file) == 2
        assert "Did you mean mine?" in capsys.readouterr().err


def test_the_registry_and_the_list_do_without_the_hub_library(folder: Path) -> None:
    code = "import sys; from core.weights.__main__ import main; main(['list']); "
    code += "assert not {'huggingface_hub', 'torch'} & set(sys.modules)"
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, timeout=120)
