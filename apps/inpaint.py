"""Inpainting of ControlNet 1.1: what is painted over is drawn anew, the rest of the picture stays."""

from apps.spec import App, Example

APP = App(
    name="inpaint",
    title="Inpainting",
    tab="Inpaint",
    order=160,
    group="1.1",
    annotator="picture",
    control="inpaint",
    editor="mask",
    denoise=1.0,
    alone=True,
    aliases=("inpainting", "gradio_inpaint"),
    examples=(
        Example("masked_umbrella_and_bucket.png", "a red apple on an orange carpet"),
        Example("masked_dog_and_ball.png", "a dog on a gray road in front of colorful houses"),
        Example("masked_deer.png", "a brown fox on white snow"),
        Example("masked_coffee.png", "a plate of cookies on a wooden table"),
    ),
)
