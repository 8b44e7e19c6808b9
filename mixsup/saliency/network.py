"""`transformers`: any salient-object network of the Hugging Face hub or of a folder, through transformers (`pip install 'mixsup[sam]'`).

    saliency=transformers, model=ZhengPeng7/BiRefNet, side=1024, trust_remote_code=true
    saliency=transformers, model=FOLDER          # of a saved SegFormer, DPT, ... for semantic segmentation with one or two labels

The network gives scores before the sigmoid for one channel, or for two, ground and object; of several maps (side outputs) the last one is taken.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any, ClassVar

import cv2
import numpy as np
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from mixsup.data.sample import Float32, Sample, UInt8
from mixsup.errors import MixsupError
from mixsup.hub import content_of, device_named, is_missing_folder, place, short, transformers_for
from mixsup.masks.source import STRICT
from mixsup.saliency.source import SaliencySource, resized

_REMEDY = "give model=NAME (on the Hugging Face hub) or model=FOLDER of a saved segmentation network with one output channel"
_MEAN, _SPREAD = (
    np.array([0.485, 0.456, 0.406], np.float32),
    np.array([0.229, 0.224, 0.225], np.float32),
)  # of ImageNet, for networks without a processor


@dataclass(frozen=True, config=STRICT)
class Network(SaliencySource):
    """A salient-object network.

    Attributes:
        model: name on the hub, or a folder that `save_pretrained` wrote.
        side: None lets the model's own image processor prepare the image. A number is for models that have none: the image is resized to side × side
            pixels and normalised by the mean and spread of ImageNet (BiRefNet: 1024).
        trust_remote_code: whether Python code that comes with the model may run on this machine. Set it only for a model whose authors you trust.
        device: auto, cpu, cuda or mps; auto takes a GPU where there is one.
    """

    model: Annotated[str, AfterValidator(place), Field(min_length=1)]
    side: Annotated[int, Field(ge=16, le=4096)] | None = None
    trust_remote_code: bool = False
    device: str = "auto"
    name: ClassVar[str] = "transformers"

    def settings(self) -> dict[str, Any]:
        # Where it is computed does not decide the result.
        return {"model": self.model, "side": self.side, "trust_remote_code": self.trust_remote_code}

    def fingerprint(self, sample: Sample) -> bytes:
        return _content(self.model, self.trust_remote_code)

    def check(self) -> None:
        config = _config(self.model, self.trust_remote_code)
        if not _brings_code(config) and config.num_labels not in (1, 2):
            raise MixsupError(f"model {self.model!r} has {config.num_labels} labels, not ground and object; {_REMEDY}")

    def __call__(self, image: UInt8, sample: Sample) -> Float32:
        import torch

        self.check()
        model, processor, device = _model(self.model, self.side is None, self.trust_remote_code, self.device)
        if self.side is not None:
            pixels = _prepared(image, self.side)
        else:
            # Said, since it would take an image of one row for one of one channel.
            ready = processor(images=np.ascontiguousarray(image), input_data_format="channels_last", return_tensors="pt")
            pixels = ready["pixel_values"]
        with torch.inference_mode():
            scores = _scores(model(pixels.to(device))).float()  # C×h×w
            if scores.shape[0] not in (1, 2):
                raise MixsupError(f"model {self.model!r} gives {scores.shape[0]} channels, not one for the object; {_REMEDY}")
            found = scores[0].sigmoid() if scores.shape[0] == 1 else scores.softmax(dim=0)[1]
        return resized(np.nan_to_num(np.ascontiguousarray(found.cpu().numpy()), nan=0.0), (image.shape[0], image.shape[1]))


def _prepared(image: UInt8, side: int) -> Any:
    """1×3×side×side float32 tensor."""
    import torch

    small = cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR).astype(np.float32) / 255
    return torch.from_numpy(np.ascontiguousarray(((small - _MEAN) / _SPREAD).transpose(2, 0, 1))[None])


def _scores(answer: Any) -> Any:
    """C×h×w scores of what a network returned: an output with `logits`, a tensor, or a list whose last entry is the finest map."""
    found = getattr(answer, "logits", answer)
    while isinstance(found, (list, tuple)):
        found = found[-1]
    return found[0] if found.ndim == 4 else found


def _brings_code(config: Any) -> bool:
    return "AutoModelForImageSegmentation" in (getattr(config, "auto_map", None) or {})


@lru_cache(maxsize=4)
def _config(model: str, trust: bool) -> Any:
    """The model's configuration: small, and it tells whether there is a model at all, and whether it would run code of its own."""
    transformers = transformers_for("saliency source 'transformers'")
    if is_missing_folder(model):
        raise MixsupError(f"model {model!r}: no such folder, or no config.json in it; {_REMEDY}")
    try:
        # False and not None: None would ask at the terminal.
        config = transformers.AutoConfig.from_pretrained(model, trust_remote_code=trust)
    except Exception as error:  # of the hub, of the file or of the network, each with a class of its own
        if not trust and "trust_remote_code" in str(error):
            raise _untrusted(model) from None
        raise MixsupError(f"model {model!r} cannot be loaded ({short(error)}); {_REMEDY}") from None
    if _brings_code(config) and not trust:
        raise _untrusted(model)
    return config


def _untrusted(model: str) -> MixsupError:
    return MixsupError(
        f"model {model!r} brings Python code of its own; set trust_remote_code=true if you trust its authors, or take another model"
    )


@lru_cache(maxsize=1)
def _model(name: str, prepares: bool, trust: bool, device: str) -> tuple[Any, Any, Any]:
    """Model, image processor (None where the source prepares the image itself) and device; once a process."""
    import torch

    device = device_named(device)
    transformers = transformers_for("saliency source 'transformers'")
    kind = "AutoModelForImageSegmentation" if _brings_code(_config(name, trust)) else "AutoModelForSemanticSegmentation"
    try:
        # Half precision, in which some are stored, is slow or missing on a CPU.
        model = getattr(transformers, kind).from_pretrained(name, trust_remote_code=trust).float().eval().to(device)
    except Exception as error:
        raise MixsupError(f"model {name!r} cannot be loaded on {device} ({short(error)}); {_REMEDY}") from None
    processor = None
    if prepares:
        try:
            processor = transformers.AutoImageProcessor.from_pretrained(name, trust_remote_code=trust)
        except Exception as error:
            raise MixsupError(
                f"model {name!r} has no image processor ({short(error)}); give side=1024, or the size that it was trained at"
            ) from None
        for step in ("do_pad", "do_center_crop"):
            if getattr(processor, step, False):
                raise MixsupError(
                    f"the image processor of {name!r} has {step}, which moves the map off the image; give side=N, or save it without"
                )
    return model, processor, torch.device(device)


@lru_cache(maxsize=4)
def _content(model: str, trust: bool) -> bytes:
    return content_of(model, lambda: _config(model, trust))
