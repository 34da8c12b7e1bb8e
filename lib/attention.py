"""Attention and cache for decoding one token at a time, faster than transformers' own on a CPU.

Policies are loaded with attn_implementation="grouped": for a single new token without gradient it
does what is described in `grouped_attention`; everything else goes the usual way.

Test: `pytest tests/test_policy.py`. Read next: prefix_sharing.py.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer in a buffer with room for more.

    A new token is written to its place, where transformers would copy all that came before. `keys`
    and `values` are views of the part in use, (B, heads, T, head_dim).
    """

    ROOM = 64  # positions

    def update(self, key_states, value_states, *args, **kwargs):
        old = self.get_seq_length() if self.is_initialized else 0
        new = old + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if old == 0 or self.keys._base is None or self.keys._base.shape[-2] < new:
            self.keys = self.grow(self.keys, key_states, old, new)
            self.values = self.grow(self.values, value_states, old, new)
        self.keys = self.append(self.keys, key_states, old, new)
        self.values = self.append(self.values, value_states, old, new)
        return self.keys, self.values

    def grow(self, view, states, old, new):
        """A larger buffer with the same content; returns the view of the part in use."""
        B, heads, _, head_dim = states.shape
        buffer = states.new_empty(B, heads, new + self.ROOM, head_dim)
        if old:
            buffer[:, :, :old] = view
        return buffer[:, :, :old]

    def append(self, view, states, old, new):
        buffer = view._base
        buffer[:, :, old:new] = states
        return buffer[:, :, :new]


def grouped_attention(module, query, key, value, attention_mask, scaling=None, **options):
    """Attention of one new token, (B, heads, 1, D), to keys and values (B, kv_heads, T, D).

    The query heads that share a key-value head become rows of one product, where transformers would
    copy keys and values for each of them. In fp32 the product is written out: on a CPU the fused
    kernel takes 2 to 3 times as long for a single query.
    """
    B, heads, T, D = query.shape
    if T > 1 or torch.is_grad_enabled():
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
    query = query.reshape(B, key.shape[1], -1, D)
    if query.dtype == torch.bfloat16:  # the fused kernel keeps scores in fp32
        out = scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scaling
        )
    else:
        scores = (query * (scaling or D**-0.5)) @ key.transpose(-1, -2)
        if attention_mask is not None:
            scores = scores.masked_fill_(~attention_mask, -torch.inf)
        out = scores.softmax(-1) @ value
    return out.reshape(B, 1, heads, D), None


AttentionInterface.register("grouped", grouped_attention)
AttentionMaskInterface.register("grouped", sdpa_mask)
