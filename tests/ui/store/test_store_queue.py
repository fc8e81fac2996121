"""The queue's promises, each on SQLite and on PostgreSQL."""

from __future__ import annotations

import pytest
from store_helpers import Clock, MakeProject, by_text, claim, count, item_of, item_spec, lease_row, people, shown, undo

from preference_ui import queue
from preference_ui.db import Store
from preference_ui.errors import DataError, LeaseError, VoteConflict
from preference_ui.models import Event, Item, Judgment
from preference_ui.people import update_annotator
from preference_ui.projects import ItemSpec, add_items
from preference_ui.queue import Vote
from preference_ui.settings import Axis


def test_claim_gives_texts_in_the_stored_order_and_again_to_a_second_tab(
    store: Store, make_project: MakeProject
) -> None:
    make_project(3)
    (ann,) = people(store, "ann")
    task = claim(store, ann)
    assert sorted(task.responses) == ["0.0", "0.1", "0.2"]
    assert task.prompt[0].content == "question 0"
    again = claim(store, ann)
    assert (again.lease_id, again.responses) == (task.lease_id, task.responses)
    assert item_of(store, task.lease_id).active == 1


def test_two_people_never_hold_the_same_item_beyond_its_overlap(store: Store, make_project: MakeProject) -> None:
    make_project(2)
    ann, bo, cy = people(store, "ann", "bo", "cy")
    assert {claim(store, ann).prompt, claim(store, bo).prompt} == {item_spec(0).prompt, item_spec(1).prompt}
    assert queue.claim(store, "helpline", cy) is None


def test_nobody_sees_an_item_twice_and_none_means_done(store: Store, make_project: MakeProject) -> None:
    make_project(4, overlap=2)
    (ann,) = people(store, "ann")
    seen = []
    task = queue.claim(store, "helpline", ann)
    while task is not None:
        seen.append(task.prompt[0].content)
        task = queue.submit(store, ann, task.lease_id, by_text(task), claim_next=True).next
    assert sorted(seen) == [f"question {i}" for i in range(4)]


def test_permutations_differ_and_are_stored(store: Store, make_project: MakeProject) -> None:
    make_project(30, num_responses=4)
    (ann,) = people(store, "ann")
    orders = set()
    for _ in range(30):
        task = claim(store, ann)
        assert len(set(shown(store, task.lease_id))) == 4
        orders.add(tuple(text.split(".")[1] for text in task.responses))
        queue.submit(store, ann, task.lease_id, by_text(task))
    # 30 draws from 24 orders: fewer than 8 different ones has probability below 1e-9.
    assert len(orders) >= 8


def test_double_click_stores_one_vote_and_another_vote_is_refused(store: Store, make_project: MakeProject) -> None:
    make_project(2)
    (ann,) = people(store, "ann")
    task = claim(store, ann)
    first = queue.submit(store, ann, task.lease_id, by_text(task), claim_next=True)
    second = queue.submit(store, ann, task.lease_id, by_text(task), claim_next=True)
    assert second.duplicate and not first.duplicate
    assert second.judgment_id == first.judgment_id
    assert first.next is not None and second.next is not None and second.next.lease_id == first.next.lease_id
    with pytest.raises(VoteConflict):
        queue.submit(store, ann, task.lease_id, by_text(task, worst_first=True))
    assert count(store, Judgment) == 1
    assert item_of(store, task.lease_id).done == 1


def test_a_changed_mind_is_a_new_revision_and_history_stays(store: Store, make_project: MakeProject) -> None:
    make_project(1)
    (ann,) = people(store, "ann")
    task = claim(store, ann)
    vote = by_text(task)
    queue.submit(store, ann, task.lease_id, vote)
    recalled = queue.recall(store, ann, task.lease_id)
    assert recalled.revision == 2
    assert Vote.from_dict(recalled.draft or {}).tiers == vote.tiers
    receipt = queue.submit(store, ann, task.lease_id, by_text(task, worst_first=True), recalled.revision)
    assert receipt.revision == 2
    assert count(store, Judgment) == 2
    assert item_of(store, task.lease_id).done == 1
    with pytest.raises(VoteConflict):
        queue.submit(store, ann, task.lease_id, vote, 5)


def test_a_change_in_the_making_is_kept_until_the_revision(store: Store, make_project: MakeProject) -> None:
    make_project(1)
    (ann,) = people(store, "ann")
    task = claim(store, ann)
    vote, draft = by_text(task), {"tiers": [[1], [0], [2], [3]]}
    queue.submit(store, ann, task.lease_id, vote)
    assert not queue.save_draft(store, ann, task.lease_id, {"tiers": []}), "the draft of a vote that is stored"
    assert queue.recall(store, ann, task.lease_id).draft == vote.as_dict()
    assert queue.save_draft(store, ann, task.lease_id, draft, revision=2)
    assert queue.recall(store, ann, task.lease_id).draft == draft
    assert queue.save_draft(store, ann, task.lease_id, None, revision=2)
    assert queue.recall(store, ann, task.lease_id).draft == vote.as_dict()
    queue.save_draft(store, ann, task.lease_id, draft, revision=2)
    changed = by_text(task, worst_first=True)
    queue.submit(store, ann, task.lease_id, changed, 2)
    assert queue.recall(store, ann, task.lease_id).draft == changed.as_dict()


def test_undo_takes_the_vote_back_and_gives_the_task_again(store: Store, make_project: MakeProject) -> None:
    make_project(2)
    (ann,) = people(store, "ann")
    task = claim(store, ann)
    vote = by_text(task)
    following = queue.submit(store, ann, task.lease_id, vote, claim_next=True).next
    assert following is not None
    undone = undo(store, ann)
    assert undone.lease_id == task.lease_id and undone.responses == task.responses
    assert Vote.from_dict(undone.draft or {}).tiers == vote.tiers
    assert (item_of(store, task.lease_id).done, item_of(store, task.lease_id).state) == (0, "open")
    assert lease_row(store, following.lease_id).state == "released"
    receipt = queue.submit(store, ann, task.lease_id, vote, undone.revision, claim_next=True)
    assert receipt.revision == 3 and not receipt.duplicate
    assert receipt.next is not None and receipt.next.lease_id == following.lease_id


def test_undo_of_a_skip(store: Store, make_project: MakeProject) -> None:
    make_project(1, max_skips=1)
    (ann,) = people(store, "ann")
    task = claim(store, ann)
    queue.skip(store, ann, task.lease_id, "cannot tell")
    assert item_of(store, task.lease_id).state == "review"
    assert queue.claim(store, "helpline", ann) is None
    assert undo(store, ann).lease_id == task.lease_id
    item = item_of(store, task.lease_id)
    assert (item.state, item.skips, item.active) == ("open", 0, 1)
    queue.submit(store, ann, task.lease_id, by_text(task))
    assert item_of(store, task.lease_id).state == "done"


def test_skips_send_an_item_to_the_lead(store: Store, make_project: MakeProject) -> None:
    make_project(1, max_skips=2)
    ann, bo, cy = people(store, "ann", "bo", "cy")
    for person in (ann, bo):
        task = claim(store, person)
        assert queue.skip(store, person, task.lease_id, "broken") is None
        assert queue.skip(store, person, task.lease_id, "broken") is None
    item = item_of(store, task.lease_id)
    assert (item.state, item.skips, item.active) == ("review", 2, 0)
    assert queue.claim(store, "helpline", cy) is None
    with pytest.raises(LeaseError, match="skipped"):
        queue.submit(store, ann, task.lease_id if person == ann else _first_lease(store, ann), Vote([[0, 1, 2]]))


def _first_lease(store: Store, annotator: str) -> str:
    from sqlalchemy import select

    from preference_ui.models import Lease

    with store.read() as session:
        return session.scalars(select(Lease.id).where(Lease.annotator_id == annotator)).one()


def test_an_expired_lease_returns_and_its_holder_may_resume(
    store: Store, make_project: MakeProject, clock: Clock
) -> None:
    make_project(1, lease_seconds=100)
    ann, bo = people(store, "ann", "bo")
    task = claim(store, ann)
    queue.save_draft(store, ann, task.lease_id, {"tiers": [[2], [0, 1]]})
    clock.advance(101)
    taken = claim(store, bo)
    assert taken.prompt == task.prompt
    assert lease_row(store, task.lease_id).state == "expired"
    queue.release(store, bo, taken.lease_id)
    back = claim(store, ann)
    assert (back.lease_id, back.responses, back.draft) == (task.lease_id, task.responses, {"tiers": [[2], [0, 1]]})


def test_renewing_keeps_the_task(store: Store, make_project: MakeProject, clock: Clock) -> None:
    make_project(1, lease_seconds=100)
    ann, bo = people(store, "ann", "bo")
    task = claim(store, ann)
    for _ in range(5):
        clock.advance(60)
        assert queue.renew(store, ann, task.lease_id) > clock.now
    assert queue.claim(store, "helpline", bo) is None


def test_a_late_vote_counts_when_there_is_room_and_is_kept_when_not(
    store: Store, make_project: MakeProject, clock: Clock
) -> None:
    make_project(2, lease_seconds=100)
    ann, bo, cy = people(store, "ann", "bo", "cy")
    first = claim(store, ann)
    second = claim(store, bo)
    clock.advance(101)
    taken = claim(store, cy)
    assert taken.prompt == first.prompt
    assert queue.submit(store, bo, second.lease_id, by_text(second)).counted
    late = queue.submit(store, ann, first.lease_id, by_text(first))
    assert not late.counted
    assert queue.submit(store, cy, taken.lease_id, by_text(taken)).counted
    item = item_of(store, first.lease_id)
    assert (item.done, item.active, item.needed) == (1, 0, 1)
    assert count(store, Judgment) == 3


def test_a_clock_set_back_revives_nothing(store: Store, make_project: MakeProject, clock: Clock) -> None:
    make_project(1, lease_seconds=100)
    ann, bo = people(store, "ann", "bo")
    claim(store, ann)
    clock.advance(101)
    taken = claim(store, bo)
    clock.advance(-3600)
    assert queue.claim(store, "helpline", ann) is None
    queue.submit(store, bo, taken.lease_id, by_text(taken))
    with store.read() as session:
        times = [e.created for e in session.query(Event).order_by(Event.seq)]
    assert times == sorted(times)


@pytest.mark.parametrize("agree", [True, False])
def test_a_third_vote_is_asked_only_on_disagreement(store: Store, make_project: MakeProject, agree: bool) -> None:
    make_project(1, overlap=2, adaptive_extra=1)
    ann, bo, cy, di = people(store, "ann", "bo", "cy", "di")
    for person, flip in ((ann, False), (bo, not agree)):
        task = claim(store, person)
        queue.submit(store, person, task.lease_id, by_text(task, worst_first=flip))
    third = queue.claim(store, "helpline", cy)
    assert (third is None) == agree
    if third is not None:
        queue.submit(store, cy, third.lease_id, by_text(third))
        assert queue.claim(store, "helpline", di) is None
    item = item_of(store, task.lease_id)
    assert (item.needed, item.done, item.state) == ((2, 2, "done") if agree else (3, 3, "done"))


def test_only_the_holder_may_write(store: Store, make_project: MakeProject) -> None:
    make_project(2)
    ann, eve = people(store, "ann", "eve")
    task = claim(store, ann)
    vote = by_text(task)
    for attempt in (
        lambda: queue.submit(store, eve, task.lease_id, vote),
        lambda: queue.save_draft(store, eve, task.lease_id, {}),
        lambda: queue.renew(store, eve, task.lease_id),
        lambda: queue.release(store, eve, task.lease_id),
        lambda: queue.skip(store, eve, task.lease_id, "x"),
        lambda: queue.withdraw(store, eve, task.lease_id),
        lambda: queue.recall(store, eve, task.lease_id),
        lambda: queue.submit(store, "nobody", task.lease_id, vote),
        lambda: queue.claim(store, "helpline", "nobody"),
        lambda: queue.submit(store, ann, "no-such-lease", vote),
    ):
        with pytest.raises(LeaseError):
            attempt()
    update_annotator(store, ann, actor="lead", active=False)
    with pytest.raises(LeaseError, match="not active"):
        queue.submit(store, ann, task.lease_id, vote)
    assert count(store, Judgment) == 0
    assert lease_row(store, task.lease_id).state == "active"


BAD_VOTES = [
    {"tiers": [[0], [1]]},
    {"tiers": [[0], [1], [1]]},
    {"tiers": [[0], [1], [2], [3]]},
    {"tiers": [[0, 1, 2], []]},
    {"tiers": [["0"], [1], [2]]},
    {"tiers": [[False], [True], [2]]},
    {"tiers": [[0], [1], [2.0]]},
    {"strength": 4},
    {"strength": -1},
    {"strength": True},
    {"all_bad": 1},
    {"rationale": "a\x00b"},
    {"rationale": "\ud800"},
    {"rationale": "x" * 100_001},
    {"active_ms": -1},
    {"ratings": {3: {"helpful": 1}}},
    {"ratings": {0: {"helpful": 8}}},
    {"ratings": {0: {"charm": 3}}},
    {"flags": [(0, "unknown")]},
    {"flags": [(9, "harmful")]},
    {"flags": [(0, "harmful"), (0, "harmful")]},
    {"edits": {5: "better"}},
    {"edits": {0: "  "}},
    {"flags": [([], "harmful")]},
    {"flags": [(True, "harmful")]},
]


def test_votes_that_do_not_fit_are_refused_whole(store: Store, make_project: MakeProject) -> None:
    make_project(1, axes=(Axis("helpful"),), flags=("harmful",))
    (ann,) = people(store, "ann")
    task = claim(store, ann)
    for change in BAD_VOTES:
        with pytest.raises(DataError):
            queue.submit(store, ann, task.lease_id, Vote(**({"tiers": [[0], [1], [2]]} | change)))  # type: ignore[arg-type]
    assert count(store, Judgment) == 0
    full = Vote(
        tiers=[[1], [0, 2]],
        strength=3,
        rationale="clear",
        ratings={0: {"helpful": 7}, 2: {"helpful": 1}},
        flags=[(0, "harmful"), (None, "harmful")],
        edits={1: "even better"},
        active_ms=1200,
    )
    queue.submit(store, ann, task.lease_id, full)
    restored = Vote.from_dict(queue.recall(store, ann, task.lease_id).draft or {})
    assert restored.as_dict() == full.as_dict() | {"flags": [[None, "harmful"], [0, "harmful"]]}


def test_a_vote_faster_than_possible_is_refused(store: Store, make_project: MakeProject, clock: Clock) -> None:
    make_project(1, min_seconds=2)
    (ann,) = people(store, "ann")
    task = claim(store, ann)
    with pytest.raises(LeaseError, match="at least 2 seconds"):
        queue.submit(store, ann, task.lease_id, by_text(task))
    clock.advance(3)
    assert queue.submit(store, ann, task.lease_id, by_text(task)).counted


def test_gold_and_repeats_are_mixed_in_and_cannot_be_told_apart(
    store: Store, make_project: MakeProject, clock: Clock
) -> None:
    project = make_project(30, gold_rate=0.3, repeat_rate=0.3, repeat_after_seconds=50, overlap=2)
    gold = [item_spec(100 + i, gold_tiers=((0,), (1, 2))) for i in range(20)]
    add_items(store, project.id, gold)
    ann, bo = people(store, "ann", "bo")
    kinds: list[str] = []
    for person in (ann, bo):
        task = claim(store, person)
        while task is not None:
            fields = set(vars(task))
            kinds.append(item_of(store, task.lease_id).kind)
            clock.advance(20)
            task = queue.submit(store, person, task.lease_id, by_text(task), claim_next=True).next  # type: ignore[assignment]
    # Per person 30 normal claims come with about 22 repeats and with gold until all 20 are seen.
    assert kinds.count("normal") == 60
    assert 24 <= kinds.count("gold") <= 40
    assert 24 <= kinds.count("repeat") <= 60
    assert not fields & {"kind", "gold", "item_id", "gold_tiers"}
    mine = queue.progress(store, "helpline", ann)
    assert mine.mine_total == len([k for k in kinds]) - queue.progress(store, "helpline", bo).mine_total


def test_a_repeat_asks_the_same_person_in_another_order(store: Store, make_project: MakeProject, clock: Clock) -> None:
    make_project(20, num_responses=2, repeat_rate=1.0, repeat_after_seconds=0)
    (ann,) = people(store, "ann")
    orders: dict[str, list[tuple[str, ...]]] = {}
    task = queue.claim(store, "helpline", ann)
    while task is not None:
        orders.setdefault(task.prompt[0].content, []).append(task.responses)
        clock.advance(1)
        task = queue.submit(store, ann, task.lease_id, by_text(task), claim_next=True).next
    twice = [o for o in orders.values() if len(o) == 2]
    assert len(twice) >= 18
    assert all(first != second for first, second in twice)
    assert max(map(len, orders.values())) == 2


def test_history_and_progress(store: Store, make_project: MakeProject, clock: Clock) -> None:
    make_project(3)
    (ann,) = people(store, "ann")
    for _ in range(2):
        task = claim(store, ann)
        queue.submit(store, ann, task.lease_id, by_text(task))
        clock.advance(86_400)
    task = claim(store, ann)
    queue.submit(store, ann, task.lease_id, by_text(task))
    entries = queue.history(store, ann, "helpline")
    assert [e.opening for e in entries] == ["question 2", "question 1", "question 0"]
    assert list(queue.history(store, ann, "helpline", limit=1, skip=1)) == [entries[1]]
    assert queue.progress(store, "helpline", ann) == queue.Progress(1, 3, 3, 3)


def test_items_are_added_once_and_priority_leads(store: Store, make_project: MakeProject) -> None:
    project = make_project(3)
    before = count(store, Item)
    add_items(store, project.id, [item_spec(i) for i in range(3)])
    assert count(store, Item) == before
    add_items(store, project.id, [item_spec(9, priority=5.0)])
    (ann,) = people(store, "ann")
    assert claim(store, ann).prompt[0].content == "question 9"
    for bad in (
        item_spec(1, 1),
        item_spec(1, 10),
        ItemSpec(item_spec(1).prompt, item_spec(1).responses[:1] * 2),
        item_spec(1, gold_tiers=((0, 1, 2),)),
    ):
        with pytest.raises(DataError):
            add_items(store, project.id, [bad])
