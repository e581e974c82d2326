"""The parts of the page that every app shares."""
