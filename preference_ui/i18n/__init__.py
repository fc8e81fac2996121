"""The page's own texts in English, Danish and Chinese.

Gradio's built-in catalogue knows no Danish and takes no new locale, so every word that we write comes from here.
A catalogue is one flat JSON file; ``{name}`` marks a value to fill in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from importlib import resources

DEFAULT_LOCALE = "en"
# Locale in addresses and accounts -> its own name.
LOCALES = {"en": "English", "da": "Dansk", "zh": "中文"}
# What <html lang> says: a bare "zh" leaves the choice of glyphs to chance.
HTML_LANG = {"en": "en", "da": "da", "zh": "zh-Hans"}


@lru_cache(maxsize=len(LOCALES))
def catalogue(locale: str) -> dict[str, str]:
    """All texts of a locale; an unknown one gives the default's."""
    name = locale if locale in LOCALES else DEFAULT_LOCALE
    texts = resources.files(__package__).joinpath(f"{name}.json").read_text(encoding="utf-8")
    loaded: dict[str, str] = json.loads(texts)
    return loaded


def translate(locale: str, key: str, **values: object) -> str:
    """One text with its values filled in.

    Raises:
        KeyError: the catalogue has no such key, or a value is missing.
    """
    return catalogue(locale)[key].format(**values) if values else catalogue(locale)[key]


def negotiate(accept_language: str, known: Iterable[str] = LOCALES) -> str:
    """The best locale for an ``Accept-Language`` header."""
    known = tuple(known)
    wishes: list[tuple[float, int, str]] = []
    for position, part in enumerate(accept_language.split(",")[:20]):
        tag, _, parameter = part.partition(";")
        name, _, value = parameter.strip().partition("=")
        try:
            quality = float(value) if name == "q" else 1.0
        except ValueError:
            continue
        wishes.append((-quality, position, tag.strip().lower().split("-")[0]))
    for negative_quality, _, language in sorted(wishes):
        if language in known and negative_quality < 0:
            return language
    return DEFAULT_LOCALE
