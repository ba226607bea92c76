"""Makes the models and tokenizers known to the Auto classes of transformers, and no sooner than those are loaded.

Registering takes the classes themselves, and they take torch: seconds that neither `import pianogen_hf` nor `--help`
should cost. So an import hook waits for the Auto classes; where they are loaded already, it does not have to wait.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, NoReturn

_AUTO = tuple(f"transformers.models.auto.{name}_auto" for name in ("configuration", "modeling", "tokenization"))
_PIPELINES = ("transformers.pipelines",)
_WATCHED = ("transformers.", "pianogen_hf.")


def register() -> None:
    """Register every exported config, model, tokenizer and feature extractor, as their names tell."""
    import transformers as hf

    import pianogen_hf as pg
    from pianogen_hf.models.carried_code import auto_class

    for config_class in exported(hf.PreTrainedConfig):
        hf.AutoConfig.register(config_class.model_type, config_class)
        config_class.custom_pipelines = _UnreadTasks()
    for model_class in exported(hf.PreTrainedModel):
        getattr(hf, str(auto_class(model_class))).register(model_class.config_class, model_class)
    # Models of rows share one feature extractor.
    for config_class in {each.config_class for each in exported(hf.PreTrainedModel) if _takes_rows(each)}:
        hf.AutoFeatureExtractor.register(config_class, pg.ContinuousNotesFeatureExtractor)
        hf.AutoTokenizer.register(config_class, tokenizer_class=_NoTokenizer)
    # Any tokenizer serves any model: AutoTokenizer finds it by the class name in tokenizer_config.json. Registered with
    # our configs, it would also be found where that file is missing, and give way to code in a checkpoint.
    no_model = type("NoModelConfig", (hf.PreTrainedConfig,), {})
    for tokenizer_class in exported(pg.NoteTokenizer):
        hf.AutoTokenizer.register(no_model, tokenizer_class=tokenizer_class, exist_ok=True)


def exported(base: type) -> list[Any]:
    """The exported classes that derive from a base, by name."""
    import pianogen_hf as pg

    parts = (getattr(pg, name) for name in pg.__all__)
    return [part for part in parts if isinstance(part, type) and issubclass(part, base) and part is not base]


def _takes_rows(model_class: Any) -> bool:
    return model_class.main_input_name == "input_values"


class _UnreadTasks:
    """Pipelines that a checkpoint names and carries: kept and saved, but not read where the package has them itself.

    `pipeline` of transformers would else run the checkpoint's code for them, and nothing but that.
    """

    def __get__(self, config: Any, config_class: type | None = None) -> dict[str, Any]:
        return {}

    def __set__(self, config: Any, tasks: dict[str, Any]) -> None:
        config.__dict__["custom_pipelines"] = tasks


def register_pipeline() -> None:
    """Register the pipeline of music."""
    from transformers import AutoModelForCausalLM
    from transformers.pipelines import PIPELINE_REGISTRY

    from pianogen_hf.models.carried_code import TASK, pipeline_class

    if TASK not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(TASK, pipeline_class(), AutoModelForCausalLM, type="multimodal")


class _NoTokenizer:
    """What AutoTokenizer finds for models that read no text: its own error would ask for sentencepiece."""

    @classmethod
    def from_pretrained(cls, name: str, *args: Any, **kwargs: Any) -> NoReturn:
        raise ValueError(
            f"{name} has no tokenizer, and no text pipeline fits it: its notes are numbers. "
            "AutoFeatureExtractor.from_pretrained gives what makes them, and model.generate continues them"
        )


def register_when_loaded() -> None:
    """Register now what can be, because the modules that know it are loaded, and the rest as soon as they are."""
    registrar = _Registrar([(_AUTO, register), (_PIPELINES, register_pipeline)])
    sys.meta_path.insert(0, registrar)
    registrar.act_where_loaded()


class _Registrar(MetaPathFinder):
    """Finds modules as Python does, and registers after the import that brought in those it waits for.

    Modules of transformers load the Auto classes while they are half imported themselves, and our models need them
    whole: the moment has come when the outermost import, theirs or ours, ends.

    Args:
        pending: modules that are waited for, and what to do, once, when one of them is loaded.
    """

    def __init__(self, pending: list[tuple[Sequence[str], Callable[[], None]]]) -> None:
        self.pending = pending

    def act_where_loaded(self) -> None:
        """Do what is to be done; go where nothing is left."""
        ready = [each for each in self.pending if any(name in sys.modules for name in each[0])]
        self.pending = [each for each in self.pending if each not in ready]
        if not self.pending and self in sys.meta_path:
            sys.meta_path.remove(self)
        for _, act in ready:
            act()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(_WATCHED):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path and _is_outermost(fullname):
                self.act_where_loaded()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def _is_outermost(fullname: str) -> bool:
    """Whether no other watched module is being imported."""
    others = [module for name, module in list(sys.modules.items()) if name.startswith(_WATCHED) and name != fullname]
    return not any(getattr(getattr(module, "__spec__", None), "_initializing", False) for module in others)
