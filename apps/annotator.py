"""All detectors side by side, to look at their maps and to make one's own data."""

from apps.spec import Card, Example, Workbench

APP = Workbench(
    name="annotator",
    title="All detectors on one picture",
    tab="Annotator",
    order=200,
    aliases=("gradio_annotator", "annotators", "detectors"),
    cards=(
        Card("canny", "Canny Edge"),
        Card("hed", "HED Edge"),
        Card("mlsd", "MLSD Edge", resolution=384),
        Card("depth", "MIDAS Depth", resolution=384),
        Card(
            "normal",
            "MIDAS Normal",
            resolution=384,
            defaults=(("background_threshold", 0.1), ("alpha", 6.2)),
        ),
        Card("pose", "Openpose"),
        Card("segmentation", "Uniformer Segmentation"),
        Card("scribble", "Scribble"),
        Card("fake_scribble", "Fake Scribble"),
        Card("softedge", "Soft Edge"),
        Card("lineart", "Line Art"),
        Card("shuffle", "Content Shuffle"),
    ),
    examples=(
        Example("photo_astronaut.jpg", ""),
        Example("photo_cat.jpg", ""),
        Example("photo_coffee.jpg", ""),
        Example("toy_dog_and_ball.png", ""),
        Example("toy_ambulance.png", ""),
        Example("drawing_deer.png", ""),
    ),
)
