"""`sam`: box prompts to a Segment Anything checkpoint (Kirillov et al., ICCV 2023), through transformers (`pip install 'mixsup[sam]'`).

Of the three masks that SAM gives for a box, the one that it expects to overlap best is taken and cut to the box.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from mixsup.data.sample import Boxes, Sample, UInt8
from mixsup.errors import MixsupError
from mixsup.hub import content_of, device_named, is_missing_folder, place, short, transformers_for
from mixsup.masks.box_masks import FOREGROUND, BoxMasks
from mixsup.masks.source import STRICT, MaskSource

_REMEDY = (
    "give the setting `checkpoint` a name (as facebook/sam-vit-base, fetched from the Hugging Face hub) or the folder of a saved SamModel"
)


@dataclass(frozen=True, config=STRICT)
class SAM(MaskSource):
    """Box prompts to SAM.

    Attributes:
        checkpoint: name on the hub, or a folder that `save_pretrained` of SamModel and SamProcessor wrote.
        device: auto, cpu, cuda or mps; auto takes a GPU where there is one. Each worker process loads the model once: few `--jobs` on one GPU.
        batch: boxes that pass the mask decoder together.
    """

    checkpoint: Annotated[str, AfterValidator(place)] = "facebook/sam-vit-base"
    device: str = "auto"
    batch: Annotated[int, Field(ge=1)] = 32
    name: ClassVar[str] = "sam"
    version: ClassVar[int] = 2

    def settings(self) -> dict[str, Any]:
        return {"checkpoint": self.checkpoint}  # where and in which portions it is computed does not decide the result

    def fingerprint(self, sample: Sample) -> bytes:
        return _content(self.checkpoint)

    def check(self) -> None:
        if _config(self.checkpoint).model_type != "sam":
            raise MixsupError(f"checkpoint {self.checkpoint!r} is no SAM ({_config(self.checkpoint).model_type}); {_REMEDY}")

    def __call__(self, image: UInt8, boxes: Boxes, sample: Sample) -> BoxMasks:
        import torch

        size = (image.shape[0], image.shape[1])
        windows = boxes.windows(size)
        masks: list[UInt8] = [np.full((y1 - y0, x1 - x0), FOREGROUND, np.uint8) for x0, y0, x1, y1 in windows]
        prompted = np.flatnonzero(~boxes.crowd)
        if not len(prompted):
            return BoxMasks.of(boxes, size, masks)
        model, processor, device = _model(self.checkpoint, self.device)
        with torch.inference_mode():
            # Channels last is said, since the processor would take an image of one row, or of three, for one of so many channels.
            ready = processor(image, input_boxes=[boxes.xyxy[prompted].tolist()], input_data_format="channels_last", return_tensors="pt")
            embedding = model.get_image_embeddings(ready["pixel_values"].to(device))  # 1×C×h×w, once for all boxes
            prompts = ready["input_boxes"].to(device, torch.float32)  # 1×N×4
            for start in range(0, len(prompted), self.batch):
                answer = model(image_embeddings=embedding, input_boxes=prompts[:, start : start + self.batch], multimask_output=True)
                best = answer.iou_scores[0].argmax(dim=1)  # of 3, for each box
                logits = answer.pred_masks[0, torch.arange(len(best)), best].float().cpu()  # N×h×w
                for index, one in zip(prompted[start : start + self.batch], logits, strict=True):
                    # One at a time: at the size of a large photograph thirty masks would not fit into memory.
                    whole = processor.image_processor.post_process_masks(
                        [one[None, None]], ready["original_sizes"], ready["reshaped_input_sizes"], binarize=True
                    )[0][0, 0]
                    x0, y0, x1, y1 = windows[index]
                    found = whole[y0:y1, x0:x1].numpy().astype(np.uint8)
                    if found.any():  # an empty box would teach its object as background
                        masks[index] = found
        return BoxMasks.of(boxes, size, masks)


@lru_cache(maxsize=4)
def _config(checkpoint: str) -> Any:
    """The checkpoint's configuration: small, and it tells whether there is a checkpoint at all."""
    transformers = transformers_for("source 'sam'")
    if is_missing_folder(checkpoint):
        raise MixsupError(f"checkpoint {checkpoint!r}: no such folder, or no config.json in it; {_REMEDY}")
    try:
        return transformers.AutoConfig.from_pretrained(checkpoint)
    except Exception as error:  # of the hub, of the file or of the network, each with a class of its own
        raise MixsupError(f"checkpoint {checkpoint!r} cannot be loaded ({short(error)}); {_REMEDY}") from None


@lru_cache(maxsize=1)
def _model(checkpoint: str, device: str) -> tuple[Any, Any, Any]:
    """Model, processor and device; once a process."""
    import torch

    device = device_named(device)
    transformers = transformers_for("source 'sam'")
    _config(checkpoint)
    try:
        processor = transformers.SamProcessor.from_pretrained(checkpoint)
        model = transformers.SamModel.from_pretrained(checkpoint).eval().to(device)
    except Exception as error:
        raise MixsupError(f"checkpoint {checkpoint!r} cannot be loaded on {device} ({short(error)}); {_REMEDY}") from None
    return model, processor, torch.device(device)


@lru_cache(maxsize=4)
def _content(checkpoint: str) -> bytes:
    return content_of(checkpoint, lambda: _config(checkpoint))
