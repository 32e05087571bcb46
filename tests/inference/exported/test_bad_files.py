"""Damaged, foreign and hostile files: one line with the file and what to do, and no code of theirs is run."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import segkit
from segkit.cli import main
from segkit.errors import InputError
from segkit.inference.exported.files import open_exported
from segkit.io import write_png
from segkit.metadata.label_space import numbered_space
from segkit.models.segmentation import FCN

onnx = pytest.importorskip("onnx")


def complaint(file: Path, protocol: str = "whole", image: tuple[int, int] = (40, 50)) -> str:
    """What `segkit infer` says; it must be one line that names the file."""
    write_png(file.parent / "image.png", np.zeros((*image, 3), np.uint8))
    with pytest.MonkeyPatch.context() as patch:
        said = io.StringIO()
        patch.setattr("sys.stderr", said)
        arguments = [str(file.parent / "image.png"), "--checkpoint", str(file), "--output", str(file.parent / "out")]
        assert main(["infer", *arguments, "--protocol", protocol]) > 0
    lines = [line for line in said.getvalue().splitlines() if line]
    assert len(lines) == 1 and str(file) in lines[0], lines
    return lines[0]


def tiny(file: Path, node: Any, card: str | None = None, output: str = "logits", rank: int = 4) -> Path:
    """An ONNX file of one operation."""
    free: list[str | int] = ["b", 3, "h", "w"]
    values = [onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, free)]
    results = [onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, [None] * rank)]
    graph = onnx.helper.make_graph([node], "tiny", values, results)
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("of.somebody", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    if card is not None:
        model.metadata_props.add(key="segkit", value=card)
    onnx.save(model, file)
    return file


def relu(output: str = "logits") -> Any:
    return onnx.helper.make_node("Relu", ["image"], [output])


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
@pytest.mark.parametrize("content", [b"", b"no model at all" * 99, None])
def test_damaged(files: dict[str, Path], tmp_path: Path, suffix: str, content: bytes | None) -> None:
    broken = tmp_path / f"model{suffix}"
    whole = files[suffix].read_bytes()
    broken.write_bytes(whole[: len(whole) // 2] if content is None else content)
    (tmp_path / "model.bin").write_bytes(files[".xml"].with_suffix(".bin").read_bytes())
    assert "or damaged" in complaint(broken)


@pytest.mark.slow
def test_weights_of_openvino_missing_or_short(files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "model.xml").write_bytes(files[".xml"].read_bytes())
    assert "model.bin is not beside it" in complaint(tmp_path / "model.xml")
    (tmp_path / "model.bin").write_bytes(files[".xml"].with_suffix(".bin").read_bytes()[:-4000])
    assert "or damaged" in complaint(tmp_path / "model.xml")


def test_foreign_onnx(tmp_path: Path) -> None:
    assert "was not written by `segkit export`" in complaint(tiny(tmp_path / "a.onnx", relu()))
    assert "its card is damaged" in complaint(tiny(tmp_path / "b.onnx", relu(), '{"classes": 3'))
    assert "its card is damaged" in complaint(tiny(tmp_path / "c.onnx", relu(), '{"num_classes": "3"}'))


CARD: dict[str, Any] = {
    "network": FCN("resnest14_tiny", 2).config,
    "num_classes": 2,
    "output_stride": 8,
    "align_corners": True,
    "normalization": {"mean": [0.5] * 3, "std": [0.5] * 3},
    "label_space": numbered_space(2).to_dict(),
    "precision": "fp32",
    "outputs": "logits",
    "input": "float32",
}
BANDS = {"names": ["a", "b", "c"], "dtype": "uint8", "low": [0, 0, 0], "high": [9, 9, 9]}


def with_normalization(**changes: object) -> dict[str, object]:
    return {"normalization": CARD["normalization"] | changes}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        (with_normalization(bands=BANDS), None),
        ({"normalization": None}, "normalization is missing"),
        ({"normalization": {"mean": [0.5] * 3}}, "normalization.std is missing"),
        (with_normalization(mean=["0.5"] * 3), "normalization.mean is missing or of the wrong type"),
        (with_normalization(mean=[0.5, float("nan"), 0.5]), "normalization.mean is missing or of the wrong type"),
        (with_normalization(mean=[0.5]), "a mean and a std above 0 for each channel"),
        (with_normalization(mean=[], std=[]), "a mean and a std above 0 for each channel"),
        (with_normalization(std=[0.5, 0, 0.5]), "a mean and a std above 0 for each channel"),
        (with_normalization(bands=3), "normalization.bands is missing or of the wrong type"),
        (with_normalization(bands={"names": ["a", "b", "c"]}), "normalization.bands.dtype is missing"),
        (with_normalization(bands=BANDS | {"more": 1}), "normalization.bands must be names, dtype, low, high"),
        (with_normalization(bands=BANDS | {"low": [0]}), "range: 1 lower and 3 upper ends"),
        (with_normalization(bands={key: value[:1] for key, value in BANDS.items()} | {"dtype": "uint8"}), "of 3 bands"),
        ({"label_space": {"class_names": ["a"]}}, "label space has the keys"),
        ({"label_space": numbered_space(3).to_dict()}, "label_space is not of the network's 2 classes"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"num_classes": True}, "num_classes is missing or of the wrong type"),
        ({"output_stride": -8}, "output_stride is -8"),
        ({"input": "complex64"}, "input is missing or of the wrong type"),
        ({"outputs": "depth"}, "outputs is missing or of the wrong type"),
        ({"calibration": {"temperature": 2}}, None),
        ({"calibration": {"temperature": float("nan")}}, "no temperature from 1e-06 to 1e+06"),
        ({"calibration": [2]}, "no temperature from 1e-06 to 1e+06"),
    ],
)
def test_cards_that_cannot_be(tmp_path: Path, change: dict[str, object], said: str | None) -> None:
    file = tiny(tmp_path / "a.onnx", relu(), json.dumps(CARD | change))
    if said is None:
        assert segkit.load(file).class_names == ("class 0", "class 1")
        return
    line = complaint(file)
    assert "its card is damaged" in line and said in line


@pytest.mark.parametrize("encoder", ["resnest14_tiny", "", 3, ["a"]])
def test_a_network_that_a_card_cannot_describe(tmp_path: Path, encoder: object) -> None:
    """It runs by the file itself; what it costs is unknown, and no million of blocks is built to know it."""
    arguments = {"encoder": encoder, "num_classes": 2, "encoder_args": {"layers": [10**6] * 4}}
    network = CARD["network"] | {"init_args": arguments}
    file = tiny(tmp_path / "a.onnx", relu(), json.dumps(CARD | {"network": network}))
    assert segkit.load(file).network.described is None


def test_more_classes_than_a_label_map_can_hold(tmp_path: Path) -> None:
    many = json.dumps(CARD | {"num_classes": 256, "label_space": None, "outputs": "labels"})
    said = "has 256 classes, but segkit's label maps are of 8 bits and hold at most 255; run it in its own runtime"
    for name in ("labels", "logits"):
        file = tiny(tmp_path / f"{name}.onnx", relu(name), many, name)
        assert said in complaint(file)
        with pytest.raises(InputError, match=f"{name}.onnx: {said}" if name == "logits" else "gives labels only"):
            segkit.load(file)


def test_operators_of_somebody(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Magic", ["image"], ["logits"], domain="of.somebody")
    assert "export it with standard operators only" in complaint(tiny(tmp_path / "a.onnx", node))


def card_of(file: Path) -> str:
    return json.dumps(open_exported(file).card)


@pytest.mark.slow
def test_output_that_is_neither(files: dict[str, Path], tmp_path: Path) -> None:
    named = tiny(tmp_path / "a.onnx", relu("depth"), card_of(files[".onnx"]), "depth")
    assert "its outputs are depth; needed are labels or logits" in complaint(named)


@pytest.mark.slow
def test_external_data_missing(files: dict[str, Path], tmp_path: Path) -> None:
    model = onnx.load(files[".onnx"])
    onnx.save_model(model, tmp_path / "a.onnx", save_as_external_data=True, location="a.data")
    assert open_exported(tmp_path / "a.onnx").outputs == ("labels", "logits")
    (tmp_path / "a.data").unlink()
    assert "a second file that is missing" in complaint(tmp_path / "a.onnx")
    assert "a second file that is missing" in complaint(tmp_path / "a.onnx", "ms-flip")


@pytest.mark.slow
def test_images_that_a_runtime_refuses(files: dict[str, Path], tmp_path: Path) -> None:
    for name in ("model.xml", "model.bin"):
        (tmp_path / name).write_bytes((files[".xml"].parent / name).read_bytes())
    assert "give an image of at least 8 pixels a side" in complaint(tmp_path / "model.xml", image=(1, 1))
    for suffix in (".onnx", ".xml", ".pt2"):
        four = segkit.load(files[suffix]).network._file.value
        with pytest.raises(InputError, match=r"refuses float32 1 x 4 x 40 x 50 \(batch, channels"):
            four.run(np.zeros((1, 4, 40, 50), np.float32), "logits")


def as_uint8(file: Path, target: Path) -> Path:
    """The same network for images of bytes."""
    model = onnx.load(file)
    image = model.graph.input[0]
    image.type.tensor_type.elem_type = onnx.TensorProto.UINT8
    for node in model.graph.node:
        node.input[:] = ["stored" if name == image.name else name for name in node.input]
    model.graph.node.insert(0, onnx.helper.make_node("Cast", [image.name], ["stored"], to=onnx.TensorProto.FLOAT))
    for pair in model.metadata_props:
        if pair.key == "segkit":
            pair.value = json.dumps(json.loads(pair.value) | {"input": "uint8"})
    onnx.save(model, target)
    return target


@pytest.mark.slow
def test_bytes_and_a_protocol_that_resizes(files: dict[str, Path], tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (65, 131, 3), dtype=np.uint8)
    file = as_uint8(files[".onnx"], tmp_path / "a.onnx")
    assert (segkit.load(file).predict(image) == segkit.load(files[".onnx"]).predict(image)).all()
    with pytest.raises(InputError, match=r"a\.onnx: takes uint8 images.*--input float32"):
        segkit.load(file, protocol="ms-flip").predict(image)


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        return exec, ("import builtins; builtins.trapped = True",)


_CODE = "vars(__builtins__).update(trapped=1)"


def rewritten(file: Path, target: Path, part: str, change: Callable[[str], bytes]) -> Path:
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content.decode("latin-1")) if name.endswith(part) else content)
    return target


def replaced(old: str, new: str) -> Callable[[str], bytes]:
    def change(text: str) -> bytes:
        assert old in text
        return text.replace(old, new).encode("latin-1")

    return change


@pytest.mark.slow
@pytest.mark.parametrize(
    "part, old, new, said",
    [
        ("weights_config.json", '"use_pickle": false', '"use_pickle": true', "holds pickled parts"),
        ("constants_config.json", '"tensor_0"', '"opaque_obj_0"', "holds an object, 'opaque_obj_0'"),
        ("constants_config.json", '"tensor_0"', '"custom_obj_0"', "holds an object, 'custom_obj_0'"),
        ("models/model.json", '"expr_str": "', f'"expr_str": "{_CODE} + ', "has a size"),
        ("models/model.json", "torch.ops.aten.relu_.default", "torch.load", "has an operation 'torch.load'"),
        ("models/model.json", "torch.ops.aten.relu_.default", "torch.ops.aten.from_file.default", "an operation"),
        ("models/model.json", "torch.ops.aten.conv2d.default", "_operator.call", "has an operation '_operator.call'"),
        ("models/model.json", '"name": "image"', f'"name": "image={_CODE}"', "has the name 'image=vars("),
    ],
)
def test_parts_of_pt2_that_would_run_code(
    files: dict[str, Path], tmp_path: Path, part: str, old: str, new: str, said: str
) -> None:
    file = rewritten(files[".pt2"], tmp_path / "model.pt2", part, replaced(old, new))
    assert said in complaint(file)
    assert "trapped" not in vars(__import__("builtins"))


@pytest.mark.slow
def test_pickles_and_guards_of_pt2_are_left_out(files: dict[str, Path], tmp_path: Path) -> None:
    trap = pickle.dumps(Trap())
    first = rewritten(files[".pt2"], tmp_path / "first.pt2", "sample_inputs/model.pt", lambda text: trap)
    guards = replaced('"guards_code": []', f'"guards_code": ["{_CODE}"]')
    file = rewritten(first, tmp_path / "model.pt2", "models/model.json", guards)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("model/data/weights/model.pt", trap)  # of an older form, which PyTorch prefers
        archive.writestr("model/data/constants/model.pt", trap)
        archive.writestr("model/data/aotinductor/model/a.wrapper.so", b"native code")
    image = np.random.default_rng(0).integers(0, 256, (65, 131, 3), dtype=np.uint8)
    assert (segkit.load(file).predict(image) == segkit.load(files[".pt2"]).predict(image)).all()
    assert "trapped" not in vars(__import__("builtins"))
