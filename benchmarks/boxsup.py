"""BoxSup's tables: the same network and number of steps on every kind of supervision, every way to estimate masks, and every pool.

    python benchmarks/boxsup.py DATA --network NAME_OR_YAML --size 192 --steps 348 --out FOLDER [--seeds 0,1,2] [--rows full,boxsup,...] [--set KEY=VALUE ...]

A row is a recipe and a label budget; each is trained once a seed, without a report, and scored on val by its last weights. Runs that lie in FOLDER are not
repeated, so a row or a seed can be added. Printed: mean IoU in %, the spread over seeds (highest less lowest), the share of the full-mask score, the
masks' mean IoU with the truth in the first and the last round, and what the paper has (VOC 2012 val, VGG16, another network and another data set).
"""

from __future__ import annotations

from tables import Row, arguments_of, print_tables

ROWS = {
    "full": Row("masks (Table 1)", "full", "masks", paper="63.8"),
    "semi": Row("BoxSup, 1 in 10 masks (Table 1)", "boxsup", None, paper="63.5"),
    "boxsup": Row("BoxSup, boxes (Tables 1 to 3: mcg)", "boxsup", paper="62.0"),
    "unsampled": Row("BoxSup without sampling (Table 2)", "boxsup-unsampled", paper="59.7"),
    "any-of-five": Row("BoxSup, any of the 5 cheapest drawn", "boxsup", settings=("refresh.options.similar=0",), paper="62.0"),
    "rectangles": Row("rectangles (Table 2)", "rectangles", paper="52.3"),
    "grabcut": Row("GrabCut, fixed (Table 2)", "grabcut", paper="55.2"),
    "wssl-seg": Row("CRF masks, fixed (WSSL Bbox-Seg)", "wssl-seg", paper="58.5"),
    "wssl-em": Row("WSSL Bbox-EM-Fixed", "wssl-em"),
    "sdi-box": Row("SDI Box", "sdi-box"),
    "direct": Row("rectangles, two rounds of plain re-prediction", "rectangles", settings=("refresh=direct", "refresh.rounds=2")),
    "direct-sure": Row(
        "GrabCut, two rounds of plain re-prediction, ignored where below 0.75",
        "grabcut",
        settings=("refresh=direct", "refresh.rounds=2", "refresh.options.sure=0.75"),
    ),
    "selective-search": Row("BoxSup, selective search (Table 3)", "boxsup", settings=("masks=selective-search",), paper="59.5"),
    "geodesic": Row("BoxSup, geodesic (Table 3)", "boxsup", settings=("masks=geodesic",), paper="60.4"),
}


if __name__ == "__main__":
    print_tables(arguments_of(__doc__, ROWS), ROWS)
