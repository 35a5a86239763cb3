"""The vision-language model that judges a sweep: opened once to check it and to judge the baselines, then by trials."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokconv.config.tree import Config
from tokconv.exports.answers.last_epoch import JudgeSettings
from tokconv.store.reader import TokenStore
from tokconv.sweep.spec.schema import Spec
from tokconv.system.devices import resolve_device
from tokconv.system.files import local_path

if TYPE_CHECKING:
    from tokconv.exports.answers.judge import VlmJudge


def judge_settings(spec: Spec) -> JudgeSettings | None:
    """Return the judge that a spec names, with the whole path of its model; None for none."""
    if spec.vlm is None:
        return None
    return JudgeSettings(local_path(spec.vlm.model).absolute(), spec.vlm.prompts, spec.vlm.images, spec.vlm.tokens)


def open_judge(spec: Spec, config: Config, store: TokenStore) -> VlmJudge | None:
    """Return the judge that a spec names; None for none.

    Raises:
        DataError: its directory holds no model that can answer.
        ConfigError: it does not read the tokens of this store.
    """
    if (settings := judge_settings(spec)) is None:
        return None
    from tokconv.exports.answers.judge import VlmJudge  # Its imports take three seconds.

    judge = VlmJudge(store, settings, resolve_device(None))
    judge.check_tower(config)
    return judge
