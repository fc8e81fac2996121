"""What every part of the web server shares: the store, the project, and how visitors reach the server."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from starlette.requests import HTTPConnection

from preference_ui.agreements import Agreements
from preference_ui.app.address import Address
from preference_ui.auth import session_person
from preference_ui.db import Store
from preference_ui.i18n import LOCALES, catalogue, negotiate
from preference_ui.people import Person
from preference_ui.progress import ProgressLines
from preference_ui.reviews import InboxEntry, inbox

STATIC = Path(__file__).with_name("static")
LOCALE_COOKIE = "rlhf_locale"


@dataclass(frozen=True)
class Site:
    """One running server.

    Attributes:
        store: the open preference store.
        project: name of the project that people rank in.
        address: where browsers reach it.
    """

    store: Store
    project: str
    address: Address

    @cached_property
    def progress(self) -> ProgressLines:
        """The progress lines of those who rank here."""
        return ProgressLines(self.store)

    @cached_property
    def _agreements(self) -> Agreements:
        return Agreements()

    def inbox(self) -> list[InboxEntry]:
        """What wants the lead's decision."""
        return inbox(self.store, self.project, known=self._agreements)

    @property
    def session_cookie(self) -> str:
        """Name of the session cookie."""
        return self.address.cookie("rlhf", "rlhf_session")

    def token(self, connection: HTTPConnection) -> str | None:
        """The session token that came with a request."""
        return connection.cookies.get(self.session_cookie)

    def visitor(self, connection: HTTPConnection) -> Person | None:
        """Who sent a request, read from the database each time: a closed account is out at once."""
        return session_person(self.store, self.token(connection))

    def locale(self, connection: HTTPConnection, person: Person | None = None) -> str:
        """The locale of a person, or of a visitor who has not logged in."""
        if person is not None and person.locale in LOCALES:
            return person.locale
        chosen = connection.cookies.get(LOCALE_COOKIE, "")
        return chosen if chosen in LOCALES else negotiate(connection.headers.get("accept-language", ""))


@lru_cache(maxsize=1)
def page_digest() -> str:
    """Digest of the page's scripts, styles and texts; every vote carries it."""
    digest = hashlib.sha256()
    for path in sorted(p for p in STATIC.glob("*.*") if p.suffix in (".js", ".css")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    for locale in LOCALES:
        texts: Mapping[str, str] = catalogue(locale)
        digest.update(repr(sorted(texts.items())).encode())
    return digest.hexdigest()
