"""Everything that is shown of one model, image by image, and the files that hold it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from segkit.arrays import UInt8Array
from segkit.bars import Bar
from segkit.errors import InputError
from segkit.evaluation.plots import plain_label, save_figure
from segkit.evaluation.results import versions
from segkit.explain import figures as draw
from segkit.explain.attention import ClassShares
from segkit.explain.disagreement import class_table, differences, joint_counts
from segkit.explain.effective_field import crops, effective_field, wired
from segkit.explain.figures import Panel, Scale
from segkit.explain.look import LAST, Look, grad_cams, look
from segkit.files import write_json
from segkit.inference.segmenter import Segmenter
from segkit.models.segmentation import SegmentationModel
from segkit.ops.upsample import upsample
from segkit.visualization import by_area, overlay

LARGEST = 3  # classes with a Grad-CAM where none are chosen
CROPS = 8  # of the images, at least, for the effective receptive field
_DIFFERENT = np.array((213, 94, 0), np.uint8)  # vermilion


class Explanation:
    """What is shown of one model.

    Args:
        segmenter: The model, exact, its parameters not requiring gradients.
        classes: Train ids for Grad-CAM; none: the largest of each image.
        stages: 1 to 4, for Grad-CAM.
        conventions: Of dilation, for the effective receptive field; none: the encoder's own; None: it is not measured.
        against: A model whose labels are compared.

    Attributes:
        notes: What was not shown, in words.

    Raises:
        InputError: The encoder has no conventions, or the classes of the other model cannot be matched.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        classes: Sequence[int] = (),
        stages: Sequence[int] = (LAST,),
        conventions: Sequence[str] | None = None,
        against: Segmenter | None = None,
    ) -> None:
        self.segmenter, self.classes, self.stages, self.against = segmenter, classes, stages, against
        self.network = cast(SegmentationModel, segmenter.network)
        self.space, self.notes = segmenter.label_space, set[str]()
        own = {str(self.network.config["init_args"].get("encoder", "encoder")): self.network}
        self._encoders = {} if conventions is None else {name: wired(self.network, name) for name in conventions} or own
        self._table = None if against is None else class_table(segmenter, against)
        self._shares, self._counts = ClassShares(self.space.num_classes), np.zeros((256, 256), np.int64)
        self._images: list[dict[str, Any]] = []
        self._compared: list[dict[str, Any]] = []
        self._crops: list[Tensor] = []

    def add(self, path: Path, stem: Path, images: int = 1) -> None:
        """Look at one of `images` images and write its figures, whose names begin with `stem`.

        Raises:
            InputError: The image cannot be read, or a file cannot be written.
        """
        seen, name = look(self.segmenter, path), plain_label(path.name, 60)
        first = Panel("labels", overlay(seen.image, seen.labels, self.space.palette))
        figures = {"gradcam": self._grad_cam(seen, first, name)}
        if self.against is not None and self._table is not None:
            others = self._table[look(self.against, path).labels]
            counts = joint_counts(seen.labels, others)
            found = differences(counts, self.space.class_names)
            self._counts += counts
            self._compared.append({"image": str(path), **found})
            figures["against"] = self._difference(seen, others, found, name)
        if seen.attention:
            figures["attention"] = draw.channels_figure(seen.attention, f"{name}: attention")
            figures["shares"] = self._maps(seen, first, name)
            own = ClassShares(self.space.num_classes)
            own.add(seen.attention, seen.labels, seen.covered)
            self._shares.include(own)
            means = {block: read.weights[0].mean(1).tolist() for block, read in seen.attention.items()}
            self._images.append({"image": str(path), "attention": means, **self._numbers(own)})
        else:
            self.notes.add("this network has no split attention, squeeze and excitation or selective kernels")
        if self._encoders and len(self._crops) < CROPS:
            self._crops += crops(seen.x, -(-CROPS // images), seed=len(self._crops))
        if seen.reduced > 1:
            self.notes.add(f"{path} is large, and is seen at 1/{seen.reduced} of its size")
        for what, figure in figures.items():
            if figure is not None:
                save_figure(figure, stem.with_name(f"{stem.name}_{what}.png"))

    def _maps(self, seen: Look, first: Panel, name: str) -> Figure:
        """Maps of the shares in the last block of each stage, which the first part of a short name tells."""
        height, width = seen.labels.shape
        blocks = zip(draw.short_names(list(seen.attention)), seen.attention.values(), strict=True)
        stages = {short.partition(".")[0]: (short, read.share) for short, read in blocks}
        radix = max(share.shape[1] for _, share in stages.values())
        panels = [first]
        for short, share in stages.values():
            maps = upsample(share, seen.covered, self.network.align_corners)[0, :, :height, :width].cpu().numpy()
            if len(maps) == radix:
                shown = [f"{short}, split {r}" for r in range(radix)] if radix > 2 else [short]
                panels += [Panel(title, seen.image, maps[r]) for r, title in enumerate(shown)]
        scale = draw.shares_scale([panel.heat for panel in panels[1:]], radix)
        rows = [panels[:1], *_in_rows(panels[1:], radix)] if radix > 2 else _in_rows(panels, 3)
        title = f"{name}: {scale.label}, last block of each stage"
        return draw.panels_figure(rows, title, scale, seen.labels, self.space)

    def _grad_cam(self, seen: Look, first: Panel, name: str) -> Figure | None:
        wanted = self.classes or by_area(np.bincount(seen.labels.ravel()))[:LARGEST]
        ids, names = [k for k in wanted if (seen.labels == k).any()], self.space.class_names
        try:
            cams = grad_cams(self.network, seen.x, seen.labels, ids, self.stages).cpu().numpy()
        except InputError as error:
            self.notes.add(f"no Grad-CAM: {error}")
            return None
        rows: list[list[Panel]] = []
        for stage, of_stage in zip(self.stages, cams, strict=True):
            heats = [(names[k], cam / max(float(cam.max()), 1e-30)) for k, cam in zip(ids, of_stage, strict=True)]
            panels = [Panel(f"{class_name}, stage {stage}", seen.image, heat) for class_name, heat in heats]
            rows += _in_rows([Panel("image", seen.image) if rows else first, *panels], 8)
        absent = ", ".join(plain_label(names[k]) for k in wanted if k not in ids)
        title = f"{name}: Grad-CAM" + (f"\nnot predicted: {absent}" if absent else "")
        return draw.panels_figure(rows, title, Scale("share of the map's maximum"), seen.labels, self.space)

    def _difference(self, seen: Look, others: UInt8Array, found: dict[str, Any], name: str) -> Figure:
        grey = seen.image.mean(2, keepdims=True).repeat(3, 2).astype(np.uint8)
        where = np.where((seen.labels != others)[..., None], _DIFFERENT, grey)
        above = [Panel("image", seen.image), Panel(f"different: {100 * found['share']:.1f} % of the pixels", where)]
        both = {"first": seen.labels, "second (--against)": others}
        below = [Panel(who, overlay(seen.image, labels, self.space.palette)) for who, labels in both.items()]
        lines = [name]
        for pair in found["pairs"][:3]:
            first, second = plain_label(pair["first"]), plain_label(pair["second"])
            lines.append(f"first {first}, second {second}: {100 * pair['share']:.1f} %")
        shown = np.concatenate(list(both.values()))
        return draw.panels_figure([above, below], "\n".join(lines), None, shown, self.space)

    def finish(self, folder: Path, model: str) -> None:
        """Write what all images have in common: attention.png, receptive_field.png, and the numbers as JSON.

        Raises:
            InputError: A file cannot be written.
        """
        head, names = {"model": model, "versions": versions()}, self.space.class_names
        if self._images:
            title = f"what the classes attend to (images: {len(self._images)})"
            save_figure(draw.classes_figure(self._shares.means(), names, title), folder / "attention.png")
            write_json(folder / "attention.json", {**head, **self._numbers(self._shares), "images": self._images})
        if self._compared:
            total = differences(self._counts, names)
            write_json(folder / "against.json", {**head, **total, "images": self._compared})
        try:
            fields = [
                effective_field(name, network, Bar(self._crops, unit="crop", desc=name, leave=False))
                for name, network in self._encoders.items()
            ]
        except InputError as error:
            self.notes.add(str(error))
            return
        if fields:
            save_figure(draw.fields_figure(fields, len(self._crops)), folder / "receptive_field.png")
            plain = [{"name": f.name, "side": f.side, "bound": f.bound, "beyond": f.beyond} for f in fields]
            write_json(folder / "receptive_field.json", {**head, "crops": len(self._crops), "fields": plain})

    def _numbers(self, shares: ClassShares) -> dict[str, Any]:
        """Pixels by class, and of each block the mean share of its splits by class, as plain data."""
        names, present = self.space.class_names, np.flatnonzero(shares.pixels).tolist()
        blocks = [
            {"block": block, "radix": means.shape[1], "share": {names[k]: means[k].round(5).tolist() for k in present}}
            for block, means in shares.means().items()
        ]
        return {"pixels": {names[k]: int(shares.pixels[k]) for k in present}, "blocks": blocks}


def _in_rows(panels: list[Panel], columns: int) -> list[list[Panel]]:
    return [panels[i : i + columns] for i in range(0, len(panels), columns)]
