"""Token merging: of tokens that are nearly the same, attention is computed once.

Source: Token Merging for Fast Stable Diffusion (arXiv 2303.17604): bipartite soft matching, merged before the
self-attention of the finest level and put back after it. Unlike there, which tokens may stay is not drawn by
chance: it is the first of each 2x2, so that a seed says the same everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Merge:
    """Which tokens go into which: indices (B, n) of ``kept`` and ``gone``, and ``into``, places in ``kept``.

    Tokens are those of one feature map, row by row.
    """

    kept: Tensor
    gone: Tensor
    into: Tensor

    def merge(self, x: Tensor) -> Tensor:
        """Return the kept of the tokens ``x`` (B, N, C), each the mean of itself and what went into it."""
        kept, gone = _rows(x, self.kept), _rows(x, self.gone)
        # A product, not scattered sums, whose order on a GPU is left to chance.
        share = torch.zeros(*self.kept.shape, self.gone.shape[1], dtype=x.dtype, device=x.device)
        share.scatter_(1, self.into[:, None], 1.0)  # (B, kept, gone): 1 where one goes into the other
        return (kept + share @ gone) / (1.0 + share.sum(2, keepdim=True))

    def unmerge(self, y: Tensor) -> Tensor:
        """Put kept tokens ``y`` (B, kept, C) in their places, (B, N, C), and copies where others were."""
        count = self.kept.shape[1] + self.gone.shape[1]
        out = y.new_empty(len(y), count, y.shape[2])
        out.scatter_(1, self.kept[..., None].expand_as(y), y)
        copies = _rows(y, self.into)
        return out.scatter_(1, self.gone[..., None].expand_as(copies), copies)


def _rows(x: Tensor, which: Tensor) -> Tensor:
    return x.gather(1, which[..., None].expand(-1, -1, x.shape[2]))


def match_tokens(x: Tensor, width: int, ratio: float) -> Merge:
    """Choose which share ``ratio``, at most 0.75, of the tokens ``x`` (B, h * width, C) is merged away.

    Each but the first of a 2x2 is matched with the first of some 2x2 that is most like it, by the cosine
    between them; those most alike go.
    """
    first, others = _split(x.shape[1], width, x.device)
    unit = F.normalize(x, dim=2)
    alike, into = (unit[:, others] @ unit[:, first].mT).max(2)  # each (B, others)
    order = alike.argsort(dim=1, descending=True, stable=True)
    count = min(round(ratio * x.shape[1]), len(others))
    gone, stays = order[:, :count], order[:, count:]
    kept = torch.cat([first.expand(len(x), -1), others[stays]], 1)
    return Merge(kept=kept, gone=others[gone], into=into.gather(1, gone))


def _split(count: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the indices of the first token of each 2x2, and of the others.

    Nothing here depends on a value on the device, so that a GPU's work can be recorded.
    """
    index = torch.arange(count, device=device).view(-1, width)
    others = torch.cat([index[::2, 1::2].flatten(), index[1::2].flatten()])
    return index[::2, ::2].flatten(), others
