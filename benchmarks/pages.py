"""Results into the pages of the documentation, each between the marks of the command it is from."""

from __future__ import annotations

from pathlib import Path

__all__ = ["write_between_marks"]

END = "<!-- end -->"


def write_between_marks(page: Path, command: str, text: str) -> None:
    """Replace what stands between `<!-- begin: COMMAND -->` and the next end; or a new page.

    A page that exists and has no such place is refused, so that no page is lost to a wrong name.
    """
    begin = f"<!-- begin: {command} -->"
    whole = page.read_text(encoding="utf-8") if page.exists() else f"{begin}\n{END}\n"
    before, found, rest = whole.partition(begin)
    after = rest.partition(END)[2]
    if not found or END not in rest:
        raise SystemExit(f"{page} has no place for this: {begin} and {END}")
    page.write_text(f"{before}{begin}\n\n{text.strip()}\n\n{END}{after}", encoding="utf-8")
