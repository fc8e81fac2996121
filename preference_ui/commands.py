"""What ``rlhf prefs ...`` does: plain arguments in, tables out. Nothing here prints."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from preference_ui import backup as backups
from preference_ui.db import Store
from preference_ui.errors import DataError, StoreError
from preference_ui.events import Transaction, head
from preference_ui.export import (
    Snapshot,
    demonstrations,
    export_preferences,
    export_snapshot,
    judgment_lines,
    read_snapshot,
)
from preference_ui.formats import FORMATS, write_file, write_preferences
from preference_ui.group_commands import group_tables
from preference_ui.hints import ranking_page, training_on
from preference_ui.ids import canonical_json, new_id
from preference_ui.importing import check_file, import_file
from preference_ui.models import AnnotatorStat, GoldKey, Item
from preference_ui.people import find_annotator
from preference_ui.projects import ensure_project, get_guideline, get_project, list_projects
from preference_ui.ranking import PairOptions, Tiers
from preference_ui.sampling import CANDIDATES_FILE, SampleOrder, chosen_project, sample_into
from preference_ui.set_aside import restore, set_aside
from preference_ui.settings import ProjectSettings
from preference_ui.statistics import Interval, ProjectReport, project_report
from preference_ui.statistics.report import RaterReport
from preference_ui.tables import Opened, Place, Table
from preference_ui.versions import freeze

EXPORT_FORMATS = (*FORMATS, "sft", "judgments")


def prefs_import(
    place: Place,
    project: str,
    paths: Sequence[str | Path],
    *,
    file_format: str | None = None,
    keep_rankings: bool = True,
    settings: ProjectSettings | None = None,
    guideline: str = "",
    group: str = "",
) -> Table:
    """Import files into a project, made with the given settings when it is missing and the files fit.

    Args:
        group: of all their items; see ``importing.import_file``.
    """
    with Opened(place, create=True) as store:
        if project not in {known.name for known in list_projects(store)}:
            for path in paths:
                check_file(path, file_format, group)
        info = ensure_project(store, project, guideline=guideline, settings=settings)
        rows: list[tuple[str, ...]] = []
        notes: list[str] = []
        for path in paths:
            report = import_file(
                store, info.id, path, file_format=file_format, keep_rankings=keep_rankings, group=group
            )
            figures = (report.num_items, report.num_new, report.num_rankings, len(report.left_out))
            rows.append((str(path), *map(str, figures)))
            notes += [f"left out: {line}" for line in report.left_out[:20]]
            if len(report.left_out) > 20:
                notes.append(f"left out: {len(report.left_out) - 20} more")
    return Table(f"imported into {project}", ("file", "items", "new", "rankings", "left out"), rows, tuple(notes))


def prefs_sample(
    place: Place,
    project: str | None,
    *,
    run: str,
    prompts: str | None = None,
    limit: int = 100,
    responses_per_prompt: int = 4,
    seed: int = 0,
    config: str | None = None,
    folder: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> Table:
    """Let a policy answer prompts and put its answers into the queue; see ``sampling``."""
    with Opened(place) as store:
        name = chosen_project(store, project)
        at = Path(folder) if folder else Path("runs/samples") / f"{name}-{store.clock():%Y%m%d-%H%M%S}"
        order = SampleOrder(run, at, prompts, limit, responses_per_prompt, seed, config, overrides)
        report = sample_into(store, name, order)
        annotate = ranking_page(store, name)
    return Table(
        f"sampled into {name}",
        ("run", "tasks", "new", "left out", "candidates"),
        [(run, str(report.num_items), str(report.num_new), str(len(report.left_out)), str(at / CANDIDATES_FILE))],
        (f"people rank them in the page: {annotate}",),
    )


def prefs_export(
    place: Place,
    project: str,
    path: str | Path,
    *,
    file_format: str = "jsonl",
    votes: str = "soft",
    ties: str = "soft",
    weight_by_reliability: bool = False,
    include_edits: bool = True,
    with_retired: bool = False,
) -> Table:
    """Write a project's preferences to a file, without the votes on retired items unless ``with_retired``.

    ``sft`` as format writes rewritten responses as demonstrations, ``judgments`` every vote unfolded with its ratings,
    flags and reason, gold and repeated items included.

    Raises:
        DataError: there is nothing to write, or no such format.
    """
    if file_format not in EXPORT_FORMATS:
        raise DataError(f"--format {file_format!r} is not one of {', '.join(EXPORT_FORMATS)}")
    with Opened(place) as store:
        if file_format in ("sft", "judgments"):
            snapshot = export_snapshot(store, project, with_retired=with_retired)
            data, count = _demonstration_lines(snapshot) if file_format == "sft" else _votes_lines(snapshot)
            write_file(Path(path), data)
            return Table(f"exported {project}", ("file", "format", "rows"), [(str(path), file_format, str(count))])
        options = pair_options(store, project, votes, ties, weight_by_reliability)
        preferences = export_preferences(
            store, project, options, include_edits=include_edits, with_retired=with_retired
        )
        if not preferences:
            raise DataError(f"project {project!r} has no preferences to export yet: people rank in the page "
                            f"(rlhf annotate --project {project.partition('@')[0]})")  # fmt: skip
        written = write_preferences(preferences, path, file_format)
    notes: tuple[str, ...] = ()
    if written.num_ties_left_out:
        notes = (f"left out: {written.num_ties_left_out} exact ties, which {file_format} cannot hold",)
    return Table(
        f"exported {project}", ("file", "format", "rows"), [(str(path), file_format, str(written.num_rows))], notes
    )


def _demonstration_lines(snapshot: Snapshot) -> tuple[bytes, int]:
    rows = demonstrations(snapshot)
    if not rows:
        raise DataError(f"project {snapshot.project.name!r} has no rewritten responses to export yet")
    return "".join(canonical_json(r.as_dict()) + "\n" for r in rows).encode("utf-8"), len(rows)


def _votes_lines(snapshot: Snapshot) -> tuple[bytes, int]:
    if not snapshot.judgments:
        raise DataError(f"project {snapshot.project.name!r} has no votes to export yet")
    return judgment_lines(snapshot), len(snapshot.judgments)


def pair_options(store: Store, project: str, votes: str, ties: str, weight_by_reliability: bool) -> PairOptions:
    """Options from plain words.

    Raises:
        DataError: an unknown word.
    """
    if votes not in ("soft", "each") or ties not in ("soft", "drop"):
        raise DataError(f"votes={votes!r} must be soft or each, ties={ties!r} must be soft or drop")
    weights = report_of(store, project).reliability() if weight_by_reliability else {}
    return PairOptions(
        votes="soft" if votes == "soft" else "each", ties="soft" if ties == "soft" else "drop", reliability=weights
    )


def report_of(store: Store, project: str) -> ProjectReport:
    """The project's statistics, gold keys included; for leads, never for the voting page."""
    with store.read() as session:
        snapshot = read_snapshot(session, project, texts=False)
        gold = gold_keys(session, snapshot.project.id)
    return project_report(snapshot, gold)


def gold_keys(session: Session, project_id: str) -> dict[str, Tiers]:
    """Expected tiers per gold item id; for leads, never for the voting page."""
    query = select(GoldKey).join(Item, Item.id == GoldKey.item_id).where(Item.project_id == project_id)
    return {key.item_id: json.loads(key.tiers_json) for key in session.scalars(query)}


def save_stats(store: Store, project: str) -> ProjectReport:
    """Compute the report and keep each rater's figures, dated by the event they include."""
    report = report_of(store, project)
    project_id = get_project(store, project).id

    def change(tx: Transaction) -> None:
        seq, _ = head(tx.session)
        rows = []
        for r in report.raters:
            figures = {
                k: None if isinstance(v, float) and math.isnan(v) else v
                for k, v in {
                    "votes": r.votes,
                    "beta": r.beta,
                    "beta_error": r.beta_error,
                    "median_seconds": r.median_seconds,
                    "agreement": r.agreement_with_others,
                    "gold": r.gold_accuracy.value,
                    "self_consistency": r.self_consistency.value,
                }.items()
            }
            rows.append(
                {
                    "id": new_id(),
                    "project_id": project_id,
                    "annotator_id": r.annotator_id,
                    "event_seq": seq,
                    "reliability": r.reliability,
                    "figures_json": canonical_json(figures),
                    "created": tx.now,
                }
            )
        if rows:
            tx.run(insert(AnnotatorStat), rows)

    store.transact(change)
    return report


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1%}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _beta(rater: RaterReport) -> str:
    return "-" if math.isnan(rater.beta) else f"{rater.beta:.2f} ± {rater.beta_error:.2f}"


def _range(interval: Interval, percent: bool = True) -> str:
    if math.isnan(interval.value):
        return "-"
    show = _share if percent else _number
    return f"{show(interval.value)} [{show(interval.low)}, {show(interval.high)}]"


def prefs_stats(place: Place, project: str) -> list[Table]:
    """The project's figures and each rater's."""
    with Opened(place) as store:
        r = report_of(store, project)
        groups = group_tables(store, project)
    figures = [
        ("votes", str(r.votes)), ("items with votes", str(r.items)),
        ("pair agreement", _range(r.pair_agreement)), ("Kendall tau-b", _range(r.kendall_tau, False)),
        ("Krippendorff alpha, pairs", _range(r.alpha_pairs, False)),
        *((f"Krippendorff alpha, {axis}", _number(value)) for axis, value in r.alpha_axes.items()),
        ("ties", _share(r.tie_share)), ("all bad", _share(r.all_bad_share)),
        ("first slot", "-" if math.isnan(r.first_slot.value) else
         f"{_range(r.first_slot)}, {_share(r.first_slot_expected)} by chance, p={r.first_slot_p:.2g}"),
        ("longer text wins", _range(r.longer_preferred)),
        ("median time", "-" if math.isnan(r.median_seconds) else f"{_number(r.median_seconds)} s"),
        ("gold accuracy", _range(r.gold_accuracy)), ("self-consistency", _range(r.self_consistency)),
        ("ceiling of a reward model", _share(r.reward_model_ceiling)),
        *((f"{kind} bias, logits", _number(value) if r.votes else "-")
          for kind, value in (("position", r.position_bias), ("length", r.length_bias))),
    ]  # fmt: skip
    raters = [
        (x.handle, str(x.votes), _number(x.median_seconds), _share(x.agreement_with_others), _range(x.gold_accuracy),
         _share(x.self_consistency.value), _beta(x), _number(x.reliability))
        for x in r.raters]  # fmt: skip
    columns = ("rater", "votes", "seconds", "agreement", "gold", "self", "beta", "weight")
    kappa = [
        (a, b, _range(r.kappa_intervals[a, b], False) if (a, b) in r.kappa_intervals else _number(value), str(pairs))
        for (a, b), (value, pairs) in sorted(r.kappa.items())
    ]
    topics = [(topic, str(votes)) for topic, votes in r.topics.items()]
    return [
        Table(f"preferences of {project}", ("figure", "value"), figures),
        Table("raters", columns, raters),
        Table("agreement by couple of raters", ("one", "other", "kappa", "pairs"), kappa),
        Table("coverage", ("topic", "votes"), topics),
        *groups,
    ]


def prefs_freeze(
    place: Place,
    project: str,
    *,
    votes: str = "soft",
    ties: str = "soft",
    weight_by_reliability: bool = False,
    include_edits: bool = True,
    with_retired: bool = False,
    actor: str = "command line",
) -> Table:
    """Freeze the votes so far as the next dataset version, those on retired items only with ``with_retired``."""
    with Opened(place) as store:
        options = pair_options(store, project, votes, ties, weight_by_reliability)
        version = freeze(store, project, options, include_edits=include_edits, with_retired=with_retired, actor=actor)
        train = training_on(store, version.name)
    return Table(
        f"frozen {version.name}",
        ("rows", "judgments", "sha256", "folder"),
        [(str(version.num_rows), str(version.num_judgments), version.sha256, str(version.path))],
        (f"train on it (runs/sft: the run whose answers were ranked): {train}",),
    )


def prefs_set_aside(
    place: Place, project: str, handle: str, *, reason: str = "", undo: bool = False, actor: str = "command line"
) -> Table:
    """Set all of a person's votes in a project aside, or with ``undo`` let them count again.

    Raises:
        DataError: no such person or project, or no reason.
    """
    with Opened(place) as store:
        person = find_annotator(store, handle)
        if person is None:
            raise DataError(f"no annotator {handle!r}")
        if not undo and not reason.strip():
            raise DataError("say why with --reason: it is all that later readers of the audit chain will know")
        if undo:
            count = restore(store, project, person.id, actor=actor)
            return Table(f"restored in {project}", ("person", "votes"), [(person.handle, str(count))])
        count = set_aside(store, project, person.id, reason, actor=actor)
    return Table(
        f"set aside in {project}", ("person", "votes"), [(person.handle, str(count))],
        ("their tasks are in the queue again, frozen versions stay as they are; --undo lets the votes count again",),
    )  # fmt: skip


def prefs_backup(place: Place, target: str | Path) -> Table:
    """Copy a SQLite store while it is in use, as it is: an older one can be kept before it is migrated."""
    with Opened(place, migrate=False) as store:
        path = backups.backup(store, target)
    return Table("backup", ("file", "bytes"), [(str(path), str(path.stat().st_size))])


def prefs_verify(place: Place, expected_head: tuple[int, str] | None = None) -> Table:
    """Check chain, votes and invariants.

    Raises:
        StoreError: something is wrong; the message lists it.
    """
    with Opened(place) as store:
        result = backups.verify(store, expected_head)
        where = store.url
    if not result.ok:
        listed = "\n  ".join(result.problems[:50])
        raise StoreError(f"{where} is not sound ({len(result.problems)} problems):\n  {listed}")
    return Table(
        "the store is sound",
        ("events", "judgments", "head", "hash"),
        [(str(result.events), str(result.judgments), str(result.head_seq), result.head_hash)],
        ("keep head and hash elsewhere: a later check against them notices a cut-off end",),
    )


def prefs_guideline(place: Place, project: str, version: int | None = None) -> str:
    """Markdown of a guideline version."""
    with Opened(place) as store:
        return get_guideline(store, get_project(store, project).id, version)
