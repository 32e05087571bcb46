"""What lies at a path that `segkit report` was given, and what of it can be used."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from segkit.arrays import UInt8Array
from segkit.cli.data.source import described, open_data
from segkit.cli.parser import option_names
from segkit.data.datamodule import SegmentationDataModule
from segkit.data.layout.base import SPLITS, Sample, Split
from segkit.errors import InputError
from segkit.evaluation.read_results import read_result
from segkit.evaluation.report.content import CLASS_IOU
from segkit.evaluation.report.gather import SHOWN
from segkit.io import File
from segkit.metadata.label_space import LabelSpace, check_same_classes, distinct_palette, identity_table
from segkit.paths import looked_for
from segkit.predictions.label_files import Ids
from segkit.predictions.manifest import NAME, SPACES, Manifest, read_manifest
from segkit.predictions.pairs import LabelMaps
from segkit.predictions.reported import ReportImage
from segkit.recipes import read_recipe
from segkit.text import counted
from segkit.training.run_folder import CHECKPOINTS, CONFIG, METRICS, PREDICTIONS
from segkit.training.views.curves import Curve, read_curves

# Parts of a result file that are read before the page is made, which checks the others.
_FORMS = dict.fromkeys(("protocol", "dataset", "weights", "scores", "calibration", "speed"), dict) | {
    "without": list, "rule": str,
}  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """How inputs are read.

    Attributes:
        of_data: Arguments of `open_data`; none: the data that the label maps or the run's config name.
        split: None: that of the label maps, or test.
        prediction_ids: What label maps hold.
        most: Images to show for each reason.
        data: The data, if they are open already.
        trained_in: The run that has curves and config, if it is another one.
    """

    of_data: Sequence[str] = ()
    split: Split | None = None
    prediction_ids: Ids = "train"
    most: int = SHOWN
    data: SegmentationDataModule | None = None
    trained_in: Path | None = None


@dataclass
class Source:
    """One input, of which every part may be absent.

    Attributes:
        path: As given.
        run: The run's folder that it is, or lies in.
        result_file: Its result, or the one that it is.
        result: That file's content.
        labels: Folder of label maps.
        maps: The label maps in it, by the names of images.
        manifest: Their `predictions.json`.
        missing: What cannot be used, and why.
    """

    path: Path
    run: Path | None = None
    result_file: Path | None = None
    labels: Path | None = None
    maps: LabelMaps | None = None
    result: Mapping[str, Any] = field(default_factory=dict)
    manifest: Manifest | None = None
    missing: list[str] = field(default_factory=list)

    def lacks(self, what: str, why: object = "") -> None:
        """Note that something is not in the report."""
        self.missing.append(" ".join(f"{what}: {why}".split()) if why else what)

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes of the result, the label maps or the run's curves, if one of them has them."""
        if self.result:
            return [str(row["name"]) for row in self.result["classes"] if row["name"] != "void"]
        return None if self.manifest is None else list(self.manifest.space.class_names)


def find_source(path: Path) -> Source:
    """Find what lies at a path, and read its result and manifest.

    Raises:
        InputError: It is no run, result or folder of label maps, has none, or cannot be read.
    """
    run = path if path.is_dir() and _is_run(path) else path.parent if _is_run(path.parent) else None
    source = Source(path, run)
    if path.is_dir() and run == path:
        found = sorted(path.glob("result*.json"), key=lambda file: (file.stat().st_mtime_ns, file.name))
        source.result_file = found[-1] if found else None
    elif path.is_dir():
        source.labels = path
    elif path.is_file() and path.suffix == ".json":
        source.result_file = path
    else:
        raise InputError(f"{path}: no run, result file (.json) or folder of label maps{looked_for(path)}")
    if source.result_file is not None:
        source.result = _result_of(source.result_file)
    _take_labels(source)
    source.maps = None if source.labels is None else LabelMaps(source.labels)
    if not (source.result or source.labels or (run is not None and (run / METRICS).is_file())):
        raise InputError(f"{path}: no {METRICS}, result.json or label maps in this run; train or test it first")
    return source


def _result_of(path: Path) -> dict[str, Any]:
    """A result file, in which an older segkit may have left something out."""
    result = read_result(path)
    rows = result.get("classes")
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "name" in row for row in rows):
        raise InputError(f"{path}: no result of `segkit test`, `validate` or `benchmark score`: it names no classes")
    for name, form in _FORMS.items():
        if not isinstance(result.get(name) or form(), form):
            raise InputError(f"{path}: {name!r} is not of the form that `segkit test` writes; give the file as it was")
    blank = {"IoU": None, "accuracy": None, "pixels": 0}
    return result | {"classes": [{"id": i, **blank, **row} for i, row in enumerate(rows)]}


def _is_run(folder: Path) -> bool:
    parts = (folder / CONFIG, folder / METRICS, folder / CHECKPOINTS)
    return any(part.exists() for part in parts) or any(folder.glob("result*.json"))


def _take_labels(source: Source) -> None:
    """Read the manifest of the label maps; in a run, take the newest that were made as its result was."""
    found = [] if source.run is None else [path.parent for path in source.run.glob(f"{PREDICTIONS}*/{NAME}")]
    folders = [source.labels] if source.labels is not None else sorted(found, key=lambda path: path.stat().st_mtime_ns)
    for folder in reversed(folders):
        try:
            manifest = read_manifest(folder)
        except InputError as error:
            source.lacks("origin of the label maps", error)
            continue
        if manifest is None or not source.result or _made_alike(manifest, source.result):
            source.labels, source.manifest = folder, manifest
            return
        source.lacks("images", f"{folder} has label maps of other weights or protocol than {source.result_file}")


def _made_alike(manifest: Manifest, result: Mapping[str, Any]) -> bool:
    weights, protocol = result.get("weights") or {}, result.get("protocol")
    return bool(weights.get("sha256") == manifest.weights["sha256"] and protocol == manifest.protocol)


def training_of(source: Source, wanted: Wanted) -> tuple[dict[str, Curve] | None, str]:
    """The curves of the run, and the text of its config."""
    run = wanted.trained_in or source.run
    if run is None:
        return None, ""
    config = run / CONFIG
    text = config.read_text(encoding="utf-8", errors="replace") if config.is_file() else ""
    try:
        return read_curves(run / METRICS), text
    except (InputError, UnicodeDecodeError) as error:
        source.lacks("curves", error)
        return None, text


def data_of(source: Source, wanted: Wanted) -> SegmentationDataModule | None:
    """The data that the command, the label maps or the run's config names; None if there are none of these classes.

    Raises:
        InputError: The command names no data that exist.
    """
    data, args = wanted.data, list(wanted.of_data)
    try:
        if data is None and "--data" not in option_names(args):
            args = [*_described(source), *args]
        if data is None and args:
            data = open_data(args, "segkit report")
        elif data is None and source.labels is not None:
            source.lacks("truth and images", "no data are named; give --data NAME --data.root ROOT")
    except InputError as error:
        if wanted.of_data:
            raise
        source.lacks("data", error)
    if data is None:
        return None
    try:
        names = source.class_names or data.class_names
        check_same_classes(names, data.class_names, str(source.path), f"{type(data).__name__} ({data.root})")
    except InputError as error:
        source.lacks("truth and images", error)
        return None
    return data


def _described(source: Source) -> list[str]:
    """The data that the label maps or the run's config name, as arguments of `open_data`; [] if none are named."""
    config = None if source.run is None else source.run / CONFIG
    if source.manifest is not None and source.labels is not None and source.manifest.run.get("data"):
        return described(source.manifest.run["data"], source.labels / NAME)
    return [] if config is None or not config.is_file() else described(read_recipe(config).data, config)


def space_of(source: Source, data: SegmentationDataModule | None, curves: Mapping[str, Curve] | None) -> LabelSpace:
    """Classes and colours: the data's, or else those that the files name.

    Raises:
        InputError: Nothing says what the classes are.
    """
    if data is not None:
        return data.label_space
    if source.manifest is not None:
        return source.manifest.space
    names = tuple(source.class_names or (n.removeprefix(CLASS_IOU) for n in curves or () if n.startswith(CLASS_IOU)))
    if not names:
        why = f" ({source.missing[0]})" if source.missing else ""
        raise InputError(f"{source.path}: nothing names the classes{why}; give --data NAME --data.root ROOT")
    known = [space for space in SPACES.values() if space.class_names == names]
    return known[0] if known else LabelSpace(names, distinct_palette(len(names)), identity_table(len(names)))


def images_of(source: Source, data: SegmentationDataModule | None, wanted: Wanted) -> tuple[list[ReportImage], int]:
    """The images with a label map, and the number of images that the data have."""
    assert source.maps is not None
    maps = source.maps
    samples = [] if data is None else _samples(source, data, _split(source, wanted))
    found = {sample.name: maps.of(sample.name) for sample in samples}
    uses = Counter(path for paths in found.values() for path in paths)
    own = [sample for sample in samples if [uses[path] for path in found[sample.name]] == [1]]
    images = [_image(sample, found[sample.name][0], data) for sample in own if data is not None]
    if len(own) < len(samples):
        why = "they do not have exactly one label map of their own"
        source.lacks(f"{len(samples) - len(own)} of {counted(len(samples), 'image')}", why)
    if images:
        return images, len(samples)
    names = [name for name in maps.names if name.endswith("_labels")] or maps.names  # of `segkit infer`
    return [ReportImage(name, maps.of(name)[0], None, None) for name in names], len(names)


def _split(source: Source, wanted: Wanted) -> Split:
    said = wanted.split or (source.manifest.dataset.get("split") if source.manifest is not None else None)
    return cast(Split, said) if said in SPLITS else "test"


def _samples(source: Source, data: SegmentationDataModule, split: Split) -> Sequence[Sample]:
    for what, with_masks in (("truth", True), ("images", False)):
        try:
            data.bands  # noqa: B018  (which the images may have to be read for)
            return data.find_samples(split, with_masks=with_masks)
        except InputError as error:
            source.lacks(what, error)
    return []


def _image(sample: Sample, labels: Path, data: SegmentationDataModule) -> ReportImage:
    reader, space, bands = data.reader, data.label_space, data.bands

    def truth() -> UInt8Array:
        return space.map_labels(reader.read_mask(cast(File, sample.mask)), str(sample.mask))

    def image() -> UInt8Array:
        read = reader.image(sample.image)
        return cast(UInt8Array, read) if bands is None else bands.as_rgb(read)

    return ReportImage(sample.name, labels, None if sample.mask is None else truth, image)
