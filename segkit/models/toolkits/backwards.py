"""Gives weights back to other toolkits: renames them for the network of timm, smp or torchvision that takes them.

That network is built on the meta device, and a parameter that it lacks, or has in another shape, is refused.
"""

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from segkit.errors import InputError
from segkit.models.classifier import is_classifier
from segkit.models.decoders import encoder_stride, parameters, smp_class
from segkit.models.heads import ASPP_RATES
from segkit.models.pretrained import HARMLESS, REPOSITORIES, timm_name
from segkit.models.resnest import RESNEST_VARIANTS
from segkit.models.toolkits.foreign import TIMM_PREFIX
from segkit.models.toolkits.formats import Rules, rename
from segkit.models.toolkits.inspection import Inspection
from segkit.models.toolkits.keys import place
from segkit.ops.meta import ShapesOnly

Target = Literal["smp", "timm", "torchvision"]

_SMP = (
    (r"encoder\.", "encoder.model."),
    (r"head\.(?=(decoder|segmentation_head)\.)", ""),
    (r"head\.aspp\.", "decoder.aspp."),
    (r"head\.block\.0\.", "decoder.conv."),
    (r"head\.block\.1\.", "decoder.bn."),
    (r"head\.block\.4\.", "segmentation_head.0."),
)
_TORCHVISION = (
    (r"encoder\.", "backbone."),
    (r"aux_head\.", "aux_classifier."),
    (r"head\.aspp\.", "classifier.0."),
    (r"head\.block\.0\.", "classifier.1."),
    (r"head\.block\.1\.", "classifier.2."),
    (r"head\.block\.4\.", "classifier.4."),
    (r"head\.", "classifier."),
)
_WHOLE = ((r"encoder\.", ""), (r"(?=fc\.)", ""))
_RATES = [12, 24, 36]  # torchvision's


@dataclass(frozen=True)
class _Network:
    """Another toolkit's network: the name of its class or function, its arguments, and the rules for renaming."""

    name: str
    arguments: dict[str, Any]
    rules: Rules

    def __str__(self) -> str:
        """The line of Python that builds it."""
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.arguments.items())})"

    def build(self) -> Any:
        """Build it on the meta device."""
        module, _, name = self.name.replace("smp.", "segmentation_models_pytorch.").rpartition(".")
        with ShapesOnly():
            return getattr(importlib.import_module(module), name)(**self.arguments)


def give_back(inspection: Inspection, toolkit: Target, source: str) -> tuple[dict[str, Tensor], str]:
    """The weights under a toolkit's names, and the line of Python that builds its network for them.

    Args:
        inspection: What `inspect` found in a file; all must match.
        toolkit: "timm" takes the encoder alone, or a whole classifier.
        source: The file's name in error messages.

    Raises:
        InputError: The toolkit has no such network; the message says what it lacks.
    """
    try:
        network = {"smp": _smp, "timm": _timm, "torchvision": _torchvision}[toolkit](inspection)
    except InputError as error:
        raise InputError(f"{source}: --to {toolkit}: {error}") from error
    theirs = network.build().state_dict()
    weights, keys = place(_renamed(inspection, network.rules), {}, theirs)
    wrong = (*keys.missing, *keys.unexpected, *keys.clashing)
    if wrong:
        raise InputError(
            f"{source}: --to {toolkit}: {network} differs in {len(wrong)} parameters ({wrong[0]}, ...) and cannot take "
            "these weights"
        )
    return weights, str(network)


def _smp(inspection: Inspection) -> _Network:
    arguments, kind = _arguments(inspection), _kind(inspection)
    if kind not in ("EncoderDecoder", "DeepLabV3"):
        raise InputError(f"smp has no {kind}; only EncoderDecoder and DeepLabV3 can be given to it")
    decoder = arguments.get("decoder", "deeplabv3")
    given: dict[str, Any] = dict(arguments.get("decoder_args") or {})
    if kind == "DeepLabV3":
        if not arguments["align_corners"]:
            raise InputError("smp upsamples logits with align_corners, and this network was trained without it")
        stride, channels = arguments["output_stride"], inspection.weights["head.aspp.project.0.weight"].shape[0]
        given = {"decoder_channels": channels, "decoder_atrous_rates": arguments["aspp_rates"] or ASPP_RATES[stride]}
    known = parameters(decoder)
    if "encoder_output_stride" in known:
        given["encoder_output_stride"] = arguments["output_stride"]
    elif decoder != "dpt" and arguments["output_stride"] != 32:
        raise InputError(f"smp builds {decoder} over encoders of output stride 32 only")
    if (depth := given.get("encoder_depth")) and decoder in ("fpn", "pspnet"):
        given["upsampling"] = 2**depth if decoder == "pspnet" else 2 ** (depth - 3)
    if decoder == "dpt":
        given["dynamic_img_size"] = True
    own = {"encoder_name": f"tu-{_timm_name(arguments)}", "encoder_weights": None, "classes": arguments["num_classes"]}
    if arguments.get("in_channels", 3) != 3:
        own["in_channels"] = arguments["in_channels"]
    return _Network(f"smp.{smp_class(decoder).__name__}", own | given, _SMP)


def _timm(inspection: Inspection) -> _Network:
    arguments = _arguments(inspection)
    name: dict[str, Any] = {"model_name": _timm_name(arguments)}
    if arguments.get("in_channels", 3) != 3:
        name["in_chans"] = arguments["in_channels"]
    whole = "fc.weight" if inspection.is_network else "classifier.weight"
    if (is_classifier(inspection.config) or not inspection.is_network) and whole in inspection.weights:
        classes = {"num_classes": inspection.weights[whole].shape[0]}
        return _Network("timm.create_model", name | classes, _WHOLE)
    stride = arguments.get("output_stride", 32)
    dilated = {"output_stride": stride} if stride < 32 else {}
    return _Network("timm.create_model", {**name, "features_only": True, **dilated}, _WHOLE[:1])


def _torchvision(inspection: Inspection) -> _Network:
    arguments, kind = _arguments(inspection), _kind(inspection)
    encoder, classes = _timm_name(arguments), {"num_classes": arguments.get("num_classes")}
    if is_classifier(inspection.config) and re.fullmatch(r"resnet(18|34|50|101|152)", encoder):
        return _Network(f"torchvision.models.{encoder}", {"weights": None, **classes}, _WHOLE)
    fits = kind in ("FCN", "DeepLabV3") and encoder in ("resnet50", "resnet101")
    if not fits or arguments["output_stride"] != 8 or arguments["align_corners"]:
        raise InputError(
            "torchvision has classifiers over resnet18 to resnet152, and FCN and DeepLabV3 over resnet50 and resnet101 "
            "of output stride 8, whose logits are upsampled without align_corners; this is another network"
        )
    if kind == "DeepLabV3" and list(arguments["aspp_rates"] or _RATES) != _RATES:
        raise InputError(f"torchvision's DeepLabV3 has the dilation rates {_RATES}, this one {arguments['aspp_rates']}")
    own = {"weights": None, "weights_backbone": None, **classes, "aux_loss": bool(arguments["aux"])}
    return _Network(f"torchvision.models.segmentation.{kind.lower()}_{encoder}", own, _TORCHVISION)


def _kind(inspection: Inspection) -> str:
    return str(inspection.config.get("class_path", "encoder alone")).rsplit(".", 1)[-1]


def _arguments(inspection: Inspection) -> Mapping[str, Any]:
    """A network's arguments; those of a lone encoder are given the same names."""
    config = inspection.config
    if inspection.is_network and "encoder" not in config["init_args"]:
        raise InputError(f"{config['class_path']} is a network of your own, which no other toolkit has")
    if inspection.is_network:
        return {**config["init_args"], "output_stride": encoder_stride(config["init_args"])}
    return {"encoder": config["name"], "encoder_args": config["overrides"], "in_channels": config["in_channels"]}


def _timm_name(arguments: Mapping[str, Any]) -> str:
    """timm's name of the encoder.

    Raises:
        InputError: timm has none that gives the same features.
    """
    name, own = str(arguments["encoder"]).removeprefix("tu-"), arguments.get("encoder_args") or {}
    if name not in RESNEST_VARIANTS:
        return name
    if name not in REPOSITORIES or own.keys() - HARMLESS:
        differs = f" with {', '.join(own)}" if own else ""
        raise InputError(f"timm has no {name}{differs}; it has {', '.join(REPOSITORIES)}")
    convention = arguments.get("dilation_convention", "timm")
    if arguments.get("output_stride", 32) < 32 and convention != "timm":
        raise InputError(
            f"the encoder is dilated to output stride {arguments['output_stride']} as {convention} does, which timm "
            "and smp cannot; their features would differ"
        )
    return timm_name(name).split(".")[0]


def _renamed(inspection: Inspection, rules: Rules) -> dict[str, Tensor]:
    """The weights that some rule renames; others, such as an auxiliary head's, are left out."""
    before = "" if inspection.is_network else "encoder."
    named = {(before + n).replace(f"encoder.{TIMM_PREFIX}", "encoder.", 1): t for n, t in inspection.weights.items()}
    return {new: named[name] for name, new in rename(rules, named).items()}
