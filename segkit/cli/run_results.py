"""The result files of a checkpoint: which ones are its own, and what a card keeps of them."""

import json
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from segkit.errors import InputError

_KEPT = ("num_images", "partial", "date")  # of a result, beside its scores


def results_of_run(checkpoint: Path) -> list[Path]:
    """`result*.json` in the run's folder that are of this checkpoint; of others that lie there, say that they are not.

    A score belongs to the weights that it was made with, and a run has several checkpoints, of which last.ckpt changes
    while it trains: a result counts if its command names this file, and if it is not older.
    """
    if checkpoint.parent.name != "checkpoints" or not checkpoint.is_file():
        return []
    own = []
    for path in sorted(checkpoint.parent.parent.glob("result*.json")):
        doubt = _doubt(checkpoint.resolve(), path)
        if doubt is None:
            own.append(path)
        else:
            print(f"{path}: left out: {doubt}; if it is of this checkpoint, give it with --result", file=sys.stderr)
    return own


def score_of(path: Path, class_names: Sequence[str] | None) -> dict[str, Any]:
    """What a card keeps of a result file: `{"card": scores and circumstances, "protocol": the whole protocol}`.

    Raises:
        InputError: The file is not a result of `segkit test` or `validate`, or it is of other classes.
    """
    result = _read(path)
    try:
        names = [row["name"] for row in result["classes"]]
        scores = {name: result["scores"][name] for name in ("mIoU", "pixel_accuracy", "mean_accuracy")}
        card = scores | {"protocol": result["protocol"]["name"], "dataset": dict(result["dataset"])}
        card |= {name: result[name] for name in _KEPT}
        card |= {"conventions": result["conventions"]} if "conventions" in result else {}
        protocol = dict(result["protocol"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a result of `segkit test` (no {error}); give a result.json") from error
    if class_names is not None and names != list(class_names):
        raise InputError(
            f"{path}: a result of {len(names)} classes ({', '.join(names[:3])}, ...), the checkpoint has "
            f"{len(class_names)} ({', '.join(class_names[:3])}, ...); give a result of this checkpoint"
        )
    return {"card": card, "protocol": protocol}


def _doubt(checkpoint: Path, path: Path) -> str | None:
    """Why a result may not be of this checkpoint."""
    try:
        result = _read(path)
        words = shlex.split(str(result.get("command", "")))
        made = datetime.fromisoformat(str(result.get("date"))).astimezone(UTC)
    except (InputError, ValueError):
        return "not a result of `segkit test`"
    if not any(_names(word.removeprefix("--ckpt_path="), checkpoint) for word in words):
        return f"its command does not name {checkpoint.name}"
    if made < datetime.fromtimestamp(int(checkpoint.stat().st_mtime), UTC):
        return f"it is older than {checkpoint.name}"
    return None


def _names(word: str, checkpoint: Path) -> bool:
    """Whether a path, relative to a folder that is not known any more, may be this file."""
    parts = [part for part in Path(word).parts if part not in (".", "..")]
    return bool(parts) and list(checkpoint.parts[-len(parts) :]) == parts


def _read(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give a result.json that `segkit test` wrote") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON; give a result.json that `segkit test` wrote") from error
    if not isinstance(result, dict):
        raise InputError(f"{path}: not a result of `segkit test`; give a result.json")
    return result
