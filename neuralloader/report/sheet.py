"""The contact sheet: originals, decoded frames and their difference, in three rows."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP, LABEL_WIDTH, TITLE_HEIGHT = 6, 92, 22  # pixels
INK, PAPER = (30, 30, 30), (250, 250, 248)
DIFFERENCE_GAIN = 4  # differences are small: shown around mid-grey, four times as strong


def contact_sheet(originals: np.ndarray, decoded: np.ndarray, titles: Sequence[str]) -> Image.Image:
    """Draw frames in columns: the original, the decoded frame below it, and four times their difference.

    Args:
        originals: (n, H, W, 3) uint8.
        decoded: the same shape and dtype.
        titles: a few words above each column.

    Returns:
        An RGB image.
    """
    difference = decoded.astype(np.int16) - originals
    amplified = np.clip(128 + DIFFERENCE_GAIN * difference, 0, 255).astype(np.uint8)
    rows = {"original": originals, "decoded": decoded, f"difference x{DIFFERENCE_GAIN}": amplified}
    num_columns, height, width = originals.shape[:3]
    size = LABEL_WIDTH + num_columns * (width + GAP), TITLE_HEIGHT + len(rows) * (height + GAP)
    sheet = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for column, title in enumerate(titles):
        draw.text((LABEL_WIDTH + column * (width + GAP), 4), title, INK, font)
    for row, (label, images) in enumerate(rows.items()):
        top = TITLE_HEIGHT + row * (height + GAP)
        draw.text((6, top + height // 2 - 8), label, INK, font)
        for column, image in enumerate(images):
            sheet.paste(Image.fromarray(image), (LABEL_WIDTH + column * (width + GAP), top))
    return sheet
