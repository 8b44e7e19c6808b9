"""Label budgets: what they say, how they are drawn, and that nothing stronger is left."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mixsup.data import load_dataset
from mixsup.data.budget import draw, parse_budget, read_split_csv, restrict, split_csv
from mixsup.data.check import check
from mixsup.data.sample import KINDS, Boxes, LabelKind, MaskSegments, Sample
from mixsup.errors import DataError, MixsupError

from .make import OBJECTS, class_id, make_folders, make_voc


def samples_of(masks: int, boxes: int, tags: int, nothing: int = 0) -> list[Sample]:
    bare = [Sample(f"i{index:03}", Path("none.jpg"), (4, 4)) for index in range(masks + boxes + tags + nothing)]
    whole = [replace(sample, mask=MaskSegments(())) for sample in bare[:masks]]
    boxed = [replace(sample, boxes=Boxes.of([])) for sample in bare[masks : masks + boxes]]
    tagged = [replace(sample, tags=frozenset({1})) for sample in bare[masks + boxes : masks + boxes + tags]]
    return [*whole, *boxed, *tagged, *bare[masks + boxes + tags :]]


def counts(drawn: dict[str, LabelKind]) -> dict[str, int]:
    return dict(Counter(drawn.values()))


class TestParse:
    def test_the_three_forms(self) -> None:
        assert parse_budget("boxes") == ({"boxes": 1.0}, True)
        assert parse_budget("masks=70,boxes=350,tags=280") == ({"masks": 70, "boxes": 350, "tags": 280}, False)
        assert parse_budget("masks=1:boxes=5:tags=10") == ({"masks": 1, "boxes": 5, "tags": 10}, True)
        assert parse_budget("tags=9") == ({"tags": 9}, False)
        assert parse_budget(" masks=2 : boxes=0.5") == ({"masks": 2, "boxes": 0.5}, True)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "pixels",
            "masks=",
            "masks=x",
            "masks=-1",
            "masks=1,boxes=2:tags=3",
            "masks=1,masks=2",
            "masks=0",
            "masks:boxes",
            "masks,boxes",
            "masks=1.5,boxes=2",
            "masks=inf:boxes=1",
            "masks=nan:boxes=1",
            "=",
            ",",
            ":",
        ],
    )
    def test_whatever_is_none_of_them(self, text: str) -> None:
        with pytest.raises(MixsupError) as caught:
            parse_budget(text)
        assert str(caught.value).startswith(f"--labels {text!r}: ")
        assert len(str(caught.value).splitlines()) == 1

    @settings(max_examples=200, deadline=None)
    @given(text=st.one_of(st.text(max_size=20), st.text(alphabet="maskboxtg=,:0123.-", max_size=30)))
    def test_any_text(self, text: str) -> None:
        try:
            amounts, _ = parse_budget(text)
        except MixsupError:
            return
        assert set(amounts) <= set(KINDS)
        assert sum(amounts.values()) > 0


class TestDraw:
    def test_counts(self) -> None:
        assert counts(draw(samples_of(20, 0, 0), "masks=3,boxes=5,tags=7", 0)) == {"masks": 3, "boxes": 5, "tags": 7}

    def test_ratio_uses_as_many_images_as_it_can(self) -> None:
        assert counts(draw(samples_of(32, 0, 0), "masks=1:boxes=5:tags=10", 0)) == {"masks": 2, "boxes": 10, "tags": 20}
        assert counts(draw(samples_of(2, 10, 100), "masks=1:boxes=1:tags=1", 0)) == {"masks": 2, "boxes": 2, "tags": 2}

    def test_a_single_kind(self) -> None:
        assert counts(draw(samples_of(3, 4, 5, 6), "boxes", 0)) == {"boxes": 7}
        assert counts(draw(samples_of(3, 4, 5, 6), "tags", 0)) == {"tags": 12}

    def test_none_gives_each_its_strongest_usable_kind(self) -> None:
        assert counts(draw(samples_of(3, 4, 5, 6), None, 0)) == {"masks": 3, "boxes": 4, "tags": 5}
        assert counts(draw(samples_of(3, 4, 5, 6), None, 0, usable=("boxes",))) == {"boxes": 7}

    def test_what_cannot_be_filled(self) -> None:
        with pytest.raises(MixsupError, match="8 images with boxes asked for, 7 can give them; ask for fewer"):
            draw(samples_of(3, 4, 5), "boxes=8", 0)
        with pytest.raises(MixsupError, match="no image can give masks"):
            draw(samples_of(0, 4, 5), "masks=1:boxes=1", 0)

    def test_seeds_differ_and_one_seed_does_not(self) -> None:
        samples = samples_of(50, 0, 0)
        assert draw(samples, "masks=25", 1) != draw(samples, "masks=25", 2)
        assert draw(samples, "masks=25", 1) == draw(samples[::-1], "masks=25", 1)

    def test_many_images(self) -> None:
        started = time.perf_counter()
        assert len(draw(samples_of(50_000, 0, 0), "masks=40000", 0)) == 40_000
        assert time.perf_counter() - started < 10  # a sort for each image took minutes

    @settings(max_examples=150, deadline=None)
    @given(
        have=st.tuples(*[st.integers(0, 12)] * 4),
        want=st.tuples(*[st.integers(0, 12)] * 3),
        ratio=st.booleans(),
        seed=st.integers(0, 2**32 - 1),
    )
    def test_deterministic_disjoint_and_feasible(
        self, have: tuple[int, int, int, int], want: tuple[int, int, int], ratio: bool, seed: int
    ) -> None:
        assume(any(want))
        samples = samples_of(*have)
        text = (":" if ratio else ",").join(f"{kind}={amount}" for kind, amount in zip(KINDS, want, strict=True))
        capable = np.cumsum(have[:3])
        feasible = all(np.cumsum(want) <= capable)
        try:
            drawn = draw(samples, text, seed)
        except MixsupError:
            assert not feasible
            return
        assert ratio or feasible
        by_id = {sample.id: sample for sample in samples}
        assert all(kind in by_id[key].kinds() for key, kind in drawn.items())  # one kind an image: a dictionary is disjoint
        assert draw(list(reversed(samples)), text, seed) == drawn
        got = [sum(kind == taken for taken in drawn.values()) for kind in KINDS]
        if not ratio:
            assert got == list(want)
        else:
            scale = min(capable[index] / total for index, total in enumerate(np.cumsum(want)) if total)
            assert all(abs(count - amount * scale) < 1 + 1e-6 for count, amount in zip(got, want, strict=True))


class TestRestrict:
    def test_every_stronger_label_is_gone(self, tmp_path: Path) -> None:
        dataset = load_dataset(make_voc(tmp_path))
        restricted = restrict(dataset, {"a": "masks", "b": "boxes", "c": "tags", "e": "tags"})
        assert [sample.id for sample in restricted.samples] == ["a", "b", "c", "e"]
        a, b, c, _ = restricted.samples
        assert (a.label, b.label, c.label) == ("masks", "boxes", "tags")
        assert a.mask is not None
        assert b.mask is None
        assert b.boxes is not None
        assert (c.mask, c.boxes) == (None, None)
        assert c.tags == frozenset({class_id("cat")})

    @settings(max_examples=30, deadline=None)
    @given(kinds=st.dictionaries(st.sampled_from(sorted(OBJECTS)), st.sampled_from(KINDS)))
    def test_nothing_can_give_more_than_was_drawn(self, kinds: dict[str, LabelKind], tmp_path_factory: pytest.TempPathFactory) -> None:
        root = tmp_path_factory.getbasetemp() / "budget"
        dataset = load_dataset(root if root.exists() else make_voc(root))
        for sample in restrict(dataset, kinds).samples:
            assert sample.label == kinds[sample.id]
            assert sample.kinds()[0] == kinds[sample.id]

    def test_weaker_labels_are_derived_before_the_mask_goes(self, tmp_path: Path) -> None:
        dataset = load_dataset(make_folders(tmp_path))
        boxed, tagged = restrict(dataset, {"a": "boxes", "b": "tags"}).samples
        assert boxed.boxes is not None
        assert boxed.boxes.xyxy.tolist() == [[4, 3, 20, 18]]
        assert tagged.tags == frozenset({class_id("dog"), class_id("bird")})

    def test_hidden_masks_are_never_opened(self, tmp_path: Path) -> None:
        root = make_voc(tmp_path)
        dataset = load_dataset(root)
        for path in (root / "SegmentationClass").iterdir():
            path.write_bytes(b"corrupt")
        restricted = restrict(dataset, dict.fromkeys(OBJECTS, "boxes"))
        assert len(check(restricted)) == len(OBJECTS)
        with pytest.raises(DataError):
            check(dataset)


def test_split_csv_goes_round(tmp_path: Path) -> None:
    dataset = load_dataset(make_voc(tmp_path))
    drawn = draw(dataset.samples, "masks=1,boxes=2,tags=2", 3)
    text = split_csv(dataset, drawn)
    assert text.splitlines()[0] == "image,labels"
    assert text.count("unused") == 1
    assert read_split_csv(text) == drawn
