"""What MCOF makes of a few images, stage by stage (Figs. 4 and 6 of the paper), from a finished run.

python benchmarks/mcof_picture.py RUN DATA PICTURE.png [--split train] [--images 4]
"""

from __future__ import annotations

import argparse
import base64
import io

import matplotlib.pyplot as plt
from PIL import Image

from mixsup.data import load_dataset
from mixsup.engine.run import Run
from mixsup.report.mining import Mining


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("data")
    parser.add_argument("picture")
    parser.add_argument("--split", default="train")
    parser.add_argument("--images", type=int, default=4)
    arguments = parser.parse_args()
    rows = Mining(Run.load(arguments.run), load_dataset(arguments.data, arguments.split)).images()[: arguments.images]
    stages = [[cell for cell in row.pictures if not cell[0].startswith("map:")] for row in rows]
    maps = [next((cell for cell in row.pictures if cell[0].startswith("map:")), ("", "")) for row in rows]
    table = [[cells[0], heat, *cells[1:]] for cells, heat in zip(stages, maps, strict=True)]
    figure, axes = plt.subplots(len(table), len(table[0]), figsize=(1.5 * len(table[0]), 1.65 * len(table)), squeeze=False)
    for line, cells in zip(axes, table, strict=True):
        for place, (caption, address) in zip(line, cells, strict=True):
            place.set_axis_off()
            place.set_title(caption.replace("PixelNet, ", "network, "), fontsize=7)
            if address:
                place.imshow(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))))
    figure.tight_layout(pad=0.4)
    figure.savefig(arguments.picture, dpi=110)


if __name__ == "__main__":
    main()
