"""Published tokenizers that PyPI packages carry, built once into ``models/tokenizers/`` (git-ignored).

Mistral's comes from ``mistral-common`` (7 MB, Apache-2.0), Llama 3's from ``llama-models`` (7 MB), Phi-3's from the
source distribution of ``llama-cpp-python`` (77 MB, MIT). No package carries Gemma's. What is not in these files, the
flags of added tokens, is set as the checkpoints' tokenizer_config.json has it.
"""

import base64
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from support.tiny_tokenizer import LLAMA3_PATTERN

CACHE = Path(__file__).parents[2] / "models" / "tokenizers"


def real_tokenizer(family_name: str) -> PreTrainedTokenizerFast:
    """The family's published tokenizer; skips the test where it is not cached and PyPI cannot be reached."""
    package, member, build, named = SOURCES[family_name]
    path = CACHE / f"{family_name}.json"
    if not path.is_file():
        built = build(_member(package, member))
        CACHE.mkdir(parents=True, exist_ok=True)
        built.save(str(path))
    return PreTrainedTokenizerFast(tokenizer_file=str(path), **named)


def _member(package: str, member: str) -> bytes:
    """A file out of a package: of its wheel, or of its source distribution where ``member`` begins with vendor."""
    name = package.split("==")[0]
    choice = f"--no-binary={name}" if member.startswith("vendor/") else f"--only-binary={name}"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", choice, "--dest", folder, package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"pip could not download {package}: {done.stderr.strip()[-200:]}")
        (archive,) = Path(folder).iterdir()
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as files:
                return files.read(member)
        with tarfile.open(archive) as files:
            content = files.extractfile(f"{archive.name.removesuffix('.tar.gz')}/{member}")
            assert content is not None
            return content.read()


def _mistral(content: bytes) -> Tokenizer:
    from transformers.utils.sentencepiece_model_pb2_new import ModelProto

    proto = ModelProto()
    proto.ParseFromString(content)
    tokenizer = _sentencepiece([piece.piece for piece in proto.pieces], [piece.score for piece in proto.pieces])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    control = [piece.piece for piece in proto.pieces if piece.type in (piece.UNKNOWN, piece.CONTROL)]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    return tokenizer


def _phi3(content: bytes) -> Tokenizer:
    from gguf import GGUFReader

    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        file.write(content)
        file.flush()
        fields = GGUFReader(file.name).fields
        tokens: list[str] = fields["tokenizer.ggml.tokens"].contents()
        scores: list[float] = fields["tokenizer.ggml.scores"].contents()
        types: list[int] = fields["tokenizer.ggml.token_type"].contents()
    first_added = tokens.index("<|endoftext|>")
    tokenizer = _sentencepiece(tokens[:first_added], scores[:first_added])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    control = [token for token, kind in zip(tokens, types, strict=True) if kind in (2, 3, 4) and "PAD" not in token]
    rstrip = {token for token in control if token not in ("<unk>", "<s>", "<|endoftext|>")}
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True, rstrip=token in rstrip) for token in control]
    )
    return tokenizer


def _sentencepiece(tokens: list[str], scores: list[float]) -> Tokenizer:
    """A BPE model with the merges that the pieces' scores imply: the better the score, the earlier."""
    ids = {token: index for index, token in enumerate(tokens)}
    merges = sorted(
        (-scores[ids[token]], ids[token[:cut]], ids[token[cut:]])
        for token in tokens
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    )
    pairs = [(tokens[left], tokens[right]) for _, left, right in merges]
    tokenizer = Tokenizer(BPE(ids, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", left=1)]
    )
    return tokenizer


def _llama3(content: bytes) -> Tokenizer:
    """Lines of base64 token and rank, tiktoken's format; a token's merge is its last one under the ranks before it."""
    ranks = {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in io.BytesIO(content)}
    printable = bytes_to_unicode()

    def text(token: bytes) -> str:
        return "".join(printable[byte] for byte in token)

    merges = []
    for token, rank in ranks.items():
        parts = [token[index : index + 1] for index in range(len(token))]
        while len(parts) > 2:
            joined = [ranks.get(left + right, rank) for left, right in pairwise(parts)]
            best = min(range(len(joined)), key=joined.__getitem__)
            if joined[best] >= rank:
                break  # Unreachable by merging: ignore_merges finds it whole.
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        if len(parts) == 2:
            merges.append((text(parts[0]), text(parts[1])))
    tokenizer = Tokenizer(BPE({text(token): rank for token, rank in ranks.items()}, merges, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(LLAMA3_PATTERN), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    names = ["begin_of_text", "end_of_text", *(f"reserved_special_token_{index}" for index in range(4))]
    names += ["start_header_id", "end_header_id", "reserved_special_token_4", "eot_id"]
    names += [f"reserved_special_token_{index}" for index in range(5, 251)]
    tokenizer.add_special_tokens([AddedToken(f"<|{name}|>", normalized=False, special=True) for name in names])
    return tokenizer


SOURCES: dict[str, tuple[str, str, Callable[[bytes], Tokenizer], dict[str, str]]] = {
    "mistral": (
        "mistral-common==1.13.1",
        "mistral_common/data/mistral_instruct_tokenizer_240323.model.v3",
        _mistral,
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"},
    ),
    "llama3": (
        "llama-models==0.3.0",
        "llama_models/llama3/tokenizer.model",
        _llama3,
        {
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<|eot_id|>",
            "pad_token": "<|reserved_special_token_0|>",
        },
    ),
    "phi3": (
        "llama-cpp-python==0.3.36",
        "vendor/llama.cpp/models/ggml-vocab-phi-3.gguf",
        _phi3,
        {"bos_token": "<s>", "eos_token": "<|endoftext|>", "unk_token": "<unk>", "pad_token": "<|endoftext|>"},
    ),
}
"""Family -> (package, file inside it, how it is read, named tokens)."""
