"""Colours, and which of them a viewer could take for one another."""

from typing import Final

Rgb = tuple[float, float, float]

COLOURS: Final[dict[str, Rgb]] = {
    "red": (214.0, 34.0, 36.0),
    "green": (32.0, 150.0, 58.0),
    "blue": (34.0, 78.0, 216.0),
    "yellow": (240.0, 214.0, 34.0),
    "orange": (246.0, 128.0, 20.0),
    "purple": (128.0, 44.0, 172.0),
    "pink": (248.0, 140.0, 190.0),
    "cyan": (60.0, 206.0, 220.0),
    "white": (244.0, 244.0, 240.0),
    "black": (22.0, 22.0, 26.0),
}

# Never together in one scene: lighting and noise blur the line between them.
CONFUSABLE_COLOURS: Final = frozenset(
    frozenset(pair)
    for pair in (
        ("red", "orange"),
        ("orange", "yellow"),
        ("red", "pink"),
        ("pink", "purple"),
        ("pink", "white"),
        ("blue", "purple"),
        ("blue", "cyan"),
        ("green", "cyan"),
        ("cyan", "white"),
        ("yellow", "white"),
    )
)


def mixed(first: Rgb, second: Rgb, share: float) -> Rgb:
    """Return the colour that is `share` (0 to 1) of the way from the first to the second."""
    return (
        first[0] + (second[0] - first[0]) * share,
        first[1] + (second[1] - first[1]) * share,
        first[2] + (second[2] - first[2]) * share,
    )


def accent(colour: Rgb) -> Rgb:
    """Return the second colour of a pattern: clearly lighter or darker, of the same hue.

    That of black stays dark and that of white light: patterns of both would look alike otherwise.
    """
    luminance = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]
    if luminance < 140.0:
        return mixed(colour, (255.0, 255.0, 255.0), 0.35 if luminance < 40.0 else 0.72)
    return mixed(colour, (0.0, 0.0, 0.0), 0.4 if luminance > 220.0 else 0.6)
