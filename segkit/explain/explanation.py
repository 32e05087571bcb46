"""Everything that is shown of one model, image by image, and the files that hold it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from segkit.arrays import UInt8Array
from segkit.errors import InputError
from segkit.evaluation.plots import plain_label, save_figure
from segkit.evaluation.results import versions
from segkit.explain.attention import ClassShares
from segkit.explain.disagreement import class_table, differences, joint_counts
from segkit.explain.effective_field import crops, effective_field, wired
from segkit.explain.figures import (
    Panel,
    Scale,
    channels_figure,
    classes_figure,
    fields_figure,
    last_of_stages,
    legend_of,
    panels_figure,
    shares_scale,
)  # fmt: skip
from segkit.explain.look import Look, covered, grad_cams, look
from segkit.files import write_json
from segkit.inference.segmenter import Segmenter
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
        against: A model whose labels are compared.

    Attributes:
        notes: What could not be shown, in words.

    Raises:
        InputError: The classes of the other model cannot be matched.
    """

    def __init__(
        self, segmenter: Segmenter, classes: Sequence[int], stages: Sequence[int], against: Segmenter | None = None
    ) -> None:
        self.segmenter, self.classes, self.stages, self.against = segmenter, classes, stages, against
        self.network: Any = segmenter.network
        self.space, self.notes = segmenter.label_space, set[str]()
        self._table = None if against is None else class_table(segmenter, against)
        self._shares, self._counts = ClassShares(self.space.num_classes), np.zeros((256, 256), np.int64)
        self._images: list[dict[str, Any]] = []
        self._compared: list[dict[str, Any]] = []
        self._inputs: list[Tensor] = []

    def add(self, path: Path, stem: Path, images: int = 1) -> None:
        """Look at one of `images` images and write its figures, whose names begin with `stem`.

        Raises:
            InputError: The image cannot be read, or a file cannot be written.
        """
        seen, name = look(self.segmenter, path), plain_label(path.name, 60)
        if seen.reduced > 1:
            self.notes.add(f"{path} is large, and is seen at 1/{seen.reduced} of its size")
        labels = np.asarray(seen.labels.cpu().numpy())
        if len(self._inputs) < CROPS:
            self._inputs += crops(seen.x, -(-CROPS // images), seed=len(self._inputs))
        figures = self._grad_cam(seen, labels, name)
        if seen.attention:
            figures |= self._attention(seen, labels, name)
            own = ClassShares(self.space.num_classes)
            for shares in (own, self._shares):
                shares.add(seen.attention, labels, covered(self.network, seen.x))
            means = {block: read.weights[0].mean(1).tolist() for block, read in seen.attention.items()}
            self._images.append({"image": str(path), "attention": means, **self._numbers(own)})
        else:
            self.notes.add("this network has no split attention, squeeze and excitation or selective kernels")
        if self.against is not None and self._table is not None:
            others = self._table[look(self.against, path).labels.cpu().numpy()]
            counts = joint_counts(labels, others)
            self._counts += counts
            self._compared.append({"image": str(path), **differences(counts, self.space.class_names)})
            figures["against"] = self._difference(seen, labels, others, name)
        for what, figure in figures.items():
            save_figure(figure, stem.with_name(f"{stem.name}_{what}.png"))

    def _attention(self, seen: Look, labels: UInt8Array, name: str) -> dict[str, Any]:
        height, width = labels.shape
        radix = max(read.share.shape[1] for read in seen.attention.values())
        maps: dict[str, Any] = {}
        for block, short in last_of_stages(seen.attention).items():
            share = upsample(seen.attention[block].share, covered(self.network, seen.x), self.network.align_corners)
            shown = [f", split {r}" for r in range(radix)] if radix > 2 else [""]
            if share.shape[1] == radix:
                maps |= {short + which: share[0, r, :height, :width].cpu().numpy() for r, which in enumerate(shown)}
        scale = shares_scale(list(maps.values()), radix)
        panels = [self._labelled(seen, labels), *(Panel(title, seen.image, heat) for title, heat in maps.items())]
        title, legend = f"{name}: {scale.label}, last block of each stage", legend_of(labels, self.space)
        return {
            "attention": channels_figure(seen.attention, f"{name}: attention"),
            "shares": panels_figure(panels, 3, title, scale, legend),
        }

    def _grad_cam(self, seen: Look, labels: UInt8Array, name: str) -> dict[str, Any]:
        wanted = self.classes or by_area(np.bincount(labels.ravel()))[:LARGEST]
        ids, names = [k for k in wanted if (labels == k).any()], self.space.class_names
        try:
            cams = grad_cams(self.network, seen.x, seen.labels, ids, self.stages).cpu().numpy()
        except InputError as error:
            self.notes.add(f"no Grad-CAM: {error}")
            return {}
        panels: list[Panel] = []
        columns = 1 + len(ids)
        for stage, of_stage in zip(self.stages, cams, strict=True):
            panels.append(Panel("image", seen.image) if panels else self._labelled(seen, labels))
            for k, cam in zip(ids, of_stage, strict=True):
                panels.append(Panel(f"{names[k]}, stage {stage}", seen.image, cam / max(float(cam.max()), 1e-30)))
        absent = ", ".join(plain_label(names[k]) for k in wanted if k not in ids)
        title = f"{name}: Grad-CAM" + (f"\nnot predicted: {absent}" if absent else "")
        scale = Scale("share of the map's maximum")
        return {
            "gradcam": panels_figure(
                panels, columns if columns <= 5 else 4, title, scale, legend_of(labels, self.space)
            )
        }

    def _labelled(self, seen: Look, labels: UInt8Array, title: str = "labels") -> Panel:
        return Panel(title, overlay(seen.image, labels, self.space.palette))

    def _difference(self, seen: Look, labels: UInt8Array, others: UInt8Array, name: str) -> Any:
        found = self._compared[-1]
        grey = seen.image.mean(2, keepdims=True).repeat(3, 2).astype(np.uint8)
        where = np.where((labels != others)[..., None], _DIFFERENT, grey)
        panels = [
            Panel("image", seen.image),
            Panel(f"different: {100 * found['share']:.1f} % of the pixels", where),
            self._labelled(seen, labels, "first"),
            self._labelled(seen, others, "second (--against)"),
        ]
        says = [
            f"first {plain_label(pair['first'])}, second {plain_label(pair['second'])}: {100 * pair['share']:.1f} %"
            for pair in found["pairs"][:3]
        ]
        legend = legend_of(np.concatenate([labels, others]), self.space)
        return panels_figure(panels, 2, "\n".join([name, *says]), None, legend)

    def finish(self, folder: Path, model: str) -> None:
        """Write what all images have in common: attention.png and .json, against.json."""
        head = {"model": model, "versions": versions()}
        if self._images:
            title = f"what the classes attend to (images: {len(self._images)})"
            save_figure(classes_figure(self._shares.means(), self.space.class_names, title), folder / "attention.png")
            write_json(folder / "attention.json", {**head, **self._numbers(self._shares), "images": self._images})
        if self._compared:
            total = differences(self._counts, self.space.class_names)
            write_json(folder / "against.json", {**head, **total, "images": self._compared})

    def _numbers(self, shares: ClassShares) -> dict[str, Any]:
        """Pixels by class, and of each block the mean share of its splits by class, as plain data."""
        names, present = self.space.class_names, np.flatnonzero(shares.pixels).tolist()
        blocks = [
            {"block": block, "radix": means.shape[1], "share": {names[k]: means[k].round(5).tolist() for k in present}}
            for block, means in shares.means().items()
        ]
        return {"pixels": {names[k]: int(shares.pixels[k]) for k in present}, "blocks": blocks}

    def show_fields(self, conventions: Sequence[str], folder: Path) -> None:
        """Measure the effective receptive field, wired by each convention or as it is, on crops of the images.

        Raises:
            InputError: The encoder has no conventions, or no stages.
        """
        own = str(self.network.config["init_args"].get("encoder", "encoder"))
        networks = {name: wired(self.network, name) for name in conventions} or {own: self.network}
        fields = [effective_field(name, made, self._inputs) for name, made in networks.items()]
        save_figure(fields_figure(fields, len(self._inputs)), folder / "receptive_field.png")
        plain = [
            {"name": f.name, "side": f.side, "pixels": f.side**2, "bound": f.bound, "beyond": f.beyond} for f in fields
        ]
        write_json(folder / "receptive_field.json", {"encoder": own, "crops": len(self._inputs), "fields": plain})
