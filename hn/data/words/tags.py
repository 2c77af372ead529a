"""A caption as tags: which of them stay in their place, and which may be shuffled or left out."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Tags:
    """How a caption falls into tags. By default as in the web UI: at commas, with their blanks."""

    separator: str = ","
    keep: int = 0
    keep_separator: str = ""

    def parts(self, caption: str) -> tuple[list[str], list[str], list[str]]:
        """Tags that are kept, tags that are free, and tags that are kept at the end.

        What stands before the `keep_separator` is kept, and what stands after a second one; of a
        caption without it, the first `keep` tags are.
        """
        if self.keep_separator and self.keep_separator in caption:
            kept, free, *end = map(self._split, caption.split(self.keep_separator))
            return kept, free, [tag for tags in end for tag in tags]
        tags = caption.split(self.separator)
        return tags[: self.keep], tags[self.keep :], []

    def plain(self, caption: str) -> str:
        """The caption with every tag in its place; only a `keep_separator` is gone."""
        return self.join(*self.parts(caption))

    def join(self, *parts: list[str]) -> str:
        """The tags of all parts as one text."""
        return self.separator.join(tag for tags in parts for tag in tags)

    def _split(self, part: str) -> list[str]:
        """Its tags; the keep separator may stand beside a separator or blanks, which make none."""
        return [tag for tag in part.rstrip().split(self.separator) if tag.strip()]


COMMAS = Tags()
