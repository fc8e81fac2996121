"""The tables of the preference store (SQLAlchemy 2, typed)."""

from preference_ui.models.base import Base
from preference_ui.models.content import (
    GoldKey,
    Guideline,
    Item,
    ItemResponse,
    PolicyVersion,
    Project,
    Prompt,
    Response,
    RewardScore,
)
from preference_ui.models.ledger import DatasetVersion, Event
from preference_ui.models.people import (
    MEMBER_STATES,
    ROLES,
    Annotator,
    AnnotatorStat,
    AuthSession,
    LoginAttempt,
    MemberGroup,
    Membership,
)
from preference_ui.models.work import (
    LEASE_STATES,
    Decision,
    Flag,
    Judgment,
    Lease,
    Rating,
    ResponseEdit,
)

__all__ = [
    "LEASE_STATES",
    "MEMBER_STATES",
    "ROLES",
    "Annotator",
    "AnnotatorStat",
    "AuthSession",
    "Base",
    "DatasetVersion",
    "Decision",
    "Event",
    "Flag",
    "GoldKey",
    "Guideline",
    "Item",
    "ItemResponse",
    "Judgment",
    "Lease",
    "LoginAttempt",
    "MemberGroup",
    "Membership",
    "PolicyVersion",
    "Project",
    "Prompt",
    "Rating",
    "Response",
    "ResponseEdit",
    "RewardScore",
]
