"""What a file is that calls itself a picture and is none of ours, by its first bytes."""

_STARTS = {
    b"GIF8": "a GIF",
    b"%!PS": "PostScript",
    b"\xc5\xd0\xd3\xc6": "PostScript",
    b"%PDF": "a PDF",
    b"8BPS": "a Photoshop file",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"SIMPLE  =": "a FITS file",
    b"PK\x03\x04": "a zip archive",
    b"version https://git-lfs": "a git-lfs pointer: the real file was not fetched",
}
_TEXTS = {b"<!doctype": "a web page", b"<html": "a web page", b"<svg": "an SVG drawing"}
_LOOKED_AT = 512  # bytes


def guise(content: bytes) -> str:
    """A few words on what it is; empty if that is not known."""
    if not content:
        return "an empty file"
    for start, words in _STARTS.items():
        if content.startswith(start):
            return words
    if content[4:8] == b"ftyp":
        return "an AVIF, HEIC or video file"
    text = content[:_LOOKED_AT].lstrip().lower()
    for tag, words in _TEXTS.items():
        if text.startswith(tag) or (text.startswith(b"<?xml") and tag in text):
            return words
    return "text" if _is_text(content[:_LOOKED_AT]) else ""


def _is_text(start: bytes) -> bool:
    return all(byte >= 32 or byte in b"\t\n\r" for byte in start)
