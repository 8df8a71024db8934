"""Lines of text files: encodings, byte order marks, gzip, line ends, and characters that no text has."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from handful.data.cells import MAX_CELL
from handful.errors import ConfigError, DataError

MAX_LINE = 64 * MAX_CELL
"""Characters in one line, so that a file without line ends is refused before it fills the memory."""

LONE_RETURN = "\0"
"""Stands for a carriage return inside a line, which Python's csv would take for its end. No file holds it: a line with
a NUL is refused."""

_BYTE_ORDER_MARKS = (  # the mark of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
_NO_TEXT = {
    b"\x1f\x8b": ("one compressed by gzip", "put .gz behind its name"),
    b"PK\x03\x04": ("an Excel workbook or a zip archive", "a workbook is to end in .xlsx; unpack an archive"),
    b"PAR1": ("a Parquet file", "it is to end in .parquet"),
    b"\xd0\xcf\x11\xe0": ("a workbook of old or encrypted Excel", "save it as .xlsx or CSV, without a password"),
    b"%PDF": ("a PDF", "save its table as CSV"),
}
_NO_FILES = frozenset({"idna", "punycode", "undefined", "unicode-escape", "raw-unicode-escape"})
_BEGINNING = 1 << 16


def check_encoding(encoding: str) -> str:
    """The encoding. Raises: ConfigError if Python knows none of this name, or it is not one of text files."""
    hint = "common ones: utf-8, cp1252, latin-1, utf-16, shift_jis"
    try:
        found = codecs.lookup(encoding)
        io.TextIOWrapper(io.BytesIO(), encoding)  # refuses base64, zip and their like, which decode to no text
    except (LookupError, ValueError, TypeError):  # ValueError: a NUL in the name; UnicodeError is one
        raise ConfigError(f"encoding: {encoding!r} is not known", hint) from None
    if found.name.replace("_", "-") in _NO_FILES or found.incrementaldecoder is None:
        raise ConfigError(f"encoding: {encoding!r} is not an encoding of text files", hint)
    return encoding


class TextFile:
    """A text file, plain or gzipped. Its encoding and line ends are found from its beginning.

    Raises: DataError if it cannot be read or is empty, ConfigError for an unknown encoding.
    """

    def __init__(self, path: Path, encoding: str | None):
        self.path = path
        if encoding is not None:
            check_encoding(encoding)
        self.encoding = encoding or "utf-8"
        with self._errors(), self._bytes() as file:
            beginning = file.read(_BEGINNING)
            if encoding is None:
                marked = (name for mark, name in _BYTE_ORDER_MARKS if beginning.startswith(mark))
                self.encoding = next(marked, "utf-8")
            if found := next((kind for mark, kind in _NO_TEXT.items() if beginning.startswith(mark)), None):
                raise DataError(
                    f"{path}: expected a text file, found {found[0]}",
                    found[1],
                )
            text = codecs.getincrementaldecoder(self.encoding)("replace").decode(beginning)
        self._newline = "\r" if "\r" in text and "\n" not in text else "\n"
        self._doubled = text.partition("\n")[0].endswith("\r\r")  # "\r\n" written in text mode on Windows

    def lines(self) -> Iterator[str]:
        """The lines with their ends, a line feed or CR LF; a carriage return inside one is `LONE_RETURN`.

        Raises: DataError, with the line, for bytes that are not of the encoding, a NUL, and a line without end.
        """
        number = 0
        with self._errors(), self._text() as file:
            while line := file.readline(MAX_LINE + 1):
                number += 1
                if len(line) > MAX_LINE:
                    raise DataError(
                        f"{self.path}:{number}: a line has more than {MAX_LINE:,} characters", "check the line ends"
                    )
                if "\0" in line:
                    raise DataError(
                        f"{self.path}:{number}: found a NUL character, which no text has",
                        "the file is binary, or UTF-16 without a mark: then give --encoding utf-16-le (or utf-16-be)",
                    )
                yield self._with_plain_end(line.removeprefix("\ufeff") if number == 1 else line)

    def text(self) -> str:
        """The whole file."""
        return "".join(self.lines()).replace(LONE_RETURN, "\r")

    def _with_plain_end(self, line: str) -> str:
        if "\r" not in line:
            return line
        if self._newline == "\r":
            return line[:-1] + "\n" if line.endswith("\r") else line
        ends = ("\r\r\n", "\r\n", "\n") if self._doubled else ("\r\n", "\n")
        end = next((end for end in ends if line.endswith(end)), "")
        return line[: len(line) - len(end)].replace("\r", LONE_RETURN) + end.replace("\r\r", "\r")

    def _bytes(self) -> Any:
        return gzip.open(self.path) if self.path.suffix.lower() == ".gz" else open(self.path, "rb")

    @contextmanager
    def _text(self) -> Iterator[io.TextIOWrapper]:
        with self._bytes() as file, io.TextIOWrapper(file, self.encoding, newline=self._newline) as text:
            yield text

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except UnicodeError:
            raise self._undecodable() from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(
                f"{self.path}: expected a file compressed by gzip, found a broken one ({error})", "copy it again"
            ) from None
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot be read: {error.strerror or error}", "check the permissions of the file"
            ) from None

    def _undecodable(self) -> DataError:
        """Which byte it is and on which line, found by decoding once more."""
        others = "the one it was saved with"
        if self.encoding.startswith("utf"):
            others = "cp1252 if it comes from a Windows program"
        hint = f"give the encoding of the file: --encoding {others}"
        with self._bytes() as file:
            data = file.read()
        try:
            data.decode(self.encoding)
        except UnicodeDecodeError as error:
            before = data[: error.start].decode(self.encoding, errors="replace")
            line = before.count("\n") + 1
            return DataError(
                f"{self.path}:{line}: expected {self.encoding.upper()} text, found the byte 0x{data[error.start]:02X} "
                f"(byte {error.start + 1} of the file) after {before[before.rfind(chr(10)) + 1 :][-20:]!r}",
                hint,
            )
        except UnicodeError:
            pass
        return DataError(
            f"{self.path}: expected {self.encoding.upper()} text, found something else",
            "UTF-16 without a mark is --encoding utf-16-le" if self.encoding.lower().startswith("utf") else hint,
        )
