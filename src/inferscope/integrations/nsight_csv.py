"""Reading the CSV that Nsight's command lines print: row by row, in bounded memory, with the noise around it.

What is read was written by another program, on another machine, perhaps in another language, and may be cut off or no
such file at all. Whatever is wrong is one `RecordFormatError` that names the file and the line; nothing is executed.
"""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from inferscope.errors import RecordFormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import BinaryIO

__all__ = ["ROW_LIMIT_BYTES", "Row", "StyleEvidence", "columns", "number", "rows", "scale_of", "shown", "where"]

ROW_LIMIT_BYTES = 4 * 2**20
"""Above any real row: a full raw page has about 3,000 columns, the longest demangled names a few thousand letters."""
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_UTF8_MARK = b"\xef\xbb\xbf"
_START = frozenset('"0123456789')
"""What a row of either tool begins with, once its header is known; anything else is what the program itself printed."""
_COMMAS = 2
"""Fewer of them make no row of a table."""


class Row(NamedTuple):
    """One row of a table.

    Attributes:
        line: Number of the line it begins on, from 1.
        cells: As they stand there.
        whole: Whether its last line has an end: the last row of a file that was cut off has none.
    """

    line: int
    cells: list[str]
    whole: bool


def rows(path: str | Path, is_header: Callable[[list[str]], bool], *, quoted: bool) -> Iterator[Row]:
    """The rows of a file one by one, the header first; what stands before it is passed over.

    Args:
        path: What `ncu --csv` or `nsys stats --format csv` printed.
        is_header: Whether these cells are those of a header.
        quoted: Where the header's cells are in quotation marks, those of every row are: what begins otherwise has been
            printed by the program. So does ncu; nsys does not.

    Yields:
        The header, then each row; where the program has printed between them, a row of one cell. Blank lines and the
        tools' own lines (`==PROF== ...`) are left out.

    Raises:
        RecordFormatError: It cannot be read, is not text, has no header, is cut off within a cell, or has a row longer
            than `ROW_LIMIT_BYTES`.
    """
    try:
        # A pipe or a device would block or never end.
        if not Path(path).is_file():
            problem = "not a file" if Path(path).exists() else "no such file"
            raise RecordFormatError(f"{path}: {problem}; give a CSV file that ncu or nsys wrote")
        with Path(path).open("rb") as file:
            yield from _found(path, _lines(path, file), is_header, quoted=quoted)
    except (OSError, ValueError) as error:
        if isinstance(error, RecordFormatError):
            raise
        raise RecordFormatError(f"{path}: cannot be read: {error}") from error


def _found(
    path: str | Path, lines: Iterator[tuple[int, str]], is_header: Callable[[list[str]], bool], *, quoted: bool
) -> Iterator[Row]:
    """The header, line by line until it is there: what a program prints may open a quotation that it never closes."""
    last = 0
    for last, line in lines:
        if line.count(",") and line.count('"') % 2 == 0:
            try:
                cells = next(csv.reader([line]), [])
            except csv.Error:  # no header is that wide
                continue
            if is_header(cells):
                yield Row(last, cells, whole=line.endswith("\n"))
                yield from _assembled(path, lines, quoted=quoted and line.startswith('"'))
                return
    raise RecordFormatError(
        f"{path}, line {max(last, 1)}: no header found up to here: this is no CSV of ncu or nsys, or none that is known"
    )


def _assembled(path: str | Path, lines: Iterator[tuple[int, str]], *, quoted: bool) -> Iterator[Row]:
    """Rows from lines: a quoted cell may hold line ends."""
    parts: list[str] = []
    began, size, open_quote = 0, 0, False
    for number, line in lines:
        odd = line.count('"') % 2 == 1
        if not open_quote:
            if not line.strip() or line.startswith("=="):
                continue
            if not _begins_row(line, quoted=quoted, odd=odd):
                yield Row(number, [line.strip()], whole=True)
                continue
            parts, began, size = [], number, 0
        parts.append(line)
        size += len(line)
        if size > ROW_LIMIT_BYTES:
            raise RecordFormatError(f"{path}, line {began}: a quotation mark is never closed, or this is no such CSV")
        open_quote ^= odd
        if not open_quote:
            yield Row(began, _cells(path, began, parts), whole=line.endswith("\n"))
    if open_quote:
        raise RecordFormatError(f"{path}, line {began}: the last row is cut off: its writer was interrupted")


def _begins_row(line: str, *, quoted: bool, odd: bool) -> bool:
    """Whether a line begins a row, or is what the program has printed in between."""
    if quoted:
        return line.startswith('"')
    return line.count(",") >= _COMMAS and (not odd or line[0] in _START)


def _lines(path: str | Path, file: BinaryIO) -> Iterator[tuple[int, str]]:
    number = 0
    while line := file.readline(ROW_LIMIT_BYTES + 1):
        number += 1
        where = f"{path}, line {number}"
        if len(line) > ROW_LIMIT_BYTES:
            raise RecordFormatError(f"{where}: longer than {ROW_LIMIT_BYTES >> 20} MiB: this is no CSV of ncu or nsys")
        if number == 1:
            if line.startswith(_UTF16):
                raise RecordFormatError(f"{where}: UTF-16, as a Windows shell writes it: save the file as UTF-8")
            line = line.removeprefix(_UTF8_MARK)
        if b"\0" in line:
            raise RecordFormatError(f"{where}: binary data: export the report with `--csv` first")
        yield number, line.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")


def _cells(path: str | Path, line: int, parts: list[str]) -> list[str]:
    try:
        return next(csv.reader("".join(parts).splitlines(keepends=True)), [])
    except csv.Error as error:
        raise RecordFormatError(f"{path}, line {line}: not CSV: {error}") from error


_DOT = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+\.\d+|\d{1,3}(?:,\d{3}){2,}|0\.\d+|\d+\.(?:\d{1,2}|\d{4,})|\d{4,}\.\d+)")
"""What only the style 1,234.5 can be."""
_COMMA = re.compile(r"[+-]?(?:\d{1,3}(?:\.\d{3})+,\d+|\d{1,3}(?:\.\d{3}){2,}|0,\d+|\d+,(?:\d{1,2}|\d{4,})|\d{4,},\d+)")
_SPACES = re.compile(r"[\s\u00a0\u202f']")
_ABSENT = frozenset({"", "n/a", "na", "nan", "-nan", "inf", "-inf", "none", "-", "no data", "(!) n/a", "(!) nan"})


@dataclass(slots=True)
class StyleEvidence:
    """Which style the numbers of a file are in: the tools print as the locale of their machine has it.

    "1,234" is 1234 in one style and 1.234 in the other; other numbers of the same file tell which it is.

    Attributes:
        dot_line: Line of the first number that only 1,234.5 can be; 0 where there is none.
        comma_line: Line of the first that only 1.234,5 can be.
    """

    dot_line: int = 0
    comma_line: int = 0

    def look(self, text: str, line: int) -> None:
        """Take a number's evidence."""
        if self.dot_line and self.comma_line:
            return
        if "." not in text and "," not in text:
            return
        bare = _SPACES.sub("", text).removesuffix("%")
        if not self.dot_line and _DOT.fullmatch(bare):
            self.dot_line = line
        elif not self.comma_line and _COMMA.fullmatch(bare):
            self.comma_line = line

    def style(self, path: str | Path) -> tuple[str, bool]:
        """The style ("1,234.5" or "1.234,5"), and whether a number has shown it (else it is assumed).

        Raises:
            RecordFormatError: Numbers of both styles stand in one file.
        """
        if self.dot_line and self.comma_line:
            raise RecordFormatError(
                f"{path}, line {max(self.dot_line, self.comma_line)}: numbers in another style than on line "
                f"{min(self.dot_line, self.comma_line)}: 1,234.5 and 1.234,5 cannot be told apart in one file"
            )
        return ("1.234,5" if self.comma_line else "1,234.5"), bool(self.dot_line or self.comma_line)


def number(text: str, style: str, where: str) -> float | None:
    """A number as the tools print it; None for what they print where there is none.

    Args:
        text: The cell.
        style: Of the file, as `StyleEvidence.style` says.
        where: File and line, for the error.

    Raises:
        RecordFormatError: It is neither a number nor one of the words for none.
    """
    bare = _SPACES.sub("", text).removesuffix("%")
    if bare.lower() in _ABSENT or text.strip().lower() in _ABSENT:
        return None
    thousands, decimal = (".", ",") if style == "1.234,5" else (",", ".")
    try:
        value = float(bare.replace(thousands, "").replace(decimal, "."))
    except ValueError:
        raise RecordFormatError(f"{where}: expected a number, not {shown(text)}") from None
    return value if math.isfinite(value) else None


def shown(text: str, limit: int = 60) -> str:
    """Text from a file as an error shows it: one line, without control characters, not long."""
    bare = "".join(char if char.isprintable() else " " for char in text[: limit + 1]).strip()
    return repr(bare if len(bare) <= limit else bare[:limit] + "…")


_PREFIXES = {"": 1.0, "n": 1e-9, "u": 1e-6, "µ": 1e-6, "μ": 1e-6, "m": 1e-3, "k": 1e3, "g": 1e9, "t": 1e12, "p": 1e15}
_BINARY = {"ki": 2.0**10, "mi": 2.0**20, "gi": 2.0**30, "ti": 2.0**40}
_BASES = {
    "byte": "byte",
    "bytes": "byte",
    "b": "byte",
    "second": "second",
    "sec": "second",
    "s": "second",
    "inst": "inst",
    "sector": "sector",
    "request": "request",
    "op": "op",
    "%": "%",
    "": "",
}


def scale_of(unit: str, base: str) -> float | None:
    """What a number in this unit is multiplied by to be in the base unit; None where the unit is not one of it.

    Nsight's prefixes are decimal (a Kbyte is 1000 byte); only "KiB" and the like are powers of two.

    Args:
        unit: As the file has it ("Kbyte", "usecond", "MB/s", "%", "").
        base: "byte", "second", "byte/second", "byte/sector", "inst", "sector", "op", "%" or "".
    """
    top, _, bottom = unit.strip().partition("/")
    wanted, _, per = base.partition("/")
    if bool(bottom) != bool(per) or (bottom and _BASES.get(bottom.strip().lower()) != per):
        return None
    return _scale(top.strip(), wanted)


def _scale(unit: str, wanted: str) -> float | None:
    lower = unit.lower()
    if lower in _BASES:
        # What is counted is often printed without a unit.
        counted = _BASES[lower]
        return 1.0 if counted == wanted or (counted == "" and wanted in {"inst", "op", "sector"}) else None
    for prefix, factor in _BINARY.items():
        if lower.startswith(prefix) and _BASES.get(lower[2:]) == wanted:
            return factor
    if lower[:1] == "m" and _BASES.get(lower[1:]) == wanted:
        return 1e-3 if wanted == "second" else 1e6
    return _PREFIXES.get(lower[:1]) if lower[:1] != "m" and _BASES.get(lower[1:]) == wanted else None


def where(path: str | Path, line: int) -> str:
    """File and line, as every error begins."""
    return f"{path}, line {line}"


def columns(cells: Iterable[str]) -> dict[str, int]:
    """Where each column of a header stands, by its name in lower case; of several alike, the first."""
    found: dict[str, int] = {}
    for index, cell in enumerate(cells):
        found.setdefault(cell.strip().lower(), index)
    return found
