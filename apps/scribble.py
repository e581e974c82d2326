"""Scribbles: the picture fills in a rough drawing, dark on light."""

from apps.spec import App, Example

APP = App(
    name="scribble",
    title="Scribble Maps",
    tab="Scribble",
    order=40,
    annotator="scribble",
    control="scribble",
    aliases=("scribble2image", "gradio_scribble2image"),
    examples=(
        Example("drawing_car.png", "a blue car on green grass under a blue sky"),
        Example("drawing_elephant.png", "a cute gray elephant on green grass under a blue sky"),
        Example("silhouette_horse.png", "a white horse on green grass"),
        Example("edges_fox.png", "a cute orange fox", "none"),
        Example("edges_bicycles.png", "two red bicycles on a road under a blue sky", "none"),
    ),
)
