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
        Example("seg_flamingo.png", "a pink flamingo on green grass under a blue sky", "none"),
        Example("seg_elephant_and_bus.png", "a yellow bus and a gray elephant on green grass", "none"),
        Example("toy_dog_and_ball.png", "a dog behind a ball on a gray road in front of colorful houses"),
        Example("toy_bicycles.png", "two red bicycles on a road under a blue sky"),
        Example("photo_cat.jpg", "a cat on green grass"),
        Example("photo_rocket.jpg", "a rocket under a blue sky"),
    ),
)
