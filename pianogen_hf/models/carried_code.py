"""Models whose checkpoints carry their code, so that they load where this package is not installed.

With `trust_remote_code=True` the Auto classes look into `auto_map` of config.json for the name of a class, and run the
files beside it. What transformers itself writes there (`register_for_auto_class`) is the saved class alone, and under
FSDP2 the class that torch made of it, with a file of torch. Here it is every Auto class that the architecture serves.
"""

import inspect
import shutil
import sys
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.dynamic_module_utils import get_relative_import_files

TASK = "midi-generation"


class CarriesCode:
    """Mixin, to stand before [`PreTrainedModel`] or a subclass of it: `save_pretrained` writes code files, too.

    It asks for the names that transformers uses: `configuration_x.py` and `modeling_x.py`, which import only their
    siblings (`from .y import z`) and what users have; `XConfig`, `XModel`, `XForCausalLM` ...
    """

    config: Any

    def save_pretrained(self, save_directory: Any, is_main_process: bool = True, *args: Any, **kwargs: Any) -> None:
        """Save weights, configuration and code; arguments as for [`PreTrainedModel`]."""
        # A class that was made of one of ours, by torch or in a notebook, is loaded as the one that it was made of.
        carrier = next((each for each in type(self).__mro__ if auto_class(each)), None)
        if carrier is not None and not Path(save_directory).is_file():
            self.config.auto_map = auto_map(carrier)
            if tasks := pipelines(carrier.__name__):
                self.config.custom_pipelines = tasks
            if is_main_process:
                copy_code(carrier, save_directory)
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)  # type: ignore[misc]


def auto_class(model_class: type) -> str | None:
    """The Auto class that a model is loaded by: `AutoModelForCausalLM` for `XForCausalLM`, `AutoModel` for `XModel`.

    None for classes that are no models to load: bases, and those that no `modeling_x.py` defines.
    """
    name, module = model_class.__name__, model_class.__module__.rpartition(".")[2]
    if not issubclass(model_class, PreTrainedModel) or not module.startswith("modeling_"):
        return None
    _, is_head, task = name.partition("For")
    if is_head:
        return f"AutoModelFor{task}"
    return "AutoModel" if name.endswith("Model") and not name.endswith("PreTrainedModel") else None


def auto_map(model_class: type[PreTrainedModel]) -> dict[str, str]:
    """What config.json is to tell of an architecture: each Auto class with the file and class that serve it."""
    module = sys.modules[model_class.__module__]
    classes = [each for _, each in inspect.getmembers(module, inspect.isclass) if each.__module__ == module.__name__]
    loaded_by = {name: reference(each) for each in classes if (name := auto_class(each)) is not None}
    return {"AutoConfig": reference(model_class.config_class), **loaded_by}  # type: ignore[arg-type]


def pipelines(architecture: str) -> dict[str, Any]:
    """What config.json is to tell of pipelines: of a model that writes from left to right, that of music."""
    if not architecture.endswith("ForCausalLM"):
        return {}
    implementation = "pipeline_midi_generation.MidiGenerationPipeline"
    return {TASK: {"impl": implementation, "pt": ["AutoModelForCausalLM"], "type": "multimodal"}}


def pipeline_class() -> type:
    """The pipeline of music; imported here and no sooner, because pipelines bring in half of transformers."""
    from .pipeline_midi_generation import MidiGenerationPipeline

    return MidiGenerationPipeline


def reference(part: type) -> str:
    """A class as `auto_map` names it: "modeling_x.XModel"."""
    return f"{part.__module__.rpartition('.')[2]}.{part.__name__}"


def code_files(part: type) -> list[Path]:
    """The file that defines a class, and all siblings that it needs."""
    path = inspect.getfile(part)
    return sorted({Path(each) for each in (path, *get_relative_import_files(path))})


def copy_code(part: type, folder: Any) -> list[str]:
    """Copy the files that a class needs into a folder, which is made if need be; returns their names."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = code_files(part)
    for path in paths:
        shutil.copyfile(path, Path(folder, path.name))
    return [path.name for path in paths]
