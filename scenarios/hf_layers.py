"""Which layers of a Hugging Face config attend to everything, keep a recurrent state, or select what they attend to."""

from __future__ import annotations

import reprlib
from typing import Any

from .errors import BadInput
from .hf_table import Table

_STATE_SPACE = ("ssm_", "mamba_", "state_size", "d_state", "hybrid_override_pattern")
_OTHER_SHAPES = {
    "hc_mult": "hyper-connections",
    "index_kpool": "pooled index keys",
    "index_topk_freq": "indexers shared by layers",
    "routed_expert_hidden_size": "experts of a width of their own",
    "attn_res_block_size": "residuals over attention",
    "compress_ratios": "compressed caches",
}
"""Keys of layers whose costs are not counted -> what they say."""
_ALLOWED = ("mamba_ssm_dtype",)
_TYPES = ("full_attention", "sliding_attention", "chunked_attention", "linear_attention")


def check_kinds(table: Table) -> None:
    """BadInput for layers that are neither softmax nor linear attention, or that add what is not counted."""
    found = next((key for key in table.data if key.startswith(_STATE_SPACE) and key not in _ALLOWED), "")
    types = table.raw("layer_types")
    odd = [t for t in types if t not in _TYPES] if isinstance(types, list) else []
    found = found or (f"layer type {reprlib.repr(odd[0])}" if odd else "")
    if found:
        raise BadInput(f"{table.name} has layers that are neither softmax nor linear attention ({found}); only those are priced")
    for key, what in _OTHER_SHAPES.items():
        value = table.raw(key)
        if value not in (None, 0, 1, False):
            raise BadInput(f"{table.name} has {what} ({key}={reprlib.repr(value)}), which are not priced")


def layer_kinds(table: Table, kind: str, fields: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """Fields of ModelSpec for linear-attention layers and for an indexer; {} where the config has neither.

    Linear layers are those of ``layer_types`` or ``attn_type_list`` (0), of ``linear_attn_config`` (Kimi Linear, counted from 1), or all
    but each ``full_attention_interval``-th. Raises BadInput for a list that holds anything else.
    """
    found = _index(table)
    full = _full_layers(table, fields["n_layers"])
    if full is None or len(full) == fields["n_layers"]:
        return found
    every, last = _pattern(full, fields["n_layers"], notes)
    return found | _linear(table, fields) | {"full_attention_every": every, "last_layer_full": last}


def _index(table: Table) -> dict[str, int]:
    top_k = table.whole("index_topk", default=0)
    if not top_k:
        return {}
    return {"index_top_k": top_k, "index_heads": table.whole("index_n_heads", least=1), "index_dim": table.whole("index_head_dim", least=1)}


def _full_layers(table: Table, n_layers: int) -> list[int] | None:
    """Layers (from 0) that attend to everything, where the config says that others keep a state; None where it does not."""
    types, marks = table.raw("layer_types"), table.raw("attn_type_list")
    if isinstance(types, list) and "linear_attention" in types:
        return [i for i, t in enumerate(types[:n_layers]) if t != "linear_attention"]
    if isinstance(marks, list) and 0 in marks:
        return [i for i, mark in enumerate(marks[:n_layers]) if mark]
    listed = table.raw("linear_attn_config.full_attn_layers")
    if isinstance(listed, list):
        if not all(isinstance(i, int) and 1 <= i <= n_layers for i in listed):
            raise BadInput(f"full_attn_layers={reprlib.repr(listed)} in the config of {table.name} must be layers from 1 to {n_layers}")
        return sorted(i - 1 for i in listed)
    every = table.whole("full_attention_interval", default=0)
    return list(range(every - 1, n_layers, every)) if every else None


def _pattern(full: list[int], n_layers: int, notes: list[str]) -> tuple[int, bool]:
    """(each k-th layer is full, the last one besides); the nearest pattern, with a note, where the layers follow none."""
    if not full:
        return 0, False
    every = full[0] + 1
    regular = list(range(every - 1, n_layers, every))
    if full == regular:
        return every, False
    if full == sorted({*regular, n_layers - 1}):
        return every, True
    every = max(round(n_layers / len(full)), 1)
    notes.append(f"full-attention layers are irregular: taken as one of every {every}")
    return every, False


def _linear(table: Table, fields: dict[str, Any]) -> dict[str, Any]:
    """Kind and shape of the linear layers: Gated DeltaNet's keys, Kimi Delta Attention's table, or lightning attention's own heads."""
    if table.raw("linear_num_value_heads") is not None:
        heads, keys = table.whole("linear_num_value_heads", least=1), table.whole("linear_num_key_heads", least=1)
        dims = [table.whole(f"linear_{name}_head_dim", least=1) for name in ("key", "value")]
        return _shape("gated-delta", heads, keys, dims, table.whole("linear_conv_kernel_dim", default=0))
    if table.raw("linear_attn_config") is not None:
        heads, dim = (table.whole(f"linear_attn_config.{key}", least=1) for key in ("num_heads", "head_dim"))
        return _shape("kda", heads, heads, [dim, dim], table.whole("linear_attn_config.short_conv_kernel_size", default=0))
    heads, dim = fields["n_heads"], fields["head_dim"]
    return _shape("lightning", heads, heads, [dim, dim], 0)


def _shape(kind: str, heads: int, key_heads: int, dims: list[int], conv: int) -> dict[str, Any]:
    return {
        "linear_attention": kind, "linear_heads": heads, "linear_key_heads": key_heads, "linear_key_dim": dims[0],
        "linear_value_dim": dims[1], "linear_conv_width": conv,
    }  # fmt: skip
