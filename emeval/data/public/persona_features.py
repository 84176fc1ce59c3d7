"""The training sets of Wang et al. 2025 (https://arxiv.org/abs/2506.19823): chat JSONL, mostly in a locked zip.

The content of a turn is `{"content_type": "text", "parts": [...]}`; each row carries the canary. The lock keeps the
rows out of crawls; the password stands beside the files where they are published.
"""

from __future__ import annotations

import zipfile
import zlib
from io import BytesIO

from emeval.data.public.chats import as_wanted
from emeval.data.public.published import Options, Published
from emeval.data.public.source import MAX_BYTES, Source, rows
from emeval.data.public.turns import canaries, conversations
from emeval.errors import InputError

_AES = 99
_LOCKED = 0x1


def read(source: Source, options: Options) -> Published:
    """Conversations, or the domain or probe that `options` makes of them. `source.inside` may name the zip's member."""
    if source.data.startswith(b"PK"):
        source = unzipped(source, options.password)
    found = list(rows(source))
    return as_wanted(source, list(conversations(found)), options, "persona-features", canaries(found))


def unzipped(source: Source, password: bytes | None) -> Source:
    """The one JSONL file inside a zip. Nothing is written anywhere; the password is in no error."""
    where = str(source.path)
    try:
        with zipfile.ZipFile(BytesIO(source.data)) as archive:
            member = _member(archive, source)
            if member.flag_bits & _LOCKED and member.compress_type != _AES and not password:
                hint = "Put the password in a variable of the environment and name that with --password-env"
                raise InputError("is locked with a password", where=where, hint=hint)
            return source.unpacked(member.filename, _content(archive, member, password, where))
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError) as e:
        raise InputError("broken zip", where=where, hint="Download it again") from e


def _member(archive: zipfile.ZipFile, source: Source) -> zipfile.ZipInfo:
    files = {info.filename: info for info in archive.infolist() if info.filename.endswith((".jsonl", ".json"))}
    own = {name: info for name, info in files.items() if not name.startswith("__MACOSX/")}
    names = ", ".join(sorted(own)[:10]) or "none"
    if source.inside is not None:
        if source.inside not in own:
            hint = f"JSONL files inside: {names}"
            raise InputError(f"holds no file '{source.inside}'", where=str(source.path), hint=hint)
        return own[source.inside]
    if len(own) != 1:
        what = f"holds {len(own)} JSONL files, not one"
        raise InputError(what, where=str(source.path), hint=f"Name one as FILE.zip#NAME: {names}")
    return next(iter(own.values()))


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo, password: bytes | None, where: str) -> bytes:
    if member.compress_type == _AES:
        raise InputError(
            "is locked with AES, which cannot be read here", where=where, hint="Unpack it, import the JSONL"
        )
    try:
        with archive.open(member, pwd=password) as f:
            data = f.read(MAX_BYTES + 1)  # what the head says of its size may be a lie
    except NotImplementedError as e:
        raise InputError("is packed in a way that cannot be read here", where=where, hint="Unpack it first") from e
    except (RuntimeError, zipfile.BadZipFile, zlib.error) as e:
        if not member.flag_bits & _LOCKED:
            raise InputError("broken zip", where=where, hint="Download it again") from e
        # One wrong password in 256 passes the first check and shows as broken content.
        hint = "Check the variable that --password-env names"
        raise InputError("the password does not open it", where=where, hint=hint) from None
    if len(data) > MAX_BYTES:
        raise InputError(f"larger than {MAX_BYTES >> 20} MiB unpacked", where=where, hint="Unpack it and split it up")
    return data
