"""Paired folders: images in one, index masks of the same names in the other.

    images/a.jpg + masks/a.png           images/train/a.jpg + masks/train/a.png           train/images/a.jpg + train/masks/a.png

Split lists `train.txt`, `val.txt` beside the folders count too, and a `tags.csv` for images that have no mask. `labels.txt` (or `classes.txt`) names
the ids; without it a class is called by its number.
"""

from __future__ import annotations

from pathlib import Path

from mixsup.data.collect import Collector, choose_splits, class_colours, class_list, images_below, make_classes, masks_below, read_text
from mixsup.data.image import ImageError, read_mask
from mixsup.data.sample import VOID, Classes, Dataset, MaskFile, Sample, quoted
from mixsup.data.tags import read_tags, tag_ids
from mixsup.data.tags import recognises as tags_beside
from mixsup.errors import MixsupError

_IMAGES = ("images", "imgs", "img", "image")
_MASKS = ("masks", "mask", "labels", "annotations", "label", "segmentation")


def _pairs(root: Path) -> dict[str, tuple[Path, Path]]:
    """(image folder, mask folder) by split; "" for images that are of no split."""
    found: dict[str, tuple[Path, Path]] = {}
    images, masks = _named(root, _IMAGES), _named(root, _MASKS)
    if images is not None and masks is not None:
        for folder in sorted(path for path in images.iterdir() if path.is_dir()):
            if (masks / folder.name).is_dir():
                found[folder.name] = (folder, masks / folder.name)
        return found if found and not images_below(images) else {"": (images, masks), **found}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []:
        inner, outer = _named(folder, _IMAGES), _named(folder, _MASKS)
        if inner is not None and outer is not None:
            found[folder.name] = (inner, outer)
    return found


def _named(root: Path, names: tuple[str, ...]) -> Path | None:
    """The folder below `root` with the first of the names that there is, in capitals or not."""
    found = {path.name.lower(): path for path in sorted(root.iterdir(), reverse=True) if path.is_dir()} if root.is_dir() else {}
    return next((found[name] for name in names if name in found), None)


def _lists(root: Path) -> dict[str, Path]:
    return {
        path.stem: path for path in sorted(root.glob("*.txt")) if path.stem not in ("labels", "classes", "labelmap", "README", "LICENSE")
    }


def recognises(root: Path) -> bool:
    """Whether a folder has images and masks side by side."""
    return bool(_pairs(root))


def splits(root: Path) -> list[str]:
    """Names of the splits."""
    return [name for name in _pairs(root) if name] or list(_lists(root))


def read(root: Path, split: str | None, given: Classes | None = None) -> Dataset:
    """Reads paired folders; an image without a mask is there without a label. `given` takes the place of the folder's own.

    Raises:
        MixsupError: no such split.
    """
    pairs = _pairs(root)
    collector = Collector(root)
    names = choose_splits(split, splits(root), root)
    if pairs.keys() == {""}:
        listed = _listed(root, names)
        chosen = {"": pairs[""]}
    else:
        listed = None
        chosen = pairs if names is None else {name: pairs[name] for name in names}
    entries: dict[str, tuple[Path, Path | None]] = {}
    for folder_name, (image_folder, mask_folder) in chosen.items():
        images, masks = images_below(image_folder), masks_below(mask_folder)
        collector.look_at_names(image_folder, mask_folder, _mask_names)
        prefix = f"{folder_name}-" if folder_name and not entries.keys().isdisjoint(images) else ""  # splits that number their images alike
        for name, file in dict.fromkeys(images, image_folder).items() if listed is None else listed.items():
            # A list may name images with or without their extension, and a name may hold a point of its own.
            stem = name if name in images else Path(name).stem
            if stem not in images:
                collector.problem(
                    file, "", f"lists {quoted(name)}, but there is no such image", "remove it from the list or bring the file", stem
                )
                continue
            mask = next((masks[name] for name in _mask_names(stem) if name in masks), None)
            if entries.setdefault(prefix + stem, (images[stem], mask))[0] != images[stem]:
                # Else it is the first, or listed twice, or by two of the lists.
                message = f"goes by the name {quoted(prefix + stem)}, which {entries[prefix + stem][0]} has"
                collector.problem(images[stem], "", message, "rename one of the images", prefix + stem)
    every = [mask for _, folder in pairs.values() for mask in masks_below(folder).values()]
    if not every and not tags_beside(root):
        _refuse_other_labels(root, pairs)
    # All masks name the classes, not those of the split alone: the ids of two splits must mean the same.
    classes = given or class_list(root) or _numbered(every, root)
    colours = class_colours(root, classes) if given is None else None  # who says what the ids are means them, and not the colours
    everywhere = {name for folder, _ in pairs.values() for name in images_below(folder)}
    tags = read_tags(root / "tags.csv", collector, set(entries), everywhere) if tags_beside(root) else {}
    for stem, (image, mask) in entries.items():
        size = collector.size(stem, image)
        if size is not None:
            own = tag_ids(root / "tags.csv", tags[stem], classes, stem, collector) if stem in tags else None
            collector.add(
                Sample(id=stem, image=image, size=size, tags=own, mask=MaskFile(mask, colours=colours) if mask is not None else None), image
            )
    return collector.dataset(classes, root)


def _mask_names(image: str) -> tuple[str, str]:
    return image, f"{image}_mask"


def _listed(root: Path, names: list[str] | None) -> dict[str, Path] | None:
    """Image names in the split lists, with the list that names each; folders before a name are dropped."""
    if names is None:
        return None
    lists = [_lists(root)[name] for name in names]
    return {Path(line.strip()).name: file for file in lists for line in read_text(file).splitlines() if Path(line.strip()).name}


def _refuse_other_labels(root: Path, pairs: dict[str, tuple[Path, Path]]) -> None:
    """Says what a mask folder without a mask holds, where that can be told."""
    for ending, what, remedy in (
        ("txt", "text files", "if they are YOLO's, write a data.yaml with names, train and val"),
        ("xml", "XML files", "if they are Pascal VOC's, call the folders JPEGImages and Annotations"),
    ):
        folder = next((folder for _, folder in pairs.values() for _ in folder.rglob(f"*.{ending}")), None)
        if folder is not None:
            raise MixsupError(f"{root}: {folder.relative_to(root)}/ holds {what} and no mask; {remedy}")


def _numbered(masks: list[Path], root: Path) -> Classes:
    """Classes called by their numbers, up to the highest id in the masks; a broken mask is left for the check to report."""
    highest = void = 0
    faults: list[ImageError] = []
    for path in masks:
        try:
            mask = read_mask(path)
        except ImageError as error:
            faults.append(error)
            continue
        highest = max(highest, int(mask[mask != VOID].max(initial=0)))
        void += int((mask == VOID).any())
    if faults and len(faults) == len(masks):
        raise MixsupError(f"{masks[0]}: {faults[0]} (the other {len(masks) - 1} masks cannot be read either)")
    if highest == 0 and void:
        raise MixsupError(
            f"{root}: the masks hold 0 and 255 alone, and 255 is void; say what it is by ids: {{255: NAME}} in a YAML file (docs/data.md), or write 1"
        )
    if highest == 0:
        raise MixsupError(f"{root}: the masks hold no class id above 0; bring masks of ids, or labels.txt with the class names")
    return make_classes((str(index) for index in range(1, highest + 1)), root)
