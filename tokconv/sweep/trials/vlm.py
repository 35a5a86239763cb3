"""The vision-language models of a sweep: its judge, opened once to check it and to judge the baselines, then by trials;
and the teacher of its trials."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokconv.config.overrides import with_values
from tokconv.config.tree import Config
from tokconv.exports.answers.last_epoch import JudgeSettings, open_teacher
from tokconv.store.reader import TokenStore
from tokconv.sweep.spec.schema import TEACHER_KEY, Spec
from tokconv.system.devices import resolve_device
from tokconv.system.files import local_path

if TYPE_CHECKING:
    from tokconv.exports.answers.judge import VlmJudge
    from tokconv.exports.answers.teacher import VlmTeacher

Models = tuple["VlmJudge | None", "VlmTeacher | None"]
"""The judge of a sweep, and the teacher of its trials."""


def judge_settings(spec: Spec) -> JudgeSettings | None:
    """Return the judge that a spec names, with the whole path of its model; None for none."""
    if spec.vlm is None:
        return None
    return JudgeSettings(local_path(spec.vlm.model).absolute(), spec.vlm.prompts, spec.vlm.images, spec.vlm.tokens)


def taught_config(config: Config) -> Config:
    """Return the config of a trial that is taught, if only some trials of a sweep are."""
    return with_values(config, {TEACHER_KEY: config.loss.weights.vlm or 1.0})


def open_models(spec: Spec, config: Config, store: TokenStore) -> Models:
    """Return the judge and the teacher that a spec names; None for none.

    The driver lets the teacher read all tokens before the trials start: they would wait for one another.

    Raises:
        DataError: a directory holds no model that can answer.
        ConfigError: it does not read the tokens of this store.
    """
    judge = teacher = None
    if (settings := judge_settings(spec)) is not None:
        from tokconv.exports.answers.judge import VlmJudge  # Its imports take three seconds.

        judge = VlmJudge(store, settings, resolve_device(None))
        judge.check_tower(config)
    if spec.may_be_taught:
        teacher = open_teacher(taught_config(config), store, resolve_device(None))
    return judge, teacher
