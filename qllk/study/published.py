"""QLLK 1.0, QLLK 1.1 and MELF exactly as published: the same weights give the same logits.

They are for study, not for use. All three **leak**: a patch is encoded as a whole and decoded onto
its own bytes, so in a patch of R bytes the logits at pR … pR+R-2 are computed from the very bytes
that they predict. Their losses say nothing about language, and they cannot be sampled from, so
they have `model(ids)` but no `run`. `model/patching.py` shows the correction.

Parameters and arguments have their original names, so that published checkpoints load.

Source   acunningham-ship-it/QLLK-Transformer: 1.0 and MELF at 354438d, 1.1 at 5d1cca2
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..checks import check_ids, check_positive
from ..model.kernels import cumsum_kernel
from ..model.layers import check_heads


class SeparateKernel(nn.Module):
    """The kernel of 1.0, with separate projections and no output projection.

        y = W_q x * cumsum(W_k x * W_v x) * sigmoid(W_g x)

    Shapes   x (B,P,D) -> (B,P,D)
    Cost     time O(P D^2) for the projections and O(P D) for the rest
    """

    def __init__(self, dim: int):
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.v_proj, self.gate = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = cumsum_kernel(self.q_proj(x), self.k_proj(x), self.v_proj(x))
        return y * self.gate(x).sigmoid()


class FusedKernel(nn.Module):
    """The kernel of 1.1: the same, with queries, keys and values from one projection.

    Shapes   x (B,P,D) -> (B,P,D)
    """

    def __init__(self, dim: int):
        super().__init__()
        self.qkv_proj, self.gate_proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = cumsum_kernel(*self.qkv_proj(x).chunk(3, dim=-1))
        return y * self.gate_proj(x).sigmoid()


class QLLK10(nn.Module):
    """QLLK 1.0: means of patches, mixed and decoded in place. **Leaks; for study only.**

        x = mean of R embeddings;    x = x + tanh(x W_hash);    per layer  x = x + kernel(x),
        x = norm(mlp(norm(x)));      R bytes' logits = W_head x

    The "hashing" is a learned square matrix; nothing is hashed. The MLP has no residual connection:
    it replaces x. The mean discards the order of the bytes in a patch.

    Shapes   ids (B,T), T a multiple of patch_size  ->  logits (B,T,256)
    Cost     time O(T D^2) / patch_size, and O(T D) for the head
    Source   `QLLKTransformer` at 354438d; 2,765,824 parameters
    Raises   ValueError when ids are not bytes of shape (B,T), or do not fill their patches
    """

    def __init__(self, dim: int = 256, n_layers: int = 4, patch_size: int = 8):
        super().__init__()
        check_positive("QLLK10", dim=dim, n_layers=n_layers, patch_size=patch_size)
        self.patch_size = patch_size
        self.byte_embedding = nn.Embedding(256, dim)
        self.hash_proj = nn.Parameter(0.02 * torch.randn(dim, dim))
        self.layers = nn.ModuleList(
            nn.Sequential(
                SeparateKernel(dim),
                nn.LayerNorm(dim),
                nn.Linear(dim, 2 * dim),
                nn.GELU(),
                nn.Linear(2 * dim, dim),
                nn.LayerNorm(dim),
            )
            for _ in range(n_layers)
        )
        self.decoder_head = nn.Linear(dim, 256 * patch_size)

    @property
    def embed(self) -> nn.Embedding:
        """The embedding, under the name that probes look for."""
        return self.byte_embedding

    def forward(self, ids: Tensor) -> Tensor:
        ids = _whole_patches(ids, self.patch_size)
        x = patch_means(self.byte_embedding(ids), self.patch_size)
        x = x + torch.tanh(x @ self.hash_proj)
        for layer in self.layers:
            x = x + layer[0](x)
            x = layer[1:](x)
        return logits_in_place(self.decoder_head(x))


class QLLK11(nn.Module):
    """QLLK 1.1: patches by strided convolution, pre-norm layers. **Leaks; for study only.**

        x = conv(embeddings);    x = x + tanh(x W_hash);    per layer  x = x + kernel(norm(x)),
        x = x + mlp(norm(x));    logits = W_head convT(x)

    A strided convolution sees the order of its R bytes, so 1.1 can copy bytes that 1.0 could only
    count.

    Shapes   ids (B,T), T a multiple of patch_size  ->  logits (B,T,256)
    Cost     time O(T D^2) for the two convolutions, and O(T D^2) / patch_size per layer
    Source   `QLLKTransformer` at 5d1cca2; 4,404,992 parameters
    Raises   ValueError when ids are not bytes of shape (B,T), or do not fill their patches
    """

    def __init__(self, dim: int = 256, n_layers: int = 4, patch_size: int = 8):
        super().__init__()
        check_positive("QLLK11", dim=dim, n_layers=n_layers, patch_size=patch_size)
        self.patch_size = patch_size
        self.byte_embedding = nn.Embedding(256, dim)
        self.patch_encoder = nn.Conv1d(dim, dim, patch_size, stride=patch_size)
        self.hash_proj = nn.Parameter(0.02 * torch.randn(dim, dim))
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "kernel": FusedKernel(dim),
                    "norm1": nn.LayerNorm(dim),
                    "mlp": nn.Sequential(
                        nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)
                    ),
                    "norm2": nn.LayerNorm(dim),
                }
            )
            for _ in range(n_layers)
        )
        self.patch_decoder = nn.ConvTranspose1d(dim, dim, patch_size, stride=patch_size)
        self.head = nn.Linear(dim, 256)

    @property
    def embed(self) -> nn.Embedding:
        """The embedding, under the name that probes look for."""
        return self.byte_embedding

    def forward(self, ids: Tensor) -> Tensor:
        ids = _whole_patches(ids, self.patch_size)
        x = self.byte_embedding(ids).transpose(1, 2)  # (B,D,T), the layout of convolutions
        x = self.patch_encoder(x).transpose(1, 2)  # (B,P,D)
        x = x + torch.tanh(x @ self.hash_proj)
        for layer in self.layers:
            x = x + layer["kernel"](layer["norm1"](x))
            x = x + layer["mlp"](layer["norm2"](x))
        return self.head(self.patch_decoder(x.transpose(1, 2)).transpose(1, 2))


class MELF(nn.Module):
    """MELF: patches folded side by side, attention without a mask. **Leaks; for study only.**

        x = W_fold [4 means of R embeddings];    x = transformer(x);    logits = W_head W_unfold x

    Attention has no causal mask, so *every* position sees every byte of the input.

    Shapes   ids (B,T), T a multiple of patch_size * fold_factor  ->  logits (B,T,256)
    Cost     time O(N D^2 + N^2 D) per layer for N = T / (patch_size * fold_factor)
    Source   `MELTransformer` at 354438d; 9,007,872 parameters
    Raises   ValueError when ids are not bytes of shape (B,T), or do not fill their folds
    """

    def __init__(
        self,
        dim: int = 256,
        n_layers: int = 6,
        n_heads: int = 8,
        patch_size: int = 8,
        fold_factor: int = 4,
    ):
        super().__init__()
        check_positive(
            "MELF", dim=dim, n_layers=n_layers, patch_size=patch_size, fold_factor=fold_factor
        )
        self.patch_size, self.fold_factor = patch_size, fold_factor
        self.byte_embedding = nn.Embedding(256, dim)
        self.fold_proj = nn.Linear(fold_factor * dim, dim)
        layer = nn.TransformerEncoderLayer(dim, check_heads(n_heads, dim), batch_first=True)
        # Nested tensors speed up padding, which does not occur here, and warn when n_heads is odd.
        self.transformer = nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False)
        self.unfold_proj = nn.Linear(dim, fold_factor * dim)
        self.decoder_head = nn.Linear(dim, 256 * patch_size)

    @property
    def embed(self) -> nn.Embedding:
        """The embedding, under the name that probes look for."""
        return self.byte_embedding

    def forward(self, ids: Tensor) -> Tensor:
        ids = _whole_patches(ids, self.patch_size * self.fold_factor)
        x = patch_means(self.byte_embedding(ids), self.patch_size)  # (B,P,D)
        folds = x.unflatten(1, (-1, self.fold_factor)).flatten(2)  # (B,N,4D)
        x = self.unfold_proj(self.transformer(self.fold_proj(folds)))
        x = x.unflatten(-1, (self.fold_factor, -1)).flatten(1, 2)  # (B,P,D)
        return logits_in_place(self.decoder_head(x))


def _whole_patches(ids: Tensor, size: int) -> Tensor:
    """The ids as int64, if they are bytes and their number is a multiple of `size`."""
    ids = check_ids(ids, 256)
    if loose := ids.shape[1] % size:
        shorter = ids.shape[1] - loose
        raise ValueError(
            f"this published model reads {size} bytes at once, and the length {ids.shape[1]} is "
            f"not a multiple of that; pass {shorter or size} or {shorter + size} bytes"
        )
    return ids


def patch_means(x: Tensor, size: int) -> Tensor:
    """The mean of each patch.  Shapes  x (B,T,D) -> (B,T/size,D)"""
    return x.unflatten(1, (-1, size)).mean(dim=2)


def logits_in_place(x: Tensor) -> Tensor:
    """Assign the logits of each patch to its own bytes: the leak.

    Shapes   x (B,P,R 256) -> (B,P R,256)
    """
    return x.unflatten(-1, (-1, 256)).flatten(1, 2)
