"""The annotator's page: a Gradio shell around three widgets whose scripts come from ``static/``.

One ``Blocks`` per locale, so that labels are right from the first paint. The HTML in here is constant: Gradio compiles
templates of ``gr.HTML`` to JavaScript in the browser, so no text of a model or a person may ever be part of one.
"""

from __future__ import annotations

import html

import gradio as gr

from preference_ui.app.ask import MAX_WAITING, AskTab
from preference_ui.app.site import page_digest
from preference_ui.i18n import catalogue

# A widget's script takes over the element whether the module was loaded before or comes later.
_MOUNT = "(window.rlhfMounts ||= []).push(element); window.rlhfMount && window.rlhfMount(element);"

_FONTS = [
    "system-ui",
    "-apple-system",
    "Segoe UI",
    "Roboto",
    "Noto Sans",
    "PingFang SC",
    "Noto Sans CJK SC",
    "sans-serif",
]


# The colours of ``static/page.css``, which knows the light and the dark ones.
_COLOURS = {
    name + mode: value
    for names, value in (
        ("body_background_fill", "var(--rk-page)"),
        ("body_text_color block_title_text_color block_label_text_color checkbox_label_text_color", "var(--rk-text)"),
        ("body_text_color_subdued input_placeholder_color", "var(--rk-soft)"),
        ("block_background_fill panel_background_fill", "var(--rk-card)"),
        ("block_border_color border_color_primary", "var(--rk-line)"),
        ("input_background_fill checkbox_background_color checkbox_label_background_fill", "var(--rk-card)"),
        ("input_border_color checkbox_border_color checkbox_label_border_color", "var(--rk-edge)"),
        ("input_border_width checkbox_label_border_width button_border_width", "1px"),
        ("checkbox_background_color_selected color_accent", "var(--rk-accent)"),
        ("button_primary_background_fill button_primary_background_fill_hover", "var(--rk-accent)"),
        ("button_primary_text_color", "var(--rk-on-accent)"),
        ("button_secondary_background_fill button_secondary_background_fill_hover", "var(--rk-card)"),
        ("button_secondary_text_color", "var(--rk-text)"),
        ("button_secondary_border_color", "var(--rk-edge)"),
    )
    for name in names.split()
    for mode in ("", "_dark")
    # These have no value of their own for the dark.
    if not (mode and (name.endswith("_width") or name == "color_accent"))
}


def theme() -> gr.themes.Base:
    """Our colours in Gradio's terms; system fonts only, since a font from elsewhere would tell who reads here."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        font=_FONTS,
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
        radius_size=gr.themes.sizes.radius_md,
    ).set(**_COLOURS)


def page_head(locale: str, title: str) -> str:
    """Elements for ``<head>``; the digest in the address makes a new version load at once."""
    version = page_digest()[:12]
    return (
        f'<meta name="rlhf-locale" content="{locale}"><title>{html.escape(title)}</title>'
        '<link rel="icon" href="/static/icon.svg" type="image/svg+xml">'
        f'<link rel="stylesheet" href="/static/vendor/katex/katex.min.css">'
        f'<link rel="stylesheet" href="/static/page.css?v={version}">'
        f'<script type="module" src="/static/app.js?v={version}"></script>'
    )


def widget(name: str, loading: str = "", **numbers: int) -> gr.HTML:
    """A place for one of the page's own widgets; its script finds ``numbers`` in the element's data."""
    data = "".join(f' data-{key}="{value}"' for key, value in numbers.items())
    return gr.HTML(
        f'<div class="rlhf" data-widget="{name}"{data}>{html.escape(loading)}</div>',
        js_on_load=_MOUNT,
        apply_default_css=False,
        elem_classes=[f"widget-{name}"],
    )


def annotator_page(locale: str, ask: AskTab | None = None) -> gr.Blocks:
    """The page for ranking, in one language; with ``ask`` people may also question the policy themselves."""
    texts = catalogue(locale)
    with gr.Blocks(title=texts["app.title"], fill_width=True, analytics_enabled=False) as page:
        widget("header")
        with gr.Tabs():
            with gr.Tab(texts["nav.rank"], id="rank"):
                widget("ranking", texts["app.loading"])
            if ask is not None:
                with gr.Tab(texts["nav.ask"], id="ask"):
                    ask.build()
            with gr.Tab(texts["nav.guideline"], id="guideline"):
                widget("guideline")
            with gr.Tab(texts["nav.history"], id="history"):
                widget("history")
    page.queue(api_open=False, max_size=MAX_WAITING)
    return page
