"""A real model file of 700 KB for llama.cpp: it writes after each token the one that a table says.

Nothing is learned: each token is an axis of its own, the layers add nothing, and the last matrix is the table. So what a
test wants to see said is said, at a thousand tokens a second, through everything that a real model goes through.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["tiny_gguf"]

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant>"
"""What is asked begins the reply with what follows `>`."""
_WIDTH = 288
"""Room for 32 tokens beside the bytes and the three special ones."""
_HEADS = 9
_U32, _F32, _BOOL, _STRING, _ARRAY, _I32 = 4, 6, 7, 8, 9, 5
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
END = "</s>"


def tiny_gguf(
    path: Path,
    after: Mapping[str, str],
    *,
    context: int = 32_768,
    template: str | None = TEMPLATE,
    architecture: str = "llama",
) -> str:
    """Write the file and give its path. `after` maps a token, or a single character, to the one that follows it.

    A reply begins with what follows `>`, the end of the usual template, and ends with `</s>`:

    >>> path = tiny_gguf(Path("/tmp/hi.gguf"), {">": "hello", "hello": "</s>"})  # doctest: +SKIP
    >>> create_chat(f"llamacpp:{path}")  # doctest: +SKIP
    """
    words = sorted({token for pair in after.items() for token in pair if len(token) > 1 and token != END})
    tokens = ["<unk>", "<s>", END, *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    tokens += [f"<unused{n}>" for n in range(_WIDTH - len(tokens))]
    kinds = [_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * 256, *[_NORMAL] * (_WIDTH - 259)]

    def number(token: str) -> int:
        return ord(token) + 3 if len(token) == 1 else tokens.index(token)

    table = {number(token): number(following) for token, following in after.items()}
    facts: dict[str, Any] = {
        "general.architecture": architecture,
        f"{architecture}.context_length": context,
        f"{architecture}.embedding_length": _WIDTH,
        f"{architecture}.block_count": 1,
        f"{architecture}.feed_forward_length": 32,
        f"{architecture}.attention.head_count": _HEADS,
        f"{architecture}.attention.head_count_kv": 1,
        f"{architecture}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{architecture}.rope.dimension_count": _WIDTH // _HEADS,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * _WIDTH,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
    }
    if template is not None:
        facts["tokenizer.chat_template"] = template
    path.write_bytes(_file(facts, _tensors(table)))
    return str(path)


def _tensors(table: Mapping[int, int]) -> dict[str, tuple[tuple[int, ...], bytes]]:
    """Shapes and data, the fastest dimension first, as GGUF has them."""
    own, following = bytearray(_WIDTH * _WIDTH * 4), bytearray(_WIDTH * _WIDTH * 4)
    for token in range(_WIDTH):
        struct.pack_into("<f", own, (token * _WIDTH + token) * 4, 1.0)
        target = table.get(token, 2)  # What nobody spoke of ends the reply.
        struct.pack_into("<f", following, (target * _WIDTH + token) * 4, 1.0)
    square, head = (_WIDTH, _WIDTH), (_WIDTH, _WIDTH // _HEADS)
    shapes = {
        "blk.0.attn_q.weight": square,
        "blk.0.attn_k.weight": head,
        "blk.0.attn_v.weight": head,
        "blk.0.attn_output.weight": square,
        "blk.0.ffn_gate.weight": (_WIDTH, 32),
        "blk.0.ffn_up.weight": (_WIDTH, 32),
        "blk.0.ffn_down.weight": (32, _WIDTH),
    }
    ones = struct.pack("<f", 1.0) * _WIDTH
    norms = ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight")
    return {
        "token_embd.weight": (square, bytes(own)),
        "output.weight": (square, bytes(following)),
        **dict.fromkeys(norms, ((_WIDTH,), ones)),
        **{name: (shape, bytes(shape[0] * shape[1] * 4)) for name, shape in shapes.items()},
    }


def _file(facts: Mapping[str, Any], tensors: Mapping[str, tuple[tuple[int, ...], bytes]]) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(facts))
    head += b"".join(_text(key) + _value(value) for key, value in facts.items())
    offset, data = 0, b""
    for name, (shape, content) in tensors.items():
        head += _text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        head += struct.pack("<IQ", 0, offset)
        content += b"\0" * (-len(content) % 32)
        data += content
        offset += len(content)
    return head + b"\0" * (-len(head) % 32) + data


def _text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _value(value: Any) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", _BOOL, value)
        case int():
            return struct.pack("<II", _U32, value)
        case float():
            return struct.pack("<If", _F32, value)
        case str():
            return struct.pack("<I", _STRING) + _text(value)
        case _:
            kind, items = _items(value)
            return struct.pack("<IIQ", _ARRAY, kind, len(value)) + items


def _items(values: list[Any]) -> tuple[int, bytes]:
    if isinstance(values[0], str):
        return _STRING, b"".join(map(_text, values))
    if isinstance(values[0], float):
        return _F32, struct.pack(f"<{len(values)}f", *values)
    return _I32, struct.pack(f"<{len(values)}i", *values)
