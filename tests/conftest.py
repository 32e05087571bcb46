"""How the suite runs: one thread a process, no workers for a file or two, modules compiled once."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from segkit.machine import cores

FEW_FILES = 3  # up to so many are run here: a worker takes longer to start than most files take
BYTECODE = Path(__file__).parents[1] / ".pytest_cache/bytecode"

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several processes share the cores
os.environ.setdefault("MPLBACKEND", "Agg")

if sys.dont_write_bytecode:  # every worker and every command in a process of its own would compile PyTorch: 10 s each
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = str(BYTECODE)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """No workers where single files are named, else one a core, and one more as slow tests wait for processes."""
    named = [argument.partition("::")[0] for argument in config.args]
    if len(named) <= FEW_FILES and all(name.endswith(".py") for name in named):
        return 0
    return cores() + ("not slow" not in config.option.markexpr)


def pytest_configure(config: pytest.Config) -> None:
    """Prepare PyTorch where tests run, which is not where workers are started."""
    if not hasattr(config, "workerinput") and config.getoption("numprocesses", None):
        return
    import torch

    torch.set_num_threads(1)
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # kernels are checked on the CPU; Triton asks when it decorates them


@pytest.fixture(autouse=True)
def _no_deterministic_mode_left_behind() -> Iterator[None]:
    """A Trainer turns it on for the whole process, where it would change the operations of later tests."""
    yield
    if "torch" in sys.modules and sys.modules["torch"].are_deterministic_algorithms_enabled():
        sys.modules["torch"].use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def no_curves(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of two steps would spend most of its time on drawing: only tests marked `curves` look at the figures."""
    curves = sys.modules.get("segkit.training.views.curves")
    if curves and not request.node.get_closest_marker("curves"):
        for name in ("plot_curves", "plot_class_iou"):
            monkeypatch.setattr(curves, name, lambda *_: None)


def pytest_itemcollected(item: pytest.Item) -> None:
    """A campaign is slow: `-m "not slow"` takes the place of pyproject's `-m "not campaign"`."""
    if item.get_closest_marker("campaign"):
        item.add_marker("slow")


FIGURES = "campaign"


@pytest.fixture
def figures(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Takes a line that is printed below the results, from whichever process."""
    return lambda line: record_property(FIGURES, line)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what the campaigns have counted."""
    ended = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ())]
    lines = [text for report in ended for name, text in report.user_properties if name == FIGURES]
    if lines:
        terminalreporter.section("campaigns")
        for line in sorted(lines):
            terminalreporter.write_line(line)
