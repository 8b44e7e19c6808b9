"""BCM's tables: the same network and number of steps for every head and every loss of the boxes, after the same two stages of training.

    python benchmarks/bcm.py DATA --network NAME_OR_YAML --size 192 --steps 348 --out FOLDER [--seeds 0,1,2] [--rows full,bcm,...] [--set KEY=VALUE ...]

A row is a recipe and a label budget; each is trained once a seed, without a report, and scored on val by its last weights. All rows but `full` and `box`
have three stages (rectangles, `tight` masks or by `--set masks=crf` the paper's, fine-tuning), of which the last alone differs. Runs that lie in FOLDER are
not repeated. Printed: mean IoU in %, the spread over seeds (highest less lowest), the share of the full-mask score, and what the paper has (VOC 2012 val,
VGG16, another network and data set).
"""

from __future__ import annotations

from tables import Row, arguments_of, print_tables

ROWS = {
    "full": Row("masks (Table 2)", "full", "masks", paper="69.8"),
    "box": Row(
        "rectangles with BCM and FR-loss (Table 2)", "bcm", settings=("masks=rectangle", "loss_options.boxes.measured_on=crf"), paper="54.9"
    ),
    "baseline": Row("baseline (Table 1)", "baseline-crf", paper="60.6"),
    "cm": Row("CM (Table 1)", "cm", paper="63.4"),
    "bgm": Row("BGM (Table 1)", "bgm", paper="64.9"),
    "bcm-only": Row("BCM (Table 1)", "bcm-only", paper="65.6"),
    "global-loss": Row("Global-loss (Table 1)", "global-loss", paper="64.1"),
    "fr-loss": Row("FR-loss (Table 1)", "fr-loss", paper="65.8"),
    "fr-loss-refine": Row("FR-loss, refined (Table 1)", "fr-loss-refine", paper="66.3"),
    "bcm": Row("BCM and FR-loss, refined (Tables 1 and 2)", "bcm", paper="66.8"),
    "semi-baseline": Row("1 in 10 masks, baseline (Table 2: WSSL)", "baseline-crf", None, paper="65.1"),
    "semi": Row("1 in 10 masks, BCM and FR-loss (Table 2)", "bcm-semi", None, paper="67.5"),
}

if __name__ == "__main__":
    print_tables(arguments_of(__doc__, ROWS), ROWS)
