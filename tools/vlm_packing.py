"""Read all questions about an image at once, and only some of its tokens.

A sequence is prompt, image, question, answer, question, answer ...; a mask hides each question and its answer from the
others, and each begins at the position at which it would be alone. So the image is read once, and the logits are those
of one sequence per question. Tokens that are left out leave a gap in the positions: what is kept stays where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from vlm_digits import NO_DIGIT
from vlm_examples import Example

from tokconv.exports.answers.model import AnsweringModel

IMAGE, PADDING = 0, -1
"""Segments of a sequence: what all questions see, and what nothing sees. Questions count from 1."""


@dataclass(frozen=True)
class _Row:
    embedded: Tensor
    segments: Tensor
    positions: Tensor
    answers: list[tuple[int, list[int]]]
    """Of each question, the place whose logits predict the answer's first token, and the answer."""


def loss_of(
    model: AnsweringModel, tokens_BKC: Tensor, examples: Sequence[Example], places_BK: Tensor | None = None
) -> Tensor:
    """Return the mean cross-entropy of the answers' tokens, each question of an image and each image with the same
    weight.

    Args:
        places_BK: which of the image's tokens these are; None for all that the language model reads.
    """
    core, device = model.model.model, model.device
    projector, embed = core.multi_modal_projector, model.model.get_input_embeddings()
    visual = projector(tokens_BKC.to(device, projector.linear_1.weight.dtype)).to(embed.weight.dtype)
    count = tokens_BKC.shape[1] if places_BK is None else model.token_grid**2
    places = torch.arange(count).expand(len(visual), -1) if places_BK is None else places_BK
    rows = [
        _row(model, own, example, where, count) for own, example, where in zip(visual, examples, places, strict=True)
    ]
    segments = pad_sequence([row.segments for row in rows], batch_first=True, padding_value=PADDING)
    seen = (segments[:, :, None] == segments[:, None]) | (segments[:, None] == IMAGE)
    mask = torch.full(seen.shape, torch.finfo(visual.dtype).min, dtype=visual.dtype).masked_fill_(seen.tril(), 0)
    hidden = core.language_model(
        inputs_embeds=pad_sequence([row.embedded for row in rows], batch_first=True),
        attention_mask=mask[:, None].to(device),
        position_ids=pad_sequence([row.positions for row in rows], batch_first=True).to(device),
        use_cache=False,
    ).last_hidden_state
    losses = []
    for own, row in zip(hidden, rows, strict=True):
        each = [
            F.cross_entropy(
                model.model.lm_head(own[start : start + len(answer)]).float(), torch.tensor(answer, device=device)
            )
            for start, answer in row.answers
        ]
        losses.append(torch.stack(each).mean())
    return torch.stack(losses).mean()


def _row(model: AnsweringModel, visual_KD: Tensor, example: Example, places_K: Tensor, count: int) -> _Row:
    embed, device = model.model.get_input_embeddings(), model.device
    before = len(example.before)
    image_end = before + len(visual_KD)
    ids: list[int] = []
    segments, answers = [IMAGE] * image_end, []
    positions = [*range(before), *(before + places_K).tolist()]
    for number, (after, answer) in enumerate(example.questions, 1):
        answers.append((image_end + len(ids) + len(after) - 1, answer))
        # Nothing is predicted from the answer's last token.
        own = [*after, *answer[:-1]]
        ids += own
        segments += [number] * len(own)
        positions += range(before + count, before + count + len(own))

    def text(ids: list[int]) -> Tensor:
        embedded: Tensor = embed(torch.tensor(ids, dtype=torch.long, device=device))
        return embedded

    embedded = torch.cat([text(example.before), visual_KD, text(ids)])
    return _Row(embedded, torch.tensor(segments), torch.tensor(positions), answers)


def some_places(example: Example, all_tokens: int, count: int, generator: torch.Generator) -> Tensor:
    """Return which tokens of an image are read if only `count` are, in order: those that show digits first, then their
    neighbours, then any; of other images, any."""
    order = torch.rand(all_tokens, generator=generator)
    if example.values is not None:
        grid = round(all_tokens**0.5)
        shown = (example.values != NO_DIGIT).view(1, grid, grid).float()
        order += (shown + F.max_pool2d(shown, 3, 1, 1)).flatten()
    return order.topk(count).indices.sort().values
