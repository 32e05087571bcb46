"""The report of `segkit weights` and `segkit export` on a file: its content, and which of its names match, in rows."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from segkit.models.classifier import is_classifier
from segkit.models.decoders import encoder_stride
from segkit.models.toolkits.formats import TOOLKITS
from segkit.models.toolkits.inspection import Inspection
from segkit.models.toolkits.keys import KeyReport
from segkit.text import aligned, listed, percent

SHOWN = 10  # names shown of each kind, without --all

_NO_DILATION = "none implied: the conventions agree at stride 32, and all accept these weights at 8 and 16"
_NO_CHOICE = "no choice: only a ResNeSt can be dilated in several ways; all others are dilated as in timm"


def report(path: Path, inspection: Inspection, all_names: bool = False) -> str:
    """The report as a table, with all names or only the first `SHOWN` of each kind."""
    rows = [("file", f"{path} ({path.stat().st_size / 1e6:.1f} MB)"), ("toolkit", inspection.toolkit)]
    rows += _network_rows(inspection) if inspection.is_network else _encoder_rows(inspection.config)
    rows += [("note", note) for note in inspection.notes]
    rows += _card_rows(inspection.card)
    rows += _key_rows(inspection.keys, all_names)
    unusable = [f"{name}: {fault}" for name, fault in inspection.unusable.items()]
    rows += _listed("unusable", len(unusable), unusable, None if all_names else SHOWN) if unusable else []
    return aligned(rows, left=(0, 1))


def _encoder_rows(config: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("encoder", _encoder(config["name"], config["overrides"])),
        ("dilation", _NO_DILATION if "resnest" in config["name"] else _NO_CHOICE),
    ]


def _network_rows(inspection: Inspection) -> list[tuple[str, str]]:
    arguments, name = inspection.config["init_args"], inspection.config["class_path"].rsplit(".", 1)[1]
    if is_classifier(inspection.config):
        encoder = _encoder(arguments["encoder"], arguments["encoder_args"])
        classes = str(arguments["num_classes"])
        return [("network", f"{name} of whole images"), ("encoder", encoder), ("classes", classes)]
    if "encoder" not in arguments:  # a user's own network
        return [("network", inspection.config["class_path"]), *((key, str(value)) for key, value in arguments.items())]
    resnest, own = "resnest" in arguments["encoder"], inspection.toolkit.startswith("segkit")
    implied = None if own else TOOLKITS[inspection.toolkit].convention
    whose = "" if own else f" (implied: {inspection.toolkit} dilates this way)"
    if not own and implied != arguments["dilation_convention"]:
        whose = f" (given; {inspection.toolkit} implies {implied})"
    space = inspection.label_space
    names = "" if space is None else f": {listed(space['class_names'], 5)}"
    if "decoder" in arguments:
        name += f" {_encoder(arguments['decoder'], arguments['decoder_args'])}"
    return [
        ("network", f"{name} + auxiliary head" if arguments["aux"] else f"{name}, no auxiliary head"),
        ("encoder", _encoder(arguments["encoder"], arguments["encoder_args"])),
        ("classes", f"{arguments['num_classes']}{names}"),
        ("dilation", f"{arguments['dilation_convention']} convention{whose}" if resnest else _NO_CHOICE),
        ("output stride", f"{encoder_stride(arguments)}{'' if own else ' (not in the file: --output_stride)'}"),
        ("align_corners", str(arguments.get("align_corners", True))),
        ("normalisation", ", ".join(f"{name} {values}" for name, values in inspection.normalization.items())),
    ]


def _encoder(name: str, overrides: dict[str, Any] | None) -> str:
    return name + "".join(f", {key} {value}" for key, value in (overrides or {}).items())


def _card_rows(card: dict[str, Any]) -> list[tuple[str, str]]:
    """The main facts of a model file's card; a file of another toolkit has none yet."""
    if "segkit" not in card:
        return []
    protocol, source = card.get("protocol"), card.get("source") or {}
    done, fitted = source.get("recalibrated"), card.get("calibration")
    return [
        ("protocol", str(protocol.get("name", protocol)) if protocol else "none recommended"),
        *(("score", _score(score)) for score in card.get("scores") or []),
        ("source", ", ".join(f"{key} {value}" for key, value in source.items() if not isinstance(value, (dict, list)))),
        ("written by", f"segkit {card['segkit']}"),
        *([("recalibrated", recalibrated(done))] if done else []),
        *([("calibrated", f"temperature {fitted['temperature']:.4f} ({calibrated(fitted)})")] if fitted else []),
    ]


def _score(score: Mapping[str, Any]) -> str:
    dataset = score.get("dataset", {})
    data = " ".join(str(dataset[key]) for key in ("name", "split") if key in dataset)
    images = f"{score.get('num_images', '?')} images{' (partial)' if score.get('partial') else ''}"
    return f"mIoU {percent(score.get('mIoU'))} ({score.get('protocol', '?')}; {data}; {images})"


def recalibrated(done: Mapping[str, Any]) -> str:
    """Describe a card's entry of `segkit weights recalibrate` in words."""
    batches = "1 batch" if done["batches"] == 1 else f"{done['batches']} batches"
    return f"{batches} of {done['batch_size']} crops, {done['data']} {done['split']}"


def calibrated(fitted: Mapping[str, Any]) -> str:
    """Words on what `segkit weights calibrate` has seen, of a card's calibration."""
    return ", ".join(f"{key} {fitted[key]}" for key in ("data", "split", "protocol", "images") if key in fitted)


def _key_rows(keys: KeyReport, all_names: bool) -> list[tuple[str, str]]:
    shown = None if all_names else SHOWN
    clashing = [f"{name}: {theirs} in the file, {ours} needed" for name, (theirs, ours) in keys.clashing.items()]
    rows = [("", ""), ("matched", f"{len(keys.same) + len(keys.renamed):5}")]
    rows += _listed("renamed", len(keys.renamed), _prefixes(keys.renamed), shown, " of these")
    if keys.dropped:
        rows += _listed("dropped", len(keys.dropped), keys.dropped, shown, " (ImageNet classifier, stages left out)")
    if keys.filled:
        rows += _listed("filled", len(keys.filled), [], shown, " (counters of batch norms, which no output needs)")
    rows += _listed("missing", len(keys.missing), keys.missing, shown)
    rows += _listed("unexpected", len(keys.unexpected), keys.unexpected, shown)
    return rows + _listed("clashing", len(clashing), clashing, shown)


def _listed(kind: str, count: int, names: Iterable[str], shown: int | None, remark: str = "") -> list[tuple[str, str]]:
    names = list(names)
    rows = [(kind, f"{count:5}{remark if count else ''}")] + [("", f"      {name}") for name in names[:shown]]
    left = len(names) - len(names[:shown])
    return [*rows, ("", f"      and {left} more (--all)")] if left else rows


def _prefixes(renamed: dict[str, str]) -> list[str]:
    """`old -> new (count)`, without the ends of names that both share."""
    pairs: Counter[tuple[str, str]] = Counter()
    for old, new in renamed.items():
        olds, news = old.split("."), new.split(".")
        while len(olds) > 1 and len(news) > 1 and olds[-1] == news[-1]:
            olds.pop(), news.pop()
        pairs[".".join(olds), ".".join(news)] += 1
    width = max((len(old) for old, _ in pairs), default=0)
    return [f"{old:<{width}} -> {new} ({count})" for (old, new), count in pairs.items()]
