"""The fully connected CRF of Krähenbühl and Koltun (2011), without a compiler.

from mixsup.crf import mean_field
probabilities = mean_field(-log_probabilities, image)
"""

from mixsup.crf.mean_field import mean_field

__all__ = ["mean_field"]
