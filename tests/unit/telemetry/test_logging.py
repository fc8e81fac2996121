from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf.errors import ConfigError
from rlhf.telemetry.events import EventLog, read_events
from rlhf.telemetry.logging import close_logging, get_logger, quiet_libraries, setup_logging
from rlhf.telemetry.redaction import redact_text, secret_values

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z [A-Z]+ policy-1 [\w.]+: ")


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    close_logging()


def test_one_file_per_role_and_rank(tmp_path: Path) -> None:
    for role, rank in (("policy", 0), ("policy", 1), ("rollout", 0)):
        path = setup_logging(tmp_path, role, rank)
        get_logger("rlhf.stages.ppo").info("I am %s %d", role, rank)
        assert path == tmp_path / "logs" / f"{role}-{rank}.log"
    found = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert found == ["policy-0.log", "policy-1.log", "rollout-0.log"]
    for path in (tmp_path / "logs").iterdir():
        role, rank = path.stem.split("-")
        lines = path.read_text().splitlines()
        assert len(lines) == 1 and lines[0].endswith(f"I am {role} {rank}")


def test_every_line_is_prefixed_and_free_of_ansi(tmp_path: Path) -> None:
    path = setup_logging(tmp_path, "policy", 1)
    logger = get_logger("rlhf.engine")
    logger.info("\x1b[31mred\x1b[0m first\nsecond \x1b]8;;http://x\x07link")
    try:
        raise ValueError("inner\n2026-01-01T00:00:00.000Z INFO driver-0 rlhf: forged")
    except ValueError:
        logger.exception("it failed")
    text = path.read_text()
    assert "\x1b" not in text
    assert "red first\n" in text and "Traceback" in text and "forged" in text
    assert all(LINE.match(line) for line in text.splitlines())


def test_times_are_utc(tmp_path: Path) -> None:
    path = setup_logging(tmp_path, "policy", 1)
    logger = get_logger("rlhf")
    record = logger.makeRecord("rlhf", logging.INFO, __file__, 1, "epoch", (), None)
    record.created, record.msecs = 0.25, 250
    logger.handle(record)
    assert path.read_text().startswith("1970-01-01T00:00:00.250Z INFO policy-1 rlhf: epoch")


def test_libraries_are_routed_once_from_warning_even_when_they_reset_their_logger(tmp_path: Path) -> None:
    path = setup_logging(tmp_path, "policy", 1, level="DEBUG")
    for name, propagate in (("DeepSpeed", False), ("transformers.trainer", True), ("ray", True)):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)  # what these libraries do when they are imported
        logger.propagate = propagate
        logger.info("chatter of %s", name)
        logger.warning("warning of %s", name)
    get_logger("rlhf.x").debug("own detail")
    warnings.warn("from python", UserWarning, stacklevel=1)
    text = path.read_text()
    assert "chatter" not in text and "own detail" in text and "from python" in text
    for name in ("DeepSpeed", "transformers.trainer", "ray"):
        assert text.count(f"warning of {name}") == 1


def test_libraries_leave_the_console(tmp_path: Path) -> None:
    logger = logging.getLogger("DeepSpeed")
    logger.addHandler(logging.StreamHandler(sys.stdout))
    path = setup_logging(tmp_path, "policy", 1)
    logger.addHandler(logging.StreamHandler(sys.stderr))
    quiet_libraries()
    streams = [handler.stream for handler in logger.handlers if isinstance(handler, logging.StreamHandler)]
    assert sys.stdout not in streams and sys.stderr not in streams
    ours = [h for h in logger.handlers if not type(h).__module__.startswith("_pytest")]  # pytest hangs its own there
    files = [handler for handler in ours if isinstance(handler, logging.FileHandler)]
    assert [Path(handler.baseFilename) for handler in files] == [path]


def test_what_libraries_say_while_they_are_imported_is_in_files_alone(tmp_path: Path) -> None:
    """In a process of its own: here they have been imported long since."""
    code = f"""
import logging, sys
from rlhf.telemetry.logging import hold_libraries_back, setup_logging
hold_libraries_back()
if sys.argv[1] == "run":
    setup_logging({str(tmp_path)!r}, "policy", 1)
deepspeed = logging.getLogger("DeepSpeed")  # what DeepSpeed does, then says
deepspeed.setLevel(logging.WARNING)
deepspeed.propagate = False
deepspeed.addHandler(logging.StreamHandler(sys.stdout))
deepspeed.warning("Setting accelerator to CPU")
logging.getLogger("bitsandbytes.backends.cpu.ops").warning("no kernel")
"""
    root = "import logging; logging.getLogger().addHandler(logging.NullHandler())\n"  # as the command line does
    for kind in ("plan", "run"):
        done = subprocess.run([sys.executable, "-c", root + code, kind], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    text = (tmp_path / "logs/policy-1.log").read_text()
    assert text.count("Setting accelerator to CPU") == 1 and "no kernel" not in text


@pytest.mark.parametrize(
    ("role", "rank", "level"), [("../evil", 0, "INFO"), ("", 0, "INFO"), ("a", -1, "INFO"), ("a", 0, "LOUD")]
)
def test_bad_arguments_are_refused(tmp_path: Path, role: str, rank: int, level: str) -> None:
    with pytest.raises(ConfigError):
        setup_logging(tmp_path, role, rank, level=level)
    assert not (tmp_path / "logs").exists()


def test_planted_secrets_do_not_reach_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = {
        "HUB_TOKEN": "hub-s3cret-0001",
        "WANDB_API_KEY": "wandb/s3cret+0002",
        "MY_SECRET": "line-one\nline-two",
        "DB_PASSWORD": "p4ssw0rd-0003",
    }
    path = setup_logging(tmp_path, "policy", 1)
    for name, value in planted.items():
        monkeypatch.setenv(name, value)  # after set-up: the filter reads the environment as it is
    logger = get_logger("rlhf.cli")
    for name, value in planted.items():
        logger.warning("%s is %s.", name, value)
    logger.warning("quoted wandb%2Fs3cret%2B0002 in a query")
    try:
        raise RuntimeError(f"refused {planted['HUB_TOKEN']}")
    except RuntimeError:
        logger.exception("connecting to postgresql://ann:pa:ss@word@db/prefs?sslmode=off failed")
    logging.getLogger("ray").warning("http://h/x?auth_token=abc123&page=2 Authorization: Bearer eyJ0.abc-def")
    text = path.read_text()
    for value in ("s3cret", "line-one", "line-two", "p4ssw0rd", "pa:ss", "word@", "abc123", "eyJ0"):
        assert value not in text, value
    assert "HUB_TOKEN is ***." in text
    assert "postgresql://ann:***@db/prefs?sslmode=off" in text
    assert "page=2" in text


def test_redaction_can_be_turned_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUB_TOKEN", "hub-s3cret-0001")
    path = setup_logging(tmp_path, "policy", 1, redact=False)
    get_logger("rlhf").info("hub-s3cret-0001")
    assert "hub-s3cret-0001" in path.read_text()


def test_settings_that_are_no_secrets_stay_readable() -> None:
    environ = {"TOKENIZERS_PARALLELISM": "falsefalse", "A_KEY": "1", "PATH": "/usr/bin:/bin", "B_TOKEN": ""}
    assert secret_values(environ) == []
    text = "visit https://example.org:8080/a@b and mail me@example.org, ratio 3:4@5"
    assert redact_text(text, environ) == text


def test_a_secret_within_a_longer_secret_leaves_no_tail() -> None:
    environ = {"A_TOKEN": "abcdef", "B_TOKEN": "abcdef-ghijkl"}
    assert redact_text("x abcdef-ghijkl y abcdef z", environ) == "x *** y *** z"


def test_secrets_in_files_and_of_known_spelling_are_masked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("ray-token-0004\n")
    (tmp_path / "pass").write_text("first-0005")
    monkeypatch.setenv("DB_PASSWORD_FILE", str(tmp_path / "pass"))
    text = f"ray-token-0004 first-0005 {tmp_path}/pass hf_abcdefghijklmnopqrst sk-abcdefghijklmnop1qrst"
    assert redact_text(text) == f"*** *** {tmp_path}/pass *** ***"
    (tmp_path / "pass").write_text("second-0006")
    os.utime(tmp_path / "pass", ns=(1, 1))
    assert redact_text("second-0006") == "***"
    monkeypatch.setenv("OTHER_TOKEN_PATH", str(tmp_path))
    assert redact_text("plain") == "plain"


def test_an_exception_that_nobody_catches_shows_no_secret(tmp_path: Path) -> None:
    code = (
        "import threading\nfrom rlhf.telemetry.redaction import redact_tracebacks\nredact_tracebacks()\n"
        "def fail():\n    import os\n    raise RuntimeError('no entry with ' + os.environ['HUB_TOKEN'])\n"
        "thread = threading.Thread(target=fail)\nthread.start()\nthread.join()\nfail()\n"
    )
    environment = {**os.environ, "HUB_TOKEN": "hub-s3cret-0001"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "s3cret" not in done.stderr
    assert done.stderr.count("RuntimeError: no entry with ***") == 2


def test_events_hold_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUB_TOKEN", 'with "quotes" and\nlines')
    log = EventLog(tmp_path)
    log.fault_detected("rank", cause='refused with "quotes" and\nlines', places=[{"url": "https://a:pw123456@h/"}])
    text = (tmp_path / "events.jsonl").read_text()
    assert "quotes" not in text and "pw123456" not in text
    assert read_events(tmp_path)[0]["cause"] == "refused ***" and read_events(tmp_path)[0]["fault"] == "rank"
