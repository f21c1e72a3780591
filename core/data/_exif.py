"""The EXIF block of a photograph that has been turned upright (CIPA DC-008: a TIFF of tags, edited where it stands)."""

from __future__ import annotations

import struct

ORIENTATION = 0x0112
_MARK = b"Exif\0\0"
_EXIF_IFD, _WIDTH, _HEIGHT = 0x8769, 0xA002, 0xA003
_THUMBNAIL, _THUMBNAIL_BYTES = 0x0201, 0x0202
_NUMBERS = {3: "H", 4: "I"}  # type of a tag -> how its value is packed


def upright(block: bytes, *, swapped: bool) -> bytes | None:
    """The block with orientation 1 and without its thumbnail; all other bytes stay, so maker notes stay readable.

    `swapped`: rows and columns were exchanged, so the size that EXIF states is, too. The answer has no "Exif" mark.
    None for a block that is not EXIF or is damaged.
    """
    data = bytearray(block.removeprefix(_MARK))
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]))
    try:
        if order is None or struct.unpack_from(order + "H", data, 2)[0] != 42:
            return None
        first, following = _tags(data, order, struct.unpack_from(order + "I", data, 4)[0])
        if ORIENTATION in first:
            kind, at = first[ORIENTATION]
            struct.pack_into(order + _NUMBERS.get(kind, "H"), data, at, 1)
        if swapped and _EXIF_IFD in first:
            inner, _ = _tags(data, order, struct.unpack_from(order + "I", data, first[_EXIF_IFD][1])[0])
            if _WIDTH in inner and _HEIGHT in inner and inner[_WIDTH][0] == inner[_HEIGHT][0]:
                (_, w), (_, h) = inner[_WIDTH], inner[_HEIGHT]
                data[w : w + 4], data[h : h + 4] = data[h : h + 4], data[w : w + 4]
        (start,) = struct.unpack_from(order + "I", data, following)
        if start:
            _without_thumbnail(data, order, start)
            struct.pack_into(order + "I", data, following, 0)
    except struct.error:
        return None
    return bytes(data)


def _tags(data: bytearray, order: str, at: int) -> tuple[dict[int, tuple[int, int]], int]:
    """Tag -> (type, where its value stands) of a directory, and where the address of the next one stands."""
    (count,) = struct.unpack_from(order + "H", data, at)
    tags = {}
    for i in range(count):
        place = at + 2 + 12 * i
        tag, kind = struct.unpack_from(order + "HH", data, place)
        tags[tag] = (kind, place + 8)
    return tags, at + 2 + 12 * count


def _without_thumbnail(data: bytearray, order: str, at: int) -> None:
    """Cut off or blank the small JPEG that the second directory points to: it shows the picture before any change."""
    tags, _ = _tags(data, order, at)
    if _THUMBNAIL not in tags or _THUMBNAIL_BYTES not in tags:
        return
    start, size = (struct.unpack_from(order + "I", data, tags[t][1])[0] for t in (_THUMBNAIL, _THUMBNAIL_BYTES))
    if start >= len(data) or start <= at:  # a thumbnail follows its directory; else the block is not sound
        return
    if start + size >= len(data):
        del data[start:]
    else:
        data[start : start + size] = bytes(size)
