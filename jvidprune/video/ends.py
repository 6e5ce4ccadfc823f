"""Evidence that the end of a file is missing: an element that says how long it is and runs beyond the last byte.

Containers say how many bytes their parts have. The decoder reads what is there and keeps silent about the rest; the few
bytes that tell are read here. A file without such evidence is taken as whole.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_SEGMENT, _CLUSTER = b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_BOXES = {
    b"ftyp",
    b"moov",
    b"mdat",
    b"moof",
    b"styp",
    b"sidx",
    b"free",
    b"skip",
    b"wide",
    b"uuid",
    b"pnot",
    b"meta",
    b"mfra",
}
# An AVI file may be padded by less than this short of what its header says.
_RIFF_SLACK = 16


def ends_inside(path: Path) -> str | None:
    """Names the element that a file ends inside of, "its segment"; None where nothing says that it is cut.

    A cut that leaves an mp4 file its index is found from that index (`index.list_packets`), not here.
    """
    size = os.path.getsize(path)
    with path.open("rb") as file:
        head = file.read(4096)
        for known, walk in _WALKS:
            if known(head):
                return walk(file, size, head)
    return None


def _riff(file: BinaryIO, size: int, head: bytes) -> str | None:
    """AVI and WebP: the frames (movi), their index, or a picture; OpenDML files have several such blocks."""
    place = 0
    while (block := _at(file, place, 12))[:4] == b"RIFF" and len(block) == 12:
        end = place + 8 + int.from_bytes(block[4:8], "little")
        inner = place + 12
        while inner + 8 <= min(end, size):
            chunk = _at(file, inner, 12)
            after = inner + 8 + int.from_bytes(chunk[4:8], "little")
            if after > size:
                return {b"movi": "its frames", b"idx1": "its index"}.get(
                    chunk[8:12] if chunk[:4] == b"LIST" else chunk[:4], "a part of it"
                )
            inner = after + after % 2
        if end - size >= _RIFF_SLACK:
            return "a part of it"
        place = end + end % 2
    return None


def _boxes(file: BinaryIO, size: int, head: bytes) -> str | None:
    place, indexed, fragmented = 0, False, False
    while len(start := _at(file, place, 16)) >= 8:
        length, kind = int.from_bytes(start[:4], "big"), start[4:8]
        if length == 1:
            length = int.from_bytes(start[8:16], "big")
        if length == 0 or kind not in _BOXES:
            return None
        if place + length > size:
            if kind == b"mdat":
                return None if indexed and not fragmented else "its frames"
            return "its index" if kind in (b"moov", b"moof") else "a part of it"
        indexed, fragmented = indexed or kind == b"moov", fragmented or kind == b"moof"
        place += max(length, 8)
    return None


def _matroska(file: BinaryIO, size: int, head: bytes) -> str | None:
    """A segment of known length, or the elements of one that was written while it was recorded."""
    place = 0
    while place < size:
        name, data, length = _element(_at(file, place, 12))
        if not name:
            return "the head of an element" if size - place < 12 and data else None
        if length is None:
            if name not in (_SEGMENT, _CLUSTER):
                return None
            place += data
            continue
        place += data + length
        if place > size:
            return {_SEGMENT: "its segment", _CLUSTER: "a cluster"}.get(name, "a block")
        if name == _SEGMENT:
            return None
    return None


def _element(start: bytes) -> tuple[bytes, int, int | None]:
    """Id, length of the head, and length of the data (None if unknown) of an EBML element; no id if this is none.

    Without an id, the length of the head says whether it is merely not all there.
    """
    wide = 9 - start[0].bit_length() if start else 0
    if not 1 <= wide <= 4:
        return b"", 0, None
    if len(start) <= wide:
        return b"", wide, None
    long = 9 - start[wide].bit_length()
    if long > 8:
        return b"", 0, None
    if len(start) < wide + long:
        return b"", wide + long, None
    value = int.from_bytes(start[wide : wide + long], "big") & ((1 << 7 * long) - 1)
    return start[:wide], wide + long, None if value == (1 << 7 * long) - 1 else value


def _transport(file: BinaryIO, size: int, head: bytes) -> str | None:
    length, first = _packets(head)
    return "a packet" if (size - first) % length else None


def _packets(head: bytes) -> tuple[int, int]:
    """Length of the packets of an MPEG transport stream and where the first begins; (0, 0) if it is none."""
    for length, first in ((188, 0), (192, 0), (204, 0)):
        sync = range(first + (4 if length == 192 else 0), len(head), length)
        if len(sync) >= 4 and all(head[place] == 0x47 for place in sync):
            return length, first
    return 0, 0


def _gif(file: BinaryIO, size: int, head: bytes) -> str | None:
    place = 13 + _palette(head[10:11])
    while place < size:
        start = _at(file, place, 10)
        if start[:1] == b"\x21":
            place += 2
        elif start[:1] == b"\x2c":
            place += 11 + _palette(start[9:10])
        else:
            # The trailer, or what is no part of the format.
            return None
        while place < size and (part := _at(file, place, 1)[0]):
            place += 1 + part
        place += 1
    return "its frames"


def _png(file: BinaryIO, size: int, head: bytes) -> str | None:
    place = 8
    while len(start := _at(file, place, 8)) == 8 and start[4:] != b"IEND":
        place += 12 + int.from_bytes(start[:4], "big")
    return "a part of it" if place + 12 > size else None


def _palette(flags: bytes) -> int:
    return 3 << ((flags[0] & 7) + 1) if flags and flags[0] & 0x80 else 0


def _flash(file: BinaryIO, size: int, head: bytes) -> str | None:
    place = int.from_bytes(head[5:9], "big") + 4
    while place < size:
        start = _at(file, place, 11)
        place += 15 + int.from_bytes(start[1:4], "big")
        # The length of a tag stands behind it once more; a file may end without that.
        if len(start) < 11 or (place > size and place - 4 != size):
            return "a tag"
    return None


def _ogg(file: BinaryIO, size: int, head: bytes) -> str | None:
    place = 0
    while place < size:
        start = _at(file, place, 27 + 255)
        if start[:4] != b"OggS"[: len(start)]:
            return None
        pieces = start[27 : 27 + start[26]] if len(start) > 26 else b""
        if len(start) < 27 or len(pieces) < start[26]:
            return "a page"
        place += 27 + len(pieces) + sum(pieces)
    return "a page" if place > size else None


def _windows(file: BinaryIO, size: int, head: bytes) -> str | None:
    place = head.find(_ASF_PROPERTIES)
    told, flags = head[place + 40 : place + 48], head[place + 88 : place + 92]
    # What was broadcast does not know its length.
    if place < 0 or len(flags) < 4 or flags[0] & 1:
        return None
    return "its frames" if int.from_bytes(told, "little") > size else None


def _at(file: BinaryIO, place: int, length: int) -> bytes:
    file.seek(place)
    return file.read(length)


_WALKS: tuple[tuple[Callable[[bytes], bool], Callable[[BinaryIO, int, bytes], str | None]], ...] = (
    (lambda head: head[:4] == b"RIFF", _riff),
    (lambda head: head[4:8] in _BOXES, _boxes),
    (lambda head: head[:4] == b"\x1a\x45\xdf\xa3", _matroska),
    (lambda head: head[:4] == b"GIF8", _gif),
    (lambda head: head[:8] == b"\x89PNG\r\n\x1a\n", _png),
    (lambda head: head[:3] == b"FLV", _flash),
    (lambda head: head[:4] == b"OggS", _ogg),
    (lambda head: head[:16] == _ASF, _windows),
    (lambda head: _packets(head)[0] > 0, _transport),
)
"""How a format is known by its first bytes, and how the parts of such a file are followed."""
