"""The result files of a checkpoint: finds those made with its weights, and extracts what a card keeps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segkit.errors import InputError
from segkit.files import parse_json

_KEPT = ("num_images", "partial", "date")  # fields of a result that a card keeps beside its scores


def results_of_run(checkpoint: Path, sha256: str) -> tuple[list[Path], list[Path]]:
    """`result*.json` in the run's folder: those that were made with these weights, and the others.

    Args:
        checkpoint: A file in the run's folder `checkpoints`.
        sha256: `segkit.models.checkpoint.weights_sha256` of its weights, because a run has several checkpoints.
    """
    if checkpoint.parent.name != "checkpoints":
        return [], []
    paths = sorted(checkpoint.parent.parent.glob("result*.json"))
    own = [path for path in paths if (read_result(path).get("weights") or {}).get("sha256") == sha256]
    return own, [path for path in paths if path not in own]


def score_of(path: Path, class_names: Sequence[str] | None) -> dict[str, Any]:
    """The parts of a result file that a card keeps: `{"card": scores and circumstances, "protocol": the protocol}`.

    Raises:
        InputError: The file is not a result of `segkit test` or `validate`, or it is of other classes.
    """
    result = read_result(path)
    try:
        names = [row["name"] for row in result["classes"]]
        scores = {name: result["scores"][name] for name in ("mIoU", "pixel_accuracy", "mean_accuracy")}
        card = scores | {"protocol": result["protocol"]["name"], "dataset": dict(result["dataset"])}
        card |= {name: result[name] for name in _KEPT} | {"metric": result.get("metric", "segkit")}
        card |= {"conventions": result["conventions"]} if "conventions" in result else {}
        protocol = dict(result["protocol"])
        if result.get("bootstrap"):
            low, high = (result["bootstrap"]["mIoU"][end] for end in ("low", "high"))
            card["interval"] = {"low": low, "high": high, "level": result["bootstrap"]["level"]}
        card |= {"without": result["without"]} if result.get("without") else {}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a result of `segkit test` (no {error}); give a result.json") from error
    if class_names is not None and names != list(class_names):
        raise InputError(
            f"{path}: a result of {len(names)} classes ({', '.join(names[:3])}, ...), the checkpoint has "
            f"{len(class_names)} ({', '.join(class_names[:3])}, ...); give a result of this checkpoint"
        )
    return {"card": card, "protocol": protocol}


def read_result(path: Path) -> dict[str, Any]:
    """The content of a result file.

    Raises:
        InputError: It cannot be read, or holds something else.
    """
    try:
        result = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give a result.json that `segkit test` wrote") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON; give a result.json that `segkit test` wrote") from error
    if not isinstance(result, dict):
        raise InputError(f"{path}: not a result of `segkit test`; give a result.json")
    return result
