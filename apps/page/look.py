"""How the page looks: colours, spacing and the small pieces of HTML. Nothing comes from the network."""

from __future__ import annotations

from html import escape
from pathlib import Path

import gradio as gr

from apps.page.model import DEMO, Model

CSS_FILE = Path(__file__).with_name("style.css")
FAVICON = Path(__file__).with_name("favicon.svg")
GET_SD15 = "python -m core.weights get sd15 control_sd15_canny"

BAR = "cn-bar"
KEPT = "The settings are as you left them."
# Behind the page, where its own style sheet does not reach.
HEAD = "<style>body { background: var(--body-background-fill) !important; }</style>"

_TEAL = gr.themes.Color(
    c50="#effaf8", c100="#d6f2ee", c200="#aee5de", c300="#7bd2c9", c400="#45b7ad", c500="#239c93",
    c600="#147d77", c700="#126460", c800="#134f4d", c900="#143f3e", c950="#062625", name="lagoon",
)  # fmt: skip
_INK = gr.themes.Color(
    c50="#f8f7f4", c100="#efeeea", c200="#e0dfda", c300="#c6c6c2", c400="#9a9c9e", c500="#71757a",
    c600="#535860", c700="#3a3f47", c800="#23272e", c900="#181b20", c950="#101215", name="ink",
)  # fmt: skip
_SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "Liberation Sans", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace")

# Switches between light and dark and remembers the choice; listens on the header, whose inside is redrawn.
THEME_SWITCH = """
const kept = localStorage.getItem('controlnet-theme');
if (kept) document.body.classList.toggle('dark', kept === 'dark');
element.addEventListener('click', (event) => {
  if (!event.target.closest('.cn-theme-switch')) return;
  const dark = document.body.classList.toggle('dark');
  localStorage.setItem('controlnet-theme', dark ? 'dark' : 'light');
});
"""
_MARK = (
    '<svg class="cn-mark" viewBox="0 0 32 32" aria-hidden="true">'
    '<rect x="1" y="1" width="30" height="30" rx="8"/>'
    '<path d="M6 23 13 12l4 6 3-4 6 9" class="line"/><circle cx="22.5" cy="9.5" r="2.6"/></svg>'
)


def theme() -> gr.themes.Base:
    """Return the colours, sizes and fonts, with only fonts that the visitor's system has."""
    base = gr.themes.Base(
        primary_hue=_TEAL,
        secondary_hue=_TEAL,
        neutral_hue=_INK,
        radius_size=gr.themes.sizes.radius_md,
        spacing_size=gr.themes.sizes.spacing_md,
        font=_SANS,
        font_mono=_MONO,
    )
    return base.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_800",
        block_label_background_fill="white",
        block_label_background_fill_dark="*neutral_900",
        block_label_text_color="*neutral_600",
        block_label_text_color_dark="*neutral_300",
        block_title_text_weight="600",
        block_shadow="none",
        input_background_fill="*neutral_50",
        input_background_fill_dark="*neutral_950",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_700",
        input_border_color_focus="*primary_600",
        input_border_color_focus_dark="*primary_400",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_400",
        button_primary_background_fill_hover_dark="*primary_300",
        button_primary_text_color="white",
        button_primary_text_color_dark="*primary_950",
        button_secondary_background_fill="*neutral_100",
        button_secondary_background_fill_dark="*neutral_800",
        slider_color="*primary_600",
        slider_color_dark="*primary_400",
        checkbox_background_color_selected="*primary_600",
        checkbox_background_color_selected_dark="*primary_500",
    )


def header(model: Model | None) -> str:
    """Return the page's head: what this is, which model draws, and how to get the other one."""
    badge = _badge(model) if model else ""
    return (
        f'<div class="cn-head">{_MARK}<div class="cn-words"><h1>ControlNet</h1>'
        f"<p>Your picture&rsquo;s structure, your words, a new picture.</p></div>"
        f'<div class="cn-right">{badge}'
        '<button class="cn-theme-switch" type="button" aria-label="Switch between light and dark">'
        "&#9680;</button>"
        f"</div>{_other_model(model) if model else ''}</div>"
    )


def _badge(model: Model) -> str:
    state = "failed" if model.error else "ready" if model.finished else "loading"
    word = {"failed": "not loaded", "ready": "ready", "loading": "loading"}[state]
    return f'<span class="cn-badge {state}" role="status"><i></i>{escape(model.title)}<em>{word}</em></span>'


def _other_model(model: Model) -> str:
    if model.name == DEMO:
        return (
            '<p class="cn-other">A small model that draws a toy world. For Stable Diffusion 1.5 run '
            f"<code>{escape(GET_SD15)}</code> and start again.</p>"
        )
    return (
        '<p class="cn-other">For the bundled toy-world demo model start with <code>--model demo</code>.</p>'
    )


def notice(text: str | None, kind: str = "problem") -> str:
    """Return a framed note, such as what is missing and how to get it; nothing without text.

    ``kind`` is "problem", or "remark" for what needs no action.
    """
    role = "alert" if kind == "problem" else "note"
    return f'<div class="cn-notice {kind}" role="{role}">{escape(text)}</div>' if text else ""


def size_line(size: tuple[int, int] | None, problem: str | None = None) -> str:
    """Return the line that says how large the pictures will be, or what is wrong with the image."""
    if problem:
        return f'<div class="cn-size wrong" role="status">{escape(problem)}</div>'
    if size is None:
        return '<div class="cn-size">Drop a picture above, paste one, or pick an example.</div>'
    height, width = size
    return f'<div class="cn-size" role="status">Will make <b>{width} &times; {height}</b> px</div>'


def progress(text: str, share: float | None, detail: str = "") -> str:
    """Return the status line with a bar; ``share`` in [0, 1], None for a bar that only shows activity."""
    value = "" if share is None else f' aria-valuenow="{round(share * 100)}"'
    style = "" if share is None else f' style="width:{share * 100:.1f}%"'
    kind = f"{BAR} busy" if share is None else BAR
    return (
        f'<div class="cn-status"><div class="cn-row"><b>{escape(text)}</b><span>{escape(detail)}</span></div>'
        f'<div class="{kind}" role="progressbar" aria-valuemin="0" aria-valuemax="100"{value}>'
        f"<i{style}></i></div></div>"
    )


def summary(text: str, detail: str = "") -> str:
    """Return the status line without a bar."""
    return (
        f'<div class="cn-status" role="status"><div class="cn-row"><b>{escape(text)}</b>'
        f"<span>{escape(detail)}</span></div></div>"
    )
