"""Interactive scribbles: draw on the page, and the picture fills it in."""

from apps.spec import App, Example

APP = App(
    name="scribble_interactive",
    title="Interactive Scribbles",
    tab="Draw",
    order=50,
    annotator="scribble",
    control="scribble",
    editor="canvas",
    aliases=("interactive", "scribble2image_interactive", "gradio_scribble2image_interactive", "draw"),
    examples=(
        Example("drawing_car.png", "a blue car on green grass under a blue sky"),
        Example("drawing_elephant.png", "a cute gray elephant on green grass under a blue sky"),
        Example("drawing_deer.png", "a brown deer on green grass"),
        Example("drawing_umbrella_and_bucket.png", "a red umbrella behind a yellow bucket on orange sand"),
        Example("silhouette_horse.png", "a white horse on green grass"),
    ),
)
