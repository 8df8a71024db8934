"""What routed skills learn from tasks whose skills are known: checks 13 and 14, as far as they hold.

What does not hold, and the numbers, are in docs/methods/poly.md.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from handful.backbone.tiny import tiny_backbone
from handful.data.latent_skills import latent_skills
from handful.data.mixture import mix_tasks
from handful.evaluation.evaluate import encode_for
from handful.methods.poly.method import Poly
from handful.methods.poly.routing_measures import skill_weights, task_similarity
from handful.training.config import TrainingConfig
from handful.training.fit import fit

POLY_S = {"num_skills": 6, "rank": 2, "num_splits": 4}
SHARED = {"routing": "shared", "rank": 12}  # as many numbers
UNSEEN, SHOTS = 32, 32  # rows of seen tasks that are not trained on; rows of held-out tasks that are


class Suite:
    """Ten tasks of three of six skills on a tiny BERT, and three held-out ones."""

    def __init__(self, seed, rows):
        self.seed = seed
        self.skills = latent_skills(np.random.default_rng(seed), num_held_out=3, rows=rows + UNSEEN, test_rows=0)
        self.seen, self.unseen = (
            mix_tasks("many", [replace(task, pool=task.pool[part]) for task in self.skills.tasks])
            for part in (slice(rows), slice(rows, None))
        )
        self.backbone = tiny_backbone("bert", seed=seed)

    def generator(self):
        return torch.Generator().manual_seed(self.seed)

    def pretrain(self, **settings):
        """The state of an inventory, its report, and its losses of seen and of unseen rows."""
        adapter = Poly(**settings).attach(self.backbone, self.seen, generator=self.generator())
        config = TrainingConfig(epochs=8, learning_rate=5e-3, head_learning_rate=1e-3, batch_size=32)
        self.train(adapter, self.seen, self.seen.pool, config)
        losses = [self.loss(adapter, task, task.pool) for task in (self.seen, self.unseen)]
        state = {name: tensor.detach().clone() for name, tensor in adapter.state_dict().items()}
        record = {"adapter": adapter.report()}
        adapter.detach()
        return state, record, losses

    def adapt(self, state, record, epochs=8, **settings):
        """Mean loss of the held-out tasks' other rows, each task adapted by itself to its first rows."""
        method, losses = Poly(head_start="label-text", **settings), []
        config = TrainingConfig(epochs=epochs, learning_rate=2e-3, head_learning_rate=1e-3, batch_size=8)
        for task in self.skills.held_out:
            adapter = method.attach(self.backbone, task, generator=self.generator())
            self.train(adapter, task, task.pool[:SHOTS], config, adapter.carry(state, record))
            losses.append(self.loss(adapter, task, task.pool[SHOTS:]))
            adapter.detach()
        return float(np.mean(losses))

    def train(self, adapter, task, rows, config, initial=None):
        encoded, generator = encode_for(adapter, rows, task, 64), self.generator()
        fit(adapter, encoded, None, config, kind=task.kind, metric="accuracy", generator=generator, initial=initial)

    @torch.no_grad()
    def loss(self, adapter, task, rows):
        encoded = encode_for(adapter, rows, task, 64)
        batch = encoded.batch(range(len(encoded)))
        return float(nn.functional.cross_entropy(adapter(batch), batch.labels))

    def recovery(self, state):
        """Rank correlation, over pairs of tasks, of their likeness by routing with that by their true skills."""
        truth = self.skills.truth - self.skills.truth.mean(0)
        truth = truth / np.linalg.norm(truth, axis=1, keepdims=True)
        pairs = np.triu_indices(len(truth), 1)
        likeness = task_similarity(skill_weights(state["routing.logits"].double())).numpy()
        return spearmanr(likeness[pairs], (truth @ truth.T)[pairs]).statistic


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_check_13_a_fast_router_recovers_planted_skills_better_than_a_slow_one(seed):
    suite = Suite(seed, rows=128)
    fast, slow = suite.pretrain(**POLY_S), suite.pretrain(**POLY_S, routing_rate=1.0)
    assert suite.recovery(fast[0]) > max(0.7, suite.recovery(slow[0]))
    assert fast[2][1] < 0.5 * slow[2][1]  # rows that it has not seen


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_check_14_seen_tasks_are_learned_better_than_by_one_lora_and_z_better_than_the_untouched_average(seed):
    suite = Suite(seed, rows=48)
    _, _, shared = suite.pretrain(**SHARED)
    state, record, routed = suite.pretrain(**POLY_S)
    assert routed[0] < shared[0] and routed[1] < shared[1]
    untouched = suite.adapt(state, record, epochs=0, adapt="mu", **POLY_S)
    z, full = (suite.adapt(state, record, adapt=adapt, **POLY_S) for adapt in ("z", "full"))
    assert max(z, full) < untouched
