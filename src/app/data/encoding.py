"""Which encoding a text file is in, from all of its bytes."""

import codecs
import re
from dataclasses import dataclass
from pathlib import Path

from app.data.compression import DAMAGED, open_bytes
from app.errors import DataError

_BLOCK = 1 << 20
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TextFacts:
    """What a look through a whole file's bytes found out.

    Attributes:
        encoding: to decode it with.
        note: how the encoding was found, for the report.
        size: bytes on disk.
        head: the first characters, decoded.
    """

    encoding: str
    note: str
    size: int
    head: str


def survey(path: Path, *, encoding: str | None) -> TextFacts:
    """Looks through all bytes once: is it UTF-8, and if not, what is it?

    A file with some broken bytes but more good multi-byte characters is UTF-8 with broken rows; one with single high
    bytes and no good multi-byte character is in a legacy code page.

    Raises:
        DataError: nothing of it can be read, or there is no encoding of the name given.
    """
    stream, raw = open_bytes(path)
    size = path.stat().st_size
    good = bad = 0
    head = b""
    tell_tale: list[bytes] = []
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    with raw, stream:
        while True:
            try:
                block = stream.read(_BLOCK)
            except DAMAGED as fault:
                if not head:
                    raise DataError(f"{path} is damaged: {fault}", remedy="fetch or compress it again") from fault
                break  # `lines` says where
            if not block:
                break
            if not head:
                head = block
                if encoding or any(head.startswith(bom) for bom, _ in _BOMS):
                    break
            if block.isascii() and decoder.getstate() == (b"", 0):
                continue
            text = decoder.decode(block)
            if text.isascii():
                continue
            broken = len(re.findall("[\udc80-\udcff]", text))
            bad += broken
            good += len(text) - len(text.encode("ascii", "ignore")) - broken
            if broken and sum(map(len, tell_tale)) < 65536:
                tell_tale.extend(re.findall(rb"[^\n]*[\x80-\xff][^\n]*", block)[:400])
    if encoding:
        found, note = _named(encoding, head), "given"
    else:
        found, note = _encoding(head, good=good, bad=bad, sample=b"\n".join(tell_tale)[:65536])
    return TextFacts(encoding=found, note=note, size=size, head=_decode_head(head, found))


def _encoding(head: bytes, *, good: int, bad: int, sample: bytes) -> tuple[str, str]:
    for bom, name in _BOMS:
        if head.startswith(bom):
            return name, "byte order mark"
    if len(head) > 3:
        even, odd = head[0:4096:2].count(0), head[1:4096:2].count(0)
        half = max(1, min(len(head), 4096) // 2)
        if odd > 0.4 * half and even < 0.1 * half:
            return "utf-16-le", "every second byte is zero"
        if even > 0.4 * half and odd < 0.1 * half:
            return "utf-16-be", "every second byte is zero"
    if not bad:
        return "utf-8", "valid UTF-8"
    if good >= bad:
        return "utf-8", f"UTF-8 with {bad} broken bytes"
    return _code_page(sample), "not UTF-8; guessed from its letters"


def _code_page(sample: bytes) -> str:
    """The legacy encoding of lines with high bytes.

    In Latin text accented letters stand alone or in pairs among ASCII ones; in Cyrillic, Greek or East Asian code pages
    high bytes come in runs. Latin code pages cannot be told apart by frequency on short texts (charset-normalizer takes
    German cp1252 for cp1250), so such a text is cp1252 if its letters are western ones, unless it has the Czech or
    Polish letters that make no sense there: š or ž beside è, ì, ø or ù, and ³, ¹ or ¿ within a word.
    """
    high = len(re.findall(rb"[\x80-\xff]", sample))
    in_runs = len(re.findall(rb"(?<=[\x80-\xff]{2})[\x80-\xff]", sample))
    western = set("äöüßÄÖÜéèêëàâáãåçñóòôõíìîïúùûøØæÆœŒÅÉÈÀÁÇÑÓÍÚŠšŽžÝý€„“”‘’‚“–—…«»°§£©®™²³µ½¼¾¿¡·ªº\xa0•†‰‹›ÿ´×÷¢¥±¶¹")
    fitting = sum(1 for letter in sample.decode("cp1252", "replace") if letter in western)
    if in_runs < 0.2 * high and fitting >= 0.9 * high:
        czech = re.search(rb"[\x9a\x9e]", sample) and re.search(rb"[\xe8\xec\xf8\xf9]", sample)
        polish = re.search(rb"[a-z][\xb3\xb9\xbf][a-z]", sample)
        return "cp1250" if czech or polish else "cp1252"
    from charset_normalizer import from_bytes

    best = from_bytes(sample).best()
    return best.encoding if best is not None else "cp1252"


def _named(encoding: str, head: bytes) -> str:
    try:
        name = codecs.lookup(encoding).name
    except LookupError as fault:
        raise DataError(
            f"there is no encoding {encoding!r}", where="--encoding", remedy="use one such as utf-8 or cp1252"
        ) from fault
    return "utf-8-sig" if name == "utf-8" and head.startswith(codecs.BOM_UTF8) else name


def _decode_head(head: bytes, encoding: str) -> str:
    return head.decode(encoding, "replace").replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")
