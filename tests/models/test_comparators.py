"""The comparators of the ResNeSt paper beside `resnest14_tiny`: equal cost, one recipe, timm's blocks."""

from pathlib import Path

import pytest
import torch

from segkit.benchmark.cost import flops, parameters
from segkit.benchmark.plan import read_experiment
from segkit.models.comparators import COMPARATORS
from segkit.models.encoders import build_encoder
from segkit.models.resnest import ResNeSt
from segkit.models.timm_encoder import TimmEncoder
from segkit.recipes import read_recipe
from segkit.study.plan import read_study

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = [f"camvid/fcn_{name}" for name in ("resnest14_tiny", *COMPARATORS)]


@pytest.fixture(autouse=True)
def in_the_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)


@pytest.mark.slow
def test_all_four_cost_the_same_within_five_percent() -> None:
    networks = [read_experiment(name).build(11) for name in RECIPES]
    for cost in ([parameters(n) for n in networks], [flops(n, (180, 240)) for n in networks]):
        assert max(cost) <= 1.05 * min(cost), cost


def test_nothing_but_the_encoder_differs() -> None:
    first, *others = ({**read_recipe(name).content} for name in RECIPES)
    for other, name in zip(others, COMPARATORS, strict=True):
        arguments = other["model"]["network"]["init_args"]
        assert arguments["encoder"] == name
        arguments["encoder"] = "resnest14_tiny"
        assert other == first


def test_without_attention_a_resnest_is_timms_resnet_d() -> None:
    """So stem, depth, shortcuts and initial norms are one: the two differ in the split attention and its pool alone."""
    torch.manual_seed(0)
    tiny = {"layers": (1, 1, 1, 1), "stem_width": 8, "planes": (12, 24, 48, 96), "width": 68}
    ours = ResNeSt(**tiny, radix=0, avd=False, output_stride=32).eval()  # type: ignore[arg-type]
    theirs = TimmEncoder("resnet14_tiny", 32).eval()
    theirs.encoder.model.load_state_dict(ours.state_dict())
    image = torch.randn(1, 3, 97, 65)
    for ours_feature, theirs_feature in zip(ours(image)[1:], theirs(image)[1:], strict=True):
        torch.testing.assert_close(ours_feature, theirs_feature)


@pytest.mark.parametrize("name", COMPARATORS)
def test_residual_branches_start_as_in_our_resnest(name: str) -> None:
    norms = [m for m in build_encoder(name).modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and all((norm.weight == 1).all() for norm in norms)


@pytest.mark.parametrize(("name", "runs"), [("comparators", 12), ("attention", 18)])
def test_studies_that_come_with_segkit_can_be_built(name: str, runs: int) -> None:
    study = read_study(CONFIGS / "studies" / f"{name}.yaml")
    assert len(study.runs) == runs
    for run in study.runs[: len(study.variants)]:
        network = dict(read_experiment(run.recipe).network["init_args"])
        arguments = run.overrides.get("model.network.init_args.encoder_args")
        assert build_encoder(network["encoder"], overrides=arguments).channels[-1] == 384
