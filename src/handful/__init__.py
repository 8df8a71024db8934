"""Fine-tune a language model on a handful of examples, know how good it really is, and take the result anywhere.

The public names are imported on first use, so that `import handful` imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from handful.api import fit, load
    from handful.backbone.load import load_backbone
    from handful.data.files import read_task
    from handful.data.open import open_task
    from handful.data.split import Split
    from handful.data.task import Example, Task, TestRows
    from handful.errors import ConfigError, DataError, HandfulError, ModelError, RunError
    from handful.estimators import FewShotClassifier, FewShotRegressor
    from handful.evaluation.estimate import Estimate
    from handful.methods.head import Head
    from handful.methods.prefix import Prefix
    from handful.methods.prefix_subspace import PrefixSubspace
    from handful.methods.simplex import Simplex
    from handful.methods.subspace import subspace
    from handful.training.config import TrainingConfig

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "DataError",
    "Estimate",
    "Example",
    "FewShotClassifier",
    "FewShotRegressor",
    "HandfulError",
    "Head",
    "ModelError",
    "Prefix",
    "PrefixSubspace",
    "RunError",
    "Simplex",
    "Split",
    "Task",
    "TestRows",
    "TrainingConfig",
    "__version__",
    "fit",
    "load",
    "load_backbone",
    "open_task",
    "read_task",
    "subspace",
]

_HOMES = {
    "handful.api": ("fit", "load"),
    "handful.backbone.load": ("load_backbone",),
    "handful.data.files": ("read_task",),
    "handful.data.open": ("open_task",),
    "handful.data.split": ("Split",),
    "handful.data.task": ("Example", "Task", "TestRows"),
    "handful.errors": ("ConfigError", "DataError", "HandfulError", "ModelError", "RunError"),
    "handful.estimators": ("FewShotClassifier", "FewShotRegressor"),
    "handful.evaluation.estimate": ("Estimate",),
    "handful.methods.head": ("Head",),
    "handful.methods.prefix": ("Prefix",),
    "handful.methods.prefix_subspace": ("PrefixSubspace",),
    "handful.methods.simplex": ("Simplex",),
    "handful.methods.subspace": ("subspace",),
    "handful.training.config": ("TrainingConfig",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(globals().keys() | set(__all__))
