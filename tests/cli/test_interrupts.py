"""Ctrl-C at any moment of any command: one line and exit code 130."""

import os
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from segkit import cli
from segkit.cli import main


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a function in the place of `segkit export`."""

    def put(function: Any) -> None:
        monkeypatch.setattr(cli.importlib, "import_module", lambda name: types.SimpleNamespace(main=function))

    return put


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def as_import_error() -> None:
    try:
        press()
    except KeyboardInterrupt:
        raise ImportError("an extension module cannot be imported") from None


def as_lightning() -> None:
    try:
        press()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.exit(1)


def twice() -> None:
    try:
        press()
    finally:
        press()


@pytest.mark.parametrize("what", [press, as_import_error, as_lightning, twice])
def test_whatever_becomes_of_it(what: Any, command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    command(lambda arguments: what())
    assert main(["export"]) == 130
    assert capsys.readouterr().err == "segkit export: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is before


def test_one_that_an_import_swallows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def swallows(name: str) -> Any:
        try:
            press()
        except KeyboardInterrupt:
            return types.SimpleNamespace(main=lambda arguments: pytest.fail("it goes on"))

    monkeypatch.setattr(cli.importlib, "import_module", swallows)
    assert main(["export"]) == 130
    assert capsys.readouterr().err == "segkit export: interrupted\n"


def test_a_working_folder_that_was_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["export", "--help"]) == 2
    assert capsys.readouterr().err.startswith("segkit export: error: the working folder no longer exists")


@pytest.mark.slow
def test_the_last_words_of_a_program_are_not_a_traceback(tmp_path: Path) -> None:
    """A third one, while Python waits for a thread at its end."""
    program = """
import os, signal, sys, threading, time, types
from segkit import cli
def command(arguments):
    threading.Thread(target=time.sleep, args=(60,)).start()
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    os.kill(os.getpid(), signal.SIGINT)
cli.importlib.import_module = lambda name: types.SimpleNamespace(main=command)
sys.argv[1:] = ["export"]
sys.exit(cli.main())
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50)
    assert ended.returncode in (130, -signal.SIGINT)  # which a shell calls 130, too
    assert ended.stderr == "segkit export: interrupted\n"
