"""mixsup: semantic segmentation from image tags, bounding boxes and pixel masks, mixed freely."""

from __future__ import annotations

__version__ = "0.1.0"
