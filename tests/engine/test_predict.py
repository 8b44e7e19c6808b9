"""Prediction: tiles, strips, scales and the mirror give what the whole picture would."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from mixsup.crf import mean_field
from mixsup.data.sample import UInt8
from mixsup.engine.output_crf import OutputCRF, build_crf
from mixsup.engine.predict import Predictor, upsampled_argmax, view
from mixsup.errors import MixsupError

CPU = torch.device("cpu")


def pointwise(images: Tensor) -> dict[str, Tensor]:
    """Scores of a pixel from its own colours alone."""
    return {"scores": torch.stack([images[:, 0], images[:, 1], images[:, 2], 1 - images.sum(1)], 1) * 10}


def local(images: Tensor) -> dict[str, Tensor]:
    """Scores that see 7 pixels around, as a network does; zeros outside."""
    return pointwise(functional.avg_pool2d(images, 7, stride=1, padding=3))


def noisy(images: Tensor) -> dict[str, Tensor]:
    """The right half is class 1, with noise that turns about a fifth of the pixels round."""
    noise = torch.randn(images.shape[0], *images.shape[-2:], generator=torch.Generator().manual_seed(1))
    evidence = (images[:, 0] - 0.5) * 3 + 1.8 * noise
    return {"scores": torch.stack([-evidence, evidence, torch.full_like(evidence, -30.0)], 1)}


def halves(height: int, width: int) -> np.ndarray:
    image = np.full((height, width, 3), 40, np.uint8)
    image[:, width // 2 :] = 210
    return image


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 40), st.integers(1, 40), st.integers(1, 500))
def test_strips_equal_the_whole(rows: int, columns: int, height: int, width: int, at_once: int) -> None:
    scores = torch.rand(3, rows, columns, generator=torch.Generator().manual_seed(rows * 10 + columns))
    whole = functional.interpolate(scores[None], size=(height, width), mode="bilinear", align_corners=False)[0]
    found = upsampled_argmax(scores, (height, width), at_once)
    best = whole.max(0).values
    chosen = whole.gather(0, found[None].long())[0]
    assert torch.allclose(best, chosen, atol=1e-5)  # equal up to ties


@pytest.mark.parametrize("size", [(70, 90), (64, 200), (33, 31)])
def test_tiles_equal_the_whole(size: tuple[int, int]) -> None:
    image = picture(*size)
    whole = Predictor(local, 16, "native", CPU)(image)
    tiled = Predictor(local, 16, "native", CPU, tile=32, margin=8)(image)
    assert np.array_equal(whole, tiled)


def test_tiles_bound_what_the_network_sees() -> None:
    seen: list[tuple[int, int]] = []

    def spy(images: Tensor) -> dict[str, Tensor]:
        seen.append((images.shape[-2], images.shape[-1]))
        return pointwise(images)

    Predictor(spy, 16, "native", CPU, tile=64, margin=8)(picture(500, 700))
    assert len(seen) > 1
    assert max(max(size) for size in seen) <= 64 + 16


def test_fit_predicts_at_the_working_size_and_answers_at_the_images() -> None:
    seen: list[tuple[int, int]] = []

    def spy(images: Tensor) -> dict[str, Tensor]:
        seen.append((images.shape[-2], images.shape[-1]))
        return pointwise(images)

    assert Predictor(spy, 50, "fit", CPU)(picture(100, 200)).shape == (100, 200)
    assert seen == [(50, 100)]


def test_scales_and_flip_are_averaged() -> None:
    image = picture(40, 60)
    predictor = Predictor(pointwise, 40, "native", CPU, scales=(0.5, 1.0), flip=True)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    total = torch.zeros(4, 40, 60)
    for size in ((20, 30), (40, 60)):
        view = functional.interpolate(pixels, size=size, mode="bilinear", antialias=True) if size != (40, 60) else pixels
        for mirrored in (False, True):
            found = pointwise((view.flip(-1) if mirrored else view) / 255)["scores"].softmax(1)
            found = found.flip(-1) if mirrored else found
            total += functional.interpolate(found, size=(40, 60), mode="bilinear")[0]
    assert np.array_equal(predictor(image), total.argmax(0).numpy())


def test_scores_of_images_of_one_size() -> None:
    images = [picture(40, 60), picture(40, 60)[::-1].copy()]
    predictor = Predictor(pointwise, 20, "fit", CPU)

    def views(some: list[UInt8], factor: float = 1.0) -> torch.Tensor:
        return torch.from_numpy(np.stack([view(image, 20, "fit", factor) for image in some]))

    found = predictor.scores(views(images))
    assert found.shape == (2, 4, 20, 30)
    assert np.allclose(found.sum(1), 1, atol=1e-5)
    assert np.allclose(found[1], predictor.scores(views(images[1:]))[0], atol=1e-6)
    assert predictor.scores(views(images, 0.5)).shape == (2, 4, 10, 15)


def test_scores_of_a_large_image_are_asked_at_its_scale() -> None:
    """Tile by tile; what is kept of them is as small as a tile."""
    seen = []

    def asked(images: Tensor) -> dict[str, Tensor]:
        seen.append(images.shape[-2:])
        return local(images / 255 if images.dtype == torch.uint8 else images)

    large = view(picture(70, 190), 20, "native")
    assert large.shape == (70, 190, 3)
    found = Predictor(asked, 20, "native", CPU, tile=64, margin=8).scores(torch.from_numpy(large[None]))
    assert found.shape == (1, 4, 24, 64)
    assert seen == [(70, 72), (70, 80), (70, 70)]
    whole = Predictor(asked, 20, "native", CPU, tile=1000).scores(torch.from_numpy(large[None]))
    wanted = functional.interpolate(torch.from_numpy(whole), size=(24, 64), mode="bilinear", antialias=True)
    # Tiles end between the pixels of what is kept.
    assert np.abs(found - wanted.numpy()).mean() < 0.01
    assert view(picture(20, 400), 20, "fit").shape == (20, 400, 3)  # so are strips


def test_a_whole_view_is_no_larger_than_a_tile() -> None:
    assert view(picture(1500, 750), 800, "native", factor=2.0, whole=True).shape == (1024, 512, 3)


def test_one_pixel() -> None:
    assert Predictor(pointwise, 16, "fit", CPU)(picture(1, 1)).shape == (1, 1)


def test_bad_scales() -> None:
    for scales in ((), (0.0,), (-1.0,), (100.0,)):
        with pytest.raises(MixsupError, match="--scales"):
            Predictor(pointwise, 16, "fit", CPU, scales=scales)


class TestCRF:
    """The CRF on the output (`--crf`)."""

    def test_a_noisy_prediction_gets_better_and_ends_at_the_edge(self) -> None:
        image = halves(60, 80)
        truth = (image[..., 0] > 128).astype(np.uint8)
        plain, refined = (Predictor(noisy, 60, "native", CPU, crf=crf)(image) for crf in (None, OutputCRF()))
        assert (plain != truth).mean() > 0.1
        assert (refined != truth).mean() < 0.02

    def test_it_is_the_mean_field_of_the_averaged_probabilities(self) -> None:
        image = picture(50, 70)
        settings = {"w1": 3.0, "theta_alpha": 40.0, "theta_beta": 20.0, "iterations": 4}
        predictor = Predictor(local, 25, "fit", CPU, scales=(0.8, 1.0, 1.2), flip=True, crf=build_crf(settings))
        small = predictor._probabilities(image, image.shape[:2])
        assert small.shape == (4, 25, 35)
        whole = functional.interpolate(small[None], size=(50, 70), mode="bilinear", align_corners=False)[0]
        by_hand = mean_field(-np.log(whole.numpy()), image, iterations=4, w1=3, theta_alpha=40, theta_beta=20, w2=3, theta_gamma=3)
        assert np.array_equal(predictor(image), by_hand.argmax(0))

    def test_a_long_image_is_reduced_for_it(self) -> None:
        image = halves(60, 120)
        seen: list[tuple[int, ...]] = []

        class Spy(OutputCRF):
            def __call__(self, probabilities: Tensor, image: np.ndarray) -> Tensor:
                seen.append(tuple(probabilities.shape))
                return super().__call__(probabilities, image)

        found = Predictor(noisy, 60, "native", CPU, crf=Spy(max_side=40))(image)
        assert seen == [(3, 20, 40)]
        assert found.shape == (60, 120)
        assert (found != (image[..., 0] > 128)).mean() < 0.03

    @pytest.mark.parametrize("max_side", [50, 200])
    def test_tiles_are_put_together_before_it(self, max_side: int) -> None:
        image = halves(90, 130)
        image[20:50, 10:40] = 180
        one = Predictor(local, 90, "native", CPU, crf=OutputCRF(max_side=max_side))
        tiled = Predictor(local, 90, "native", CPU, tile=32, margin=8, crf=OutputCRF(max_side=max_side))
        size = OutputCRF(max_side=max_side).size((90, 130))
        # A tile's corner falls between two pixels of the reduced image, so this is equal to within half of them.
        assert float((one._whole(image, size) - tiled._whole(image, size)).abs().mean()) < (0.01 if max_side < 130 else 1e-5)
        assert (one(image) != tiled(image)).mean() < 0.01

    def test_a_large_photograph_within_bounded_memory(self) -> None:
        image = np.zeros((4000, 6000, 3), np.uint8)
        image[:, 3000:] = 200
        seen: list[tuple[int, int]] = []

        def spy(images: Tensor) -> dict[str, Tensor]:
            seen.append((images.shape[-2], images.shape[-1]))
            return pointwise(images)

        predictor = Predictor(spy, 128, "fit", CPU, crf=OutputCRF(iterations=2))
        assert predictor._whole(image, OutputCRF().size((4000, 6000))).shape == (4, 667, 1000)
        found = predictor(image)
        assert max(max(size) for size in seen) <= 1024 + 256
        assert found.shape == (4000, 6000)
        assert (found[:, :2900] == 3).all()
        assert (found[:, 3100:] != 3).all()

    def test_one_pixel(self) -> None:
        assert Predictor(pointwise, 16, "fit", CPU, crf=OutputCRF())(picture(1, 1)).shape == (1, 1)
        assert Predictor(pointwise, 16, "native", CPU, tile=64, margin=8, crf=OutputCRF(max_side=20))(picture(1, 300)).shape == (1, 300)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"colour": 1}, "CRF has no setting 'colour'.*there are iterations, w1"),
            ({"w1": "much"}, "CRF, setting 'w1'"),
            ({"theta_beta": 0}, "CRF: theta_beta 0.0; a standard deviation is above 0"),
            ({"iterations": -1}, "CRF: iterations -1"),
            ({"w2": float("nan")}, "CRF, setting 'w2': .*finite"),
            ({"max_side": 0}, "CRF, setting 'max_side'"),
        ],
    )
    def test_bad_settings(self, settings: dict[str, object], message: str) -> None:
        with pytest.raises(MixsupError, match=message) as caught:
            build_crf(settings)
        assert len(str(caught.value).splitlines()) == 1

    def test_off_and_on(self) -> None:
        assert build_crf(False) is None
        assert build_crf(True) == build_crf({}) == OutputCRF()
