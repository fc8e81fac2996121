"""Rendering of untrusted text and the catalogues of translations, without a browser."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import preference_ui
from preference_ui.app.lead_votes import label, skip_words
from preference_ui.app.refusal import in_words
from preference_ui.errors import ConfigError, DataError
from preference_ui.i18n import LOCALES, catalogue, negotiate, translate
from preference_ui.render import direction, markdown_html, plain_html
from preference_ui.settings import Axis, ProjectSettings

_TAGS = set(
    re.findall(
        r"\w+", "p br hr em strong s code pre blockquote ul ol li h4 h5 h6 a span div table thead tbody tr th td"
    )
)
_ATTRIBUTES = {"class", "href", "target", "rel", "title", "tabindex", "data-display", "start", "style"}
_PIECES = st.sampled_from(
    ["<script>", "</p>", "<img src=x onerror=alert(1)>", "![x](http://e.test/p.png)", "[a](javascript:alert(1))", "`",
     "```", "$", "$$", "\\(", "\\)", "${x}", "{{x}}", "|a|\n|-|\n", "# ", "> ", "- ", "\n", "\n\n", "*", "_", "[", "]",
     "(", ")", "<http://e.test>", "\u202e", "\u200b", "&lt;", "&#x3C;", "http://e.test", "x", " ", '"', "'", "\\",
     "[r]: javascript:1\n"]
)  # fmt: skip


class _Reader(HTMLParser):
    """Collects what a browser would make of the markup."""

    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self.words = ""
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


@given(st.lists(_PIECES, max_size=30).map("".join) | st.text(max_size=200))
def test_rendered_markdown_holds_only_harmless_elements(text: str) -> None:
    for tag, attributes in _Reader(markdown_html(text)).seen:
        assert tag in _TAGS
        assert set(attributes) <= _ATTRIBUTES
        assert re.match(r"(https?|mailto):", attributes.get("href") or "http:")
        assert re.fullmatch(r"(text-align:(left|right|center))?", attributes.get("style") or "")


@given(
    st.text(
        st.characters(exclude_categories=["Cc", "Cf", "Cs"], exclude_characters="\u034f\u115f\u1160\u3164\uffa0"),
        max_size=200,
    )
)
def test_plain_text_comes_out_as_it_went_in(text: str) -> None:
    reader = _Reader(plain_html(text))
    assert all(tag == "span" for tag, _ in reader.seen)
    if not reader.seen:
        assert reader.words == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\u202eb", "aU+202Eb"), ("a\u200bb", "aU+200Bb"), ("\ufeffa", "U+FEFFa"), ("a\x1bb", "aU+001Bb")],
)
def test_hidden_characters_are_shown(text: str, shown: str) -> None:
    assert _Reader(plain_html(text)).words == shown
    assert shown in _Reader(markdown_html(text)).words


def test_joiners_that_shape_letters_and_emoji_stay() -> None:
    for text in ("می\u200cخواهم", "👩\u200d💻", "क्\u200dष"):
        assert plain_html(text) == text
    assert "U+200D" in plain_html("pay\u200dpal")


def test_formulas_and_money() -> None:
    assert '<span class="math" data-display="inline">x^2</span>' in markdown_html("so $x^2$ it is")
    assert 'data-display="display">' in markdown_html("$$\\frac{a}{b}$$")
    assert "math" not in markdown_html("from $5 to $10 and $ 7 $")
    assert "math" not in markdown_html("`$x$`")


def test_direction_of_text() -> None:
    assert direction("123 שלום") == "rtl"
    assert direction("مرحبا hello") == "rtl"
    assert direction("hello שלום") == "ltr"
    assert direction("123") == "ltr"


def test_very_long_and_deep_texts_render() -> None:
    assert "as-written" in markdown_html("x" * 100_000)
    assert markdown_html("> " * 2000 + "x")
    assert markdown_html("[" * 2000)


def test_catalogues_have_the_same_texts_with_the_same_values() -> None:
    english = catalogue("en")
    for locale in LOCALES:
        texts = catalogue(locale)
        assert list(texts) == list(english)
        for key, text in texts.items():
            assert text.strip(), (locale, key)
            assert set(re.findall(r"{(\w+)}", text)) == set(re.findall(r"{(\w+)}", english[key])), (locale, key)
    same = [k for k in english if catalogue("zh")[k] == english[k]]
    assert same == []


def test_the_browsers_wish_chooses_the_locale() -> None:
    assert negotiate("da-DK,da;q=0.9,en;q=0.5") == "da"
    assert negotiate("fr, zh-TW;q=0.8, en;q=0.9") == "en"
    assert negotiate("zh-CN") == "zh"
    assert negotiate("da;q=0, fr") == "en"
    assert negotiate("x;q=nonsense,;,") == "en"
    assert translate("da", "progress.line", today=1, mine=2, done=3, total=4) == "I dag 1 · af mig 2 · projektet 3 af 4"


def test_every_refusal_has_words_in_every_language() -> None:
    """What routes answer with, and what errors name, stands in the catalogues."""
    source = "".join(path.read_text("utf-8") for path in Path(preference_ui.__file__).parent.glob("**/*.py"))
    codes = set(re.findall(r'"error": "(\w+)"', source)) | set(re.findall(r'\(\w+, "(\w+)", 4\d\d\)', source))
    assert {"too_large", "rate", "server", "conflict", "late"} <= codes
    # Logged out is a state of the page, and no page asks for what is not there.
    wanted = {f"error.{code}" for code in codes - {"login", "not_found"}}
    worded = set(re.findall(r'Worded\w+Error\(\s*(?:f?"(?:[^"\\]|\\.)*"|\w+),\s*f?"([\w.{}]+)"', source))
    assert {"taken", "setting.{key}", "zone", "character"} <= worded
    wanted |= {f"lead.refused.{key}" for key in worded if "{" not in key}
    for locale in LOCALES:
        assert wanted <= set(catalogue(locale)), wanted - set(catalogue(locale))


@pytest.mark.parametrize(
    "bad",
    [{"overlap": 0}, {"adaptive_extra": -1}, {"gold_rate": 2}, {"gold_rate": 0.9, "repeat_rate": 0.9},
     {"min_seconds": 1000}, {"axes": (Axis("a", 2, 1),)}, {"axes": (Axis("a"), Axis("a"))}, {"flags": ("x" * 25,)},
     {"strength_margins": (1.0, 0.5)}, {"time_zone": ""}],
)  # fmt: skip
def test_every_rule_of_the_settings_has_words(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="project setting") as caught:
        ProjectSettings(**bad)  # type: ignore[arg-type]
    said = {str(in_words(catalogue(locale), caught.value)) for locale in LOCALES}
    assert len(said) == len(LOCALES) and not any(name in words for name in bad for words in said)


def test_an_error_is_said_in_the_readers_language() -> None:
    with pytest.raises(ConfigError) as caught:
        ProjectSettings(gold_rate=0.9, repeat_rate=0.9)
    assert str(in_words(catalogue("da"), caught.value)) == (
        "Andel guldopgaver (0 til 1): højst 1 sammen med andelen af gentagne opgaver."
    )
    with pytest.raises(ConfigError) as caught:
        ProjectSettings(min_seconds=20, lease_seconds=10)
    assert str(in_words(catalogue("en"), caught.value)).startswith("Fewest seconds per task: must be 0 or more")
    assert "project setting" in str(caught.value), "the command line says it as before"
    assert str(in_words(catalogue("zh"), DataError("no item 'x'"))) == "未执行：有内容不符合要求。详情：no item 'x'"


def test_codes_of_the_page_are_words_on_the_leads_pages() -> None:
    texts = catalogue("da")
    assert label(texts, "flag", "pii") == "Personoplysninger" and label(texts, "axis", "our_own") == "our_own"
    assert skip_words(texts, "unclear") == texts["skip.unclear"]
    assert skip_words(texts, "other: kan ikke se den") == f"{texts['skip.other']}: kan ikke se den"
    assert skip_words(texts, "button") == "button" and skip_words(texts, "too long: really") == "too long: really"
