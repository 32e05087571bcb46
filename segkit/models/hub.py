"""Models on Hugging Face's hub: a repository, or a folder like one, of model.safetensors and a model card.

The weights are the file of `segkit export` (`segkit.models.weight_files`), which alone is read: it holds no code, and
config.json, by which the hub counts downloads, says no more than whose file it is.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from segkit.errors import DISTRIBUTION, InputError, one_line, printable
from segkit.files import check_writable, write_refusal
from segkit.models.checkpoint import Checkpoint
from segkit.models.weight_files import write_model_file
from segkit.text import markdown, percent

T = TypeVar("T")

FILE = "model.safetensors"
_CONFIG = "config.json"
_LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.-]*")  # as the hub names them: apache-2.0, cc-by-nc-4.0
_ADDRESS = re.compile("^hf:/+")  # of a path, two slashes become one
_MARKS = re.compile(r"([\\`*_{}\[\]<>()#|!~&$])")  # what Markdown or HTML would read as markup


class HubModel(ModelHubMixin):
    """Weights with their description, as huggingface_hub saves and uploads them.

    Args:
        checkpoint: The network; its card is what the model card tells.
        license: Of the weights, as the hub names it ("apache-2.0"), or in words; None: not stated.
    """

    # Given here, the mixin leaves the constructor's arguments, which are tensors, out of config.json.
    _hub_mixin_config: ClassVar[dict[str, Any]] = {"library_name": "segkit"}  # type: ignore[misc]

    def __init__(self, checkpoint: Checkpoint, license: str | None = None) -> None:
        self.checkpoint, self.license = checkpoint, license or checkpoint.card.get("license")

    def _save_pretrained(self, save_directory: Path) -> None:
        card = self.checkpoint.card | {"license": self.license}
        write_model_file(save_directory / FILE, replace(self.checkpoint, card=card))

    def generate_model_card(self, address: str) -> ModelCard:
        """The README.md of a model that `segkit.load(address)` reads."""
        named = str(self.license or "")
        of_hub = _LICENSE_ID.fullmatch(named.lower()) is not None
        data = ModelCardData(
            library_name="segkit",
            pipeline_tag="image-segmentation",
            tags=["semantic-segmentation"],
            license=(named.lower() if of_hub else "other") if named else None,
            license_name=named if named and not of_hub else None,
        )
        return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{model_card(self.checkpoint, address, named)}")


def save(model: HubModel, folder: Path) -> None:
    """Write a model's files into a folder; a README.md that is there already stays, as someone may have completed it.

    Raises:
        InputError: The folder cannot be written, or holds the model of another library.
    """
    check_writable(folder, "folder")
    config = folder / _CONFIG
    if config.exists() and b'"segkit"' not in config.read_bytes():
        raise InputError(f"{folder}: holds another library's model ({_CONFIG}); give another folder")
    try:
        model.save_pretrained(folder, model_card_kwargs={"address": str(folder)})
    except OSError as error:
        raise write_refusal(error, folder) or error from error


def push(model: HubModel, repo_id: str, private: bool | None, revision: str | None) -> str:
    """Upload a model's files in one commit; return its address.

    Raises:
        InputError: The hub refuses, or cannot be reached.
    """
    arguments: dict[str, Any] = {"private": private, "branch": revision}
    message = f"Upload by segkit: {_name(model.checkpoint)}"
    card = {"address": f"hf://{repo_id}"}
    return _asked(
        repo_id,
        "`hf auth login` stores a token that may write",
        lambda: str(model.push_to_hub(repo_id, commit_message=message, model_card_kwargs=card, **arguments)),
    )


def model_file(model: str, revision: str | None = None) -> Path:
    """The path of a model's weights: in a folder, or in Hugging Face's cache, downloaded if they are not there yet.

    Args:
        model: A folder; `owner/name` of the hub, or `hf://owner/name[@revision]`.
        revision: A branch, tag or commit.

    Raises:
        InputError: There is no such model, it has no such file, or the hub cannot be reached.
    """
    folder = Path(model)
    if folder.is_dir():
        if (folder / FILE).is_file():
            return folder / FILE
        raise InputError(f"{folder}: is a folder without {FILE}; give one that `save_pretrained` wrote, or a file")
    repo_id, _, named = _ADDRESS.sub("", model).partition("@")
    cure = "correct the id, or give the folder of a copy"
    return Path(_asked(repo_id, cure, lambda: hf_hub_download(repo_id, FILE, revision=revision or named or None)))


def _asked(repo_id: str, cure: str, ask: Callable[[], T]) -> T:
    try:
        return ask()
    except InputError:
        raise
    except Exception as error:  # the library has a class for each of its many reasons
        why = f"Hugging Face's hub refused, or was not reached ({one_line(error)}); {cure}"
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            why = (
                f"has no {FILE}, and weights in other files are not read, as they can hold code; give a repository "
                "that `push_to_hub` wrote"
            )
        raise InputError(f"{repo_id}: {why}") from error


def model_card(checkpoint: Checkpoint, address: str, license: str = "") -> str:
    """A model card in Markdown, without its metadata; texts of the file stay texts, whatever is in them."""
    card, arguments = checkpoint.card, checkpoint.network["init_args"]
    settings = ", ".join(f"{_text(name)} {_text(value)}" for name, value in arguments.items() if value is not None)
    source = ", ".join(f"{_text(k)} {_text(v)}" for k, v in (card.get("source") or {}).items() if isinstance(v, str))
    protocol = (card.get("protocol") or {}).get("name")
    return "\n\n".join(
        [
            f"# {_text(Path(address).name)}",
            f"Semantic segmentation: {_text(_name(checkpoint))}, {checkpoint.num_classes} classes.",
            f"## Use\n\n```python\n{_example(address)}\n```",
            "The file holds weights and JSON, no code; size, normalisation and classes need not be given."
            + (f" The scores' protocol is `protocol={printable(str(protocol))!r}` of `load`." if protocol else ""),
            f"## Data and scores\n\n{_scores(card)}",
            f"## Classes\n\n{_classes(checkpoint)}",
            f"## Network\n\n{settings or 'as its class has it'}." + (f" Made from: {source}." if source else ""),
            f"## Licence\n\n{_text(license) or 'Not stated: ask who trained it, and mind that of the data.'}",
        ]
    )


def _example(address: str) -> str:
    lines = (
        f"import segkit  # pip install {DISTRIBUTION}",
        "",
        f"segmenter = segkit.load({address!r})",
        'labels = segmenter.predict("image.jpg")  # uint8 (H, W): ids of the classes, at the image\'s own size',
        "print(segmenter.class_names[labels[0, 0]])",
    )
    return "\n".join(map(printable, lines))


def _scores(card: Mapping[str, Any]) -> str:
    rows = [
        (
            *(_text(score.get("dataset", {}).get(key, "?")) for key in ("name", "split")),
            f"{score.get('num_images', '?')}{' (a part)' if score.get('partial') else ''}",
            *(_text(score.get(key) or "?") for key in ("protocol", "metric")),
            percent(score.get("mIoU")),
            _interval(score.get("interval") or {}),
        )
        for score in card.get("scores") or ()
    ]
    heading = ("data", "split", "images", "protocol", "metric", "mIoU, %", "interval")
    return markdown([heading, *rows], left=(0, 1, 3, 4)) if rows else "No score of these weights is known."


def _interval(found: Mapping[str, float]) -> str:
    low, high, level = (found.get(key) for key in ("low", "high", "level"))
    return "not known" if low is None else f"{percent(low)} to {percent(high)} ({percent(level, 0)} %, over images)"


def _classes(checkpoint: Checkpoint) -> str:
    space = checkpoint.label_space
    if space is None:
        return f"{checkpoint.num_classes} classes, whose names the file does not have."
    named = zip(space["class_names"], space["palette"], strict=True)
    rows = [(str(i), _text(name), "#{:02x}{:02x}{:02x}".format(*colour)) for i, (name, colour) in enumerate(named)]
    return markdown([("id", "class", "colour"), *rows], left=(1, 2))


def _name(checkpoint: Checkpoint) -> str:
    encoder, name = checkpoint.network["init_args"].get("encoder"), str(checkpoint.network["class_path"])
    return name.rpartition(".")[2] + (f" with {encoder}" if encoder else "")


def _text(value: object) -> str:
    return _MARKS.sub(r"\\\1", printable(str(value)))
