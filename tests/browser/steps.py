"""What a visitor does on the page, in words."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

# Hands the browser a file as the desktop does: a drop with the file's bytes in it.
_DROP = """([selector, name, data]) => {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const carried = new DataTransfer();
  carried.items.add(new File([bytes], name, {type: 'image/png'}));
  const target = document.querySelector(selector);
  for (const kind of ['dragenter', 'dragover', 'drop'])
    target.dispatchEvent(new DragEvent(kind, {dataTransfer: carried, bubbles: true, cancelable: true}));
}"""
STILL_MS = 200


def drop(page: Any, selector: str, path: Path, name: str = "dropped.png") -> None:
    page.wait_for_selector(f"{selector} button")
    page.evaluate(_DROP, [f"{selector} button", name, base64.b64encode(path.read_bytes()).decode()])


def upload(page: Any, path: Path, app: str = "canny") -> None:
    page.locator(f"#{app}-image input[type=file]").set_input_files(str(path))
    page.wait_for_selector(f"#{app}-image img, #{app}-size .wrong")


def ask(page: Any, prompt: str, app: str = "canny") -> None:
    box = page.locator(f"#{app}-prompt textarea")
    box.fill(prompt)
    box.press("Enter")


def open_options(page: Any, app: str = "canny") -> None:
    page.get_by_text("Advanced options", exact=True).locator("visible=true").click()
    page.wait_for_selector(f"#{app}-steps")
    # No visitor types before what has opened is painted, and Gradio sets its boxes once more until then.
    page.evaluate("() => new Promise((r) => requestAnimationFrame(() => requestAnimationFrame(r)))")


def number(page: Any, name: str, app: str = "canny") -> float:
    return float(page.locator(f"#{app}-{name} input[type=number]").input_value())


def set_number(page: Any, name: str, value: float, app: str = "canny") -> None:
    box = page.locator(f"#{app}-{name} input[type=number]")
    box.fill(str(value))
    box.press("Tab")


def captions(page: Any, app: str = "canny") -> list[str]:
    return [text.strip() for text in page.locator(f"#{app}-gallery .caption-label").all_inner_texts()]


def status(page: Any, app: str = "canny") -> str:
    return str(page.locator(f"#{app}-status").inner_text())


def wait_until_done(page: Any, app: str = "canny") -> None:
    page.locator(f"#{app}-status").get_by_text("Done").wait_for()


def too_wide(page: Any) -> list[str]:
    """Return what sticks out of the window on the right; tabs kept for measuring only do not count."""
    found: list[str] = page.evaluate(
        "[...document.querySelectorAll('.gradio-container *')].filter((e) => e.offsetParent !== null"
        " && !e.closest('.visually-hidden') && e.getBoundingClientRect().right > innerWidth + 1)"
        ".map((e) => e.className).slice(0, 5)"
    )
    page_itself = page.evaluate("document.documentElement.scrollWidth > innerWidth")
    return [*found, *(["the page"] if page_itself else [])]


def colours(page: Any, selector: str) -> tuple[int, ...]:
    shown = page.evaluate("(s) => getComputedStyle(document.querySelector(s)).backgroundColor", selector)
    return tuple(int(part) for part in shown[shown.index("(") + 1 : -1].split(",")[:3])


def open_tab(page: Any, title: str) -> None:
    """Open a tab, through the menu of those that do not fit where it is among them."""
    tab = page.get_by_role("tab", name=title, exact=True).locator("visible=true")
    if not tab.count():
        page.locator(".overflow-menu > button").click()
        tab = page.locator(".overflow-dropdown button").get_by_text(title, exact=True)
    tab.click()


def stroke(page: Any, selector: str, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw with the mouse from one point to another, both given as shares of the element's sides.

    The page may still be laying itself out: it begins once the element has stayed in its place for a while.
    """
    element, before = page.locator(selector).first, None
    while (box := element.bounding_box()) != before or box is None:
        before = box
        page.wait_for_timeout(STILL_MS)
    along = [i / 8 for i in range(9)]
    shares = [tuple(a + (b - a) * t for a, b in zip(start, end, strict=True)) for t in along]
    points = [(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in shares]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point)
    page.mouse.up()


def preprocessor(page: Any, app: str = "canny") -> str:
    return str(page.locator(f"#{app}-preprocessor input").input_value())
