"""How a table in a text file is written."""

from __future__ import annotations

import codecs
from typing import NamedTuple

from nnbackend._checks import check_flag, check_name
from nnbackend.errors import DataError, DTypeError, shown


class Layout(NamedTuple):
    """How a table is written; None is found out.

    Attributes:
        sep: what stands between the fields; " " is any number of blanks.
        decimal: "." or ",".
        encoding: "utf-8", "latin-1", "utf-16" or another one that Python knows.
        header: whether the first line names the columns.
    """

    sep: str | None = None
    decimal: str | None = None
    encoding: str | None = None
    header: bool | None = None

    def check(self) -> Layout:
        """Refuse marks that no table is written with."""
        for name, value in self._asdict().items():
            if value is not None and name != "header" and not isinstance(value, str):
                raise DTypeError(f"{name} must be text; received {shown(value)}")
        if self.sep is not None and (len(self.sep) != 1 or self.sep in "\0\r\n"):
            raise DataError(
                f"sep must be one character, such as ; or a tab ($'\\t' in the shell), or a blank "
                f"for any number of blanks; received {self.sep!r}"
            )
        if self.decimal is not None:
            check_name("decimal", self.decimal, (".", ","))
        if self.header is not None:
            check_flag("header", self.header)
        try:
            codecs.lookup(self.encoding or "utf-8")
        except (LookupError, ValueError):
            raise DataError(
                f"encoding must be one that Python knows, such as utf-8, latin-1 or utf-16; "
                f"received {self.encoding!r}"
            ) from None
        return self
