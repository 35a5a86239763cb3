"""The networks of a trial, their optimizers, and one training step.

A step compresses its batch once: the critics are updated `n_critic` times on those compressed tokens, each time against
newly drawn real tokens and newly drawn mixes, then compressor and decoder are updated through the same graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tokconv.config.tree import Config
from tokconv.errors import DivergedError
from tokconv.models.compressor import Compressor
from tokconv.models.decoder import Decoder
from tokconv.models.network import Scaled
from tokconv.store.reader import TokenStore
from tokconv.system.devices import resolve_dtype
from tokconv.training.adversary import Adversaries
from tokconv.training.averaging import Averages
from tokconv.training.losses.terms import LossTerm, loss_terms
from tokconv.training.networks import TokenShape, build_networks, select_grid
from tokconv.training.workers import SINGLE_PROCESS, Workers

WARM_UP = 0.1
"""Share of all steps in which the learning rate rises from 0."""
LAST_LEARNING_RATE = 0.02
"""The learning rate falls linearly, from the first step on, to this share of it after the last one."""
_GOLDEN = 0x9E3779B1
"""2**32 over the golden ratio: products with small numbers lie far apart."""


def random_stream(seed: int, number: int) -> torch.Generator:
    """Return the random numbers of one step or epoch order of a run with this `training.seed`.

    Both are mixed into 32 bits, which is all that torch's CPU generator (mt19937) takes of a seed.
    """
    return torch.Generator().manual_seed((seed * _GOLDEN + number) % 2**32)


class Teacher(Protocol):
    """A frozen model that reads compressed tokens, and says how far it is from what it makes of all tokens."""

    name: str
    """Tells apart what it teaches: a run that is resumed needs the same."""

    def __call__(self, compressed_bKC: Tensor, images_b: Tensor, generator: torch.Generator, /) -> Tensor:
        """Return the mean distance over these images of the store, a scalar, from tokens in token units."""


class Autoencoder(nn.Module):
    """Compressor and decoder as one module: a generator update is one forward pass of it, and DDP wraps it."""

    leaves_unused: bool
    """Whether a step may leave parameters unused, such as those of the grids that were not drawn; DDP must know."""
    is_pulled: bool
    """Whether this step has critics."""
    pull: Callable[[Tensor], Tensor] | None
    """Called in the backward pass: the gradient that arrives at the compressed tokens -> the one that goes on to the
    compressor."""

    def __init__(self, compressor: Compressor, decoder: Decoder) -> None:
        super().__init__()
        self.compressor, self.decoder = compressor, decoder
        self.leaves_unused = len(compressor.grids) > 1
        self.is_pulled, self.pull = False, None
        # Compiled, the hook would be the one of the first step forever.
        self._listen = torch.compiler.disable(self._add_hook)

    def forward(self, standardised_BNC: Tensor) -> tuple[Tensor, Tensor]:
        """[B, N, C] -> compressed [B, K, C] and reconstructed [B, N, C], all standardised."""
        compressed = self.compressor.compress(standardised_BNC)
        if self.is_pulled and compressed.requires_grad:
            self._listen(compressed)
        return compressed, self.decoder.decode(compressed)

    def _add_hook(self, compressed: Tensor) -> None:
        compressed.register_hook(lambda gradient: gradient if self.pull is None else self.pull(gradient))


class Trainer:
    """Networks and optimizers of a trial: everything that a training step changes.

    Args:
        config: checked.
        store: gives the closed-form start and the scale of the tokens; no tokens are read from it. A `TokenShape` makes
            networks that start at random.
        device: where tensors live.
        wrap: `Runtime.wrap`.
        total_steps: length of the learning rate's schedule.
        workers: the group that takes each step together, and this process's place in it.
        teacher: its distance is a loss if `loss.weights.vlm` is above 0; None leaves that out, to time the other work.
    """

    def __init__(
        self,
        config: Config,
        store: TokenStore | TokenShape,
        *,
        device: torch.device,
        wrap: Callable[[nn.Module], nn.Module],
        total_steps: int,
        workers: Workers = SINGLE_PROCESS,
        teacher: Teacher | None = None,
    ) -> None:
        self.config, self.device, self.total_steps, self.workers = config, device, total_steps, workers
        self.teacher = teacher
        # One worker fits the closed-form start and stores it next to the tokens; the others read it from there.
        compressor, decoder, critic = workers.first_then_others(lambda: build_networks(config, store))
        self.compressor, self.decoder, self.critic = compressor.to(device), decoder.to(device), critic.to(device)
        self._autoencoder = Autoencoder(self.compressor, self.decoder)
        self._autoencode = wrap(self._autoencoder)
        self._adversaries = Adversaries(self.critic, config, wrap=wrap, workers=workers, autocast=self._autocast)
        # Fused: at 24 x 24 x 1024 tokens 4 to 6 % of a step on CPUs.
        self.autoencoder_optimizer = torch.optim.Adam(self._parameter_groups(), betas=(0.9, 0.95), fused=True)
        raw: dict[str, nn.Module] = {"compressor": self.compressor, "decoder": self.decoder}
        self._averages = Averages(raw, config.training.ema) if config.training.ema > 0 else None

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The networks that a checkpoint holds: those that are judged by their own names, so that every reader finds
        them there, and with averaged weights the raw ones, which training goes on with."""
        raw: dict[str, nn.Module] = {"compressor": self.compressor, "decoder": self.decoder}
        critic = {"critic": self.critic}
        if self._averages is None:
            return raw | critic
        return self._averages.networks | critic | {f"raw_{name}": network for name, network in raw.items()}

    @property
    def judged(self) -> tuple[Compressor, Decoder]:
        """The compressor and decoder that are evaluated and exported: with averaged weights if `training.ema` is on."""
        compressor, decoder = self.modules["compressor"], self.modules["decoder"]
        assert isinstance(compressor, Compressor)
        assert isinstance(decoder, Decoder)
        return compressor, decoder

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimizers that a checkpoint holds."""
        return {"autoencoder": self.autoencoder_optimizer, "critic": self._adversaries.optimizer}

    def take_config(self, config: Config) -> None:
        """Go on with a config that has the same networks and adversarial loss."""
        self.config = self._adversaries.config = config

    def step(self, tokens: Tensor, step: int, images: Tensor | None = None) -> dict[str, Tensor]:
        """Update the critics `n_critic` times, then compressor and decoder once.

        With W workers every random number is drawn for the whole batch of W * b images, and each worker takes its part.

        Args:
            tokens: [b, N, C] float32, this worker's part of the batch, in token units.
            step: counted from 0; together with `training.seed` it fixes every random number.
            images: [b] int64, their indices in the store, which a teacher needs.

        Returns:
            Scalars by name, detached; one process would get their mean over the workers.

        Raises:
            DivergedError: a loss or gradient is not finite; raised on every worker if it happens on one, before
                anything non-finite reaches compressor and decoder.
        """
        self._set_learning_rate(step)
        config = self.config
        generator = random_stream(config.training.seed, step)
        if len(self.compressor.grids) > 1:
            drawn = torch.randint(len(self.compressor.grids), (1,), generator=generator)
            select_grid(self.compressor, self.decoder, self.compressor.grids[int(drawn)])
        standardised = self.compressor.standardise(tokens.to(self.device, non_blocking=True))
        self._autoencoder.is_pulled = adversarial = config.loss.weights.wgan > 0
        with self._autocast():
            compressed, reconstructed = self._autoencode(standardised)
        figures: dict[str, Tensor] = {}
        checked: list[tuple[str, Tensor]] = []
        draw_real = partial(self._real, standardised, generator)
        if adversarial:
            figures |= self._adversaries.update(compressed.detach(), draw_real, generator, checked)
        terms = loss_terms(
            config.loss,
            compressed,
            reconstructed,
            standardised,
            windows=self.compressor.windows,
            generator=generator,
            workers=self.workers,
        )
        if config.loss.weights.vlm > 0 and self.teacher is not None:
            assert images is not None
            cells = self.compressor.standardise.restore(compressed.float())
            taught = partial(self.teacher, cells, images, generator)
            terms.append(LossTerm("vlm", config.loss.weights.vlm, taught))
        losses = [term.function() for term in terms]
        loss = torch.stack([term.weight * value for term, value in zip(terms, losses, strict=True)]).sum()
        pull = None
        if adversarial:
            share = self._adversarial_share(step)
            found, pull = self._adversaries.pull(compressed.detach(), draw_real, share, checked)
            figures |= found
        self.autoencoder_optimizer.zero_grad()
        self._autoencoder.pull = pull
        loss.backward()
        self._autoencoder.pull = None
        norm = nn.utils.clip_grad_norm_(self._autoencode.parameters(), config.training.grad_clip)
        self._check([*checked, ("the generator's loss", loss), ("the generator's gradient", norm)], step)
        self.autoencoder_optimizer.step()
        if self._averages is not None:
            self._averages.update(step)
        select_grid(self.compressor, self.decoder, config.model.compressor.output_grid_size)
        figures |= {f"train/{term.name}": value.detach() for term, value in zip(terms, losses, strict=True)}
        return {**figures, **self._adversaries.scales(pull), "train/gradient_norm": norm.detach()}

    def _adversarial_share(self, step: int) -> float:
        """Return 0 until `loss.wgan.start`, then a share that rises to 1 over as many steps again."""
        start = self.config.loss.wgan.start * self.total_steps
        return 1.0 if start == 0 else min(1.0, max(0.0, (step - start) / start))

    def _real(self, standardised: Tensor, generator: torch.Generator) -> Tensor:
        """Return [b, K, C]: this worker's part of the real tokens drawn for the whole batch."""
        size = len(standardised)
        first, total = self.workers.rank * size, self.workers.count * size
        return self.compressor.windows.sample(standardised, generator, first=first, total=total)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Group the parameters by their share of the learning rate, in the order of the networks."""
        scaled = (module for module in self._autoencode.modules() if isinstance(module, Scaled))
        shares = {parameter: share for module in scaled for parameter, share in module.learning_shares()}
        groups: dict[float, list[nn.Parameter]] = {1.0: []}
        for parameter in self._autoencode.parameters():
            groups.setdefault(shares.get(parameter, 1.0), []).append(parameter)
        return [{"params": parameters, "share": share} for share, parameters in groups.items()]

    def _set_learning_rate(self, step: int) -> None:
        warm = min(1.0, (step + 1) / (WARM_UP * self.total_steps + 1))
        now = warm * (1 - (1 - LAST_LEARNING_RATE) * step / self.total_steps)
        for group in self.autoencoder_optimizer.param_groups:
            group["lr"] = self.config.training.learning_rate * group["share"] * now
        for group in self._adversaries.optimizer.param_groups:
            # A critic that slows down with the compressor stops seeing what the compressor learns.
            constant = self.config.training.critic_schedule == "constant"
            group["lr"] = self._adversaries.learning_rate * (warm if constant else now)

    def _check(self, terms: Sequence[tuple[str, Tensor]], step: int) -> None:
        """Raise DivergedError on all workers if a term is not finite on any of them.

        It is called after the last backward pass: a worker that left earlier would keep the others waiting for its
        gradients forever. It is called once per step, because it waits for the device.
        """
        values = self.workers.mean(torch.stack([value.detach() for _, value in terms]))
        for (term, _), finite in zip(terms, torch.isfinite(values).tolist(), strict=True):
            if not finite:
                raise DivergedError(term, step)

    def _autocast(self) -> AbstractContextManager[None]:
        dtype = resolve_dtype(self.config.training.precision, self.device)
        return torch.autocast(self.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)
