"""Our adapter is a plain module: it trains under the HF `Trainer`, which knows nothing of simplexes."""

import torch
from transformers import Trainer, TrainingArguments

from handful.backbone.tiny import tiny_backbone
from handful.data.batching import encode
from handful.methods.prefix_subspace import PrefixSubspace
from handful.testing import copy_of, differences, toy_task
from handful.training.fit import batch_loss


class WithLoss(torch.nn.Module):
    """What the Trainer asks for: a forward that returns the loss. The points of the simplex come from `draws`."""

    def __init__(self, adapter, draws):
        super().__init__()
        self.adapter, self.draws = adapter, draws

    def forward(self, batch):
        scores = self.adapter(batch, self.adapter.draw(batch, self.draws))
        return {"loss": batch_loss(scores, batch, self.adapter, "classification"), "logits": scores}


def test_a_prefix_subspace_trains_under_the_hf_trainer(tmp_path):
    backbone, task = tiny_backbone("bert"), toy_task()
    rows = encode(task.pool, backbone.tokenizer, 64, kind=task.kind)
    adapter = PrefixSubspace(prefix_length=3, head_init="normal").attach(
        backbone, task, generator=torch.Generator().manual_seed(0)
    )
    base, start = copy_of(backbone.model.state_dict()), copy_of(adapter.state_dict())
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=15,
        per_device_train_batch_size=8,
        learning_rate=0.02,
        logging_steps=3,
        remove_unused_columns=False,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=WithLoss(adapter, torch.Generator().manual_seed(1)),
        args=arguments,
        train_dataset=range(len(rows)),  # pyright: ignore[reportArgumentType]
        data_collator=lambda indices: {"batch": rows.batch(indices)},
    )
    trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    assert len(losses) == 15 and sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert set(differences(start, adapter.state_dict())) == set(dict(adapter.named_parameters()))
    assert not differences(base, backbone.model.state_dict())
    (saved,) = tmp_path.glob("checkpoint-45/model.safetensors")  # the adapter alone
    assert saved.stat().st_size < 4 * sum(p.numel() for p in adapter.parameters()) + 2000
