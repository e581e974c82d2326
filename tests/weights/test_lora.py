"""LoRAs change exactly the weights that they name, by exactly up @ down, and come off without a trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core.additions import Lora
from core.config import load_config
from core.errors import CheckpointMismatch
from core.models.packing import can_pack, pack_weights
from core.weights.checkpoint import BaseNetworks, inspect_checkpoint, load_base
from core.weights.diffusers_folders import to_diffusers
from core.weights.lora import open_lora
from core.weights.mixing import LoraMixer
from tests.weights.files import (
    CPU,
    Networks,
    State,
    assert_same,
    base_state,
    cast,
    make_networks,
    own,
    prefixed,
    tiny_config,
    write,
)

FP32 = torch.float32
RANK, ALPHA = 3, 2.0
# The layers of the tiny SD 1.5: the names of trainers, our names, the first row, the kernel.
LAYERS: list[tuple[str, str, str, int]] = [
    (
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        "unet",
        "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight",
        0,
    ),
    (
        "lora_unet_up_blocks_2_attentions_1_transformer_blocks_0_attn2_to_k",
        "unet",
        "output_blocks.5.1.transformer_blocks.0.attn2.to_k.weight",
        0,
    ),
    (
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_out_0",
        "unet",
        "input_blocks.3.1.transformer_blocks.0.attn2.to_out.0.weight",
        0,
    ),
    (
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj",
        "unet",
        "middle_block.1.transformer_blocks.0.ff.net.0.proj.weight",
        0,
    ),
    ("lora_unet_mid_block_attentions_0_proj_in", "unet", "middle_block.1.proj_in.weight", 0),
    ("lora_unet_down_blocks_0_resnets_0_conv1", "unet", "input_blocks.1.0.in_layers.2.weight", 0),
    ("lora_unet_up_blocks_1_upsamplers_0_conv", "unet", "output_blocks.3.2.conv.weight", 0),
    ("lora_unet_conv_in", "unet", "input_blocks.0.0.weight", 0),
    ("lora_unet_time_embedding_linear_1", "unet", "time_embed.0.weight", 0),
    (
        "lora_te_text_model_encoder_layers_1_self_attn_k_proj",
        "text",
        "transformer.resblocks.1.attn.in_proj_weight",
        24,
    ),
    (
        "lora_te_text_model_encoder_layers_0_self_attn_out_proj",
        "text",
        "transformer.resblocks.0.attn.out_proj.weight",
        0,
    ),
    ("lora_te_text_model_encoder_layers_1_mlp_fc2", "text", "transformer.resblocks.1.mlp.c_proj.weight", 0),
]


def random_like(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Base:
    """A base model in a file, and its networks loaded from there."""

    def __init__(self, folder: Path) -> None:
        self.nets: Networks = make_networks(tiny_config("sd15"))
        for net in (self.nets.unet, self.nets.text, self.nets.vae):
            for parameter in net.parameters():
                parameter.data *= 0.2
        self.config = self.nets.config
        self.path = write(folder / "base.safetensors", base_state(self.nets), metadata=own(self.config))

    def load(self, dtype: torch.dtype = FP32) -> BaseNetworks:
        return load_base(self.config, self.path, device=CPU, dtype=dtype)

    def mixer(self, networks: BaseNetworks) -> LoraMixer:
        return LoraMixer(self.config, self.path, networks)

    def weight(self, network: str, name: str) -> Tensor:
        return getattr(self.nets, network).state_dict()[name]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return Base(tmp_path_factory.mktemp("base"))


def parts(base: Base, seed: int = 0, *, middle: bool = False) -> tuple[State, dict[tuple[str, str], Tensor]]:
    """A LoRA for all of LAYERS in kohya's layout, and what the weights are with it at 0.5."""
    state: State = {}
    expected: dict[tuple[str, str], Tensor] = {}
    for n, (layer, network, name, row) in enumerate(LAYERS):
        whole = base.weight(network, name)
        out, inner, *kernel = whole.shape
        rows = 24 if "in_proj" in name else out
        ones = [1] * len(kernel)
        up = random_like((rows, RANK, *ones), 100 * seed + 2 * n)
        state[f"{layer}.lora_up.weight"], state[f"{layer}.alpha"] = up, torch.tensor(ALPHA)
        if middle and kernel == [3, 3]:
            down = random_like((RANK, inner, *ones), 100 * seed + 2 * n + 1)
            mid = random_like((RANK, RANK, *kernel), 7 * seed + n)
            state[f"{layer}.lora_mid.weight"] = mid
            product = torch.einsum("or,rshw,si->oihw", up[:, :, 0, 0], mid, down[:, :, 0, 0])
        else:
            down = random_like((RANK, inner, *kernel), 100 * seed + 2 * n + 1)
            product = (up.reshape(rows, RANK) @ down.reshape(RANK, -1)).reshape(rows, inner, *kernel)
        state[f"{layer}.lora_down.weight"] = down
        changed = whole.clone()
        changed[row : row + rows] += 0.5 * ALPHA / RANK * product
        expected[network, name] = changed
    return state, expected


def assert_weights(base: Base, got: BaseNetworks, expected: dict[tuple[str, str], Tensor]) -> None:
    """The weights of ``expected`` are close to that, all others bit for bit the file's."""
    for network in ("unet", "vae", "text"):
        for name, value in getattr(got, network).state_dict().items():
            if (network, name) in expected:
                torch.testing.assert_close(value, expected[network, name], rtol=1e-5, atol=1e-5)
                assert not torch.equal(value, base.weight(network, name))
            else:
                assert torch.equal(value, base.weight(network, name)), name


@pytest.mark.parametrize("middle", [False, True])
def test_every_layer_that_is_named_changes_by_up_times_down_and_no_other(
    base: Base, tmp_path: Path, middle: bool
) -> None:
    state, expected = parts(base, middle=middle)
    networks = base.load()
    base.mixer(networks).set([Lora(write(tmp_path / "style.safetensors", state), 0.5)])
    assert_weights(base, networks, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_loras_come_off_without_a_trace(base: Base, tmp_path: Path, dtype: torch.dtype) -> None:
    networks, fresh = base.load(dtype), base.load(dtype)
    packed = dtype == torch.bfloat16 and can_pack()
    if packed:
        for net in (networks.unet, networks.text):
            pack_weights(net)
    state, _ = parts(base)
    mixer = base.mixer(networks)
    mixer.set([Lora(write(tmp_path / "style.safetensors", state))])
    assert not torch.equal(networks.unet.state_dict()[LAYERS[0][2]], fresh.unet.state_dict()[LAYERS[0][2]])
    mixer.set([])
    for name in ("unet", "vae", "text"):
        assert_same(getattr(networks, name), getattr(fresh, name), dtype)


@pytest.mark.skipif(not can_pack(), reason="this processor has no bfloat16 products")
def test_packed_weights_become_what_plain_ones_become(base: Base, tmp_path: Path) -> None:
    lora = Lora(write(tmp_path / "style.safetensors", parts(base)[0]), 0.7)
    plain, packed = base.load(torch.bfloat16), base.load(torch.bfloat16)
    for net in (packed.unet, packed.text):
        pack_weights(net)
    for networks in (plain, packed):
        base.mixer(networks).set([lora])
    assert_same(packed.unet, plain.unet, torch.bfloat16)
    assert_same(packed.text, plain.text, torch.bfloat16)


def test_what_is_on_does_not_depend_on_what_was_on_before(base: Base, tmp_path: Path) -> None:
    first, second = (
        Lora(write(tmp_path / f"{seed}.safetensors", parts(base, seed)[0]), 0.5) for seed in (0, 1)
    )
    changed, fresh = base.load(), base.load()
    mixer = base.mixer(changed)
    for loras in ([first], [first, second], [], [second]):
        mixer.set(loras)
    base.mixer(fresh).set([second])
    assert_same(changed.unet, fresh.unet)
    assert_same(changed.text, fresh.text)
    assert [str(lora) for lora in mixer.loras] == ["1:0.5"]


def test_several_loras_add_up_and_one_at_zero_is_none(base: Base, tmp_path: Path) -> None:
    (one, first), (two, second) = (parts(base, seed) for seed in (0, 1))
    loras = [Lora(write(tmp_path / f"{i}.safetensors", state), 0.5) for i, state in enumerate((one, two))]
    networks = base.load()
    base.mixer(networks).set([*loras, Lora(loras[0].path, 0.0)])
    total = {place: first[place] + second[place] - base.weight(*place) for place in first}
    assert_weights(base, networks, total)


def test_without_alpha_the_rank_stands_for_it(base: Base, tmp_path: Path) -> None:
    state, _ = parts(base)
    bare = {key: value for key, value in state.items() if not key.endswith(".alpha")}
    full = {key: torch.tensor(float(RANK)) if key.endswith(".alpha") else v for key, v in state.items()}
    one, other = base.load(), base.load()
    base.mixer(one).set([Lora(write(tmp_path / "bare.safetensors", bare))])
    base.mixer(other).set([Lora(write(tmp_path / "full.safetensors", full))])
    assert_same(one.unet, other.unet)


OTHER_NAMES = {
    "peft": ("unet.{layer}.lora_A.weight", "unet.{layer}.lora_B.weight"),
    "dotted": ("unet.{layer}.lora.down.weight", "unet.{layer}.lora.up.weight"),
    "processor": (
        "unet.{block}.processor.{part}_lora.down.weight",
        "unet.{block}.processor.{part}_lora.up.weight",
    ),
}


@pytest.mark.parametrize("style", OTHER_NAMES)
def test_names_of_diffusers_and_peft_mean_the_same(base: Base, tmp_path: Path, style: str) -> None:
    block = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    kohya = "lora_unet_" + block.replace(".", "_")
    down, up = random_like((RANK, 32), 1), random_like((32, RANK), 2)
    names = [
        name.format(layer=f"{block}.to_out.0", block=block, part="to_out") for name in OTHER_NAMES[style]
    ]
    theirs = dict(zip(names, (down, up), strict=True))
    ours = {f"{kohya}_to_out_0.lora_down.weight": down, f"{kohya}_to_out_0.lora_up.weight": up}
    one, other = base.load(), base.load()
    base.mixer(one).set([Lora(write(tmp_path / "theirs.safetensors", theirs))])
    base.mixer(other).set([Lora(write(tmp_path / "ours.safetensors", ours))])
    assert_same(one.unet, other.unet)
    assert not torch.equal(
        one.unet.state_dict()["input_blocks.1.1.transformer_blocks.0.attn1.to_out.0.weight"],
        base.weight("unet", "input_blocks.1.1.transformer_blocks.0.attn1.to_out.0.weight"),
    )


def outline(width: int, extra: str = "") -> State:
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    state = {
        f"{layer}.lora_down.weight": torch.zeros(RANK, width),
        f"{layer}.lora_up.weight": torch.zeros(320, RANK),
    }
    return state | ({extra: torch.zeros(2, 2)} if extra else {})


WRONG: dict[str, tuple[State, str]] = {
    "sd2": (
        outline(1024),
        "a LoRA for Stable Diffusion 2.x; needed is a LoRA for Stable Diffusion 1.5 (sd15)",
    ),
    "sdxl": (outline(2048), "a LoRA for SDXL; needed"),
    "sdxl text": (outline(768, "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"), "for SDXL"),
    "unknown layer": (outline(768, "lora_unet_nowhere.lora_up.weight"), "Unknown: lora_unet_nowhere.lora_up"),
    "no up": ({"lora_unet_conv_in.lora_down.weight": torch.zeros(4, 4, 3, 3)}, "Unknown: lora_unet_conv_in"),
    "loha": ({"lora_unet_conv_in.hada_w1_a": torch.zeros(4, 4)}, "a LoHa, which is not understood"),
    "lokr": ({"lora_unet_conv_in.lokr_w1": torch.zeros(4, 4)}, "a LoKr, which is not understood"),
    "dora": (outline(768, "lora_unet_conv_in.dora_scale"), "a DoRA, which is not understood"),
    "control": (
        {"control_model.zero_convs.0.0.weight": torch.zeros(2)},
        "a ControlNet for an unknown model; needed is a LoRA",
    ),
    "nothing": ({"some": torch.zeros(1)}, "something unknown; needed is a LoRA"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_does_not_fit_is_told_with_what_was_expected(tmp_path: Path, kind: str) -> None:
    state, said = WRONG[kind]
    path = write(tmp_path / "style.safetensors", state)
    with pytest.raises(CheckpointMismatch) as caught:
        open_lora(load_config("sd15"), path)
    message = str(caught.value)
    assert message.startswith(f"{path} seems to be ") and said in message
    assert "whose text is 768 wide" in message
    assert "Expected are layers such as lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_" in message


def test_a_misfit_and_a_cut_off_file_change_nothing(base: Base, tmp_path: Path) -> None:
    good = Lora(write(tmp_path / "good.safetensors", parts(base)[0]))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(good.path.read_bytes()[:-100])
    for bad in (write(tmp_path / "bad.safetensors", outline(2048)), broken, tmp_path / "none.safetensors"):
        networks = base.load()
        mixer = base.mixer(networks)
        with pytest.raises(CheckpointMismatch, match=bad.name):
            mixer.set([good, Lora(bad)])
        assert_same(networks.unet, base.nets.unet)
        assert mixer.loras == ()


@pytest.mark.parametrize("pattern", [{"unet.alpha_pattern": {"x": 1}}, {"unet.use_rslora": True}])
def test_alphas_that_are_not_understood_are_refused(
    base: Base, tmp_path: Path, pattern: dict[str, object]
) -> None:
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    state = {f"{layer}.lora_A.weight": torch.zeros(RANK, 32), f"{layer}.lora_B.weight": torch.zeros(32, RANK)}
    metadata = {"lora_adapter_metadata": json.dumps(pattern)}
    path = write(tmp_path / "style.safetensors", state, metadata=metadata)
    with pytest.raises(CheckpointMismatch, match="alphas of their own"):
        open_lora(base.config, path)


def test_a_lora_is_recognised_with_its_model(tmp_path: Path) -> None:
    for width, family in ((768, "sd1"), (1024, "sd2"), (2048, "sdxl")):
        info = inspect_checkpoint(write(tmp_path / f"{width}.safetensors", outline(width)))
        assert (info.kind, info.family) == ("lora", family)
    text = {"lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": torch.zeros(4, 1024)}
    assert inspect_checkpoint(write(tmp_path / "text.safetensors", text)).family == "sd2"


@pytest.mark.parametrize(
    ("given", "path", "weight"),
    [
        ("style.safetensors", "style.safetensors", 1.0),
        ("style.safetensors:0.8", "style.safetensors", 0.8),
        ("a:b/style.safetensors:-1", "a:b/style.safetensors", -1.0),
        ("C:\\style.safetensors", "C:\\style.safetensors", 1.0),
        ("style.safetensors:.5", "style.safetensors", 0.5),
    ],
)
def test_a_file_and_its_weight_are_told_apart(given: str, path: str, weight: float) -> None:
    assert Lora.parse(given) == Lora(Path(path), weight)


@pytest.mark.parametrize("given", ["x.safetensors:11", "x.safetensors:nan", "x.safetensors:1.2.3"])
def test_a_weight_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match=r"give (a number from -10 to 10|FILE or FILE:WEIGHT)"):
        Lora.parse(given)


# From here on: against the library that most LoRAs are used with.


def close(got: Tensor, expected: Tensor) -> bool:
    return float((got - expected).norm() / expected.norm()) < 1e-4


def kohya_names(unet: Any, text: Any) -> dict[str, Any]:
    """All layers of diffusers' networks that a LoCon may change, by kohya's names."""
    found: dict[str, Any] = {}
    for prefix, network in (("lora_unet_", unet), ("lora_te_", text)):
        for name, module in network.named_modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                whole = (
                    name if prefix == "lora_unet_" or name.startswith("text_model") else f"text_model.{name}"
                )
                found[prefix + whole.replace(".", "_")] = module
    return found


@pytest.mark.parity
@torch.inference_mode()
def test_diffusers_computes_the_same_with_the_same_lora(base: Base, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    to_diffusers(base.path, tmp_path / "folder")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "folder")
    state: State = {}
    for n, (layer, module) in enumerate(kohya_names(pipe.unet, pipe.text_encoder).items()):
        out, inner, *kernel = module.weight.shape
        state[f"{layer}.lora_down.weight"] = 0.3 * random_like((RANK, inner, *kernel), 2 * n)
        state[f"{layer}.lora_up.weight"] = 0.3 * random_like((out, RANK, *([1] * len(kernel))), 2 * n + 1)
        state[f"{layer}.alpha"] = torch.tensor(ALPHA)
    path = write(tmp_path / "style.safetensors", state)
    pipe.load_lora_weights(str(path), adapter_name="style")
    pipe.set_adapters(["style"], [0.8])
    networks = base.load()
    plain_unet, plain_text = base.nets.unet.eval(), base.nets.text.eval()
    base.mixer(networks).set([Lora(path, 0.8)])
    x, t = random_like((2, 4, 16, 16), 1), torch.tensor([3, 801])
    context, tokens = random_like((2, 7, 24), 2), torch.randint(0, 40, (2, 7))
    assert close(pipe.unet(x, t, context).sample, networks.unet(x, t, context))
    assert not close(plain_unet(x, t, context), networks.unet(x, t, context))
    assert close(pipe.text_encoder(tokens).last_hidden_state, networks.text(tokens))
    assert not close(plain_text(tokens), networks.text(tokens))


def test_the_file_of_a_lora_may_be_a_pickle_in_half_precision(base: Base, tmp_path: Path) -> None:
    state = cast(parts(base)[0], torch.float16)
    one, other = base.load(), base.load()
    base.mixer(one).set([Lora(write(tmp_path / "style.pt", state))])
    base.mixer(other).set([Lora(write(tmp_path / "style.safetensors", state))])
    assert_same(one.unet, other.unet)
    assert prefixed(one.text, "").keys() == prefixed(base.nets.text, "").keys()
