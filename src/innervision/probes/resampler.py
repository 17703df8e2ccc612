"""The Perceiver Resampler probe: learned queries that read a layer's tokens.

Perceiver Resampler as in Flamingo (https://arxiv.org/abs/2204.14198, section 3.1.1), in the form that the published
probes use: keys and values come from the tokens and from the queries themselves, one LayerNorm before each
projection, a LayerNorm at the end. Parameter names are those of the published checkpoints.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from innervision.config import ProbeSettings
from innervision.probes.places import PLACE_CODE, encode_places


class Resampler(nn.Module):
    """`num_queries` learned queries of the target's width, which attend to a layer's tokens."""

    def __init__(self, width_in: int, num_queries: int, width_out: int, settings: ProbeSettings) -> None:
        """Make a probe from states of width `width_in` to features (num_queries, width_out)."""
        super().__init__()
        inner = settings.heads * settings.dim_head
        self.latents = nn.Parameter(torch.randn(1, num_queries, width_out) / width_out**0.5)
        self.proj_in = nn.Linear(width_in, width_out)
        self.proj_out = nn.Linear(width_out, width_out)
        self.norm_out = nn.LayerNorm(width_out)
        self.layers = nn.ModuleList(
            nn.ModuleList([Attention(width_out, inner, settings.heads), feed_forward(width_out, settings.ff_mult)])
            for _ in range(settings.depth)
        )
        self.to_place = nn.Linear(PLACE_CODE, inner, bias=False) if settings.positions else None

    def forward(self, states: Tensor, mask: Tensor, places: Tensor | None = None) -> Tensor:
        """Predict the target's features.

        Args:
            states: (B, T, width_in), a layer's hidden states.
            mask: (B, T) bool, True = a token to read.
            places: (B, T, 4), where each token stands, of which row and column are used (see `encode_places`); needed
                by a probe with positions.

        Returns:
            (B, num_queries, width_out)
        """
        tokens = self.proj_in(states)  # (B, T, C)
        place = None
        if self.to_place is not None and places is not None:
            place = self.to_place(encode_places(mask, places[..., :2]))  # (B, T, inner)
        return self.read(tokens, mask, place)

    def read(self, tokens: Tensor, mask: Tensor, place: Tensor | None) -> Tensor:
        """Let the queries read projected tokens (B, T, C).  # (B, N, C)"""
        latents = self.latents.expand(len(tokens), -1, -1)
        for layer in self.layers:
            attention, feed = layer.children()
            latents = attention(tokens, latents, mask, place) + latents
            latents = feed(latents) + latents
        return self.norm_out(self.proj_out(latents))


class Blind(Resampler):
    """The resampler with nothing to read: a control that shows what queries alone can learn."""

    def __init__(self, width_in: int, num_queries: int, width_out: int, settings: ProbeSettings) -> None:
        """Make a probe as `Resampler` does, without the projection of the states."""
        super().__init__(width_in, num_queries, width_out, settings)
        del self.proj_in

    def forward(self, states: Tensor, mask: Tensor, places: Tensor | None = None) -> Tensor:
        """Predict the same features for every sample.  # (B, num_queries, width_out)"""
        tokens = self.latents.new_zeros(1, 0, self.latents.shape[-1])
        return self.read(tokens, mask[:1, :0], None).expand(len(states), -1, -1)


class Attention(nn.Module):
    """Queries attend to the tokens and to each other."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        """Make attention of `heads` heads with `inner` features together."""
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, inner * 2, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, tokens: Tensor, latents: Tensor, mask: Tensor, place: Tensor | None) -> Tensor:
        """Attend from latents (B, N, C) to tokens (B, T, C) where `mask` (B, T) is True, and to all latents.

        `place` (B, T, inner) is added to the tokens' keys.  # (B, N, C)
        """
        tokens, latents = self.norm1(tokens), self.norm2(latents)
        query = self.to_q(latents)  # (B, N, inner)
        key, value = self.to_kv(torch.cat([tokens, latents], dim=1)).chunk(2, dim=-1)  # (B, T + N, inner) each
        if place is not None:
            key = key + F.pad(place, (0, 0, 0, latents.shape[1]))
        query, key, value = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
        visible = F.pad(mask, (0, latents.shape[1]), value=True)[:, None, None]  # (B, 1, 1, T + N)
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)  # (B, heads, N, dim_head)
        return self.to_out(read.transpose(1, 2).flatten(2))


def feed_forward(width: int, multiple: float) -> nn.Sequential:
    """Make the feed-forward part of a resampler layer."""
    hidden = int(width * multiple)
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, hidden, bias=False),
        nn.GELU(),
        nn.Linear(hidden, width, bias=False),
    )
