"""Folders of pictures without a browser: what ``python -m apps.batch`` is made of."""
