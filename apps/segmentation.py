"""Segmentation: the picture keeps what is where, by classes."""

from apps.spec import App, Example

APP = App(
    name="segmentation",
    title="Segmentation Maps",
    tab="Segmentation",
    order=80,
    annotator="segmentation",
    control="seg",
    aliases=("seg", "seg2image", "gradio_seg2image"),
    examples=(
        Example("seg_car.png", "a blue car on green grass under a blue sky", "none"),
        Example("seg_elephant_and_bus.png", "a yellow bus and a gray elephant on green grass", "none"),
        Example("seg_flamingo.png", "a pink flamingo on green grass under a blue sky", "none"),
        Example("toy_elephant.png", "a cute gray elephant on green grass under a blue sky"),
        Example("photo_cat.jpg", "a cat on green grass"),
        Example("photo_rocket.jpg", "a rocket under a blue sky"),
    ),
)
