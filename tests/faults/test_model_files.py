"""Thousands of damaged and hostile model files: each gives the network that it always gave, or one line of refusal.

Three kinds of file (a checkpoint of `segkit fit`, a model file, PyTorch-Encoding's) are mutated in three ways: bytes of
the file, values of the hyper-parameters or the card, and tensors. What a mutation does is known where it can be: "same"
must load and give the same labels, "refused" must not load, "any" must do one or the other.
"""

import copy
import json
import random
import resource
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from campaign import Campaign
from safetensors.torch import save

import segkit
from segkit.cli.restore import parser_defaults, read_named_checkpoint
from segkit.errors import InputError
from segkit.metadata.label_space import LabelSpace, distinct_palette, identity_table
from segkit.models.segmentation import FCN
from segkit.models.toolkits.report import report
from segkit.models.weights import inspect
from segkit.training.module import SegmentationModule

IMAGE = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
LARGEST = 300 * 2**10  # KiB that all cases together may add to the memory of the process

WEIRD: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 7, 10**6, 2**31, 10**30, 10**400, 0.5, -0.5, 1e-300, 1e308, 1e999, float("nan")),
    *("", "x", "x" * 10_000, "resnest50", "os.system", "../../etc/passwd", "\n", "segkit.models.segmentation.FCN"),
    *(
        [],
        {},
        [[]],
        [None],
        ["a"],
        [0, 0, 0],
        [1e999] * 3,
        [10**6] * 4,
        [2**40] * 4,
        list(range(5000)),
        {"a": {"b": []}},
    ),
    *({"class_path": "this.that"}, {"class_path": "os.system", "init_args": {"command": "true"}}, {"mean": 3}),
)
BEYOND_JSON: tuple[Any, ...] = ({1: 2}, 3 + 4j, b"bytes", (1, 2), torch.ones(2), {(1, 2): 3}, torch.float32)
OPTIONS = ("optim", "loss", "frozen_stages", "norm_eval")  # of the training; no other command needs them


@dataclass
class Content:
    """What a file is to say, before it is written."""

    kind: str
    parts: dict[Any, Any]
    tensors: dict[Any, Any]


@pytest.fixture(scope="module")
def originals() -> dict[str, Content]:
    torch.manual_seed(0)
    overrides = {"planes": [4, 5, 6, 7], "stem_width": 4, "radix": 1, "width": 32}
    network = FCN("resnest14_tiny", 3, 32, encoder_args=overrides, aux=False)
    space = LabelSpace(("road", "tree", "sky"), distinct_palette(3), identity_table(3))
    parts = copy.deepcopy(dict(SegmentationModule(network, label_space=space).hparams))
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    ours = {name: parts[name] for name in ("network", "normalization", "label_space")}
    score = {"mIoU": 0.5, "protocol": "whole", "dataset": {"name": "x"}, "num_images": 2, "partial": False}
    card = {"segkit": "1", "protocol": {"name": "whole"}, "scores": [score], "source": {}, "versions": {"torch": "2"}}
    names = {name: name.replace("encoder.", "pretrained.").replace("head.", "head.conv5.") for name in weights}
    return {
        "checkpoint": Content("checkpoint", parts, {f"network.{name}": value for name, value in weights.items()}),
        "model file": Content("model file", {"format": 1, **ours, **card}, weights),
        "foreign": Content("foreign", {"epoch": 3}, {names[name]: value for name, value in weights.items()}),
    }


def write(path: Path, content: Content) -> None:
    """Write the file, which need not be one that segkit would write."""
    if content.kind == "checkpoint":
        torch.save({"hyper_parameters": content.parts, "state_dict": content.tensors}, path)
    elif content.kind == "foreign":
        torch.save({**content.parts, "state_dict": content.tensors}, path)
    else:
        path.write_bytes(save(content.tensors, {"segkit": json.dumps(content.parts)}))


def labels(path: Path) -> np.ndarray:
    return segkit.load(path, "cpu", precision="exact").predict(IMAGE)


def inspected(path: Path) -> None:
    """As `segkit weights inspect` does; what is unusable there is an exit code."""
    found = inspect(path)
    report(path, found, all_names=True)
    if found.unusable:
        raise InputError(f"{len(found.unusable)} unusable")
    found.keys.require_match(str(path))


def restored(path: Path) -> None:
    """As `segkit test` does, up to its parser."""
    checkpoint = read_named_checkpoint(["test", "--ckpt_path", str(path)])
    assert checkpoint is not None
    parser_defaults(checkpoint.hyper_parameters)


# --- bytes of the file


def damage(rng: random.Random, original: Path, path: Path) -> None:
    """Change bytes of the file; what comes of it depends on where they are."""
    data = bytearray(original.read_bytes())
    how = rng.choice(["flip", "flip", "flip head", "cut", "cut", "zeros", "insert", "swap", "length", "append"])
    at = rng.randrange(len(data))
    if how.startswith("flip"):
        for _ in range(rng.choice([1, 1, 3, 20])):
            data[rng.randrange(len(data) if how == "flip" else min(len(data), 4000))] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del data[rng.choice([at, len(data) - 1, 8, 0]) :]
    elif how == "zeros":
        data[at : at + 64] = bytes(len(data[at : at + 64]))
    elif how == "insert":
        data[at:at] = rng.randbytes(rng.choice([1, 7, 64]))
    elif how == "swap":
        data[at : at + 64], data[:64] = data[:64], data[at : at + 64]
    elif how == "length":
        data[:8] = struct.pack("<Q", rng.choice([0, 1, 2**20, 2**32, 2**63, len(data), len(data) - 8]))
    else:
        data += rng.randbytes(64)
    path.write_bytes(data)


# --- values of the hyper-parameters and the card


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values in nested dicts, and of the first items of lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    return [p for key, inner in items for p in ((*path, key), *places(inner, (*path, key)))]


def revalue(rng: random.Random, content: Content) -> str:
    """Replace, remove, rename or add one value."""
    parts = content.parts = copy.deepcopy(content.parts)
    path = rng.choice(places(parts))
    owner = parts
    for key in path[:-1]:
        owner = owner[key]
    how = rng.choice(["replace"] * 6 + ["remove", "rename", "add"])
    value = rng.choice(WEIRD if content.kind == "model file" else WEIRD + BEYOND_JSON)
    if how == "add" and isinstance(owner, dict):
        owner[rng.choice(["weird", "in_channels", "layers", "class_path"])] = value
    elif how == "rename" and isinstance(owner, dict):
        owner[f"{path[-1]}x"] = owner.pop(path[-1])
    elif how == "remove":
        del owner[path[-1]]
    else:
        owner[path[-1]] = value
    return "same" if content.kind == "foreign" or path[0] in OPTIONS else "any"


# --- tensors


def nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor.view(-1)[tensor.numel() // 2] = float("nan")
    return tensor


def infinite(tensor: torch.Tensor) -> torch.Tensor:
    tensor.view(-1)[0] = -float("inf")
    return tensor


SAME: tuple[Callable[[torch.Tensor], Any], ...] = (
    lambda t: t.double(),
    lambda t: torch.nn.Parameter(t),
    lambda t: t.clone().to(memory_format=torch.channels_last) if t.dim() == 4 else t,
)
REFUSED: tuple[Callable[[torch.Tensor], Any], ...] = (
    *(nan, infinite, nan, infinite),
    lambda t: t.int(),
    lambda t: t.bool(),
    lambda t: t.to(torch.complex64),
    lambda t: t.to(torch.float8_e4m3fn),
    lambda t: t.to(torch.uint8),
    lambda t: t[None],
    lambda t: t[:0],
    lambda t: torch.cat([t, t]),
    lambda t: t.flatten()[:1],
    lambda t: t.flatten()[:1].expand(10**9, 3).as_strided((10**9, 10**3), (0, 0)),
    lambda t: t.to_sparse(),
    lambda t: t.to("meta"),
    lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    *(lambda t: None, lambda t: t.tolist(), lambda t: "x", lambda t: {"a": t}),
)


def reshape(rng: random.Random, content: Content) -> str:
    """Change, remove or add one tensor."""
    tensors = content.tensors = dict(content.tensors)
    name = rng.choice([n for n, t in tensors.items() if t.is_floating_point() and t.numel() > 1])
    how = rng.randrange(10)
    if how == 0:
        del tensors[name]
        return "refused"
    if how == 1:
        tensors[f"{name}.more"] = torch.ones(2)
        return "refused"
    if how == 2:
        counter = rng.choice([n for n in tensors if n.endswith("num_batches_tracked")])
        tensors[counter] = torch.tensor(rng.choice([0, 5, 2**40]))
        return "same"
    if how == 3 and content.kind != "model file":
        tensors[rng.choice([3, ("a", 1), None])] = 7
        return "same"
    if how < 6:
        tensors[name] = rng.choice(SAME)(tensors[name].clone())
        return "same"
    tensors[name] = rng.choice(REFUSED)(tensors[name].clone())
    return "refused"


def mutate(rng: random.Random, original: Content, folder: Path) -> tuple[str, str]:
    """Write a mutated file; return the kind of mutation and what it promises."""
    path = folder / "mutated"
    while True:
        mutation = rng.choice(["damage", "revalue", "revalue", "reshape"])
        if mutation == "damage":
            damage(rng, folder / original.kind, path)
            return mutation, "any"
        content = copy.copy(original)
        promise = (revalue if mutation == "revalue" else reshape)(rng, content)
        try:
            write(path, content)
        except Exception:  # a value that neither PyTorch nor safetensors writes at all is no file to read
            continue
        return mutation, promise


def run_campaign(
    count: int, seed: int, originals: dict[str, Content], folder: Path, figures: Callable[[str], None]
) -> None:
    campaign = Campaign("model files", figures)
    expected = {}
    for kind, content in originals.items():
        write(folder / kind, content)
        expected[kind] = labels(folder / kind)
        inspected(folder / kind)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        kind = ("checkpoint", "model file", "foreign")[number % 3]
        path = folder / "mutated"
        mutation, promise = mutate(rng, originals[kind], folder)
        read = rng.choice([labels] * 6 + [inspected, restored])
        with campaign.case(f"seed {seed}, number {number}: {kind}, {mutation}, {read.__name__}"):
            judge(read, path, promise, expected[kind])
    campaign.finish()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < LARGEST, f"{grown // 1024} MiB were taken for files of {path.stat().st_size} bytes"


def judge(read: Callable[[Path], Any], path: Path, promise: str, expected: np.ndarray) -> None:
    """Read the file, and compare what comes of it with what was promised."""
    try:
        found = read(path)
    except InputError:
        if promise == "same" and read is not restored:
            raise AssertionError("refused, and nothing that counts was changed") from None
        raise
    if promise == "refused":
        raise AssertionError("loaded, though its weights are not the network's")
    if read is labels:
        assert found.shape == expected.shape and (promise == "any" or np.array_equal(found, expected))


@pytest.mark.slow
def test_a_sample(originals: dict[str, Content], tmp_path: Path, figures: Callable[[str], None]) -> None:
    run_campaign(150, 0, originals, tmp_path, figures)


@pytest.mark.campaign
def test_five_thousand(originals: dict[str, Content], tmp_path: Path, figures: Callable[[str], None]) -> None:
    run_campaign(5000, 1, originals, tmp_path, figures)
