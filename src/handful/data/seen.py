"""Digests of rows that a run has seen, salted, so that no table made beforehand tells which texts they are.

Whether a text is among them can be asked; what they are cannot be read off. Whoever holds the file and has a text at
hand can ask too: a salt makes that no slower than one hash a text and group. Remove the file before you pass a run on
whose very rows are a secret.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Iterator
from typing import final

SALT = "salt "
"""What a line begins with that begins a group; lines before the first, of older files, have no salt."""


@final
class SeenRows(Collection[bytes]):
    """Keys of rows (`overlap_keys`): `plain` ones, and groups of a salt and of the salted digests of others."""

    def __init__(self, plain: Collection[bytes] = (), groups: tuple[tuple[bytes, frozenset[bytes]], ...] = ()):
        self.plain, self.groups = frozenset(plain), groups

    def __contains__(self, key: object) -> bool:
        return key in self.plain or (
            isinstance(key, bytes) and any(_salted(salt, key) in digests for salt, digests in self.groups)
        )

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, SeenRows)
        return same and self.plain == other.plain and dict(self.groups) == dict(other.groups)

    def __len__(self) -> int:
        return len(self.plain) + sum(len(digests) for _, digests in self.groups)

    def __iter__(self) -> Iterator[bytes]:
        """The digests as they are kept, of which nothing follows but their number."""
        yield from self.plain
        for _, digests in self.groups:
            yield from digests

    def __or__(self, others: Collection[bytes]) -> SeenRows:
        """With others: groups are kept as they are, for nobody can salt them anew."""
        if isinstance(others, SeenRows):
            groups = dict((*self.groups, *others.groups))
            return SeenRows(self.plain | others.plain, tuple(groups.items()))
        return SeenRows(self.plain | frozenset(others), self.groups)

    def dumps(self) -> str:
        """The content of a file: plain keys become a group with a salt of their own."""
        groups = list(self.groups)
        if self.plain:
            salt = secrets.token_bytes(16)
            groups.append((salt, frozenset(_salted(salt, key) for key in self.plain)))
        lines = [[f"{SALT}{salt.hex()}", *sorted(map(bytes.hex, digests))] for salt, digests in groups]
        return "".join(f"{line}\n" for group in lines for line in group)

    @classmethod
    def loads(cls, content: str) -> SeenRows:
        """The inverse; an older file has keys without a salt. Raises: ValueError for what is no such file."""
        plain: set[bytes] = set()
        groups: dict[bytes, set[bytes]] = {}
        place = plain
        for line in content.splitlines():
            if line.startswith(SALT):
                place = groups.setdefault(bytes.fromhex(line.removeprefix(SALT)), set())
            elif line:
                place.add(bytes.fromhex(line))
        return cls(plain, tuple((salt, frozenset(digests)) for salt, digests in groups.items()))


def _salted(salt: bytes, key: bytes) -> bytes:
    return hashlib.blake2b(key, digest_size=32, salt=salt).digest()
