"""Colours: text stays readable (WCAG AA, 4.5 : 1) on the fullest cells of a heat map."""

import re

import pytest

from mlecs_jax.report.style import STYLE


def variables(block: str) -> dict[str, tuple[int, ...]]:
    return {name: tuple(int(value[i:i + 2], 16) for i in (0, 2, 4))
            for name, value in re.findall(r"--([\w-]+): #([0-9a-f]{6});", block)}


def luminance(colour) -> float:
    linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4
              for c in colour]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a, b) -> float:
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_of_black_on_white_is_21():
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("side", ["right", "wrong"])
def test_text_on_the_fullest_cells_of_a_heat_map(theme, side):
    share = int(re.search(r"\.heat td.*?calc\((\d+)% \* var\(--s\)\)", STYLE, re.DOTALL)[1]) / 100
    found = variables(STYLE.split(":root {")[theme + 1].split("}")[0])
    cell = [share * a + (1 - share) * b for a, b in zip(found[side], found["paper"], strict=True)]
    assert contrast(found["ink"], cell) >= 4.5
