"""Line art of ControlNet 1.1: the picture keeps the lines that somebody who draws would draw."""

from apps.spec import App, Example

APP = App(
    name="lineart",
    title="Line Art",
    tab="Line Art",
    order=120,
    group="1.1",
    annotator="lineart",
    control="lineart",
    aliases=("line_art", "gradio_lineart"),
    examples=(
        Example("edges_fox.png", "a cute orange fox", "none"),
        Example("edges_bicycles.png", "two red bicycles on a road under a blue sky", "none"),
        Example("edges_cupcake_and_crown.png", "a cupcake in front of a crown on a wooden table", "none"),
        Example("photo_cat.jpg", "a cat on green grass"),
        Example("photo_astronaut.jpg", "an astronaut in front of a red wall"),
    ),
)
