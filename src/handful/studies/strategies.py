"""How the next trial of a search is chosen: at random, from a grid, or by Optuna.

A proposal depends on the run's seed, its number and the trials before it, and on nothing that is kept in memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from math import prod
from typing import Any, final

import torch

from handful.errors import ConfigError
from handful.methods.search_space import Interval, SearchSpace
from handful.randomness import stream
from handful.studies.trials import SearchSettings, Trial

STARTUP_TRIALS = 5
"""Trials, the preset's among them, before Optuna models them or gives one up. Its own ten are more than many searches
here have in all."""

WARMUP_TENTHS = 3
"""Tenths of its run that a trial has before it may be given up. Ours: the rate has risen and begun to fall by then."""

Overrides = dict[str, Any]


class AbstractStrategy(ABC):
    """Proposes the trials of one search after the first, whose values `start` are the preset's."""

    def __init__(self, settings: SearchSettings, space: SearchSpace, start: Overrides, *, seed: int, maximise: bool):
        self.settings, self.space, self.start = settings, space, start
        self.seed, self.maximise = seed, maximise

    @abstractmethod
    def propose(self, trials: Sequence[Trial]) -> Overrides | None:
        """What to try next; None when there is nothing left."""

    def gives_up(self, tenth: int, score: float) -> bool:
        """Whether the trial proposed last should end here, with this score on dev after a tenth of its run."""
        del tenth, score
        return False

    def draws(self, number: int) -> torch.Generator:
        """The random stream of a trial's proposal."""
        return stream(self.seed, f"search/{number}")


@final
class RandomStrategy(AbstractStrategy):
    """Every setting drawn by itself, uniformly."""

    def propose(self, trials: Sequence[Trial]) -> Overrides:
        shares = torch.rand(len(self.space), generator=self.draws(len(trials)), dtype=torch.float64).tolist()
        return {name: dim.at(share) for (name, dim), share in zip(self.space.items(), shares, strict=True)}


@final
class GridStrategy(AbstractStrategy):
    """Every combination of all values, in order; the combination of the preset's own values is the first trial."""

    def __init__(self, settings: SearchSettings, space: SearchSpace, start: Overrides, *, seed: int, maximise: bool):
        super().__init__(settings, space, start, seed=seed, maximise=maximise)
        intervals = [name for name, dimension in space.items() if isinstance(dimension, Interval)]
        if intervals and settings.points is None:
            raise ConfigError(
                f"a grid over {intervals[0]!r} needs a number of points, found none",
                'set `points`, give a list of values, or use strategy "random"',
            )
        axes = [dimension.grid(settings.points or 0) for dimension in space.values()]
        on_grid = all(value in axis for value, axis in zip(start.values(), axes, strict=True))
        needed = prod(map(len, axes)) + (not on_grid)
        if needed > settings.trials:
            raise ConfigError(
                f"trials: the grid and the preset's own values make {needed}, found {settings.trials}",
                "raise `trials`, give fewer values, or use another strategy",
            )
        points = (dict(zip(space, values, strict=True)) for values in product(*axes))
        self.grid = [point for point in points if point != start]

    def propose(self, trials: Sequence[Trial]) -> Overrides | None:
        return self.grid[len(trials) - 1] if len(trials) <= len(self.grid) else None


@final
class OptunaStrategy(AbstractStrategy):
    """Optuna's tree-structured Parzen estimator, and its median rule for giving trials up (Akiba et al. 2019).

    The study is made anew for each proposal from the trials so far: there is no state that a journal would not hold.
    """

    def __init__(self, settings: SearchSettings, space: SearchSpace, start: Overrides, *, seed: int, maximise: bool):
        super().__init__(settings, space, start, seed=seed, maximise=maximise)
        self.optuna = import_optuna()
        self.trial: Any = None
        kinds = self.optuna.distributions
        self.distributions: dict[str, Any] = {}
        for name, dimension in space.items():
            if isinstance(dimension, Interval):
                distribution = kinds.FloatDistribution(dimension.low, dimension.high, log=dimension.log)
            elif dimension.ordered:  # of values Optuna gets the places: it knows neither tuples nor uneven steps
                distribution = kinds.IntDistribution(0, len(dimension.values) - 1)
            else:
                distribution = kinds.CategoricalDistribution(range(len(dimension.values)))
            self.distributions[name] = distribution

    def propose(self, trials: Sequence[Trial]) -> Overrides:
        number = len(trials)
        seed = int(torch.randint(2**31, (), generator=self.draws(number)))
        optuna = self.optuna
        with self._quiet():
            study = optuna.create_study(
                direction="maximize" if self.maximise else "minimize",
                sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS),
                pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=WARMUP_TENTHS),
            )
            study.add_trials([self._told(trial) for trial in trials])
            self.trial = study.ask(self.distributions)
        places = self.trial.params
        return {
            name: dim.near(places[name]) if isinstance(dim, Interval) else dim.values[places[name]]
            for name, dim in self.space.items()
        }

    def gives_up(self, tenth: int, score: float) -> bool:
        if self.trial is None or not self.settings.prune:
            return False
        self.trial.report(score, tenth)
        return bool(self.trial.should_prune())

    def _told(self, trial: Trial) -> Any:
        """A trial in Optuna's terms. Values outside the space, which the preset may have, cannot be told."""
        values = {**self.start, **trial.overrides}
        places = {
            name: values[name] if isinstance(dimension, Interval) else dimension.values.index(values[name])
            for name, dimension in self.space.items()
            if values[name] in dimension
        }
        states = self.optuna.trial.TrialState
        return self.optuna.trial.create_trial(
            state={"done": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}[trial.status],
            value=trial.score if trial.status == "done" else None,
            params=places,
            distributions={name: self.distributions[name] for name in places},
            intermediate_values=dict(trial.curve),
        )

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Without Optuna's line for every study that is made."""
        logs = self.optuna.logging
        before = logs.get_verbosity()
        logs.set_verbosity(logs.WARNING)
        try:
            yield
        finally:
            logs.set_verbosity(before)


def import_optuna() -> Any:
    """The optuna package. Raises: ConfigError where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            f"search strategy 'optuna' needs Optuna, which cannot be imported: {error}",
            "pip install 'handful[search]', or use strategy \"random\"",
        ) from None
    return optuna


STRATEGIES: dict[str, Callable[..., AbstractStrategy]] = {
    "random": RandomStrategy,
    "grid": GridStrategy,
    "optuna": OptunaStrategy,
}
"""By the names of `SearchSettings.strategy`."""
