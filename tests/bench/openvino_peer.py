"""diffusers' pipeline with its networks computed by OpenVINO, where that is installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.bench.peers import Diffusers, Files, Networks
from tests.bench.random_model import CONTROL

TOKENS = 77
SIDE = 32  # of the latents that the networks are converted with; another side is as good
PRECISION = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32"}


def is_installed() -> bool:
    """Say whether there is OpenVINO."""
    return find_spec("openvino") is not None


class Positional(nn.Module):
    """A network of diffusers, called by position and giving plain tensors, as a conversion needs it."""

    def __init__(self, network: Any) -> None:
        """Take a UNet2DConditionModel, a ControlNetModel or an AutoencoderKL, which decodes."""
        super().__init__()
        self.network = network
        self.kind = type(network).__name__

    def forward(self, x: Tensor, *more: Tensor) -> Any:
        """Map the latents ``x``; ``more`` are time, text, and residuals or a hint."""
        if self.kind == "AutoencoderKL":
            return self.network.decode(x, return_dict=False)[0]
        t, context, *rest = more
        if self.kind == "ControlNetModel":
            down, middle = self.network(x, t, context, controlnet_cond=rest[0], return_dict=False)
            return *down, middle
        return self.network(
            x,
            t,
            context,
            down_block_additional_residuals=tuple(rest[:-1]),
            mid_block_additional_residual=rest[-1],
            return_dict=False,
        )[0]


def convert_for_openvino(files: Files) -> None:
    """Write the networks of ``files.diffusers`` in OpenVINO's format, weights in float16."""
    import openvino
    from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel

    folder = files.diffusers
    unet = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
    control = ControlNetModel.from_pretrained(folder / CONTROL).eval()
    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    x, t = torch.randn(2, 4, SIDE, SIDE), torch.tensor(500)
    context, hint = (
        torch.randn(2, TOKENS, unet.config.cross_attention_dim),
        torch.rand(2, 3, 8 * SIDE, 8 * SIDE),
    )
    with torch.no_grad():
        residuals = Positional(control)(x, t, context, hint)
    examples: dict[str, tuple[Any, tuple[Tensor, ...]]] = {
        "unet": (unet, (x, t, context, *residuals)),
        CONTROL: (control, (x, t, context, hint)),
        "vae": (vae, (x,)),
    }
    for name, (network, example) in examples.items():
        model = openvino.convert_model(Positional(network), example_input=example)
        openvino.save_model(model, files.openvino / f"{name}.xml", compress_to_fp16=True)


class Converted:
    """A converted network, compiled anew where the shapes of what comes in change."""

    def __init__(self, path: Path, dtype: torch.dtype, threads: int) -> None:
        """Read ``path``; compute in ``dtype``."""
        import openvino

        self._core = openvino.Core()
        self._request: Any = None
        self._shapes: list[tuple[int, ...]] = []
        self._model = self._core.read_model(path)
        self._hints = {
            "INFERENCE_PRECISION_HINT": PRECISION[dtype],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
        }

    def __call__(self, *given: Tensor) -> list[Tensor]:
        """Compute; what is returned is overwritten by the next call."""
        shapes = [tuple(x.shape) for x in given]
        if shapes != self._shapes:
            self._request = None
            self._model.reshape(dict(zip(self._model.inputs, shapes, strict=True)))
            compiled = self._core.compile_model(self._model, "CPU", self._hints)
            self._shapes, self._request = shapes, compiled.create_infer_request()
        values = [x.detach().contiguous().numpy() for x in given]
        found = self._request.infer(values, share_inputs=True, share_outputs=True)
        return [torch.from_numpy(value) for value in found.values()]


class OpenVino(Diffusers):
    """diffusers' ControlNet pipeline over networks that OpenVINO computes."""

    def __init__(self, files: Files, dtype: torch.dtype) -> None:
        """Draw on the CPU; the networks compute in ``dtype``, between them it is float32."""
        super().__init__(files, torch.device("cpu"))
        self.name = f"diffusers, OpenVINO, {str(dtype).removeprefix('torch.')}"
        self.dtype = dtype

    def _networks(self) -> Networks:
        """Give diffusers modules of the right kinds without weights, whose work OpenVINO does."""
        from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel

        folder = self._files.diffusers

        def empty(kind: Any, name: str) -> Any:
            with torch.device("meta"):
                made = kind.from_config(kind.load_config(folder / name))
            return made.to_empty(device="cpu").eval()  # memory that is never touched is never taken

        unet, vae = empty(UNet2DConditionModel, "unet"), empty(AutoencoderKL, "vae")
        control = empty(ControlNetModel, CONTROL)
        converted = [
            Converted(self._files.openvino / f"{name}.xml", self.dtype, torch.get_num_threads())
            for name in ("unet", CONTROL, "vae")
        ]

        def denoise(x: Tensor, t: Tensor, encoder_hidden_states: Tensor, **more: Any) -> tuple[Tensor, ...]:
            residuals = (*more["down_block_additional_residuals"], more["mid_block_additional_residual"])
            return tuple(converted[0](x, t, encoder_hidden_states, *residuals))

        def controlled(x: Tensor, t: Tensor, **more: Any) -> tuple[tuple[Tensor, ...], Tensor]:
            *down, middle = converted[1](x, t, more["encoder_hidden_states"], more["controlnet_cond"])
            return tuple(down), middle

        unet.forward, control.forward = denoise, controlled
        vae.decode = lambda x, **more: tuple(converted[2](x))
        return unet, vae, control, self._read_text(torch.float32)
