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
        Example("drawing_deer.png", "a brown deer on green grass"),
        Example("drawing_umbrella_and_bucket.png", "a red umbrella behind a yellow bucket on orange sand"),
        Example("silhouette_horse.png", "a white horse on green grass"),
        Example("edges_fox.png", "a cute orange fox", "none"),
        Example("edges_bicycles.png", "two red bicycles on a road under a blue sky", "none"),
    ),
)
