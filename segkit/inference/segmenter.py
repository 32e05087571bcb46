"""Segmenter: a trained network with everything needed to turn an image into labels; `load` builds one.

Normalisation, class names and colours come from the checkpoint, never from the user.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, TypeVar, overload

import numpy as np
import torch
from torch import Tensor, nn

from segkit.bands import Bands
from segkit.errors import InputError
from segkit.inference import protocols
from segkit.inference.engine import predict, predict_with_confidence, resolve, score_strips
from segkit.inference.exported.files import check_own
from segkit.inference.exported.network import ExportedNetwork, open_network
from segkit.inference.fusion import best_of, probabilities
from segkit.inference.images import IMAGE_BYTES, ImageLike, as_bands, as_rgb
from segkit.inference.protocols import Protocol
from segkit.inference.tiling.budget import Budget, default_budget
from segkit.metadata.label_space import LabelSpace, numbered_space
from segkit.metadata.temperature import temperature_of
from segkit.models.checkpoint import Checkpoint
from segkit.models.classifier import is_classifier
from segkit.models.inference_form import InferenceForm, Precision, convolution_dtype, inference_form, precision_of
from segkit.models.own import own_network
from segkit.models.segmentation import SegmentationModel, class_path
from segkit.models.weights import read_checkpoint
from segkit.ops.normalize import Normalization, normalize
from segkit.ops.processor import usable_device
from segkit.ops.upsample import label_dtype
from segkit.paths import is_exported

T = TypeVar("T")


class Strip(NamedTuple):
    """Rows [start, stop) of an image: uint8 labels (n, W), float32 confidence (n, W) and probabilities (K, n, W)."""

    start: int
    stop: int
    labels: np.ndarray
    confidence: np.ndarray
    probabilities: np.ndarray


class Segmenter:
    """Labels any image at exactly its own size.

    Args:
        network: Maps normalised float `(B, 3, H, W)` to `{"out": logits}`; moved to the device, set to eval mode.
        label_space: Names and colours of the classes; None means "class 0", "class 1", ...
        normalization: The normalisation that the network was trained with.
        protocol: Scales, flip and windows; see `segkit.inference.protocols`.
        device: Where the network runs.
        card: Further facts of the file about the weights: "protocol", "scores", "source", "versions", "calibration".
        memory: Bytes that one image may take; a larger one is processed in tiles (see `segkit.inference.tiling`). None
            means 0.7 of the memory that is free for each image, on the device or the machine, whichever has less.

    Attributes:
        label_space: Class names, palette and label table.
        protocol: The protocol that really runs, with the network's settings filled in.
        card: The file's card. Its protocol is a recommendation that `load` does not follow: a score is a property of
            weights and protocol, and `protocol` alone says what runs.
        temperature: Scales all probabilities (see `segkit.inference.fusion.best_of`): the card's, or 1.
        file: The file of weights that `load` read; None without one.

    Raises:
        InputError: Network and label space differ in their number of classes, or the card's temperature is none.
    """

    pixel_bytes = IMAGE_BYTES  # tiles bound what the network itself takes

    def __init__(
        self,
        network: nn.Module,
        label_space: LabelSpace | None,
        normalization: Normalization,
        protocol: Protocol,
        device: torch.device,
        card: Mapping[str, Any] | None = None,
        memory: int | None = None,
    ) -> None:
        num_classes = int(network.num_classes)  # type: ignore[arg-type]
        self.label_space = label_space or numbered_space(num_classes)
        if self.label_space.num_classes != num_classes:
            raise InputError(
                f"the network has {num_classes} classes and the label space {self.label_space.num_classes}: "
                "they must be those of one training run"
            )
        self.network = network.to(device).eval()
        self.normalization = normalization
        self.protocol = resolve(protocol, network)
        self.device = device
        self.card = dict(card or {})
        self.temperature = temperature_of(self.card)
        self.memory = memory
        self.file: Path | None = None

    @classmethod
    def described(
        cls,
        network: nn.Module,
        parts: Mapping[str, Any],
        protocol: Protocol,
        device: torch.device,
        card: Mapping[str, Any] | None = None,
        memory: int | None = None,
    ) -> "Segmenter":
        """Make a segmenter of what a file says: `parts` has its label space, if any, and its normalization.

        Raises:
            InputError: See the class.
        """
        space = parts.get("label_space")
        known = None if space is None else LabelSpace.from_dict(space)
        return cls(network, known, Normalization.from_dict(parts["normalization"]), protocol, device, card, memory)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        revision: str | None = None,
        device: str | torch.device | None = None,
        protocol: str | Protocol = "whole",
        memory: int | None = None,
        precision: Precision = "auto",
        network: str | type[nn.Module] | None = None,
    ) -> "Segmenter":
        """Load a model of Hugging Face's hub, `owner/name`, or a folder that `save_pretrained` wrote.

        A download stays in Hugging Face's cache. Only model.safetensors is read, and no code is run.

        Args:
            model: The folder, or the id.
            revision: A branch, tag or commit of the hub's model.
            device: See `load`, here and below.
            protocol: Its name, or one of your own.
            memory: Bytes that one image may take.
            precision: The network's.
            network: The class of a network of your own.

        Raises:
            InputError: There is no such model, it has no such file, the hub is not reached; or see `load`.
        """
        return load(_hub().model_file(str(model), revision), device, protocol, memory, precision, network=network)

    def save_pretrained(self, folder: str | Path, license: str | None = None) -> None:
        """Write model.safetensors, as `segkit export` does, and a model card README.md, made from the file's card.

        Args:
            folder: Created if missing. A README.md that is there already stays.
            license: Of the weights, as the hub names it ("apache-2.0"), or in words.

        Raises:
            InputError: The folder cannot be written or holds another library's model; or there are no weights as they
                were trained: the file is gone, or was exported for another runtime.
        """
        _hub().save(self._to_share(license), Path(folder))

    def push_to_hub(
        self, repo_id: str, license: str | None = None, private: bool | None = None, revision: str | None = None
    ) -> str:
        """Upload what `save_pretrained` writes as `repo_id`, `owner/name` of Hugging Face's hub, created if missing.

        Args:
            repo_id: The model's id.
            license: See `save_pretrained`.
            private: Whether a new repository is private; None: as its owner has chosen.
            revision: The branch; None means "main".

        Returns:
            The address of the commit.

        Raises:
            InputError: The hub refuses or is not reached, or there are no weights; see `save_pretrained`.
        """
        return str(_hub().push(self._to_share(license), repo_id, private, revision))

    def _to_share(self, license: str | None) -> Any:
        """The weights as trained: the network's own, or the file's if the network is in inference form."""
        if isinstance(self.network, SegmentationModel):
            space, normalization = self.label_space.to_dict(), self.normalization.to_dict()
            parts = {"network": self.network.config, "label_space": space, "normalization": normalization}
            return _hub().HubModel(Checkpoint(parts, self.network.state_dict(), self.card), license)
        if self.file is None:
            raise InputError(
                "this segmenter has no weights as they were trained: load their checkpoint, not a file exported for "
                "another runtime"
            )
        return _hub().HubModel(read_checkpoint(self.file), license)

    @property
    def precision(self) -> str:
        """The network's precision: "exact" as trained, or "float32" or "bfloat16" in its inference form."""
        return precision_of(self.network)

    def optimize(self, precision: Precision = "auto", compiled: bool = False) -> "Segmenter":
        """Make a segmenter with the network's inference form: norms in the convolutions, channels-last, bfloat16.

        Args:
            precision: "auto" means "bfloat16" if the device is fast at it, otherwise "float32". "float32" gives the
                labels of "exact" except where a pixel's best two classes differ by rounding; "bfloat16" rounds features
                to 8 bits, which changes a few pixels in a thousand at object borders. "exact" returns this segmenter.
            compiled: Whether `torch.compile` compiles the network, which takes a minute for each of the first 8 sizes
                of its input (others run uncompiled), needs a C++ compiler on the CPU, and uses CUDA graphs on CUDA.

        Raises:
            InputError: The precision is unknown, the network is in inference form, or "exact" is to be compiled.
        """
        if isinstance(self.network, InferenceForm):
            raise InputError("this segmenter's network is in inference form already; load it with the wanted precision")
        dtype = convolution_dtype(precision, self.device)
        if dtype is None:
            if compiled:
                raise InputError("precision 'exact' cannot be compiled; the choices then are float32 and bfloat16")
            return self
        made = copy.copy(self)
        made.network = inference_form(self.network, dtype, compiled)
        return made

    @property
    def budget(self) -> int:
        """The number of bytes that an image may take now."""
        return self.memory or default_budget(self.device)

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names, by train id."""
        return self.label_space.class_names

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """K RGB colours, by train id."""
        return self.label_space.palette

    @property
    def bands(self) -> Bands | None:
        """The bands of the images; None: RGB."""
        return self.normalization.bands

    def read(self, image: ImageLike) -> np.ndarray:
        """An image as `predict_batch` needs it: uint8 RGB `(H, W, 3)`, or the bands of the weights.

        Raises:
            InputError: See `predict`.
        """
        return as_rgb(image) if self.bands is None else as_bands(image, self.bands)

    @overload
    def predict(self, image: ImageLike, with_confidence: Literal[False] = False) -> np.ndarray: ...

    @overload
    def predict(self, image: ImageLike, with_confidence: Literal[True]) -> tuple[np.ndarray, np.ndarray]: ...

    def predict(self, image: ImageLike, with_confidence: bool = False) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Label each pixel of an image.

        Args:
            image: A path (EXIF orientation is applied), a Pillow image (likewise), or an array: `(H, W)` grey,
                `(H, W, 3)` RGB or `(H, W, 4)` with alpha, which is dropped; uint8, or uint16, of which the high byte
                is taken. Weights that were trained on other bands take a path or an array `(H, W, C)` of these, with
                the values that the training images had.
            with_confidence: Whether the probability of each label is returned, too.

        Returns:
            uint8 `(H, W)` train ids; with confidence, also float32 `(H, W)`, 0..1.

        Raises:
            InputError: The image cannot be read, is of another kind, or does not fit into the device's memory.
        """
        if not with_confidence:
            return np.asarray(self.predict_batch([image])[0].cpu().numpy())  # (1, H, W) -> (H, W)
        labels, confidence = self._sure([image])
        return labels[0].cpu().numpy(), confidence[0].cpu().numpy()

    def predict_proba(self, image: ImageLike) -> np.ndarray:
        """The probability of each class in each pixel of an image of the kinds that `predict` accepts.

        Returns:
            float32 `(K, H, W)`, which sum to 1 over the classes; the largest is `predict`'s confidence, to rounding.

        Raises:
            InputError: See `predict`; the memory that one image may take has to hold this result, too.
        """
        array = self.read(image)
        result = np.empty((len(self.class_names), *array.shape[:2]), np.float32)
        for start, stop, scores in self._seen([array], partial(score_strips, all_classes=True)):
            shares = probabilities(scores, self.protocol.fusion, self.temperature)
            result[:, start:stop] = shares[0].cpu().numpy()
        return result

    def strips(self, image: ImageLike) -> Iterator[Strip]:
        """Labels, confidence and all probabilities of an image, some rows at a time, from top to bottom.

        No more than the logits at the network's stride is held of all classes.

        Args:
            image: See `predict`.

        Raises:
            InputError: See `predict`.
        """
        for start, stop, scores in self._seen([image], score_strips):
            labels, confidence = best_of(scores, self.protocol.fusion, self.temperature)
            shares = probabilities(scores, self.protocol.fusion, self.temperature)
            found = labels.to(label_dtype(scores.shape[1])), confidence, shares
            yield Strip(start, stop, *(part[0].cpu().numpy() for part in found))

    def predict_batch(self, images: Sequence[ImageLike]) -> torch.Tensor:
        """Label images of one size in one go.

        Args:
            images: One or more images of the kinds that `predict` accepts; results of `read` are not copied.

        Returns:
            uint8 `(B, H, W)` train ids on the segmenter's device, which may still be computing them.

        Raises:
            InputError: There is no image, one cannot be read or is of another kind, their sizes differ, or they do not
                fit into the device's memory.
        """
        return self._seen(images, predict)

    def _seen(self, images: Sequence[ImageLike], function: Callable[..., T]) -> T:
        """What a function of the engine makes of images of one size; errors are those of `predict_batch`."""
        if not isinstance(images, Iterable) or isinstance(images, str) or getattr(images, "ndim", 4) != 4:
            raise InputError("a batch is a list of images, or an array (B, H, W, 3): for one image call `predict`")
        arrays = [self.read(image) for image in images]
        sizes = sorted({array.shape[:2] for array in arrays})
        if len(sizes) != 1:
            found = " and ".join(f"{height} x {width}" for height, width in sizes[:2])
            raise InputError(
                f"a batch of {len(arrays)} images with {len(sizes)} sizes ({found or 'none'}): give one or more images "
                "of one size, or `predict` them one by one"
            )
        rgb = torch.from_numpy(np.stack(arrays))  # (B, H, W, C)
        if self.device.type == "cuda":
            rgb = rgb.pin_memory()  # otherwise the copy would wait for the GPU
        try:
            with torch.inference_mode():
                image = rgb.to(self.device, non_blocking=True).permute(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W)
                return function(
                    self.network,
                    normalize(image, self.normalization),
                    self.protocol,
                    normalization=self.normalization,
                    limits=Budget(memory=self.budget),
                )
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"an image of {rgb.shape[1]} x {rgb.shape[2]} pixels does not fit into the memory of {self.device} "
                f"with the protocol {self.protocol.name!r}: give less memory, so that it is seen in tiles, or take the "
                "protocol 'window', or the device 'cpu'"
            ) from error

    def queue(self, images: Sequence[ImageLike]) -> Callable[[], np.ndarray]:
        """Begin `predict_batch`; the result, when it is called, waits for the labels and returns them.

        Raises:
            InputError: See `predict_batch`.
        """
        wait = _fetched(self.predict_batch(images))
        return lambda: wait()[0]

    def queue_with_confidence(self, images: Sequence[ImageLike]) -> Callable[[], list[np.ndarray]]:
        """Begin `predict_batch` with confidence; the result returns labels and float32 confidence, `(B, H, W)` each.

        Raises:
            InputError: See `predict_batch`.
        """
        return _fetched(*self._sure(images))

    def _sure(self, images: Sequence[ImageLike]) -> tuple[Tensor, Tensor]:
        return self._seen(images, partial(predict_with_confidence, temperature=self.temperature))


def _fetched(*found: Tensor) -> Callable[[], list[np.ndarray]]:
    """A function that waits for tensors that a device still computes, and returns them as arrays."""
    if not found[0].is_cuda:
        return lambda: [tensor.numpy() for tensor in found]
    fetched = [torch.empty_like(t, device="cpu", pin_memory=True).copy_(t, non_blocking=True) for t in found]
    event = torch.cuda.Event()
    event.record()

    def wait() -> list[np.ndarray]:
        event.synchronize()
        return [tensor.numpy() for tensor in fetched]

    return wait


def _hub() -> ModuleType:
    """Imports huggingface_hub, 170 modules that labelling an image does not need."""
    from segkit.models import hub

    return hub


def load(
    path: str | Path,
    device: str | torch.device | None = None,
    protocol: str | Protocol = "whole",
    memory: int | None = None,
    precision: Precision = "auto",
    compiled: bool = False,
    network: str | type[torch.nn.Module] | None = None,
) -> Segmenter:
    """Load a network from any file that segkit reads, without running any code in it.

    Args:
        path: A `.ckpt` that `segkit fit` wrote, a model file (`.safetensors`) that `segkit export` wrote, or another
            toolkit's checkpoint (`segkit weights inspect FILE` says how it is understood); or `.onnx`, `.xml` or
            `.pt2` of `segkit export`, whose network runs in ONNX Runtime, OpenVINO or PyTorch as it was exported; or
            a folder of `Segmenter.save_pretrained`, or `hf://owner/name[@revision]` of Hugging Face's hub.
        device: "cpu", "cuda", "cuda:1", ...; None means the GPU if there is one. Of an exported file, where its
            runtime computes: None means the CPU.
        protocol: The name of a protocol, or one of your own.
        memory: Bytes that one image may take; see `Segmenter`.
        precision: "auto", "bfloat16", "float32", or "exact", the network as it was trained with no bit changed; see
            `Segmenter.optimize`.
        compiled: See `Segmenter.optimize`.
        network: The class, or its path, of a network of your own that the file was made with (`OwnNetwork`): a file
            imports nothing.

    Raises:
        InputError: The file is missing, truncated or of another kind, its weights do not fit its network, or device or
            protocol is unknown.
    """
    if isinstance(protocol, str):
        protocol = protocols.get(protocol)
    if str(path).startswith("hf:/") or Path(path).is_dir():
        path = _hub().model_file(str(path))
    if is_exported(path):
        if compiled or precision not in ("auto", "exact"):
            raise InputError(f"{path}: runs as it was exported; leave precision and compile out")
        return _load_exported(Path(path), device, protocol, memory)
    usable = usable_device(device)
    named = None if network is None else class_path(own_network(network))
    checkpoint = read_checkpoint(path)
    if named not in (None, checkpoint.network["class_path"]):
        raise InputError(f"{path}: its network is {checkpoint.network['class_path']}, but {named} was given; give that")
    if is_classifier(checkpoint.network):
        raise InputError(
            f"{path}: a classifier of whole images, which labels no pixels; `segkit test` scores it, and its encoder "
            "begins a training of segmentation: `segkit fit --encoder_weights`"
        )
    try:
        built = checkpoint.build_network()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    segmenter = Segmenter.described(built, checkpoint.hyper_parameters, protocol, usable, checkpoint.card, memory)
    segmenter.file = Path(path)
    return segmenter.optimize(precision, compiled)


def _load_exported(path: Path, device: str | torch.device | None, protocol: Protocol, memory: int | None) -> Segmenter:
    """A segmenter whose network another runtime computes; all the rest is done here, on the CPU."""
    file = open_network(path, None if device is None else str(device))
    check_own(file.card, path)
    network = ExportedNetwork(file, Normalization.from_dict(file.card["normalization"]))
    return Segmenter.described(network, file.card, protocol, torch.device("cpu"), file.card, memory)
