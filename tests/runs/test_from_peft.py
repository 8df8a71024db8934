"""Inventories that PEFT has saved, to start from: the same scores as PEFT's own, or a clear refusal."""

import json
from dataclasses import replace

import pytest
import torch
from peft import PolyConfig, get_peft_model
from safetensors.torch import load_file, save_file

from handful.backbone.tiny import tiny_backbone, tiny_model
from handful.data.mixture import mix_tasks
from handful.data.split import Split
from handful.errors import ConfigError, RunError
from handful.methods.poly.method import Poly
from handful.methods.prefix import Prefix
from handful.runs.inventory import inherited
from handful.runs.seen import start_notes
from handful.runs.start import carried_over, read_start
from handful.testing import toy_task

NAMES = ("ants", "bees", "cats")


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)  # noqa: TID251 - PEFT draws from the global stream
    targets = ["query", "key", "value"]  # in files they stand in another order than in the model
    config = PolyConfig(r=2, n_tasks=3, n_skills=4, n_splits=2, target_modules=targets, init_weights=False)
    model = get_peft_model(tiny_model("bert"), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "router" in name:
                parameter.normal_()
    model.save_pretrained(tmp_path / "peft")
    return model, tmp_path / "peft"


def started(folder, task, backbone, **settings):
    start = read_start(folder)
    given = {name.removeprefix("method."): value for name, value in inherited(start).items()} | settings
    adapter = Poly(**given).attach(backbone, task, generator=torch.Generator().manual_seed(0)).eval()
    adapter.load_state_dict(adapter.state_dict() | carried_over(start, adapter))
    return adapter


def test_every_task_has_the_states_that_peft_gives_it(saved):
    model, folder = saved
    backbone = tiny_backbone("bert")
    adapter = started(folder, mix_tasks("all", [replace(toy_task(), name=name) for name in NAMES]), backbone)
    ids = backbone.tokenizer(["abca", "wxyz", "zabc"], return_tensors="pt", padding=True)
    with torch.no_grad():
        theirs = model.base_model(**ids, task_ids=torch.tensor([2, 0, 1])).last_hidden_state
        adapter.skills.install(adapter.weights([2, 0, 1]), torch.arange(3))
        ours = backbone.model(**ids).last_hidden_state
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_average_skill_is_the_start_of_a_single_task(saved):
    model, folder = saved
    backbone = tiny_backbone("bert")
    adapter = started(folder, toy_task(), backbone)
    assert sum(p.numel() for n, p in adapter.named_parameters() if n.startswith("skills.")) == 9 * 2 * 2 * 64
    down = adapter.state_dict()["skills.parts.encoder__layer__0__attention__self__query__down"]
    theirs = model.base_model.model.encoder.layer[0].attention.self.query.poly_lora_A["default"]
    torch.testing.assert_close(down[0, 0], theirs.mean(1).flatten(0, 1))


def test_a_checkpoint_in_bfloat16_can_be_started_from(saved):
    _, folder = saved
    path = folder / "adapter_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    adapter = started(folder, toy_task(), tiny_backbone("bert"))
    assert all(parameter.dtype == torch.float32 for parameter in adapter.parameters())
    assert len(read_start(folder).key) == 64


def test_the_model_that_it_was_made_for_is_told(saved):
    _, folder = saved
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "someone/bert"}))
    notes = start_notes(read_start(folder), Split(toy_task(), 8, 0, dev="none"))
    assert any("for the model someone/bert" in note for note in notes)


def test_another_method_size_or_file_is_refused(saved, tmp_path):
    _, folder = saved
    backbone = tiny_backbone("bert")
    start = read_start(folder)
    with pytest.raises(ConfigError, match="an inventory of skills, from which this run cannot start"):
        carried_over(start, Prefix().attach(backbone, toy_task(), generator=torch.Generator()))
    with pytest.raises(ConfigError, match="the skills to start from are not those of this run"):
        started(folder, toy_task(), backbone, rank=3)
    config = json.loads((folder / "adapter_config.json").read_text())
    del config["n_splits"]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match="expected n_splits in an adapter of the type POLY, found none"):
        read_start(folder)
    (folder / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(RunError, match=r"expected adapter_config.json and adapter_model.safetensors"):
        read_start(folder)
