"""`--init RUN`: start from a run's network; the last layer stays only where the class lists agree (BoxSup, section 5.2)."""

from __future__ import annotations

from pathlib import Path

from mixsup.data.sample import Classes
from mixsup.engine.model import SegmentationModel
from mixsup.engine.run import BEST, Run
from mixsup.errors import MixsupError
from mixsup.networks import build_network
from mixsup.networks.base import Network, OnNetwork
from mixsup.networks.weights import read_state


def take_over(init: str | Path, model: SegmentationModel, classes: Classes, freeze_batchnorm: bool | None = None) -> str:
    """Copies into `model` every weight of the run `init` whose name and shape fit, the backbone whole, and returns a line that says how many.

    Layers that score classes are copied only when the class lists are the same: equal shapes alone would give one class the other's weights.
    Running statistics are the run's as well: whether they stay as they are is `freeze_batchnorm`, or as it was there.

    Raises:
        MixsupError: `init` is no run, has no checkpoint, or another backbone: what fits of that by chance has taught nothing.
    """
    run = Run.load(init)
    path = Path(init) / BEST
    if not path.is_file():
        raise MixsupError(f"{path}: the run to start from has no checkpoint; train it first")
    state, own = read_state(path), model.state_dict()
    same = run.classes == classes
    fitting = {
        key: value
        for key, value in state.items()
        if key in own and own[key].shape == value.shape and (same or not key.startswith(("head.", "skips.")))
    }
    backbone = {id(parameter) for parameter in model.network.backbone.parameters()}
    if not all(name in fitting for name, parameter in model.named_parameters() if id(parameter) in backbone):
        raise MixsupError(f"{init}: its network has another architecture; give the same --network")
    theirs = build_network(run.recipe.network, pretrained=False)
    trained, here = ([*network.mean, *network.std] for network in (theirs, model.network))
    if trained != here:
        raise MixsupError(
            f"{init}: its network was trained with mean {trained[:3]} and std {trained[3:]}, here it has {here[:3]} and {here[3:]}; "
            "give the run's own as `mean` and `std` in the --network file"
        )
    model.load_state_dict(fitting, strict=False)
    # What was learned there is pretraining here: its layers learn at the rate of pretrained ones (section 5.2 has a new last layer, and no other), and it
    # stands beside every score.
    parts: dict[str, bool] = {}
    for name, _ in model.named_parameters():
        part = _part(name)
        parts[part] = parts.get(part, True) and name in fitting
    model.carried = tuple(sorted(part for part, whole in parts.items() if whole))
    model.network.pretraining = f"run {path.parent.name} ({run.facts.get('pretraining', 'unknown')})"
    if freeze_batchnorm is None:
        model.network.freeze_batchnorm = bool(run.facts.get("freeze_batchnorm", theirs.freeze_batchnorm))
    left = sorted({_part(key).rstrip(".") for key in state if same and key.startswith("head.") and key not in own})
    return (
        f"started from {init}: {len(fitting)} of {len(own)} weights taken over, class layers {'too' if same else 'new (other classes)'}"
        + (f"; not {', '.join(left)}: the head that training begins with has none, and that of a later stage begins anew" if left else "")
    )


def begin_with(init: Path, model: OnNetwork, trained: Network) -> None:
    """Gives a network that helps (MCOF's classification network) what `take_over` gave to the one that is trained, class layers aside.

    Raises:
        MixsupError: the run or its checkpoint is not there any more.
    """
    path = init / BEST
    if not path.is_file():
        raise MixsupError(
            f"{path}: the checkpoint that the run began with is not there any more; bring it back, or begin anew without --init"
        )
    own = model.state_dict()
    state = {key: value for key, value in read_state(path).items() if key.startswith("network.")}
    model.load_state_dict({key: value for key, value in state.items() if key in own and own[key].shape == value.shape}, strict=False)
    model.network.pretraining, model.network.freeze_batchnorm = trained.pretraining, trained.freeze_batchnorm


def _part(name: str) -> str:
    """`network.decoder.` of `network.decoder.block1.conv.weight`: what is taken over as a whole or not at all. `head.weight` is a part of its own."""
    first, second, *rest = name.split(".")
    return f"{first}.{second}." if rest else name
