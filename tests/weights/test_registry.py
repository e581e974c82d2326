from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from core.config import config_names, load_config
from core.errors import WeightsMissing
from core.weights.download import check_file
from core.weights.registry import HOME, Registry, RegistryError

ROW = {
    "title": "A file",
    "kind": "base",
    "licence": "MIT",
    "path": "a.safetensors",
    "repo": "me/a",
    "file": "a",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "my ckpts"
    folder.mkdir()
    monkeypatch.setenv("CONTROLNET_CKPTS", str(folder))
    return folder


def write_registry(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "registry.yaml"
    path.write_text(json.dumps(content))
    return path


def load_row(tmp_path: Path, **changes: object) -> Registry:
    return Registry.load(
        write_registry(tmp_path, {"files": {"mine": ROW | changes}, "bundles": {"all": ["mine"]}})
    )


def test_every_name_in_the_model_configs_has_a_row() -> None:
    registry = Registry.load()
    for name in config_names():
        config = load_config(name)
        assert registry[config.weights].kind == "base"
        assert all(registry[control].kind == "control" for control in config.controls.values())


def test_the_nine_apps_have_their_weights_listed() -> None:
    registry = Registry.load()
    apps = ("canny", "depth", "hed", "mlsd", "normal", "pose", "scribble", "segmentation", "fake_scribble")
    for app in apps:
        kinds = [row.kind for row in registry.expand([app])]
        assert kinds[0] == "control"
        assert all(kind == "detector" for kind in kinds[1:])
    detectors = {row.name for row in registry.files.values() if row.kind == "detector" and row.repo}
    assert detectors == {row.name for row in registry.expand(["detectors"])}


def test_no_digest_or_place_stands_twice() -> None:
    rows = list(Registry.load().files.values())
    digests = [row.sha256 for row in rows if row.sha256]
    places = [(row.repo, row.file) for row in rows if row.repo]
    assert len(set(digests)) == len(digests) and len(set(places)) == len(places)
    assert len({row.path for row in rows}) == len(rows)


def test_the_demo_and_two_detectors_come_with_the_project() -> None:
    registry = Registry.load()
    for row in registry.files.values():
        assert (row.repo is None) == row.path.startswith(("demo/", "detectors/"))
    assert [row.name for row in registry.files.values() if row.path.startswith("detectors/")] == [
        "hed_bundled",
        "mlsd_bundled",
    ]


@pytest.mark.parametrize(
    ("name", "published"), [("hed", "ControlNetHED.pth"), ("mlsd", "mlsd_large_512_fp32.pth")]
)
def test_a_bundled_detector_is_found_until_the_published_one_is_there(
    folder: Path, name: str, published: str
) -> None:
    registry = Registry.load()
    bundled = registry.locate(name)
    assert bundled == HOME / "detectors" / f"{name}.safetensors" and registry.is_bundled(bundled)
    assert check_file(registry, bundled) is None
    (folder / published).touch()
    assert registry.locate(name) == folder / published and not registry.is_bundled(folder / published)


def test_what_may_not_be_used_commercially_says_so() -> None:
    registry = Registry.load()
    assert {row.name for row in registry.files.values() if row.non_commercial} == {
        "openpose_body",
        "openpose_hand",
    }
    assert "NOT for commercial use" in registry["openpose_body"].licence_text


def test_the_pruned_control_comes_by_default_and_the_full_one_does_as_well(folder: Path) -> None:
    registry = Registry.load()
    assert registry["control_sd15_canny"].path == "control_canny-fp16.safetensors"
    (folder / "control_sd15_canny.pth").touch()
    assert registry.locate("control_sd15_canny") == folder / "control_sd15_canny.pth"
    assert registry.locate("sd15") == folder / "control_sd15_canny.pth"  # it holds the base model too
    (folder / "control_canny-fp16.safetensors").touch()
    assert registry.locate("control_sd15_canny") == folder / "control_canny-fp16.safetensors"


def test_control_1_1_does_for_1_0_but_for_normal_maps(folder: Path) -> None:
    for name in ("control_v11p_sd15_canny.pth", "control_v11p_sd15_normalbae.pth"):
        (folder / name).touch()
    registry = Registry.load()
    assert registry.find("control_sd15_canny") == folder / "control_v11p_sd15_canny.pth"
    assert registry.find("control_sd15_normal") is None  # its colours mean other directions


def test_bundled_files_are_found_in_the_project_when_another_folder_is_set(
    folder: Path, tmp_path: Path
) -> None:
    source = write_registry(
        tmp_path, {"files": {"mine": {k: v for k, v in ROW.items() if k not in ("repo", "file")}}}
    )
    (tmp_path / "a.safetensors").touch()
    assert Registry.load(source).locate("mine") == tmp_path / "a.safetensors"
    (folder / "a.safetensors").touch()
    assert Registry.load(source).locate("mine") == folder / "a.safetensors"


def test_missing_weights_name_file_size_licence_and_command(folder: Path) -> None:
    with pytest.raises(WeightsMissing) as caught:
        Registry.load().locate("sd15")
    message = str(caught.value)
    for part in (
        "Stable Diffusion 1.5 (sd15) is not on this computer.",
        "v1-5-pruned-emaonly.safetensors, 4.27 GB, from stable-diffusion-v1-5/stable-diffusion-v1-5",
        "Licence: CreativeML OpenRAIL-M",
        "python -m core.weights get sd15\n",
        f"into {folder}.",
    ):
        assert part in message


def test_sizes_that_are_not_exact_say_so_or_are_left_out(tmp_path: Path) -> None:
    assert load_row(tmp_path, about_mb=723)["mine"].size_text == "about 723 MB"
    assert load_row(tmp_path, size_bytes=1_445_234_681)["mine"].size_text == "1.45 GB"
    assert load_row(tmp_path)["mine"].size_text == "size unknown"


def test_a_missing_bundled_file_is_restored_and_not_fetched(folder: Path, tmp_path: Path) -> None:
    source = write_registry(
        tmp_path, {"files": {"mine": {k: v for k, v in ROW.items() if k not in ("repo", "file")}}}
    )
    assert "git checkout -- " in Registry.load(source).explain_missing("mine")


@pytest.mark.parametrize(("asked", "near"), [("cany", "canny"), ("sd-15", "sd15"), ("sd15-cany", "canny")])
def test_unknown_names_list_near_matches(asked: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"{asked}: no such weights. Did you mean .*{near}"):
        Registry.load().expand([asked])


@pytest.mark.parametrize(
    "asked", [["sd15", "canny"], ["sd15-canny"], ["canny", "sd15", "control_sd15_canny"]]
)
def test_bundles_and_joined_names_expand_to_files_once(asked: list[str]) -> None:
    assert {row.name for row in Registry.load().expand(asked)} == {"sd15", "control_sd15_canny"}
    assert len(Registry.load().expand(asked)) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"licnce": "MIT"}, "licnce"),
        ({"size_bytes": "big"}, "size_bytes"),
        ({"size_bytes": [1]}, "size_bytes"),
        ({"size_bytes": -1}, "a size is -1"),
        ({"about_mb": 0}, "a size is 0"),
        ({"non_commercial": "perhaps"}, "non_commercial"),
        ({"alternatives": "b.pth"}, "alternatives"),
        ({"kind": "lora"}, "kind is 'lora'"),
        ({"sha256": "abc"}, "64 hexadecimal digits"),
        ({"path": "../a"}, "relative path inside"),
        ({"path": "/etc/a"}, "relative path inside"),
        ({"alternatives": ["../b"]}, "relative path inside"),
        ({"repo": None}, "both repo and file, or neither"),
        ({"title": None}, "title"),
    ],
)
def test_a_bad_row_is_an_error_that_names_it(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(RegistryError) as caught:
        load_row(tmp_path, **changes)
    assert "row 'mine'" in str(caught.value) and said in str(caught.value)


@pytest.mark.parametrize("key", ["title", "kind", "licence", "path"])
def test_a_row_without_a_needed_key_is_an_error(tmp_path: Path, key: str) -> None:
    row = {name: value for name, value in ROW.items() if name != key}
    with pytest.raises(RegistryError, match=f"row 'mine'.*{key}"):
        Registry.load(write_registry(tmp_path, {"files": {"mine": row}}))


@pytest.mark.parametrize(
    "content",
    [
        {"files": {"mine": ROW}, "bundels": {}},
        {"bundles": {}},
        {"files": {"mine": "text"}},
        {"files": {"mine": ROW}, "bundles": {"all": ["yours"]}},
        {"files": {"mine": ROW}, "bundles": {"all": "mine"}},
        {"files": {"mine": ROW}, "bundles": ["mine"]},
        {"files": ["mine"]},
    ],
)
def test_a_bad_registry_is_an_error(tmp_path: Path, content: object) -> None:
    with pytest.raises(RegistryError, match=re.escape(str(tmp_path))):
        Registry.load(write_registry(tmp_path, content))


def test_a_registry_that_is_no_yaml_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "registry.yaml"
    for text in ("files: [", "files: {a: ${b}}", "files: {a: {}, a: {}}"):
        path.write_text(text)
        with pytest.raises(RegistryError):
            Registry.load(path)


def test_a_key_that_stands_there_twice_is_named(tmp_path: Path) -> None:
    path = tmp_path / "registry.yaml"
    path.write_text("files: {}\nbundles: {}\nfiles: {}\n")
    with pytest.raises(RegistryError, match="'files' stands there twice"):
        Registry.load(path)


def test_the_readme_of_the_folder_names_every_licence() -> None:
    text = (HOME / "README.md").read_text()
    assert all(row.licence in text for row in Registry.load().files.values())


# The controls that the files of ControlNet 1.1 serve, by the files' published names.
FOURTEEN = {
    "control_v11p_sd15_canny": {"canny"},
    "control_v11p_sd15_mlsd": {"mlsd"},
    "control_v11f1p_sd15_depth": {"depth"},
    "control_v11p_sd15_normalbae": {"normalbae"},
    "control_v11p_sd15_seg": {"seg"},
    "control_v11p_sd15_inpaint": {"inpaint"},
    "control_v11p_sd15_lineart": {"lineart"},
    "control_v11p_sd15s2_lineart_anime": {"lineart_anime"},
    "control_v11p_sd15_openpose": {"openpose"},
    "control_v11p_sd15_scribble": {"scribble"},
    "control_v11p_sd15_softedge": {"hed", "softedge"},
    "control_v11e_sd15_shuffle": {"shuffle"},
    "control_v11e_sd15_ip2p": {"ip2p"},
    "control_v11f1e_sd15_tile": {"tile"},
}


@pytest.mark.parametrize("ending", [".pth", "_fp16.safetensors"])
@pytest.mark.parametrize("stem", FOURTEEN)
def test_each_file_of_control_1_1_is_found_under_its_published_name(
    folder: Path, stem: str, ending: str
) -> None:
    (folder / f"{stem}{ending}").touch()
    registry = Registry.load()
    assert registry[stem].repo == "lllyasviel/ControlNet-v1-1" and registry[stem].file == f"{stem}.pth"
    controls = load_config("sd15").controls
    assert {control for control, weights in controls.items() if registry.find(weights)} == FOURTEEN[stem]


def test_controls_of_version_1_0_go_before_those_of_1_1(folder: Path) -> None:
    for name in ("control_v11p_sd15_canny.pth", "control_sd15_canny.pth"):
        (folder / name).touch()
    assert Registry.load().locate("control_sd15_canny").name == "control_sd15_canny.pth"
