"""Sequences: positions beside, before or folded into the batch axis."""

from types import SimpleNamespace

import torch
from torch import nn

from architectures.case import N, case, labels


class _TimeFirst(nn.Module):
    """Activations are (T, N, E) inside."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x):
        h = self.norm(torch.tanh(self.first(x.transpose(0, 1))))
        return self.head(h * torch.arange(1.0, 1.0 + len(h), dtype=h.dtype)[:, None, None]).mean(0)


@case()
def time_first():
    return _TimeFirst(), (torch.randn(N, 3, 3), labels(N))


@case()
def time_first_square():
    return _TimeFirst(), (torch.randn(N, N, 3), labels(N))


class _Flattened(nn.Module):
    """Batch and time are one axis inside, batch slower or faster."""

    def __init__(self, time_slower):
        super().__init__()
        self.time_slower = time_slower
        self.first, self.second, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        n, t, e = x.shape
        if self.time_slower:
            h = torch.tanh(self.first(x.transpose(0, 1).reshape(t * n, e)))
            h = self.second(h).view(t, n, -1).transpose(0, 1)
        else:
            h = self.second(torch.tanh(self.first(x.reshape(n * t, e)))).view(n, t, -1)
        return self.head(torch.sin(h).cumsum(1)[:, -1])


@case()
def flattened_time():
    return _Flattened(False), (torch.randn(N, 4, 3), labels(N))


@case()
def flattened_time_slower():
    return _Flattened(True), (torch.randn(N, 4, 3), labels(N))


class _Frames(nn.Module):
    """A convolution over frames folded into the batch axis."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 3, 2), nn.Linear(3, 3)

    def forward(self, x):
        h = torch.tanh(self.conv(x.flatten(0, 1))).mean((2, 3))
        return self.head(h.view(*x.shape[:2], -1).sum(1))


@case()
def folded_frames():
    return _Frames(), (torch.randn(N, 3, 1, 3, 3), labels(N))


class _LanguageModel(nn.Module):
    """Causal mixing by running means; the decoder's weight is the embedding."""

    def __init__(self, vocabulary, width):
        super().__init__()
        self.embed, self.mix = nn.Embedding(vocabulary, width), nn.Linear(width, width)
        self.decode = nn.Linear(width, vocabulary)
        self.decode.weight = self.embed.weight

    def forward(self, tokens):
        h = self.embed(tokens)
        count = torch.arange(1.0, 1.0 + tokens.shape[1], dtype=h.dtype)[:, None]
        return self.decode(h + torch.tanh(self.mix(h.cumsum(1) / count)))


@case()
def tied_language_model():
    y = labels(N, 4, classes=7)
    y[0, 2:] = y[1, 0] = y[3, :3] = -100
    return _LanguageModel(7, 4), (labels(N, 4, classes=7), y)


class _Positions(nn.Module):
    """Position embeddings have no batch axis: they are looked up once for all examples."""

    def __init__(self, length):
        super().__init__()
        self.words, self.places = nn.Embedding(6, 4), nn.Embedding(length, 4)
        self.mix, self.head = nn.Linear(4, 4), nn.Linear(4, 6)

    def forward(self, tokens):
        h = self.words(tokens) + self.places(torch.arange(tokens.shape[1]))
        return self.head(torch.tanh(self.mix(h)).cumsum(1))


@case()
def position_embedding():
    y = labels(N, 3, classes=6)
    y[2, 1:] = -100
    return _Positions(3), (labels(N, 3, classes=6), y)


@case()
def position_embedding_square():
    y = labels(N, N, classes=6)
    y[2, 1:] = -100
    return _Positions(N), (labels(N, N, classes=6), y)


class _Hypernetwork(nn.Module):
    """A layer fed with a constant that no example owns."""

    def __init__(self):
        super().__init__()
        self.register_buffer("code", torch.randn(2))
        self.generator, self.head = nn.Linear(2, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(x * self.generator(self.code)))


@case()
def constant_input():
    return _Hypernetwork(), (torch.randn(N, 4), labels(N))


class _Attention(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        self.batch_first = batch_first
        self.attend = nn.MultiheadAttention(4, 2, batch_first=batch_first)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = x if self.batch_first else x.transpose(0, 1)
        h, _ = self.attend(x, x, x, need_weights=False)
        return self.head((x + h).mean(1 if self.batch_first else 0))


@case()
def attention():
    return _Attention(True), (torch.randn(N, 3, 4), labels(N))


@case()
def attention_time_first_square():
    return _Attention(False), (torch.randn(N, N, 4), labels(N))


class _Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=5, dropout=0.1, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))


@case()
def transformer_encoder():
    return _Encoder(), (torch.randn(N, 3, 4), labels(N))


class _Recurrent(nn.Module):
    def __init__(self, cell, batch_first):
        super().__init__()
        self.batch_first = batch_first
        self.cell, self.head = cell(3, 3, batch_first=batch_first), nn.Linear(3, 3)

    def forward(self, x):
        h, _ = self.cell(x if self.batch_first else x.transpose(0, 1))
        return self.head(h[:, -1] if self.batch_first else h[-1])


@case()
def gru():
    return _Recurrent(nn.GRU, True), (torch.randn(N, 4, 3), labels(N))


@case()
def lstm_time_first_square():
    return _Recurrent(nn.LSTM, False), (torch.randn(N, N, 3), labels(N))


class _Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(8, 4, mode="mean"), nn.Linear(4, 3)

    def forward(self, tokens):
        return self.head(torch.tanh(self.bag(tokens)))


@case()
def embedding_bag():
    return _Bag(), (labels(N, 3, classes=8), labels(N))


class _DictModel(nn.Module):
    """Called with keywords, answers with an object that has ``.logits``."""

    def __init__(self):
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(7, 3), nn.Linear(3, 4), nn.Linear(4, 5)

    def forward(self, input_ids, attention_mask=None, labels=None):
        h = self.embed(input_ids)
        if attention_mask is not None:
            h = h * attention_mask[..., None]
        return SimpleNamespace(logits=self.head(torch.tanh(self.body(h.cumsum(1)))), loss=None)


@case()
def dict_batch():
    mask = torch.ones(N, 4, dtype=torch.int64)
    mask[0, 2:] = mask[3, 1:] = 0
    y = labels(N, 4, classes=5).masked_fill(mask == 0, -100)
    y[1, 0] = -100
    return _DictModel(), {"input_ids": labels(N, 4, classes=7), "attention_mask": mask, "labels": y}
