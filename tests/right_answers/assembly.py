"""Right answers to the exercises of lesson 08: other ways to compute the same."""

import torch
import torch.nn.functional as F
from torch import nn

from qllk.lab.lessons.exercises import assembly
from qllk.model.contexts import hash_contexts
from qllk.model.inputs import describe, look_back, start_recall, to_rows


class MixerByConv1d(assembly.ByteMixer):
    def forward(self, x):
        x, g = torch.tensor_split(self.xg(x), 2, dim=-1)
        width, d = self.taps.shape
        padded = F.pad(x.mT, (width - 1, 0))
        y = F.conv1d(padded, self.taps.flip(0).T[:, None], groups=d).mT
        return self.out(g * g.sigmoid() * y)


class MixerStepByStep(assembly.ByteMixer):
    def forward(self, x):
        both = self.xg(x)
        d, rows = x.shape[-1], []
        for t in range(x.shape[1]):
            y = 0
            for j in range(min(t + 1, len(self.taps))):
                y = y + self.taps[j] * both[:, t - j, :d]
            rows.append(F.silu(both[:, t, d:]) * y)
        return self.out(torch.stack(rows, dim=1))


class BlockInNamedSteps(assembly.Block):
    def forward(self, x):
        mixed = x + self.mix(self.norm_mix(x))
        inside = F.relu(self.up(self.norm_mlp(mixed)))
        return mixed + self.down(inside * inside)


class BlockAsThreeTerms(assembly.Block):
    def mlp(self, x):
        return self.down(F.relu(self.up(x)) ** 2)

    def forward(self, x):
        first = self.mix(self.norm_mix(x))
        return self.mlp(self.norm_mlp(first + x)) + first + x


class TablesOneByOne(assembly.Tables):
    def forward(self, hashes):
        y = 0
        for k in range(hashes.shape[1]):
            table = self.weight[k * self.rows : (k + 1) * self.rows]
            y = y + table[to_rows(hashes[:, k], self.rows)]
        return y


class TablesAsOneMatrix(assembly.Tables):
    def forward(self, hashes):
        tables = self.weight.unflatten(0, (-1, self.rows))
        rows = to_rows(hashes, self.rows)
        return torch.stack([tables[k, rows[:, k]] for k in range(len(tables))]).sum(dim=0)


class ModelWithOneHotVotes(assembly.Model):
    def forward(self, ids):
        x, found = self.read(ids)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        hot = F.one_hot(found.clamp(min=0), 256) * (found >= 0)[..., None]
        return self.head(x) + (self.strength(x)[..., None] * hot).sum(dim=2)


class ModelInOnePiece(assembly.Model):
    def forward(self, ids):
        hashes, _ = hash_contexts(ids, self.contexts)
        state = start_recall(ids, self.recalled, self.addresses, torch.int32)
        readings, _ = look_back(ids, self.recalled, state)
        keys, found = describe(readings)
        x = self.recall(keys) + self.embed(ids) + self.ngrams(hashes)
        x = self.norm(nn.Sequential(*self.blocks)(x))
        votes = torch.where(found >= 0, self.strength(x), 0.0)
        return self.head(x).scatter_add(2, torch.where(found >= 0, found, 5), votes)


ANSWERS = {
    "ByteMixer": (MixerByConv1d, MixerStepByStep),
    "Block": (BlockInNamedSteps, BlockAsThreeTerms),
    "Tables": (TablesOneByOne, TablesAsOneMatrix),
    "Model": (ModelWithOneHotVotes, ModelInOnePiece),
}
